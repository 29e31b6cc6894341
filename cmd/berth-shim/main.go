// SPDX-License-Identifier: Apache-2.0

// The Go runtime need not watch the CPU limit of the shim's cgroup, which costs two open files and a look at them now and
// then: one thread at a time is enough.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command berth-shim is the parent process of a pod's containers. The daemon starts it; people have no
// need to.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/berth-run/berth/internal/shim"
	"github.com/berth-run/berth/internal/shim/foreign"
)

// version is set by the build.
var version = "dev"

const usage = `usage: berth-shim serve --dir DIR   serve a pod; descriptors 3 and 4 are listening unix sockets
       berth-shim pause             be PID 1 of a shared PID namespace
       berth-shim env COMMAND       run a command with the environment that comes encoded
       berth-shim task --shim P …   run containers through another shim, with an OCI runtime's command line
       berth-shim -namespace N -address A -id ID ACTION   be a shim of containerd's, by the program containerd-shim-berth-v1 beside this one
       berth-shim --version
`

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	switch {
	case len(args) == 1 && args[0] == "--version":
		fmt.Println("berth-shim " + version)
		return 0
	case len(args) == 1 && args[0] == "pause":
		shim.Pause()
		return 0
	case len(args) > 0 && args[0] == "env":
		code, err := shim.Env(args[1:])
		fmt.Fprintln(os.Stderr, "berth-shim env:", err)
		return code
	case len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0][1] != '-':
		return handOver()
	case len(args) > 0 && args[0] == "task":
		return foreign.Main(args[1:])
	case len(args) > 0 && args[0] == "serve":
		dir, ok := dirFlag(args[1:])
		if !ok {
			break
		}
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := shim.Serve(shim.Config{Dir: dir, Version: version, Log: log}); err != nil {
			log.Error("shim ends", "err", err)
			return 1
		}
		return 0
	}
	fmt.Fprint(os.Stderr, usage)
	return 2
}

// handOver becomes the program that speaks containerd's command line, whose flags have one dash. It returns only when it cannot.
func handOver() int {
	self, err := os.Executable()
	if err == nil {
		path := filepath.Join(filepath.Dir(self), "containerd-shim-berth-v1")
		err = &os.PathError{Op: "run", Path: path, Err: syscall.Exec(path, os.Args, os.Environ())}
	}
	fmt.Fprintln(os.Stderr, "berth-shim:", err)
	return 1
}

// dirFlag takes --dir DIR or --dir=DIR; package flag would cost every pod some pages.
func dirFlag(args []string) (string, bool) {
	switch {
	case len(args) == 2 && args[0] == "--dir":
		return args[1], args[1] != ""
	case len(args) == 1:
		dir, ok := strings.CutPrefix(args[0], "--dir=")
		return dir, ok && dir != ""
	}
	return "", false
}

// SPDX-License-Identifier: Apache-2.0

// Package bootstrap makes our shim one of containerd's: it takes the command line with which containerd starts a shim, asks about it and cleans
// up after it. What it starts is served by internal/shim. Only
// cmd/containerd-shim-berth-v1 uses it.
package bootstrap

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/berth-run/berth/internal/shim"
)

// serveAction is of the process that `start` leaves.
const serveAction = "serve"

// maxInput bounds what is read from containerd: options with a runtime's whole configuration in them, at most.
const maxInput = 4 << 20

// invocation is a command line.
type invocation struct {
	values    map[string]string
	info      bool
	version   bool
	action    string
	ourselves string // the build's version
}

// valued are the flags with a value; socket and events are our own, of the process that serves.
var valued = []string{"namespace", "address", "publish-binary", "id", "bundle", "socket", "events"}

func parse(args []string) (invocation, error) {
	inv := invocation{values: map[string]string{}}
	for i := 0; i < len(args); i++ {
		name, dashed := strings.CutPrefix(args[i], "-")
		if !dashed {
			if inv.action != "" {
				return inv, fmt.Errorf("argument %q is one too many", args[i])
			}
			inv.action = args[i]
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(name, "-"), "=")
		switch {
		case name == "debug":
		case name == "info":
			inv.info = true
		case name == "v" || name == "version":
			inv.version = true
		case !contains(valued, name):
			return inv, fmt.Errorf("flag -%s is not known", name)
		case given:
			inv.values[name] = value
		default:
			if i++; i == len(args) {
				return inv, fmt.Errorf("flag -%s wants a value", name)
			}
			inv.values[name] = args[i]
		}
	}
	return inv, nil
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

// Main runs one invocation and returns the exit code.
func Main(args []string, version string) int {
	inv, err := parse(args)
	inv.ourselves = version
	if err == nil {
		err = inv.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-berth-v1:", err)
		return 1
	}
	return 0
}

func (inv invocation) run() error {
	switch {
	case inv.version:
		fmt.Fprintf(os.Stdout, "%s:\n  Version:  %s\n", filepath.Base(os.Args[0]), inv.ourselves)
		return nil
	case inv.info:
		return inv.tell(os.Stdin, os.Stdout)
	case inv.action == shim.MountAction:
		return shim.MountFrom(os.Stdin)
	case inv.action == serveAction:
		return shim.ServeContainerd(shim.ContainerdConfig{
			Socket: inv.values["socket"], Namespace: inv.values["namespace"], Events: inv.values["events"], Version: inv.ourselves,
			Log: slog.New(slog.NewTextHandler(patient{}, nil)),
		})
	}
	if err := checkName("-namespace", inv.values["namespace"]); err != nil {
		return err
	}
	if err := checkName("-id", inv.values["id"]); err != nil {
		return err
	}
	switch inv.action {
	case "start":
		return inv.start(os.Stdin, os.Stdout)
	case "delete":
		return inv.delete(os.Stdout)
	}
	return fmt.Errorf("action %q is not known: start and delete are", inv.action)
}

// checkName refuses what is no plain file name: it becomes part of paths.
func checkName(flag, name string) error {
	if name == "" || name[0] == '.' || strings.ContainsAny(name, "/\x00") || len(name) > 128 {
		return fmt.Errorf("%s %.200q is not acceptable", flag, name)
	}
	return nil
}

// patient writes to stderr, which is the FIFO of containerd's that takes the shim's log, and drops what nobody takes: a containerd that is away
// must not hold up its containers.
type patient struct{}

func (patient) Write(p []byte) (int, error) {
	if _, err := syscall.Write(syscall.Stderr, p); err != nil && !errors.Is(err, syscall.EAGAIN) {
		return 0, err
	}
	return len(p), nil
}

func readInput(from io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(from, maxInput+1))
	if err == nil && len(data) > maxInput {
		err = fmt.Errorf("more than %d bytes", maxInput)
	}
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	return data, nil
}

// SPDX-License-Identifier: Apache-2.0

// Package foreign makes any containerd shim look like an OCI runtime: `berth-shim task` takes runc's command line and drives, by containerd's
// bootstrap protocol and Task v2 or v3, the shim that its options name. So a pod of a foreign runtime is a pod like any other: berth-shim serves it, writes its
// logs, keeps its exits, whether the daemon is there or not. Only cmd/berth-shim uses it.
//
// For each container, and each exec, one process stands for it (`run --detach` and `exec --detach` leave it): it carries the streams between
// our shim's pipes and the FIFOs that the protocol wants, waits for the end and ends with the same code. When the foreign shim dies, it ends, too.
package foreign

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// command is one invocation: our options, the OCI runtime's global ones, its command with its own.
type command struct {
	shim, config, binary string // the foreign shim's program, its configuration file, the OCI runtime that it shall run
	root, log            string
	// oci is, instead of a shim, an OCI runtime's program, with the options that come first on its command line; rest is what follows them.
	oci        string
	ociOptions []string
	rest       []string
	systemd    bool
	verb       string
	options    map[string]string
	force, all bool
	id         string
	signal     int
	// inherited are the descriptors from 3 on that we were given, the runtime's log and an exec's process among them, at their places; nil where
	// none is.
	inherited []*os.File
	// monitor: this is the process that stands for a container.
	monitor bool
}

// Main runs one command and returns the exit code.
func Main(args []string) int {
	inherited := inherit() // first: Go's poller takes descriptors, too
	c, err := parse(args)
	c.inherited = inherited
	if err == nil {
		var code int
		if code, err = c.run(); err == nil {
			return code
		}
	}
	c.complain(err)
	return 1
}

// inherit takes the descriptors that our shim gives an OCI runtime. They are named on the command line, so they keep their numbers for whom
// they are passed on to.
func inherit() []*os.File {
	files := make([]*os.File, lastInherited-2)
	for i := range files {
		fd := 3 + i
		if link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err == nil && !strings.HasPrefix(link, "anon_inode:") {
			syscall.CloseOnExec(fd)
			files[i] = os.NewFile(uintptr(fd), "inherited")
		}
	}
	return files
}

// complain writes the error where and how an OCI runtime does.
func (c *command) complain(err error) {
	fmt.Fprintln(os.Stderr, err)
	if c.log == "" {
		return
	}
	line, jsonErr := json.Marshal(map[string]string{"level": "error", "msg": err.Error()})
	f, openErr := os.OpenFile(c.log, os.O_WRONLY|os.O_APPEND, 0)
	if jsonErr != nil || openErr != nil {
		return // the error is on stderr
	}
	defer f.Close()
	_, _ = f.Write(append(line, '\n')) // the error is on stderr
}

// valued are the options with a value.
var valued = map[string]bool{"--shim": true, "--oci": true, "--oci-option": true, "--config": true, "--binary": true, "--root": true, "--log": true, "--log-format": true,
	"--bundle": true, "--pid-file": true, "--console-socket": true, "--process": true, "--resources": true, "--signal": true, "--stream": true}

func parse(args []string) (*command, error) {
	c := &command{options: map[string]string{}}
	var words []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case valued[a]:
			if i++; i == len(args) {
				return c, fmt.Errorf("option %s wants a value", a)
			}
			if a == "--oci-option" {
				c.ociOptions = append(c.ociOptions, args[i])
			}
			c.options[a] = args[i]
			if !strings.HasPrefix(a, "--oci") {
				c.rest = append(c.rest, a, args[i])
			}
			continue
		case a == "--force":
			c.force = true
		case a == "--all":
			c.all = true
		case a == "--systemd-cgroup":
			c.systemd = true
		case a == "--monitor":
			c.monitor = true
		case a == "--detach":
		case a == "--version":
			words = append(words, "version")
		case len(a) > 1 && a[0] == '-':
			return c, fmt.Errorf("option %s is not known", a)
		default:
			words = append(words, a)
		}
		if a != "--monitor" {
			c.rest = append(c.rest, a)
		}
	}
	c.oci = c.options["--oci"]
	c.shim, c.config, c.binary, c.root, c.log = c.options["--shim"], c.options["--config"], c.options["--binary"], c.options["--root"], c.options["--log"]
	if len(words) == 0 || (c.shim == "") == (c.oci == "") {
		return c, errors.New("usage: berth-shim task {--shim PROGRAM [--config FILE] [--binary FILE] | --oci PROGRAM [--oci-option OPTION]…} --root DIR COMMAND … ID, with runc's commands")
	}
	c.verb = words[0]
	if c.verb == "version" || c.verb == "features" {
		return c, nil
	}
	if len(words) < 2 || c.root == "" || words[1] == "" || words[1][0] == '.' || filepath.Base(words[1]) != words[1] {
		return c, fmt.Errorf("%s: wants --root and an ID", c.verb)
	}
	c.id = words[1]
	if c.verb == "kill" {
		if len(words) != 3 {
			return c, errors.New("kill: wants an ID and a signal's number")
		}
		var err error
		if c.signal, err = strconv.Atoi(words[2]); err != nil {
			return c, fmt.Errorf("kill: signal: %w", err)
		}
	}
	return c, nil
}

func (c *command) run() (int, error) {
	if c.oci != "" {
		return c.runOCI()
	}
	switch c.verb {
	case "version":
		return 0, c.version()
	case "features":
		return 0, c.features()
	case "run", "exec":
		if c.monitor {
			return c.stand()
		}
		return 0, c.detach()
	case "kill":
		return 0, c.kill()
	case "delete":
		return 0, c.delete()
	case "pause", "resume":
		return 0, c.freeze()
	case "update":
		return 0, c.update()
	case "stats":
		return 0, c.stats()
	}
	return 0, fmt.Errorf("command %q is not known", c.verb)
}

// state is what later commands must know of a container; a file in its folder.
type state struct {
	// Bundle is the container's folder in the pod's state folder.
	Bundle  string `json:"bundle"`
	Address string `json:"address"`
	// Version is that of the Task API, 2 or 3.
	Version int `json:"version"`
	// ShimPID and ShimStart identify the foreign shim's process; 0: it has not told.
	ShimPID   int    `json:"shim_pid"`
	ShimStart uint64 `json:"shim_start"`
}

func (c *command) dir() string { return filepath.Join(c.root, c.id) }

func (c *command) save(s state) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	temp := filepath.Join(c.dir(), ".state.json")
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(c.dir(), "state.json"))
}

func (c *command) load() (state, error) {
	var s state
	data, err := os.ReadFile(filepath.Join(c.dir(), "state.json"))
	if err != nil {
		return s, fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("container %s: %w", c.id, err)
	}
	return s, nil
}

// detach leaves a process that stands for the container, and waits until that has started it.
func (c *command) detach() error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	args := append([]string{os.Args[0], "task", "--monitor"}, os.Args[2:]...)
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	files = append(files, c.inherited...)
	files = append(files, writer)
	process, err := os.StartProcess("/proc/self/exe", args, &os.ProcAttr{Dir: "/", Env: os.Environ(), Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
	writer.Close()
	if err != nil {
		return err
	}
	report := make([]byte, maxReport)
	n := 0
	for n < len(report) {
		m, err := reader.Read(report[n:])
		n += m
		if err != nil {
			break
		}
	}
	if text := string(report[:n]); text != started {
		_ = process.Kill() // it may have ended
		_, _ = process.Wait()
		if text == "" {
			text = "the process that stands for it ended without a word"
		}
		return errors.New(text)
	}
	return os.WriteFile(c.options["--pid-file"], []byte(strconv.Itoa(process.Pid)), 0o600)
}

const (
	// lastInherited is the last descriptor that an OCI runtime is given by our shim; the one after it is the monitor's report.
	lastInherited = 5
	reportFD      = lastInherited + 1
	started       = "started"
	maxReport     = 8 << 10
)

// exists tells whether a path is there.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

const (
	// callLimit bounds a call that waits for nothing; startLimit one that starts something: a virtual machine takes its time.
	callLimit  = 10 * time.Second
	startLimit = 90 * time.Second
)

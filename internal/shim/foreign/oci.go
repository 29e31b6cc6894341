// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/fsys"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
)

// An OCI runtime that puts the containers of a pod into one sandbox (runsc) has no process of its own for each of them: the pid that it
// tells is the sandbox's. So a process stands for a container here, too; it waits with the runtime's own `wait`. One that stands for an exec
// adopts the process that the runtime leaves, and passes the exec's end on into the sandbox. All other commands are the runtime's as they are.

// prSetChildSubreaper is prctl(2)'s PR_SET_CHILD_SUBREAPER.
const prSetChildSubreaper = 36

// execPace is how often is looked whether an exec has begun.
const execPace = 5 * time.Millisecond

func (c *command) runOCI() (int, error) {
	switch {
	case c.verb == "stats":
		return 0, c.statsOCI()
	case c.verb != "run" && c.verb != "exec":
		return c.pass()
	case !c.monitor:
		return 0, c.detach()
	}
	return c.standOCI()
}

// pass runs the runtime's command line as it is.
func (c *command) pass() (int, error) {
	cmd := exec.Command(c.oci, append(slices.Clone(c.ociOptions), c.rest...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdin, os.Stdout, os.Stderr, c.inherited
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exit.ExitCode(), nil // its own words are in its log
	}
	if err == nil && c.verb == "delete" {
		err = os.RemoveAll(c.dir())
	}
	if err != nil {
		return 1, fmt.Errorf("run %s: %w", c.oci, err)
	}
	return 0, nil
}

// standOCI starts a container or an exec, reports, and ends as it ends.
func (c *command) standOCI() (int, error) {
	syscall.CloseOnExec(reportFD)
	report := os.NewFile(reportFD, "report")
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	s := &ociStandIn{command: c}
	begin, end := s.create, s.waitContainer
	if c.verb == "exec" {
		begin, end = s.exec, s.waitExec
	}
	if err := tell(report, begin()); err != nil {
		return 1, err
	}
	for _, f := range c.inherited {
		if f != nil {
			f.Close()
		}
	}
	return end(), nil
}

// ociStandIn is a started container or exec of an OCI runtime.
type ociStandIn struct {
	*command
	folder   string
	pid      int // of the runtime's process for an exec
	internal int // the exec's pid in its sandbox
}

func (s *ociStandIn) create() error {
	s.folder = s.dir()
	if err := os.MkdirAll(s.folder, 0o700); err != nil {
		return err
	}
	args := []string{"create", "--bundle", s.options["--bundle"], "--pid-file", filepath.Join(s.folder, shimapi.TaskPIDName)}
	if socket := s.options["--console-socket"]; socket != "" {
		args = append(args, "--console-socket", socket)
	}
	err := s.call(append(args, s.id)...)
	if err == nil {
		err = s.call("start", s.id)
	}
	if err != nil {
		return errors.Join(err, s.call("delete", "--force", s.id), os.RemoveAll(s.folder))
	}
	return nil
}

// exec starts the process, with a terminal detached: only then the runtime makes it. What it leaves behind becomes this process's child.
func (s *ociStandIn) exec() (err error) {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		return fmt.Errorf("become subreaper: %w", errno)
	}
	if s.folder, err = os.MkdirTemp(s.dir(), "exec-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.folder))
		}
	}()
	// A copy: the process that the runtime leaves reads it, too, and has not our descriptor.
	process, err := fsys.ReadFile(s.options["--process"], maxProcess)
	if err != nil {
		return err
	}
	file, pid, internal := filepath.Join(s.folder, "process.json"), filepath.Join(s.folder, "pid"), filepath.Join(s.folder, "internal")
	if err := os.WriteFile(file, process, 0o600); err != nil {
		return err
	}
	args := []string{"exec", "--process", file, "--pid-file", pid, "--internal-pid-file", internal}
	if socket := s.options["--console-socket"]; socket != "" {
		err = s.call(append(args, "--detach", "--console-socket", socket, s.id)...)
		if err == nil {
			s.pid, err = readNumber(pid)
		}
		if err == nil {
			s.internal, err = readNumber(internal)
		}
	} else {
		err = s.execAttached(pid, internal, append(args, s.id))
	}
	if err == nil {
		s.killOnTerm()
	}
	return err
}

// execAttached starts the runtime and waits until it has started the process, which it says in two files. Detached, runsc takes a process that ends at once for one that
// did not start.
func (s *ociStandIn) execAttached(pid, internal string, args []string) error {
	log := filepath.Join(s.folder, "log.json")
	all := append([]string{s.oci}, s.args(log, args...)...)
	child, err := os.StartProcess(s.oci, all, &os.ProcAttr{Env: os.Environ(), Files: append([]*os.File{os.Stdin, os.Stdout, os.Stderr}, s.inherited...)})
	if err != nil {
		return fmt.Errorf("run %s: %w", s.oci, err)
	}
	s.pid = child.Pid
	for {
		ended := s.childEnded() // before the look: what has ended writes no more
		if n, err := readNumber(pid); err == nil && n == s.pid {
			if s.internal, err = readNumber(internal); err == nil {
				return nil
			}
		}
		if ended {
			return s.failure(args[0], log, errors.New("it ended before the process was started"))
		}
		time.Sleep(execPace)
	}
}

// childEnded tells, without reaping it, whether the runtime's process has ended.
func (s *ociStandIn) childEnded() bool {
	stat, err := proc.ReadStat(s.pid)
	return err != nil || stat.Ended()
}

// killOnTerm passes a SIGTERM on as the end of the exec: the runtime's own process would end without it.
func (s *ociStandIn) killOnTerm() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		for range term {
			_ = exec.Command(s.oci, s.args("/dev/null", "kill", "--pid", strconv.Itoa(s.internal), s.id, "KILL")...).Run() // our shim kills this process next
		}
	}()
}

// call runs one command of the runtime with our streams and descriptors. The error has the runtime's words.
func (s *ociStandIn) call(args ...string) error {
	log := filepath.Join(s.folder, "log.json")
	cmd := exec.Command(s.oci, s.args(log, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdin, os.Stdout, os.Stderr, s.inherited
	if err := cmd.Run(); err != nil {
		return s.failure(args[0], log, err)
	}
	return nil
}

// failure adds the runtime's words to an error.
func (s *ociStandIn) failure(verb, log string, err error) error {
	words, readErr := fsys.ReadFile(log, maxOutput)
	if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
		return errors.Join(err, readErr)
	}
	return fmt.Errorf("%s %s: %w: %.*s", filepath.Base(s.oci), verb, err, maxWords, messages(words))
}

// messages are those of a log in JSON.
func messages(log []byte) string {
	var all []string
	for d := json.NewDecoder(strings.NewReader(string(log))); ; {
		var line struct {
			Msg string `json:"msg"`
		}
		if d.Decode(&line) != nil {
			return strings.Join(all, "; ")
		}
		if line.Msg != "" {
			all = append(all, line.Msg)
		}
	}
}

// args is the runtime's command line: its options, the global ones that we were given, and a command.
func (s *ociStandIn) args(log string, args ...string) []string {
	all := append(slices.Clone(s.ociOptions), "--root", s.root, "--log", log, "--log-format", "json")
	if s.systemd {
		all = append(all, "--systemd-cgroup")
	}
	return append(all, args...)
}

// waitContainer waits for the end of the container.
func (s *ociStandIn) waitContainer() int {
	out, err := exec.Command(s.oci, s.args(filepath.Join(s.folder, "wait.json"), "wait", s.id)...).Output()
	var answer struct {
		ExitStatus int `json:"exitStatus"`
	}
	if err != nil || json.Unmarshal(out, &answer) != nil {
		return lostCode
	}
	return answer.ExitStatus & 0xff
}

// waitExec waits for the end of the runtime's process, which has the exec's exit code.
func (s *ociStandIn) waitExec() int {
	var status syscall.WaitStatus
	_, err := syscall.Wait4(s.pid, &status, 0, nil)
	for errors.Is(err, syscall.EINTR) {
		_, err = syscall.Wait4(s.pid, &status, 0, nil)
	}
	if rmErr := os.RemoveAll(s.folder); rmErr != nil {
		fmt.Fprintln(os.Stderr, rmErr)
	}
	switch {
	case err != nil:
		return lostCode
	case status.Signaled():
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func readNumber(path string) (int, error) {
	data, err := fsys.ReadFile(path, 64)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

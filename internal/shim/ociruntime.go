// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/memfd"
	"github.com/berth-run/berth/internal/linux/reaper"
	"github.com/berth-run/berth/internal/shim/wire"
)

const (
	// maxRuntimeError bounds the runtime's message in our errors.
	maxRuntimeError = 4 << 10
	// maxRuntimeLog bounds what is looked through for that message: the end of the runtime's log.
	maxRuntimeLog = 64 << 10
	// controlLimit ends runtime calls that start nothing (delete, kill, update …). A call that starts a
	// process has no limit of its own: hooks may take their time, and Kill ends it.
	controlLimit = 2 * time.Minute
)

// Numbers that descriptors have in the OCI runtime's process.
const (
	runtimeLogFD   = 3
	runtimeExtraFD = 4
)

// runtimeEnv is what the OCI runtime sees of our environment. NOTIFY_SOCKET and LISTEN_FDS, for
// instance, would be passed on to the container.
var runtimeEnv = []string{"PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS"}

// oneThread is for an OCI runtime's exec that ends at once: a Go program spends 5 % of its CPU time there on threads to collect garbage that it does
// not have. Neither the container's process nor a hook sees it: the one gets the environment of its spec, and the others are not run.
var oneThread = []string{"GOMAXPROCS=1"}

// ociRuntime runs the OCI runtime's binary.
type ociRuntime struct {
	reaper *reaper.Reaper
	null   *os.File
	env    []string
}

func newOCIRuntime(r *reaper.Reaper, null *os.File) *ociRuntime {
	o := &ociRuntime{reaper: r, null: null}
	for _, name := range runtimeEnv {
		if value, ok := os.LookupEnv(name); ok {
			o.env = append(o.env, name+"="+value)
		}
	}
	return o
}

// runtimeCall is one execution of the runtime.
type runtimeCall struct {
	options *wire.CreateOptions
	args    []string // command first
	stdio   *stdio   // nil: output is only looked at for an error
	stdin   *os.File // nil: /dev/null; not with stdio
	extra   *os.File // becomes runtimeExtraFD
	more    *os.File // becomes runtimeExtraFD+1; not without extra
	env     []string // beside the shim's own
	process *reaper.Process

	log, output *os.File // memfds
}

// start starts the runtime; wait must follow.
func (o *ociRuntime) start(c *runtimeCall) (err error) {
	if c.log, err = memfd.New("runtime-log", nil); err != nil {
		return err
	}
	files := []uintptr{o.null.Fd(), o.null.Fd(), o.null.Fd(), c.log.Fd()}
	if c.stdio != nil {
		copy(files, c.stdio.child[:])
	} else {
		if c.output, err = memfd.New("runtime-output", nil); err != nil {
			c.close()
			return err
		}
		files[1], files[2] = c.output.Fd(), c.output.Fd()
		if c.stdin != nil {
			files[0] = c.stdin.Fd()
		}
	}
	for _, file := range []*os.File{c.extra, c.more} {
		if file != nil {
			files = append(files, file.Fd())
		}
	}
	args := append([]string{c.options.Runtime}, c.options.RuntimeArgs...)
	args = append(args, "--root", c.options.RuntimeRoot, "--log", fdPath(runtimeLogFD), "--log-format", "json")
	if c.options.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	c.process, err = o.reaper.Start(reaper.Command{
		Path: c.options.Runtime, Args: append(args, c.args...), Env: append(slices.Clip(o.env), c.env...), Dir: "/", Files: files,
	})
	if err != nil {
		c.close()
	}
	return err
}

// wait waits for the runtime's end and turns its failure into an error with the runtime's own words.
func (c *runtimeCall) wait() error {
	defer c.close()
	exit := c.process.Exit()
	if exit.Code() == 0 {
		return nil
	}
	return fmt.Errorf("%s %s: %s", c.options.Runtime, c.args[0], c.failure(exit))
}

// control runs a command that starts no process of the container.
func (o *ociRuntime) control(c *runtimeCall) error {
	if err := o.start(c); err != nil {
		return err
	}
	limit := time.NewTimer(controlLimit)
	defer limit.Stop()
	select {
	case <-c.process.Done():
		return c.wait()
	case <-limit.C:
		_ = c.process.Signal(syscall.SIGKILL) // it may have ended just now: wait tells
		return errors.Join(fmt.Errorf("%s %s: no end after %v", c.options.Runtime, c.args[0], controlLimit), c.wait())
	}
}

func (c *runtimeCall) close() {
	c.log.Close()
	if c.output != nil {
		c.output.Close()
	}
}

// failure is the last error in the runtime's log, else the end of its output, else how it ended.
func (c *runtimeCall) failure(exit reaper.Exit) string {
	if text := lastLogError(tail(c.log, maxRuntimeLog)); text != "" {
		return clip(text)
	}
	if c.output != nil {
		if text := bytes.TrimSpace(tail(c.output, maxRuntimeError)); len(text) > 0 {
			return clip(string(text))
		}
	}
	if exit.Signal() != 0 {
		return "ended by signal " + syscall.Signal(exit.Signal()).String()
	}
	return fmt.Sprintf("exit code %d", exit.Code())
}

// lastLogError reads JSON objects of {"level","msg"}, with (runc, crun) or without (runsc) line breaks between them. The first may be cut off.
func lastLogError(log []byte) (last string) {
	for start := bytes.IndexByte(log, '{'); start >= 0; start = bytes.IndexByte(log, '{') {
		log = log[start:]
		var line struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
		}
		objects := json.NewDecoder(bytes.NewReader(log))
		if objects.Decode(&line) != nil {
			log = log[1:]
			continue
		}
		log = log[objects.InputOffset():]
		if (line.Level == "error" || line.Level == "fatal") && line.Msg != "" {
			last = line.Msg
		}
	}
	return last
}

func clip(text string) string {
	if len(text) <= maxRuntimeError {
		return text
	}
	return strings.ToValidUTF8(text[:maxRuntimeError], "") + " …"
}

// tail reads the last bytes of a memfd. What cannot be read is no reason for another error: the
// caller is already composing one.
func tail(file *os.File, limit int64) []byte {
	info, err := file.Stat()
	if err != nil {
		return nil
	}
	from := max(0, info.Size()-limit)
	data := make([]byte, info.Size()-from)
	n, _ := file.ReadAt(data, from)
	return data[:n]
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berth-run/berth/internal/telemetry"
)

const (
	maxAnswer  = 4 << 20  // of standard output
	maxStderr  = 16 << 10 // the rest is thrown away
	maxErrText = 1 << 10  // of a plugin's words in an error
	// lingering is how long output is awaited after a plugin has ended: a process that it left behind may hold it open.
	lingering = time.Second
)

// PluginError tells which plugin failed at what. Code is the CNI error code, 0 when the plugin gave none.
type PluginError struct {
	Plugin, Verb string
	Took         time.Duration
	Code         uint
	// Msg is what the plugin said in its answer, Stderr what it wrote besides; both bounded.
	Msg, Stderr string
	// Err is how the run itself ended: context.DeadlineExceeded, an exit status, ErrPluginNotFound …
	Err error
}

func (e *PluginError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "CNI plugin %s %s", e.Plugin, e.Verb)
	if errors.Is(e.Err, context.DeadlineExceeded) {
		fmt.Fprintf(&b, ": no answer within %s, it was killed", e.Took.Round(time.Millisecond))
	} else {
		fmt.Fprintf(&b, " after %s", e.Took.Round(time.Millisecond))
	}
	if e.Msg != "" {
		fmt.Fprintf(&b, ": %s", e.Msg)
	} else if e.Err != nil && !errors.Is(e.Err, context.DeadlineExceeded) {
		fmt.Fprintf(&b, ": %s", e.Err)
	}
	if e.Code != 0 {
		fmt.Fprintf(&b, " (code %d)", e.Code)
	}
	if e.Stderr != "" {
		fmt.Fprintf(&b, "; it wrote: %s", e.Stderr)
	}
	return b.String()
}

func (e *PluginError) Unwrap() error { return e.Err }

// runner starts plugins, each in a process group of its own that is killed as a whole.
type runner struct {
	dirs []string
	log  *slog.Logger
	ran  func(ctx context.Context, plugin, verb string, took time.Duration, err error)
}

// call is one run of one plugin.
type call struct {
	plugin string
	conf   []byte
	args   invoke.Args
}

func (r runner) find(plugin string) (string, error) {
	path, err := invoke.FindInPath(plugin, r.dirs)
	if err != nil {
		return "", fmt.Errorf("%w: %s is not in %s", ErrPluginNotFound, plugin, strings.Join(r.dirs, ", "))
	}
	return path, nil
}

// result runs a plugin whose answer is a CNI result.
func (r runner) result(ctx context.Context, c call) (types.Result, error) {
	path, err := r.find(c.plugin)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	result, err := invoke.ExecPluginWithResult(ctx, path, c.conf, &c.args, &execution{runner: r, call: c})
	var known *PluginError
	if err != nil && !errors.As(err, &known) {
		err = &PluginError{Plugin: c.plugin, Verb: c.args.Command, Took: time.Since(started), Msg: "its answer is not a CNI result", Err: err,
			Stderr: clip(err.Error())}
	}
	return result, err
}

// do runs a plugin that answers nothing but success or failure.
func (r runner) do(ctx context.Context, c call) error {
	path, err := r.find(c.plugin)
	if err != nil {
		return err
	}
	return invoke.ExecPluginWithoutResult(ctx, path, c.conf, &c.args, &execution{runner: r, call: c})
}

// execution is libcni's way to start a plugin.
type execution struct {
	version.PluginDecoder
	runner runner
	call   call
}

var _ invoke.Exec = (*execution)(nil)

// FindInPath implements invoke.Exec.
func (e *execution) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin implements invoke.Exec. Its errors are PluginErrors.
func (e *execution) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	ctx, span := telemetry.Start(ctx, "CNI", e.call.args.Command)
	span.Set("plugin", e.call.plugin)
	started := time.Now()
	stdout, stderr := &limited{max: maxAnswer, strict: true}, &limited{max: maxStderr}
	err := e.start(ctx, path, stdin, environment(env), stdout, stderr)
	took := time.Since(started)
	span.End(err)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // what killed it, not that it was killed
	}
	if e.runner.ran != nil {
		e.runner.ran(ctx, e.call.plugin, e.call.args.Command, took, err)
	}
	if err == nil {
		e.runner.log.Debug("CNI plugin is through", "plugin", e.call.plugin, "verb", e.call.args.Command, "sandbox", e.call.args.ContainerID,
			"took", took, "stderr", clip(stderr.buf.String()))
		return stdout.buf.Bytes(), nil
	}
	failure := &PluginError{Plugin: e.call.plugin, Verb: e.call.args.Command, Took: took, Stderr: clip(stderr.buf.String()), Err: err}
	switch {
	case ctx.Err() != nil:
	case stdout.over:
		failure.Msg = fmt.Sprintf("it answered more than %d bytes", maxAnswer)
	default:
		failure.explain(stdout.buf.Bytes())
	}
	return nil, failure
}

// explain takes over what a failed plugin answered.
func (e *PluginError) explain(answer []byte) {
	var said types.Error
	if err := json.Unmarshal(answer, &said); err == nil && (said.Msg != "" || said.Code != 0) {
		e.Code, e.Msg = said.Code, clip(said.Error())
		return
	}
	if len(answer) > 0 {
		e.Msg = fmt.Sprintf("%s, and its answer is no CNI error: %s", e.Err, clip(string(answer)))
	}
}

// start tries again while the binary is being written: installers replace plugins in place.
func (e *execution) start(ctx context.Context, path string, stdin []byte, env []string, stdout, stderr *limited) error {
	for attempt := 0; ; attempt++ {
		cmd := exec.CommandContext(ctx, path)
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(stdin), stdout, stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = lingering
		err := cmd.Run()
		if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil {
			return nil // it ended well and left a process that holds its output: what was said is said
		}
		if !errors.Is(err, syscall.ETXTBSY) || attempt == 5 {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// thrift has plugins that are written in Go, as nearly all are, run without the garbage collector, which a process of some milliseconds
// has no use for. The memory limit brings it back where a plugin needs more than they do. (GOMAXPROCS=1 would save more CPU time, but costs 20 ms an ADD: a thread
// that blocks in the kernel keeps the others waiting.)
var thrift = []string{"GOGC=off", "GOMEMLIMIT=64MiB"}

// environment keeps from plugins what systemd meant for the daemon, and gives them a PATH: they start iptables and nft. What the daemon's own
// environment says about Go's runtime goes before thrift.
func environment(env []string) []string {
	for _, kv := range thrift {
		name, _, _ := strings.Cut(kv, "=")
		if !slices.ContainsFunc(env, func(other string) bool { return strings.HasPrefix(other, name+"=") }) {
			env = append(env, kv)
		}
	}
	env = slices.DeleteFunc(env, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "NOTIFY_SOCKET" || name == "WATCHDOG_USEC" || name == "WATCHDOG_PID" || strings.HasPrefix(name, "LISTEN_")
	})
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") && kv != "PATH=" }) {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	return env
}

// limited keeps the first max bytes. A strict one refuses more, which ends the run; the other swallows it.
type limited struct {
	buf    bytes.Buffer
	max    int
	strict bool
	over   bool
}

func (l *limited) Write(p []byte) (int, error) {
	room := l.max - l.buf.Len()
	if len(p) <= room {
		return l.buf.Write(p)
	}
	l.over = true
	l.buf.Write(p[:room])
	if l.strict {
		return room, errors.New("too much output")
	}
	return len(p), nil
}

func clip(s string) string {
	s = strings.TrimSpace(strings.ToValidUTF8(s, "�"))
	if len(s) > maxErrText {
		s = strings.ToValidUTF8(s[:maxErrText], "") + "…"
	}
	return s
}

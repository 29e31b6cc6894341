// SPDX-License-Identifier: Apache-2.0

// Package demo shows a pod's whole life on this machine, with the commands that a user would type: a daemon, a registry, a network and
// folders of its own, the daemon killed and started again with the pod still running, and at the end a check that nothing is left.
// It is for internal/cli.
package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Config says where the demo takes place.
type Config struct {
	// Dir takes everything; empty is a new folder below the temporary folder. It must be empty or not there yet.
	Dir string
	Out io.Writer
	// Plain keeps to ASCII.
	Plain bool
}

const (
	// commandTime bounds one command, sweepTime the clean-up after a failure.
	commandTime = time.Minute
	sweepTime   = 90 * time.Second
)

// demo is one run.
type demo struct {
	layout
	out      io.Writer
	plain    bool
	programs programs
	registry *registry
	daemon   *process
	begin    time.Time
	detail   bytes.Buffer // what the step under way has to show
	pids     map[string]string
	hostPort int
	podIP    string
	before   state // of the machine
}

// Run shows it. ok tells that every step worked and nothing is left; err, that it could not even begin or was interrupted.
func Run(ctx context.Context, c Config) (ok bool, err error) {
	d := &demo{out: c.Out, plain: c.Plain, begin: time.Now(), pids: map[string]string{}}
	if d.programs, err = findPrograms(); err != nil {
		return false, err
	}
	if d.before, err = look(ctx); err != nil {
		return false, err
	}
	if d.layout, err = newLayout(c.Dir); err != nil {
		return false, err
	}
	fmt.Fprintf(d.out, "Berth demo: a pod's whole life\n\n  folder   %s\n  network  %s, bridge %s, %s\n\n", d.dir, d.network, d.bridge, d.subnet)
	ok = d.steps(ctx, d.story())
	if !ok {
		d.daemonLog()
	}
	// The end comes whatever happened before, also after Ctrl-C.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepTime)
	defer cancel()
	clean := d.finish(end, ok)
	took := since(d.begin)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintf(d.out, "Interrupted after %s.\n", took)
		return false, context.Cause(ctx)
	case ok && clean:
		fmt.Fprintf(d.out, "All of it worked, and nothing is left. It took %s.\n", took)
	default:
		fmt.Fprintf(d.out, "The demo has failed after %s.\n", took)
	}
	return ok && clean, nil
}

// step is one thing that is shown.
type step struct {
	title string
	do    func(context.Context) error
}

func (d *demo) story() []step {
	return []step{
		{"a registry in this process serves an image made of " + d.programs.busybox, d.serveImage},
		{"the daemon starts", d.startDaemon},
		{"the image is pulled", d.pull},
		{"a pod of two containers runs", d.runPod},
		{"it is there", d.showPod},
		{"it answers on its address and on a port of the host", d.askPod},
		{"its logs", d.showLogs},
		{"a command in a container", d.exec},
		{"kill -9 ends the daemon, and the pod runs on", d.killDaemon},
		{"the daemon starts again and knows the pod", d.restartDaemon},
		{"the pod is stopped and removed, the image too", d.remove},
	}
}

// steps shows one after the other until one fails or ctx ends.
func (d *demo) steps(ctx context.Context, all []step) bool {
	for _, s := range all {
		d.detail.Reset()
		begin := time.Now()
		err := s.do(ctx)
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		d.report(s.title, time.Since(begin), err)
		if err != nil {
			return false
		}
	}
	return true
}

func (d *demo) report(title string, took time.Duration, err error) {
	good, bad := "✓", "✗"
	if d.plain {
		good, bad = "ok    ", "FAILED"
	}
	mark := good
	if err != nil {
		mark = bad
	}
	fmt.Fprintf(d.out, "%s %s (%s)\n", mark, title, round(took))
	for line := range strings.Lines(d.detail.String()) {
		fmt.Fprintf(d.out, "    %s\n", strings.TrimRight(line, "\n"))
	}
	if err != nil {
		fmt.Fprintf(d.out, "    %s\n", strings.ReplaceAll(err.Error(), "\n", "\n    "))
	}
	fmt.Fprintln(d.out)
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(&d.detail, format+"\n", args...) }

// berth runs a command as a user would type it, and shows it with what it prints.
func (d *demo) berth(ctx context.Context, args ...string) error {
	d.say("$ berth %s", quote(args))
	err := d.command(ctx, args, &d.detail, &d.detail)
	if b := d.detail.Bytes(); b[len(b)-1] != '\n' {
		d.detail.WriteByte('\n')
	}
	return err
}

// quiet runs a command and returns what it prints on standard output.
func (d *demo) quiet(ctx context.Context, args ...string) (string, error) {
	var out, errText bytes.Buffer
	if err := d.command(ctx, args, &out, &errText); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(errText.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

func (d *demo) command(ctx context.Context, args []string, out, errText io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.programs.self, args...)
	cmd.Env = append(os.Environ(), "BERTH_SOCKET="+d.socket, "BERTH_PODS_DIR="+d.pods)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which takes things down in order
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = out, errText
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("berth %s: %w", args[0], err)
	}
	return nil
}

func quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if strings.ContainsAny(a, " {}'\"$") {
			quoted[i] = "'" + a + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// write puts a file into the demo's folder.
func (d *demo) write(name, text string) (string, error) {
	path := filepath.Join(d.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	return path, nil
}

func since(begin time.Time) time.Duration { return round(time.Since(begin)) }

// round leaves the digits that matter.
func round(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Millisecond)
}

// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/fsys"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// namespace is containerd's word for a tenant; there is one.
	namespace = "berth"
	// maxOutput bounds what is read of a shim's answer or complaint.
	maxOutput = 1 << 20
	maxWords  = 2 << 10
	// maxConfig is what our shim takes, too.
	maxConfig = 16 << 20
)

// shimCommand is an invocation of the foreign shim's program, as containerd makes it.
func (c *command) shimCommand(ctx context.Context, s state, action string) *exec.Cmd {
	events := shimapi.SocketPath(filepath.Dir(s.Bundle)) // the pod's berth-shim takes the events, and drops them: Wait tells what counts
	args := []string{"-namespace", namespace, "-address", filepath.Join(c.root, "containerd.sock"), "-publish-binary", "/bin/true", "-id", c.id}
	if action == "delete" {
		args = append(args, "-bundle", c.bundle())
	}
	cmd := exec.CommandContext(ctx, c.shim, append(args, action)...)
	cmd.Dir, cmd.WaitDelay = c.bundle(), time.Second
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=3", "TTRPC_ADDRESS="+events, "GRPC_ADDRESS="+filepath.Join(c.root, "containerd.sock"),
		"NAMESPACE="+namespace)
	if action == "start" {
		params := &wire.BootstrapParams{InstanceID: c.id, Namespace: namespace, ContainerdVersion: "2.4.2", TTRPCAddress: events,
			GRPCAddress: filepath.Join(c.root, "containerd.sock"), ContainerdBinary: "/bin/true", SocketDir: filepath.Join(c.root, "s")}
		if options := c.runtimeOptions(); options.TypeURL != "" {
			params.Extensions = []wire.Extension{{Value: options}}
		}
		cmd.Stdin = bytes.NewReader(wire.Marshal(params))
	}
	return cmd
}

// bundle is the folder that the foreign shim has for itself. In the pod's own one its files would be taken for ours, and ours for its: since
// 2.4, containerd's shim for runc leaves an exit.json of its own form.
func (c *command) bundle() string { return filepath.Join(c.dir(), "bundle") }

// makeBundle copies the configuration: shims write to it. The root file system's path in it is absolute.
func (c *command) makeBundle(from string) error {
	if err := os.MkdirAll(c.bundle(), 0o700); err != nil {
		return err
	}
	config, err := fsys.ReadFile(filepath.Join(from, shimapi.ConfigName), maxConfig)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.bundle(), shimapi.ConfigName), config, 0o600)
}

// runtimeOptions are what the shim is told in containerd's own words: runc's shim by its own message, all others by a file's path.
func (c *command) runtimeOptions() wire.Any {
	if strings.Contains(filepath.Base(c.shim), "-runc-") {
		return wire.Any{TypeURL: "containerd.runc.v1.Options", Value: wire.Marshal(&wire.RuncOptions{BinaryName: c.binary, Root: filepath.Join(c.root, "runc"), SystemdCgroup: c.systemd})}
	}
	if c.config != "" {
		return wire.Any{TypeURL: "runtimeoptions.v1.Options", Value: wire.Marshal(&wire.RuntimeOptions{ConfigPath: c.config})}
	}
	return wire.Any{}
}

// start runs the shim's program, which starts a shim, or finds the one that it groups the container with, and tells its address.
func (c *command) start(bundle string) (state, error) {
	s := state{Bundle: bundle}
	if err := c.makeBundle(bundle); err != nil {
		return s, err
	}
	// Where containerd has a pipe, so that a shim that opens it for writing does not wait for a reader.
	log, err := os.OpenFile(filepath.Join(c.bundle(), "log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return s, err
	}
	log.Close()
	if err := os.MkdirAll(filepath.Join(c.root, "s"), 0o700); err != nil {
		return s, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	out, err := output(ctx, c.shimCommand(ctx, s, "start"))
	if err != nil {
		return s, fmt.Errorf("start %s: %w", filepath.Base(c.shim), err)
	}
	if s.Address, s.Version, err = parseAnswer(out); err != nil {
		return s, fmt.Errorf("start %s: %w", filepath.Base(c.shim), err)
	}
	return s, nil
}

// parseAnswer reads what `start` prints: a BootstrapResult (containerd 2.3), JSON (2.0) or an address alone (1.x).
func parseAnswer(out []byte) (address string, version int, err error) {
	text := strings.TrimSpace(string(out))
	var answer struct {
		Version  int
		Address  string
		Protocol string
	}
	var result wire.BootstrapResult
	switch {
	case strings.HasPrefix(text, "{"):
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			return "", 0, fmt.Errorf("its answer %.200q is no address: %w", text, err)
		}
	case strings.HasPrefix(text, "unix://"):
		answer.Address, answer.Version = text, 2
	case wire.Unmarshal(out, &result) == nil && result.Address != "":
		answer.Version, answer.Address, answer.Protocol = int(result.Version), result.Address, result.Protocol
	default:
		return "", 0, fmt.Errorf("its answer %.200q is no address", text)
	}
	switch {
	case answer.Version != 2 && answer.Version != 3:
		return "", 0, fmt.Errorf("it speaks version %d of the shim protocol; 2 and 3 are known here", answer.Version)
	case answer.Protocol != "" && answer.Protocol != "ttrpc":
		return "", 0, fmt.Errorf("it speaks %s; only ttrpc is known here", answer.Protocol)
	case !strings.HasPrefix(answer.Address, "unix://"):
		return "", 0, fmt.Errorf("its address %.200q is not a unix socket's", answer.Address)
	}
	return answer.Address, answer.Version, nil
}

// output runs a program to its end; the error has its last words.
func output(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	// Files, not pipes: a shim that leaves its output open to a child would keep us.
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp("", "berth-shim-")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := os.Remove(f.Name()); err != nil {
			return nil, err
		}
		files[i] = f
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	// A program that hangs must not outlive us, whoever kills us; the shim that it leaves is another process. The kernel takes our thread for its
	// parent, so that has to stay.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	err := cmd.Run()
	runtime.UnlockOSThread()
	var texts [2][]byte
	for i, f := range files {
		if _, seekErr := f.Seek(0, io.SeekStart); seekErr != nil {
			return nil, errors.Join(err, seekErr)
		}
		var readErr error
		if texts[i], readErr = io.ReadAll(io.LimitReader(f, maxOutput)); readErr != nil {
			return nil, errors.Join(err, readErr)
		}
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("it has not ended in its time and was killed: %w", ctx.Err())
	}
	if err != nil {
		words := bytes.TrimSpace(append(texts[1], texts[0]...))
		return nil, fmt.Errorf("%w: %.*s", err, maxWords, words)
	}
	return texts[0], nil
}

// version prints what the shim's program says of itself, in the form that OCI runtimes have.
func (c *command) version() error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	out, err := output(ctx, exec.CommandContext(ctx, c.shim, "-v"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		if _, v, ok := strings.Cut(line, "Version:"); ok {
			_, err = fmt.Fprintf(os.Stdout, "%s version %s\n", filepath.Base(c.shim), strings.TrimSpace(v))
			return err
		}
	}
	return fmt.Errorf("%s -v tells no version", c.shim)
}

// features prints the OCI features that the shim tells of its runtime (containerd 2.0).
func (c *command) features() error {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.shim, "-info")
	options := c.runtimeOptions()
	cmd.Stdin = bytes.NewReader(wire.Marshal(&options))
	out, err := output(ctx, cmd)
	if err != nil {
		return err
	}
	var info wire.RuntimeInfo
	if err := wire.Unmarshal(out, &info); err != nil {
		return fmt.Errorf("%s -info: %w", c.shim, err)
	}
	if len(info.Features.Value) == 0 {
		return fmt.Errorf("%s tells no features", c.shim)
	}
	_, err = os.Stdout.Write(info.Features.Value)
	return err
}

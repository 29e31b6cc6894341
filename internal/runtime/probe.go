// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	// probeLimit bounds a question to an OCI runtime's binary.
	probeLimit = 10 * time.Second
	// maxToolOutput bounds what is kept of a tool's stdout; maxToolError of its stderr.
	maxToolOutput = 1 << 20
	maxToolError  = 16 << 10
)

// Version is what an OCI runtime says of itself.
type Version struct {
	Name    string // "runc"
	Version string // "1.5.2"
	// Spec is the version of the OCI runtime-spec, empty if it does not say.
	Spec string
}

// Features is what an OCI runtime says it can do. What the kernel can is another question.
type Features struct {
	// RecursiveReadOnlyMounts: it knows the mount option "rro".
	RecursiveReadOnlyMounts bool
	// UserNamespaces: it enters user namespaces and can map the owners of a root file system by its mount.
	UserNamespaces bool
	// IDMapMounts: it maps the owners of single mounts.
	IDMapMounts bool
	// Raw is its whole answer, as JSON.
	Raw json.RawMessage
}

// probe is a cached answer, as good as the binary is the same.
type probe struct {
	binary binaryID
	answer any
	err    error
}

// binaryID changes when a package manager replaces the file.
type binaryID struct {
	size     int64
	modified time.Time
}

// Version runs the handler's binary with --version. The answer is cached until the binary changes.
func (r *Runtime) Version(ctx context.Context, handler string) (Version, error) {
	answer, err := r.ask(ctx, handler, []string{"--version"}, func(out []byte) (any, error) { return parseVersion(out) })
	if err != nil {
		return Version{}, err
	}
	return answer.(Version), nil
}

// Features runs the handler's binary with `features`. The answer is cached until the binary changes; so is that
// it has none (ErrUnsupported), but no failure to run it.
func (r *Runtime) Features(ctx context.Context, handler string) (Features, error) {
	answer, err := r.ask(ctx, handler, []string{"features"}, func(out []byte) (any, error) { return parseFeatures(out) })
	if refused(err) {
		err = fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if err != nil {
		return Features{}, err
	}
	f := answer.(Features)
	if h, err := r.Handler(handler); err == nil && h.EntersNoUserNamespace {
		f.UserNamespaces = false
	}
	return f, nil
}

// ask runs the binary once, however many ask. It outlives the first who asked, for the sake of the others.
func (r *Runtime) ask(ctx context.Context, handler string, args []string, parse func([]byte) (any, error)) (any, error) {
	h, err := r.Handler(handler)
	if err != nil {
		return nil, err
	}
	program := h.Path
	if h.Program != "" {
		program = h.Program
	}
	info, err := os.Stat(program)
	if err != nil {
		return nil, fmt.Errorf("runtime handler %s: %w", h.Name, err)
	}
	binary := binaryID{size: info.Size(), modified: info.ModTime()}
	args = append(slices.Clone(h.Args), args...)
	key := h.Path + " " + strings.Join(args, " ")
	r.mu.Lock()
	cached, ok := r.probes[key]
	r.mu.Unlock()
	if ok && cached.binary == binary {
		return cached.answer, cached.err
	}
	result := r.probing.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeLimit)
		defer cancel()
		p := probe{binary: binary}
		out, err := runTool(ctx, h.Path, args...)
		lasts := err == nil || refused(err)
		if err == nil {
			p.answer, err = parse(out)
		}
		if err != nil {
			p.err = fmt.Errorf("runtime handler %s: %w", h.Name, err)
		}
		if lasts { // a host that is too busy, or short of memory, today may answer tomorrow
			r.mu.Lock()
			r.probes[key] = p
			r.mu.Unlock()
		}
		return p.answer, p.err
	})
	select {
	case res := <-result:
		return res.Val, res.Err
	case <-ctx.Done():
		return nil, fmt.Errorf("runtime handler %s: %w", h.Name, ctx.Err())
	}
}

// refused tells that a program has ended by itself, with an error: not for want of something, or by a signal.
func refused(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Exited()
}

// parseVersion reads "runc version 1.5.2\nspec: 1.3.0\n…", which is the form of crun, youki and runsc, too.
func parseVersion(out []byte) (Version, error) {
	var v Version
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); len(words) == 3 && words[1] == "version" && v.Version == "" {
			v.Name, v.Version = words[0], words[2]
		} else if len(words) == 2 && words[0] == "spec:" {
			v.Spec = words[1]
		}
	}
	if v.Version == "" {
		return Version{}, fmt.Errorf("its --version says no version: %.100q", out)
	}
	return v, nil
}

// parseFeatures reads the OCI runtime-spec's features document.
func parseFeatures(out []byte) (Features, error) {
	var doc struct {
		MountOptions []string `json:"mountOptions"`
		Linux        struct {
			Namespaces      []string `json:"namespaces"`
			MountExtensions struct {
				IDMap struct {
					Enabled bool `json:"enabled"`
				} `json:"idmap"`
			} `json:"mountExtensions"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return Features{}, fmt.Errorf("decode its features: %w", err)
	}
	idmap := doc.Linux.MountExtensions.IDMap.Enabled
	return Features{
		RecursiveReadOnlyMounts: slices.Contains(doc.MountOptions, "rro"),
		UserNamespaces:          idmap && slices.Contains(doc.Linux.Namespaces, "user"),
		IDMapMounts:             idmap,
		Raw:                     json.RawMessage(out),
	}, nil
}

// runTool runs an OCI runtime's binary to its end, or kills it with ctx. The error has its last line of stderr.
func runTool(ctx context.Context, path string, args ...string) ([]byte, error) {
	stdout, stderr := &headBuffer{limit: maxToolOutput}, &headBuffer{limit: maxToolError}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = shimEnvironment, "/", stdout, stderr
	cmd.WaitDelay = time.Second // for a child that keeps the pipe
	err := cmd.Run()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil {
		return stdout.data, nil
	}
	lines := strings.Split(strings.TrimSpace(string(stderr.data)), "\n")
	last := lines[len(lines)-1]
	var exit *exec.ExitError
	if errors.As(err, &exit) && last != "" {
		return nil, fmt.Errorf("%s %s: %s: %w", path, verb(args), last, err)
	}
	return nil, fmt.Errorf("%s %s: %w", path, verb(args), err)
}

// verb names the command without what it applies to.
func verb(args []string) string {
	if i := slices.Index(args, "delete"); i >= 0 {
		return "delete"
	}
	return strings.Join(args, " ")
}

// headBuffer keeps the beginning of what is written and takes the rest without an error.
type headBuffer struct {
	limit int
	data  []byte
}

func (b *headBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p[:min(len(p), b.limit-len(b.data))]...)
	return len(p), nil
}

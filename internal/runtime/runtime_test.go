// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestNewNamesEveryBinaryThatCannotRun(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{StateDir: "/run/berth", ShimPath: plain, Default: "kata", Handlers: map[string]Handler{
		"runc": {Path: "/none/runc"}, "crun": {Path: "no-such-crun"}, "bad/name": {Path: "/bin/sh"}, "empty": {}, "shim": {Path: "/bin/sh", Program: "/none/shim"},
	}}, slog.New(slog.DiscardHandler))
	for _, text := range []string{"/none/shim does not exist (set path in [runtimes.shim])", "plain is not executable (set path in [shim])", "/none/runc does not exist (set path in [runtimes.runc])",
		"no-such-crun is not in PATH (set path in [runtimes.crun])", `"bad/name"`, `default handler "kata"`, "no path is configured"} {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("New: %v; want it to say %q", err, text)
		}
	}
	if _, err := New(Config{StateDir: "relative"}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a relative state folder is taken")
	}
}

func TestTheDefaultHandlerAnswersToTheEmptyName(t *testing.T) {
	sh := script(t, "exit 0")
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: sh}, "crun": {Path: "sh", Root: "/r"}}})
	h, err := r.Handler("")
	if err != nil || h.Name != "runc" || h.Path != sh || h.Root != filepath.Join(r.stateDir, "runc") {
		t.Errorf("default handler %+v, %v", h, err)
	}
	if h, err = r.Handler("crun"); err != nil || !filepath.IsAbs(h.Path) || h.Root != "/r" {
		t.Errorf("crun is %+v, %v", h, err)
	}
	_, err = r.Handler("kata")
	want(t, "unknown handler", err, ErrNoHandler, `"kata" is not among crun, runc`)
	if list := r.Handlers(); len(list) != 2 || list[0].Name != "runc" {
		t.Errorf("Handlers = %+v; want the default one first", list)
	}
}

func TestVersionIsAskedOnceUntilTheBinaryChanges(t *testing.T) {
	leakCheck(t)
	count := filepath.Join(t.TempDir(), "count")
	path := script(t, "echo x >> "+count+"; echo 'runc version 1.2.3'; echo 'spec: 1.1.0'")
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: path}}})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			v, err := r.Version(timeout(t, 5*time.Second), "")
			if err != nil || v != (Version{"runc", "1.2.3", "1.1.0"}) {
				t.Errorf("Version = %+v, %v", v, err)
			}
		})
	}
	group.Wait()
	if data, _ := os.ReadFile(count); len(data) != 2 {
		t.Errorf("asked %d times", len(data)/2)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho runc version 9\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if v, err := r.Version(timeout(t, 5*time.Second), "runc"); err != nil || v.Version != "9" {
		t.Errorf("after an upgrade: %+v, %v", v, err)
	}
}

func TestFeatures(t *testing.T) {
	cases := []struct {
		name, body string
		features   Features
		is         error
		text       string
	}{
		{"all", `echo '{"mountOptions":["ro","rro"],"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}'`,
			Features{RecursiveReadOnlyMounts: true, UserNamespaces: true, IDMapMounts: true}, nil, ""},
		{"no idmap, so no user namespaces", `echo '{"mountOptions":["ro"],"linux":{"namespaces":["user"]}}'`, Features{}, nil, ""},
		{"an old binary", "echo usage; echo 'unknown command features' >&2; exit 3", Features{}, ErrUnsupported, "unknown command features"},
		{"nonsense", "echo nonsense", Features{}, nil, "decode its features"},
	}
	for _, c := range cases {
		r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: script(t, c.body)}}})
		got, err := r.Features(timeout(t, 5*time.Second), "runc")
		got.Raw = nil
		if c.text != "" {
			if err == nil || !strings.Contains(err.Error(), c.text) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%s: error %v; want %v with %q", c.name, err, c.is, c.text)
			}
			continue
		}
		if err != nil || got.RecursiveReadOnlyMounts != c.features.RecursiveReadOnlyMounts || got.UserNamespaces != c.features.UserNamespaces ||
			got.IDMapMounts != c.features.IDMapMounts {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.features)
		}
	}
}

// TestABinaryThatWasKilledIsAskedAgain: the kernel may kill for want of memory, and that says nothing about the binary.
func TestABinaryThatWasKilledIsAskedAgain(t *testing.T) {
	lives := filepath.Join(t.TempDir(), "lives")
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: script(t, "[ -e "+lives+" ] || kill -9 $$; echo '{\"mountOptions\":[\"rro\"]}'")}}})
	if f, err := r.Features(timeout(t, 5*time.Second), "runc"); err == nil || errors.Is(err, ErrUnsupported) {
		t.Errorf("killed: %+v, %v", f, err)
	}
	if err := os.WriteFile(lives, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := r.Features(timeout(t, 5*time.Second), "runc"); err != nil || !f.RecursiveReadOnlyMounts {
		t.Errorf("asked again: %+v, %v", f, err)
	}
}

func TestARuntimeThatEntersNoUserNamespaceHasNone(t *testing.T) {
	says := script(t, `echo '{"mountOptions":["rro"],"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}'`)
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: says, EntersNoUserNamespace: true}}})
	if f, err := r.Features(timeout(t, 5*time.Second), "runc"); err != nil || f.UserNamespaces || !f.IDMapMounts || !f.RecursiveReadOnlyMounts {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestABinaryThatHangsIsWaitedForNoLongerThanTheCaller(t *testing.T) {
	healed := filepath.Join(t.TempDir(), "healed")
	r := newRuntime(t, Config{Handlers: map[string]Handler{"runc": {Path: script(t, "until [ -e "+healed+" ]; do sleep 0.05; done; echo runc version 1")}}})
	_, err := r.Version(timeout(t, 50*time.Millisecond), "")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Version = %v", err)
	}
	if err := os.WriteFile(healed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := r.Version(timeout(t, probeLimit), ""); err != nil || v.Version != "1" {
		t.Errorf("the second to ask: %+v, %v", v, err)
	}
}

func TestAFloodOfOutputIsBounded(t *testing.T) {
	out, err := runTool(timeout(t, 10*time.Second), script(t, "yes | head -c 5000000"))
	if err != nil || len(out) != maxToolOutput {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

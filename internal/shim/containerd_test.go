// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/userns"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
)

func TestLayersAreNamedFromWhatTheyHaveInCommon(t *testing.T) {
	for lower, want := range map[string][]string{
		"/s/1/fs":                  {"/s/1", "fs"},
		"/s/12/fs:/s/1/fs":         {"/s", "12/fs", "1/fs"},
		"/a/b/c:/a/bb/c:/a/b/c/d":  {"/a", "b/c", "bb/c", "b/c/d"},
		"/a:/b":                    {"/", "a", "b"},
		"/a/b:/a/b/c":              {"/a", "b", "b/c"},
		"/var/x/1/fs:/other/x/2/f": {"/", "var/x/1/fs", "other/x/2/f"},
	} {
		o, err := overlayOf(wire.Mount{Type: "overlay", Options: []string{"index=off", "workdir=/w", "upperdir=/u", "lowerdir=" + lower}})
		if err != nil || o.Root != want[0] || !slices.Equal(o.Layers, want[1:]) || o.Upper != "/u" || o.Work != "/w" || !slices.Equal(o.Options, []string{"index=off"}) {
			t.Errorf("%s: %+v, %v", lower, o, err)
		}
	}
	for _, lower := range []string{"", "x", "/", "/a/../b", "/a:", "/a/"} {
		if o, err := overlayOf(wire.Mount{Type: "overlay", Options: []string{"lowerdir=" + lower}}); err == nil {
			t.Errorf("%q: %+v", lower, o)
		}
	}
	if _, err := overlayOf(wire.Mount{Type: "overlay"}); err == nil {
		t.Error("no layers are accepted")
	}
}

func TestMappingsOfOverlays(t *testing.T) {
	m := wire.Mount{Type: "overlay", Options: []string{"uidmap=0:1000:65536", "lowerdir=/a", "gidmap=0:2000:10"}}
	mapping, is, err := takeMapping(&m)
	if err != nil || !is || mapping != (userns.Mapping{UIDs: userns.Range{Host: 1000, Size: 65536}, GIDs: userns.Range{Host: 2000, Size: 10}}) ||
		!slices.Equal(m.Options, []string{"lowerdir=/a"}) {
		t.Errorf("%+v, %v, %v; options %q", mapping, is, err, m.Options)
	}
	for _, options := range [][]string{
		{"uidmap=0:1:1"}, {"gidmap=0:1:1"}, {"uidmap=1:1:1", "gidmap=0:1:1"}, {"uidmap=0:1:0", "gidmap=0:1:1"}, {"uidmap=0:1", "gidmap=0:1:1"},
		{"uidmap=0:-1:1", "gidmap=0:1:1"}, {"uidmap=0:1:1,5:5:5", "gidmap=0:1:1"}, {"uidmap=0:4294967296:1", "gidmap=0:1:1"},
	} {
		if _, _, err := takeMapping(&wire.Mount{Type: "overlay", Options: options}); rpc.CodeOf(err) != rpc.InvalidArgument {
			t.Errorf("%q: %v", options, err)
		}
	}
}

func TestMountsThatTheShimDoesNotKnow(t *testing.T) {
	dir := t.TempDir()
	for name, m := range map[string]wire.Mount{
		"below the root": {Type: "bind", Source: "/", Target: "x", Options: []string{"bind"}},
		"loop device":    {Type: "ext4", Source: "/x", Options: []string{"ro", "loop"}},
		"mapped bind":    {Type: "bind", Source: "/", Options: []string{"bind", "uidmap=0:1:1", "gidmap=0:1:1"}},
	} {
		if err := mountRootfs(dir, []wire.Mount{m}); rpc.CodeOf(err) != rpc.Unimplemented {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What was mounted before an error is unmounted.
	err := mountRootfs(dir, []wire.Mount{{Type: "tmpfs", Source: "tmpfs"}, {Type: "no-such-type"}})
	if err == nil {
		t.Error("an unknown file system was mounted")
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(mounts, []byte(dir)) {
		t.Error("a mount is left")
	}
}

func TestOptionsOfContainerd(t *testing.T) {
	runc := filepath.Join(t.TempDir(), "crun")
	if err := os.WriteFile(runc, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	told := func(o wire.RuncOptions) wire.Any {
		return wire.Any{TypeURL: "containerd.runc.v1.Options", Value: wire.Marshal(&o)}
	}
	options, args, err := RuncOptions(told(wire.RuncOptions{BinaryName: runc, Root: "/r", SystemdCgroup: true, NoPivotRoot: true, IOUID: 7}), "ns")
	if err != nil || options.Runtime != runc || options.RuntimeRoot != "/r/ns" || !options.SystemdCgroup || options.IOUID != 7 || !options.Native ||
		!slices.Equal(args, []string{"--no-pivot"}) {
		t.Errorf("%+v, %q, %v", options, args, err)
	}
	t.Setenv("PATH", filepath.Dir(runc))
	if options, _, err = RuncOptions(told(wire.RuncOptions{BinaryName: "crun"}), "ns"); err != nil || options.Runtime != runc || options.RuntimeRoot != "/run/containerd/runc/ns" {
		t.Errorf("from PATH: %+v, %v", options, err)
	}
	for name, any := range map[string]wire.Any{
		"relative":      told(wire.RuncOptions{BinaryName: "bin/runc"}),
		"not there":     told(wire.RuncOptions{BinaryName: "no-such"}),
		"another type":  {TypeURL: "io.example.Options"},
		"general, full": {TypeURL: "runtimeoptions.v1.Options", Value: wire.Marshal(&wire.RuntimeOptions{ConfigBody: []byte("a=1")})},
		"malformed":     {TypeURL: "containerd.runc.v1.Options", Value: []byte{0xff}},
	} {
		if o, _, err := RuncOptions(any, "ns"); err == nil {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

// eventServer is containerd's, as far as events go.
type eventServer struct {
	mu   sync.Mutex
	told []string
}

func (s *eventServer) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.told)
}

func (s *eventServer) serve(t *testing.T, path string) {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.Config{
		Methods: map[string]rpc.Method{"containerd.services.events.ttrpc.v1.Events/Forward": rpc.Handle(func(_ context.Context, req *wire.ForwardRequest) (*wire.Empty, error) {
			if req.Envelope.Topic == "/bad" {
				return nil, rpc.Errorf(rpc.InvalidArgument, "bad")
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.told = append(s.told, req.Envelope.Namespace+req.Envelope.Topic+" "+req.Envelope.Event.TypeURL)
			return empty, nil
		})},
		Admit: func(*net.UnixConn) error { return nil }, Log: slog.New(slog.DiscardHandler), Called: func(int) {},
	})
	go server.Serve(listener)
	t.Cleanup(func() { listener.Close(); server.Shutdown(time.Second) })
}

func TestEventsComeInOrderAndWaitForContainerd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	p := newPublisher(ContainerdConfig{Namespace: "ns", Events: "unix://" + path, Log: slog.New(slog.DiscardHandler)})
	var want []string
	for i := range 5 {
		topic := fmt.Sprintf("/%d", i)
		p.publish(topic, "TaskOOM", &wire.TaskEvent{ContainerID: "c"})
		want = append(want, "ns"+topic+" containerd.events.TaskOOM")
		if i == 2 {
			p.publish("/bad", "TaskOOM", &wire.TaskEvent{})
		}
	}
	time.Sleep(10 * time.Millisecond) // the first try fails, most likely: nobody listens
	s := &eventServer{}
	s.serve(t, path)
	p.close()
	if got := s.all(); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestStreamPaths(t *testing.T) {
	dir := t.TempDir()
	fifoPath, file := filepath.Join(dir, "fifo"), filepath.Join(dir, "file")
	if err := syscall.Mkfifo(fifoPath, 0o600); err != nil {
		t.Fatal(err)
	}
	var c clients
	if err := (&streamPaths{fifoPath, "file://" + file, filepath.Join(dir, "none")}).open(&c, true); err != nil || c[0] == nil || c[1] == nil || c[2] != nil {
		t.Errorf("%v, %v", c, err)
	}
	c.hangUp()
	for want, paths := range map[string]streamPaths{
		"no such file":  {"", filepath.Join(dir, "none"), ""},
		"is not a FIFO": {"", "", file},
		"stdin":         {"file://" + file, "", ""},
		"binary:///x":   {"", "binary:///x", ""},
	} {
		if err := paths.open(&c, false); rpc.CodeOf(err) != rpc.InvalidArgument || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", paths, err)
		}
		c.hangUp()
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package snapshotter serves containerd's own snapshotters over its snapshots API, as remote ones such as stargz do: layers that it is given it has
// without a download, and it fails on demand.
package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

// Server is one snapshotter.
type Server struct {
	// Address is its unix socket.
	Address string

	inner  snapshots.Snapshotter
	server *grpc.Server

	mu       sync.Mutex // guards what follows
	layers   map[string]func() (io.ReadCloser, error)
	fault    func(ctx context.Context, method string) error
	heal     func() // ends calls that hang
	healed   context.Context
	mounts   func([]mount.Mount) []mount.Mount
	prepared []map[string]string
}

// Start serves the snapshotter of that kind, "overlayfs" or "native", with its state in dir, until Stop or the test's end.
func Start(tb testing.TB, kind, dir string) *Server {
	tb.Helper()
	var inner snapshots.Snapshotter
	var err error
	if kind == "native" {
		inner, err = native.NewSnapshotter(dir)
	} else {
		inner, err = overlay.NewSnapshotter(dir)
	}
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{Address: filepath.Join(tb.TempDir(), "s.sock"), inner: inner, layers: map[string]func() (io.ReadCloser, error){}}
	s.Serve(tb)
	tb.Cleanup(func() {
		s.Stop()
		if err := inner.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Serve serves again after Stop.
func (s *Server) Serve(tb testing.TB) {
	tb.Helper()
	l, err := net.Listen("unix", s.Address)
	if err != nil {
		tb.Fatal(err)
	}
	s.server = grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(s.server, snapshotservice.FromSnapshotter(lazy{s.inner, s}))
	go s.server.Serve(l)
}

// Stop is the end of the process: nobody listens, calls under way are cut.
func (s *Server) Stop() { s.server.Stop() }

// Inner is what is served.
func (s *Server) Inner() snapshots.Snapshotter { return s.inner }

// Has makes a compressed layer one that needs no download.
func (s *Server) Has(digest string, open func() (io.ReadCloser, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[digest] = open
}

// Fail is asked before each call, with its method's name; nil is no fault. The one before ends.
func (s *Server) Fail(f func(ctx context.Context, method string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heal != nil {
		s.heal()
	}
	s.fault = f
	s.healed, s.heal = context.WithCancel(context.Background())
}

// Hang is a fault: no answer.
func Hang(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

// Lie changes the mounts of all answers; nil tells the truth.
func (s *Server) Lie(f func([]mount.Mount) []mount.Mount) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = f
}

// Prepared are the labels of all calls of Prepare that named a layer.
func (s *Server) Prepared() []map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]map[string]string(nil), s.prepared...)
}

// Snapshots lists what there is.
func (s *Server) Snapshots(tb testing.TB) (names []string) {
	tb.Helper()
	err := s.inner.Walk(context.Background(), func(_ context.Context, i snapshots.Info) error {
		names = append(names, i.Kind.String()+" "+i.Name)
		return nil
	})
	if err != nil && !errdefs.IsNotFound(err) {
		tb.Fatal(err)
	}
	return names
}

// Forget removes all snapshots, as if the disk below was changed.
func (s *Server) Forget(tb testing.TB) {
	tb.Helper()
	for range 1000 {
		left := s.Snapshots(tb)
		if len(left) == 0 {
			return
		}
		for _, name := range left {
			_, name, _ := strings.Cut(name, " ")
			if err := s.inner.Remove(context.Background(), name); err != nil && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err) {
				tb.Fatal(err)
			}
		}
	}
	tb.Fatal("snapshots cannot be removed")
}

func (s *Server) ask(ctx context.Context, method string) error {
	s.mu.Lock()
	fault, healed := s.fault, s.healed
	s.mu.Unlock()
	if fault == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(healed, cancel)()
	return fault(ctx, method)
}

func (s *Server) answer(m []mount.Mount, err error) ([]mount.Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounts == nil || err != nil {
		return m, err
	}
	return s.mounts(m), nil
}

// lazy is a snapshotter that has layers of its own.
type lazy struct {
	snapshots.Snapshotter
	s *Server
}

func (l lazy) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if err := l.s.ask(ctx, "Stat"); err != nil {
		return snapshots.Info{}, err
	}
	return l.Snapshotter.Stat(ctx, key)
}

func (l lazy) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	if err := l.s.ask(ctx, "Usage"); err != nil {
		return snapshots.Usage{}, err
	}
	return l.Snapshotter.Usage(ctx, key)
}

func (l lazy) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	if err := l.s.ask(ctx, "Mounts"); err != nil {
		return nil, err
	}
	return l.s.answer(l.Snapshotter.Mounts(ctx, key))
}

func (l lazy) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := l.s.ask(ctx, "View"); err != nil {
		return nil, err
	}
	return l.s.answer(l.Snapshotter.View(ctx, key, parent, opts...))
}

func (l lazy) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := l.s.ask(ctx, "Commit"); err != nil {
		return err
	}
	return l.Snapshotter.Commit(ctx, name, key, opts...)
}

func (l lazy) Remove(ctx context.Context, key string) error {
	if err := l.s.ask(ctx, "Remove"); err != nil {
		return err
	}
	return l.Snapshotter.Remove(ctx, key)
}

func (l lazy) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	if err := l.s.ask(ctx, "Walk"); err != nil {
		return err
	}
	return l.Snapshotter.Walk(ctx, fn, filters...)
}

// Prepare commits a layer that is here under the name that the client asks for, and says that it exists: the protocol of remote snapshotters.
func (l lazy) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := l.s.ask(ctx, "Prepare"); err != nil {
		return nil, err
	}
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return nil, err
		}
	}
	m, err := l.Snapshotter.Prepare(ctx, key, parent, opts...)
	target := info.Labels[snapshots.LabelSnapshotRef]
	if err != nil || target == "" {
		return l.s.answer(m, err)
	}
	l.s.mu.Lock()
	l.s.prepared = append(l.s.prepared, maps.Clone(info.Labels))
	open := l.s.layers[info.Labels["containerd.io/snapshot/cri.layer-digest"]]
	l.s.mu.Unlock()
	if open == nil {
		return l.s.answer(m, nil)
	}
	if err := apply(ctx, m, open); err != nil {
		return nil, errors.Join(err, l.Snapshotter.Remove(ctx, key))
	}
	if err := l.Snapshotter.Commit(ctx, target, key, snapshots.WithLabels(info.Labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return nil, fmt.Errorf("target snapshot %q: %w", target, errdefs.ErrAlreadyExists)
}

func apply(ctx context.Context, mounts []mount.Mount, open func() (io.ReadCloser, error)) error {
	blob, err := open()
	if err != nil {
		return err
	}
	defer blob.Close()
	plain, err := compression.DecompressStream(blob)
	if err != nil {
		return err
	}
	defer plain.Close()
	folder, opts := mounts[0].Source, []archive.ApplyOpt(nil)
	for _, o := range mounts[0].Options {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			folder, opts = upper, append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
		}
	}
	if _, err := os.Stat(folder); err != nil {
		return err
	}
	_, err = archive.Apply(ctx, folder, plain, opts...)
	return err
}

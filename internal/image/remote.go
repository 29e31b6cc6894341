// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// A remote snapshotter keeps layers in ways of its own: most of them mount what they fetch piece by piece, when it is read. An image that it has is
// listed by what is recorded here, so that it may be down, and only who pulls or mounts such an image waits for it.

const (
	// ownerLabel tells Berth's snapshots from others'. Labels with this beginning are kept by the snapshotter.
	ownerLabel = "containerd.io/snapshot/berth"
	// remindTime is how long the collector waits until it tries a snapshotter again that was down.
	remindTime = time.Minute
	// remoteIdle is how long a connection is kept that nobody uses; a new one costs next to nothing.
	remoteIdle = 5 * time.Second
	// maxRemoteAnswer bounds one message.
	maxRemoteAnswer = 16 << 20
	// maxOpenings bounds the goroutines that wait for a snapshotter's file systems.
	maxOpenings  = 16
	remoteParted = "/"
	gcRefPrefix  = "containerd.io/gc.ref.snapshot."
)

// remoteSnapshotter is one of Config.Remotes, connected when it is needed.
type remoteSnapshotter struct {
	*bounded
	conn      *grpc.ClientConn
	snapshots snapshots.Snapshotter // with the metadata
	openings  *semaphore.Weighted
	used      atomic.Pointer[usage]
	sizes     map[string]usage // guarded by Store.counting
}

// connectRemotes makes the clients. No connection is made yet.
func (s *Store) connectRemotes() (map[string]snapshots.Snapshotter, error) {
	all := map[string]snapshots.Snapshotter{}
	s.remotes = map[string]*remoteSnapshotter{}
	for _, r := range s.cfg.Remotes {
		wait := backoff.DefaultConfig
		wait.MaxDelay = 3 * time.Second
		conn, err := grpc.NewClient("unix://"+r.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(grpc.ConnectParams{Backoff: wait}),
			grpc.WithIdleTimeout(remoteIdle),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxRemoteAnswer)))
		if err != nil {
			return nil, fmt.Errorf("snapshotter %s: %w", r.Name, err)
		}
		b := &bounded{inner: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), r.Name), Remote: r}
		b.owed.Store(true) // what an earlier life has left
		s.remotes[r.Name] = &remoteSnapshotter{bounded: b, conn: conn, openings: semaphore.NewWeighted(maxOpenings), sizes: map[string]usage{}}
		all[r.Name] = b
	}
	return all, nil
}

func (s *Store) closeRemotes() error {
	var errs []error
	for _, r := range s.remotes {
		if err := r.conn.Close(); status.Code(err) != codes.Canceled { // what it says when it is closed already
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// chainKey names an image's unpacked layers where they are.
func (im Image) chainKey() string {
	if im.Snapshotter == "" {
		return im.ChainID
	}
	return im.Snapshotter + remoteParted + im.ChainID
}

// place takes a chainKey apart. A snapshotter that is not configured any more is an error.
func (s *Store) place(key string) (*remoteSnapshotter, string, error) {
	name, chainID, ok := strings.Cut(key, remoteParted)
	if !ok {
		return nil, key, nil
	}
	r := s.remotes[name]
	if r == nil {
		return nil, "", fmt.Errorf("layers are kept by the snapshotter %s, which is not configured: %w", name, ErrSnapshotter)
	}
	return r, chainID, nil
}

// placeOf tells which remote snapshotter has an image, by what was recorded with it: nobody is asked. Nil: none has.
func (s *Store) placeOf(ctx context.Context, t *tree) (*remoteSnapshotter, error) {
	if len(s.remotes) == 0 || t.top() == "" {
		return nil, nil
	}
	info, err := s.content.Info(ctx, t.id())
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(s.remotes)) {
		if info.Labels[gcRefPrefix+name] == t.top() {
			return s.remotes[name], nil
		}
	}
	return nil, nil
}

// lost takes an image off the list whose layers its snapshotter has no more, so that it is pulled again.
func (s *Store) lost(ctx context.Context, r *remoteSnapshotter, chainID string, reason error) error {
	s.log.Error("snapshotter has lost layers; pull their images again", "snapshotter", r.Name, "layers", chainID, "error", reason)
	for _, im := range s.index.Load().all {
		if im.Snapshotter != r.Name || im.ChainID != chainID {
			continue
		}
		_, err := s.content.Update(scoped(ctx), content.Info{Digest: digest.Digest(im.ID), Labels: map[string]string{gcRefPrefix + r.Name: ""}}, "labels."+gcRefPrefix+r.Name)
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("forget layers of image %s: %w", im.ID, err)
		}
	}
	return s.reread(ctx)
}

// remind has the collector look through snapshotters that may have what is not needed: one was down, or an earlier life has ended in the middle.
func (s *Store) remind(ctx context.Context) {
	for _, r := range s.remotes {
		if !r.owed.Load() {
			continue
		}
		if err := r.sweep(ctx, s); err != nil {
			if ctx.Err() == nil {
				s.log.Warn("snapshotter is not rid of what is removed; it is tried again", "snapshotter", r.Name, "error", err)
				s.collectAfter(remindTime)
			}
			continue
		}
		r.owed.Store(false) // the collection that follows may set it again
	}
}

// sweep drops views that nobody needs, and something else, so that the collector compares the snapshotter with the metadata.
func (r *remoteSnapshotter) sweep(ctx context.Context, s *Store) error {
	var idle []string
	err := r.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if chainID, ok := strings.CutPrefix(info.Name, viewKey); ok {
			idle = append(idle, r.Name+remoteParted+chainID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range idle {
		if err := s.releaseChain(ctx, key); err != nil { // not if it is in use
			return err
		}
	}
	const name = "suspect"
	if _, err := r.snapshots.Prepare(ctx, name, "", snapshots.WithLabels(map[string]string{ownerLabel: "true"})); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := r.snapshots.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) { // another collection may have been faster
		return err
	}
	return nil
}

// countRemotes adds up what snapshotters say that they take. One that is down has what it had.
func (s *Store) countRemotes(ctx context.Context) {
	for _, r := range s.remotes {
		if r.owed.Load() {
			continue
		}
		if err := r.count(ctx, s); err != nil && ctx.Err() == nil {
			s.log.Warn("snapshotter does not tell what it takes", "snapshotter", r.Name, "error", err)
		}
	}
}

func (r *remoteSnapshotter) count(ctx context.Context, s *Store) error {
	sizes, total := map[string]usage{}, usage{}
	err := r.snapshots.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		taken, err := r.snapshots.Usage(ctx, info.Name) // each time: a layer that comes piece by piece grows
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		u := usage{max(taken.Size, 0), max(taken.Inodes, 0)}
		sizes[info.Name] = u
		total.bytes += u.bytes
		total.inodes += u.inodes
		return nil
	})
	if err != nil {
		return err
	}
	s.counting.Lock()
	r.sizes = sizes
	s.counting.Unlock()
	r.used.Store(&total)
	return nil
}

// remoteLayers asks whether a remote snapshotter has the layers of an image. What is in them only it can check.
func (c *checking) remoteLayers(ctx context.Context, im Image, name string) error {
	r := c.s.remotes[im.Snapshotter]
	if !c.asked[im.chainKey()] {
		c.asked[im.chainKey()] = true
		c.Unchecked += im.Layers
	}
	_, err := r.snapshots.Stat(ctx, im.ChainID)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errdefs.IsNotFound(err):
		c.damage(Damage{Kind: "layer", Object: im.chainKey(), Reason: err, Images: []string{name}, Quarantined: true})
		return c.s.lost(ctx, r, im.ChainID, err)
	case err != nil:
		c.s.log.Warn("layers are not checked", "image", name, "error", err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/internal/linux/syncfs"
)

const (
	chainPrefix = "chain://"
	// upperLabel is what the overlay snapshotter calls the folder of a snapshot.
	upperLabel = "containerd.io/snapshot/overlay.upperdir"
)

// unpacking is the layers of one image on their way into snapshots. All are fetched and unpacked side by side; only the commit of each, which
// puts it on the one below, waits for that one.
//
// Waiting is free of cycles: who waits for a chain waits for one with fewer layers, or for another pull that has it and does; slots for
// downloads and for unpacking are never held while waiting for anything but the network and the disk.
type unpacking struct {
	*puller
	t         *tree
	committed []chan struct{}
}

// unpack makes sure that each layer's snapshot is here and stays.
func (p *puller) unpack(ctx context.Context, t *tree) error {
	u := &unpacking{puller: p, t: t, committed: make([]chan struct{}, len(t.layers))}
	p.progress.layers.Store(int64(len(t.layers)))
	first, err := u.known(ctx)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	p.progress.unpacked.Store(int64(first))
	if err := u.admit(first); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for i := range t.layers {
		u.committed[i] = make(chan struct{})
		if i < first {
			close(u.committed[i])
			continue
		}
		g.Go(func() error { return u.layer(ctx, i) })
	}
	return g.Wait()
}

// known counts the layers that are unpacked already, from the bottom, and holds them.
func (u *unpacking) known(ctx context.Context) (int, error) {
	for n := len(u.t.chain); n > 0; n-- {
		ok, err := u.holdChain(ctx, u.t.chain[n-1])
		if ok || err != nil {
			return n, err
		}
	}
	return 0, nil
}

// holdChain looks for a snapshot and keeps it, and all below it, from the collector.
func (u *unpacking) holdChain(ctx context.Context, id digest.Digest) (bool, error) {
	_, err := u.s.snapshots.Stat(ctx, id.String())
	if err == nil {
		if err = u.hold(ctx, "snapshots/"+overlayfs, id.String()); err == nil {
			_, err = u.s.snapshots.Stat(ctx, id.String()) // the collector may have been faster
		}
	}
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (u *unpacking) layer(ctx context.Context, i int) error {
	desc, chain := u.t.layers[i], u.t.chain[i]
	// The same layers in two images are unpacked once.
	if err := u.s.locks.Lock(ctx, chainPrefix+chain.String()); err != nil {
		return err
	}
	defer u.s.locks.Unlock(chainPrefix + chain.String())
	done, err := u.holdChain(ctx, chain)
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
	}
	if !done {
		if err := u.blob(ctx, desc); err != nil {
			return fmt.Errorf("fetch layer %s: %w", desc.Digest, err)
		}
		if err := u.extract(ctx, i); err != nil {
			return fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
		}
	}
	u.progress.unpacked.Add(1)
	close(u.committed[i])
	return nil
}

// extract unpacks a layer that is here into a snapshot.
func (u *unpacking) extract(ctx context.Context, i int) (err error) {
	key := extractPrefix + u.t.chain[i].String() + "-" + rand.Text()
	mounts, err := u.s.snapshots.Prepare(ctx, key, "")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if rerr := u.s.snapshots.Remove(context.WithoutCancel(ctx), key); rerr != nil && !errdefs.IsNotFound(rerr) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	if len(mounts) != 1 || mounts[0].Type != "bind" {
		return fmt.Errorf("snapshotter offers %v, want one folder", mounts)
	}
	dir := mounts[0].Source
	result, err := u.untar(ctx, u.t.layers[i], dir)
	if err == nil && !u.s.cfg.SkipSync {
		err = syncfs.Sync(dir) // while other layers are fetched and unpacked: at the end there is little left to wait for
	}
	if err != nil {
		return err
	}
	if result.DiffID != u.t.diffIDs[i] {
		return fmt.Errorf("content is %s, the configuration says %s: %w", result.DiffID, u.t.diffIDs[i], ErrCorrupt)
	}
	var opts []snapshots.Opt
	if i > 0 {
		select {
		case <-u.committed[i-1]:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := u.inherit(ctx, i, dir, result.Implied); err != nil {
			return err
		}
		opts = append(opts, snapshots.WithParent(u.t.chain[i-1].String()))
	}
	return u.s.snapshots.Commit(ctx, u.t.chain[i].String(), key, opts...)
}

func (u *unpacking) untar(ctx context.Context, desc ocispec.Descriptor, dir string) (layer.Result, error) {
	if err := u.s.unpacks.Acquire(ctx, 1); err != nil {
		return layer.Result{}, err
	}
	defer u.s.unpacks.Release(1)
	u.progress.at("unpack")
	blob, err := u.s.content.ReaderAt(ctx, ocispec.Descriptor{Digest: desc.Digest, Size: desc.Size})
	if err != nil {
		return layer.Result{}, err
	}
	defer blob.Close()
	return layer.Extract(ctx, dir, content.NewReader(blob))
}

// inherit completes folders that the layer goes into without naming them.
func (u *unpacking) inherit(ctx context.Context, i int, dir string, implied []string) error {
	if len(implied) == 0 {
		return nil
	}
	var below []string
	for n := i - 1; n >= 0; n-- {
		info, err := u.s.snapshots.Stat(ctx, u.t.chain[n].String())
		if err != nil {
			return err
		}
		below = append(below, info.Labels[upperLabel])
	}
	return layer.Inherit(dir, implied, below)
}

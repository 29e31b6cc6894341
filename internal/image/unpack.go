// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/internal/telemetry"
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
	// arriving are the layers that are unpacked while they come; folders those that have too many files to be kept as one.
	arriving []*arrival
	folders  []bool
	// found are the layers of which the blob was here before: others may have it, too.
	found []bool
}

// unpack makes sure that each layer's snapshot is here and stays.
func (p *puller) unpack(ctx context.Context, t *tree) error {
	n := len(t.layers)
	u := &unpacking{puller: p, t: t, committed: make([]chan struct{}, n), arriving: make([]*arrival, n), folders: make([]bool, n), found: make([]bool, n)}
	p.progress.layers.Store(int64(len(t.layers)))
	if r := p.snapshotter(t); r != nil {
		return u.unpackRemote(ctx, r)
	}
	first, err := u.known(ctx)
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	p.progress.unpacked.Store(int64(first))
	p.progress.present.Store(int64(first))
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
		if err != nil {
			return 0, err
		}
		if ok {
			return u.unbroken(ctx, n)
		}
	}
	return 0, nil
}

// unbroken counts, from the bottom, those of the first n layers that have their content.
func (u *unpacking) unbroken(ctx context.Context, n int) (int, error) {
	for i := range n {
		err := u.s.whole(ctx, u.t.chain[i])
		if errors.Is(err, ErrCorrupt) {
			return i, nil
		} else if err != nil {
			return 0, err
		}
	}
	return n, nil
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
	unpack := u.extract
	lost := false
	if done {
		if err = u.s.whole(ctx, chain); errors.Is(err, ErrCorrupt) {
			done, lost, unpack, err = false, true, u.mend, nil
		}
	}
	if err != nil {
		return fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
	}
	t := &tries{}
	if !done && !lost {
		if done, err = u.follow(ctx, i, t); err != nil {
			return err
		}
	}
	if !done {
		if err := u.fetchAndUnpack(ctx, i, t, unpack); err != nil {
			return err
		}
	}
	u.progress.unpacked.Add(1)
	close(u.committed[i])
	return nil
}

// layerStage does one of the things that a layer takes time for.
func (*unpacking) layerStage(ctx context.Context, stage string, desc ocispec.Descriptor, do func(context.Context) error) error {
	ctx, span := telemetry.Start(ctx, "image", stage)
	span.Set("digest", desc.Digest.String())
	span.SetInt("bytes", desc.Size)
	err := do(ctx)
	span.End(err)
	if err != nil {
		return fmt.Errorf("%s %s: %w", stage, desc.Digest, err)
	}
	return nil
}

// fetchAndUnpack fetches a layer anew if what was here of it is damaged.
func (u *unpacking) fetchAndUnpack(ctx context.Context, i int, t *tries, unpack func(context.Context, int) error) error {
	desc := u.t.layers[i]
	for again := false; ; again = true {
		if err := u.layerStage(ctx, "fetch layer", desc, func(ctx context.Context) error { return u.layerBlob(ctx, i, t) }); err != nil {
			return err
		}
		err := u.layerStage(ctx, "unpack layer", desc, func(ctx context.Context) error { return unpack(ctx, i) })
		if err == nil {
			return u.consumed(ctx, i)
		}
		if again || !errors.Is(err, layer.ErrCorrupt) && !damaged(err) {
			return err
		}
		rot := u.s.verifyBlob(ctx, desc.Digest)
		if !damaged(rot) { // the image is wrong, not what is kept of it
			return err
		}
		if err := u.s.dropBlob(ctx, desc.Digest, rot); err != nil {
			return fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
		}
	}
}

// layerBlob fetches a layer. An artifact's file may be empty, and there is nothing to fetch then.
func (u *unpacking) layerBlob(ctx context.Context, i int, t *tries) error {
	desc := u.t.layers[i]
	if u.t.artifact != "" && desc.Size == 0 {
		return nil
	}
	err := u.blobAfter(ctx, desc, t)
	u.found[i] = t.found
	return err
}

// extract unpacks a layer that is here into a snapshot.
func (u *unpacking) extract(ctx context.Context, i int) error {
	parent := ""
	if i > 0 {
		parent = u.t.chain[i-1].String()
	}
	return u.s.intoSnapshot(ctx, u.t.chain[i].String(), parent, func(folder string) error {
		l, err := u.unpackInto(ctx, i, folder)
		if err != nil {
			return err
		}
		if err = u.sameContent(i, l); err == nil {
			err = u.arrived(ctx, i)
		}
		if err == nil {
			err = u.waitBelow(ctx, i)
		}
		if err == nil {
			err = u.finish(ctx, i, l)
		}
		if err = errors.Join(err, l.close()); err != nil { // nobody may have it open for writing
			return err
		}
		return u.s.guardBlob(blobOf(folder))
	})
}

// sameContent compares what was unpacked with what the configuration promises.
func (u *unpacking) sameContent(i int, l unpacked) error {
	if l.diffID != u.t.diffIDs[i] {
		return fmt.Errorf("content is %s, the configuration says %s: %w", l.diffID, u.t.diffIDs[i], ErrCorrupt)
	}
	return nil
}

// waitBelow waits until the layer below is committed.
func (u *unpacking) waitBelow(ctx context.Context, i int) error {
	if i == 0 {
		return nil
	}
	select {
	case <-u.committed[i-1]:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

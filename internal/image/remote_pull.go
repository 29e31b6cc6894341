// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/internal/linux/syncfs"
)

// inherited begins the annotations of a manifest's layers that are for snapshotters.
const inherited = "containerd.io/snapshot/"

// snapshotter chooses who is to keep the layers: whoever has the image already, else whom the configuration says. Nil: the store itself, as with
// artifacts and imports, which no registry has piece by piece, and for runtime handlers that want a form of the store's.
func (p *puller) snapshotter(t *tree) *remoteSnapshotter {
	if im := p.s.index.Load().byID[t.id().String()]; im != nil {
		return p.s.remotes[im.Snapshotter]
	}
	if t.artifact != "" || p.session == nil || p.form != "" {
		return nil
	}
	return p.s.remotes[p.s.cfg.Snapshotter]
}

// unpackRemote has a remote snapshotter prepare the layers, from the lowest. What it does not have and cannot get by itself is fetched, and
// unpacked where it says.
func (u *unpacking) unpackRemote(ctx context.Context, r *remoteSnapshotter) error {
	u.t.snapshotter = r.Name
	ready := make([]chan error, len(u.t.layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(len(ready) + 1)
	fetching := false
	g.Go(func() error {
		for i, desc := range u.t.layers {
			fetch := func(ctx context.Context) error {
				if !fetching { // those above will be wanted most likely
					fetching = true
					for j := i; j < len(ready); j++ {
						done := make(chan error, 1)
						ready[j] = done
						g.Go(func() error {
							above := u.t.layers[j]
							err := u.layerStage(ctx, "fetch layer", above, func(ctx context.Context) error { return u.layerBlob(ctx, j, &tries{}) })
							done <- err
							return err
						})
					}
				}
				select {
				case err := <-ready[i]:
					return err
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			err := u.layerStage(ctx, "prepare layer", desc, func(ctx context.Context) error { return u.remoteLayer(ctx, r, i, fetch) })
			if err != nil {
				return err
			}
			u.progress.unpacked.Add(1)
		}
		return nil
	})
	return g.Wait()
}

func (u *unpacking) remoteLayer(ctx context.Context, r *remoteSnapshotter, i int, fetch func(context.Context) error) error {
	chain, parent := u.t.chain[i].String(), ""
	if i > 0 {
		parent = u.t.chain[i-1].String()
	}
	lock := chainPrefix + r.Name + remoteParted + chain
	if err := u.s.locks.Lock(ctx, lock); err != nil {
		return err
	}
	defer u.s.locks.Unlock(lock)
	with := u.remoteLabels(i)
	for again := false; ; again = true {
		key := extractPrefix + chain + "-" + rand.Text()
		mounts, err := r.snapshots.Prepare(ctx, key, parent, snapshots.WithLabels(with))
		if err == nil {
			return u.fill(ctx, r, i, key, mounts, fetch)
		}
		if !errdefs.IsAlreadyExists(err) {
			return err
		}
		if _, err = r.snapshots.Stat(ctx, chain); err == nil {
			u.progress.present.Add(1)
			return nil
		}
		if !errdefs.IsNotFound(err) || again {
			return err
		}
		if err := u.forgetRemote(ctx, r, i); err != nil {
			return err
		}
	}
}

// forgetRemote takes layers out of the metadata that the snapshotter does not have, with those above.
func (u *unpacking) forgetRemote(ctx context.Context, r *remoteSnapshotter, i int) error {
	keys := []string{viewKey + u.t.top()}
	for n := len(u.t.chain) - 1; n >= i; n-- {
		keys = append(keys, u.t.chain[n].String())
	}
	for _, key := range keys {
		if err := r.snapshots.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("snapshotter %s has lost the layer, which other images or containers have, too: remove them: %w: %w", r.Name, ErrCorrupt, err)
		}
	}
	return nil
}

// fill fetches a layer, unpacks it to where the snapshotter wants it, and commits it.
func (u *unpacking) fill(ctx context.Context, r *remoteSnapshotter, i int, key string, mounts []mount.Mount, fetch func(context.Context) error) (err error) {
	defer func() {
		if err == nil {
			return
		}
		if rerr := r.snapshots.Remove(context.WithoutCancel(ctx), key); rerr != nil && !errdefs.IsNotFound(rerr) {
			err = errors.Join(err, rerr)
		}
	}()
	to, err := target(mounts)
	if err != nil {
		return fmt.Errorf("snapshotter %s: %w", r.Name, err)
	}
	if err := fetch(ctx); err != nil {
		return err
	}
	if err := u.apply(ctx, i, to); err != nil {
		return err
	}
	chain := u.t.chain[i].String()
	if err := r.snapshots.Commit(ctx, chain, key, snapshots.WithLabels(u.remoteLabels(i))); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	return u.consumed(ctx, i)
}

func (u *unpacking) apply(ctx context.Context, i int, to layer.Target) error {
	t, err := u.turn(ctx)
	if err != nil {
		return err
	}
	defer t.end()
	ctx = t.ctx
	src, err := u.openSource(ctx, i)
	if err != nil {
		return err
	}
	defer src.Close()
	got, err := layer.Apply(ctx, to, src)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err == nil {
		err = u.sameContent(i, unpacked{diffID: got.DiffID})
	}
	if err == nil && !u.s.cfg.SkipSync {
		err = syncfs.Sync(to.Folder)
	}
	return err
}

// target is where the mounts of a snapshot that is being prepared lead, without mounting them. ErrUnsupported.
func target(mounts []mount.Mount) (layer.Target, error) {
	if len(mounts) != 1 {
		return layer.Target{}, fmt.Errorf("offers %d mounts for a layer, want one: %w", len(mounts), ErrUnsupported)
	}
	m := mounts[0]
	switch m.Type {
	case "bind", "rbind":
		return layer.Target{Folder: m.Source}, absolute(m.Source)
	case "overlay":
		to := layer.Target{Overlay: true}
		var err error
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				to.Folder = dir
			} else if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
				to.Parents, err = lowerFolders(dirs)
			}
		}
		return to, errors.Join(err, absolute(to.Folder))
	}
	return layer.Target{}, fmt.Errorf("offers a mount of type %q for a layer, want bind or overlay: %w", m.Type, ErrUnsupported)
}

// remoteLabels tell the snapshotter where a layer comes from, in containerd's words, after what the manifest has for it.
func (u *unpacking) remoteLabels(i int) map[string]string {
	all, desc := map[string]string{}, u.t.layers[i]
	for k, v := range desc.Annotations {
		if strings.HasPrefix(k, inherited) && labels.Validate(k, v) == nil {
			all[k] = v
		}
	}
	for k, v := range map[string]string{
		snapshots.LabelSnapshotRef:             u.t.chain[i].String(),
		snapshotters.TargetRefLabel:            u.name.String(),
		snapshotters.TargetManifestDigestLabel: u.t.manifest.Digest.String(),
		snapshotters.TargetLayerDigestLabel:    desc.Digest.String(),
		snapshotters.TargetImageLayersLabel:    joinLayers(u.t.layers[i:]),
		ownerLabel:                             "true",
	} {
		all[k] = v
		if labels.Validate(k, v) != nil { // a reference may be longer than a label
			delete(all, k)
		}
	}
	return all
}

// joinLayers lists as many digests as fit into a label.
func joinLayers(all []ocispec.Descriptor) string {
	list := ""
	for _, l := range all {
		next := strings.TrimPrefix(list+","+l.Digest.String(), ",")
		if labels.Validate(snapshotters.TargetImageLayersLabel, next) != nil {
			break
		}
		list = next
	}
	return list
}

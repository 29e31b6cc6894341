// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/internal/telemetry"
)

// A runtime handler may want layers in another form than the node's: a virtual machine that is given folders, for example. An image whose layers are not
// all in that form gets a second chain of snapshots, made of the first when a container of the handler is created or the image is pulled for it. No registry
// is asked: what was pulled once is here. The collector finds the second chain as it finds the first, through the image's configuration.

// reformPrefix begins the names of locks and leases of chains that are being made in another form.
const reformPrefix = "reform-"

// formOf is the form that a handler wants; empty: any.
func (s *Store) formOf(handler string) string { return s.cfg.Handlers[handler] }

// formKey is the name of a chain's snapshot in a form of its own.
func formKey(form, chain string) string { return form + "-" + chain }

// chainIn returns the key of an image's chain in a form, and makes it where it is missing. Idempotent. ErrUnsupported: a remote snapshotter has the image.
func (s *Store) chainIn(ctx context.Context, im Image, form string) (string, error) {
	if form == "" || im.ChainID == "" {
		return im.chainKey(), nil
	}
	if im.Snapshotter != "" {
		return "", fmt.Errorf("image %s is kept by snapshotter %s, and the runtime handler wants %s: remove the image, and pull it for the handler: %w",
			im.ID, im.Snapshotter, form, ErrUnsupported)
	}
	ctx = scoped(ctx)
	t, err := s.treeOf(ctx, im)
	if err != nil {
		return "", err
	}
	if same, err := s.allIn(ctx, t.chain, form); err != nil || same {
		return im.ChainID, err
	}
	key := formKey(form, im.ChainID)
	if err := s.locks.Lock(ctx, reformPrefix+key); err != nil {
		return "", err
	}
	defer s.locks.Unlock(reformPrefix + key)
	ctx, span := telemetry.Start(ctx, "image", "change snapshotter")
	span.Set("form", form)
	err = s.reform(ctx, t, form)
	span.End(err)
	if err != nil {
		var damaged *damagedError
		if errors.As(err, &damaged) {
			err = errors.Join(err, s.quarantine(ctx, damaged.folder, damaged.reason))
		}
		return "", fmt.Errorf("unpack layers of image %s for snapshotter %s: %w", im.ID, form, err)
	}
	return key, nil
}

// treeOf reads what an image is made of.
func (s *Store) treeOf(ctx context.Context, im Image) (*tree, error) {
	for _, target := range s.targetsOf(im) {
		info, err := s.content.Info(ctx, target)
		if errdefs.IsNotFound(err) {
			continue // removed meanwhile
		} else if err != nil {
			return nil, err
		}
		t, _, err := s.readTree(ctx, ocispec.Descriptor{Digest: info.Digest, Size: info.Size})
		return t, err
	}
	return nil, fmt.Errorf("image %s: %w", im.ID, ErrNotFound)
}

// allIn tells whether all layers of a chain are kept in a form.
func (s *Store) allIn(ctx context.Context, chain []digest.Digest, form string) (bool, error) {
	for _, id := range chain {
		folder, err := s.folderOf(ctx, id.String())
		if err != nil {
			return false, err
		}
		size, err := blobSize(folder)
		if err != nil || (size > 0) != (form == erofsForm) {
			return false, err
		}
	}
	return true, nil
}

func (s *Store) folderOf(ctx context.Context, snapshot string) (string, error) {
	info, err := s.snapshots.Stat(ctx, snapshot)
	return info.Labels[upperLabel], err
}

// reform makes those layers of the second chain that are missing or damaged.
func (s *Store) reform(ctx context.Context, t *tree, form string) error {
	top := formKey(form, t.top())
	if s.whole(ctx, digest.Digest(top)) == nil {
		missing, err := s.missingIn(ctx, t, form)
		if err != nil || !missing {
			return err
		}
	}
	lease, err := s.leases.Create(ctx, leases.WithID(pullPrefix+reformPrefix+rand.Text()), leases.WithExpiration(2*pullTime))
	if err != nil {
		return err
	}
	ctx = leases.WithLease(ctx, lease.ID)
	// What it is made of must stay, too.
	if err = s.leases.AddResource(ctx, lease, leases.Resource{Type: "snapshots/" + overlayfs, ID: t.top()}); err == nil {
		err = s.reformLayers(ctx, t, form)
	}
	if err == nil {
		err = s.keepForm(ctx, t, form)
	}
	if err != nil { // what is made of it by now is nobody's
		defer s.collectSoon()
	}
	return errors.Join(err, s.dropLease(context.WithoutCancel(ctx), lease), s.count(context.WithoutCancel(ctx)))
}

func (s *Store) missingIn(ctx context.Context, t *tree, form string) (bool, error) {
	for _, id := range t.chain {
		err := s.whole(ctx, digest.Digest(formKey(form, id.String())))
		if errdefs.IsNotFound(err) || errors.Is(err, ErrCorrupt) {
			return true, nil
		} else if err != nil {
			return false, err
		}
	}
	return false, nil
}

// keepForm has the second chain live as long as the image's configuration.
func (s *Store) keepForm(ctx context.Context, t *tree, form string) error {
	key := "containerd.io/gc.ref.snapshot." + overlayfs + "/" + form
	info := content.Info{Digest: t.id(), Labels: map[string]string{key: formKey(form, t.top())}}
	if _, err := s.content.Update(ctx, info, "labels."+key); err != nil {
		return fmt.Errorf("%s: %w", info.Digest, err)
	}
	return nil
}

func (s *Store) reformLayers(ctx context.Context, t *tree, form string) error {
	parent := ""
	for i, id := range t.chain {
		key := formKey(form, id.String())
		if err := s.reformLayer(ctx, id.String(), key, parent, form); err != nil {
			return fmt.Errorf("layer %s: %w", t.diffIDs[i], err)
		}
		parent = key
	}
	return nil
}

// reformLayer makes one layer of the second chain. Another image may have it already.
func (s *Store) reformLayer(ctx context.Context, chain, key, parent, form string) error {
	if err := s.locks.Lock(ctx, chainPrefix+key); err != nil {
		return err
	}
	defer s.locks.Unlock(chainPrefix + key)
	from, err := s.folderOf(ctx, chain)
	if err != nil {
		return err
	}
	if err := s.leases.AddResource(ctx, leases.Lease{ID: leaseOf(ctx)}, leases.Resource{Type: "snapshots/" + overlayfs, ID: key}); err != nil {
		return err
	}
	err = s.whole(ctx, digest.Digest(key))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrCorrupt):
		return s.mendForm(ctx, from, key, form)
	case !errdefs.IsNotFound(err):
		return err
	}
	return s.intoSnapshot(ctx, key, parent, func(folder string) error {
		if err := s.copyLayer(ctx, from, folder, form); err != nil {
			return err
		}
		return s.guardBlob(blobOf(folder))
	})
}

func leaseOf(ctx context.Context) string {
	id, _ := leases.FromContext(ctx)
	return id
}

// mendForm makes a lost layer anew in its place. Who has the old one mounted keeps it.
func (s *Store) mendForm(ctx context.Context, from, key, form string) error {
	folder, err := s.folderOf(ctx, key)
	if err != nil {
		return err
	}
	lost, err := s.restoreSnapshot(folder)
	if err != nil {
		return err
	}
	if !lost || form == erofsForm {
		err := s.replaceBlob(folder, func(fresh string) error { return s.copyToBlob(ctx, from, fresh) })
		if !lost || !errors.Is(err, layer.ErrTooManyFiles) {
			return err
		}
	}
	return replaceFolder(folder, func(fresh string) error { return s.copyLayer(ctx, from, fresh, overlayfs) })
}

// intoSnapshot makes a committed snapshot, on parent, of what fill puts into its folder.
func (s *Store) intoSnapshot(ctx context.Context, name, parent string, fill func(folder string) error) (err error) {
	key := extractPrefix + name + "-" + rand.Text()
	mounts, err := s.snapshots.Prepare(ctx, key, "")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if rerr := s.snapshots.Remove(context.WithoutCancel(ctx), key); rerr != nil && !errdefs.IsNotFound(rerr) {
				err = errors.Join(err, rerr)
			}
		}
	}()
	if len(mounts) != 1 || mounts[0].Type != "bind" {
		return fmt.Errorf("snapshotter offers %v, want one folder", mounts)
	}
	if err := fill(mounts[0].Source); err != nil {
		return err
	}
	var opts []snapshots.Opt
	if parent != "" {
		opts = append(opts, snapshots.WithParent(parent))
	}
	return s.snapshots.Commit(ctx, name, key, opts...)
}

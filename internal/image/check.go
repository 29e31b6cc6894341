// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berth-run/berth/internal/image/erofs"
	"github.com/berth-run/berth/internal/linux/fsys"
)

// Damage is one object of the store that is not as it was written.
type Damage struct {
	// Kind is "record", "blob" or "layer"; Object its name, digest or chain ID.
	Kind, Object string
	Reason       error
	// Images are the references of the images that have it.
	Images []string
	// Quarantined: it is out of use, and the next pull of these images makes it anew.
	Quarantined bool
}

// CheckRequest says what Check does with what it finds. All functions are called from the goroutine that Check is called in.
type CheckRequest struct {
	// Repair pulls images with damage again.
	Repair bool
	// Damaged is called for each object that is.
	Damaged func(Damage)
	// Repaired is called for each image that was pulled again, or could not be.
	Repaired func(ref string, err error)
	// Progress is called after each object, with bytes that were read, of total.
	Progress func(read, total int64)
}

// CheckResult counts.
type CheckResult struct {
	// Images, Blobs and Layers were looked at. Unchecked layers are folders, of which nobody knows what is in them.
	Images, Blobs, Layers, Unchecked int
	// Bytes were read from the disk.
	Bytes int64
	// Damaged objects, Repaired images.
	Damaged, Repaired int
}

// checking is one Check under way.
type checking struct {
	CheckResult
	s     *Store
	r     CheckRequest
	total int64
	// owners are the images that have an object: references by digest or chain ID. tops are the chain IDs of their layers.
	owners map[string][]string
	tops   map[string]string
	broken map[string]struct{} // references of images with damage
	told   map[string]struct{} // objects that were reported
	asked  map[string]bool     // chainKeys that remote snapshotters were asked for
}

// Check reads all that is kept of images, past the page cache, and compares it with its checksums; what is damaged is quarantined. Images that
// were found damaged before count, too. One check runs at a time.
func (s *Store) Check(ctx context.Context, r CheckRequest) (CheckResult, error) {
	if err := s.locks.Lock(ctx, "check"); err != nil {
		return CheckResult{}, err
	}
	defer s.locks.Unlock("check")
	ctx = scoped(ctx)
	c := &checking{s: s, r: r, owners: map[string][]string{}, tops: map[string]string{}, broken: map[string]struct{}{}, told: map[string]struct{}{}, asked: map[string]bool{}}
	for _, step := range []func(context.Context) error{c.records, c.images, c.blobs, c.layers, c.repair} {
		if err := step(ctx); err != nil {
			return c.CheckResult, fmt.Errorf("check images: %w", err)
		}
	}
	s.log.Info("images are checked", "images", c.Images, "blobs", c.Blobs, "layers", c.Layers, "bytes", c.Bytes, "damaged", c.Damaged, "repaired", c.Repaired)
	return c.CheckResult, nil
}

// records has the database look at its own pages. Nothing is written meanwhile: a writer changes the list of free pages that is looked at.
func (c *checking) records(context.Context) error {
	tx, err := c.s.bolt.Begin(true)
	if err != nil {
		return err
	}
	var found error
	for err := range tx.Check() {
		if found == nil {
			found = err
		}
	}
	if found != nil {
		c.damage(Damage{Kind: "record", Object: filepath.Base(c.s.bolt.Path()), Reason: found})
	}
	return tx.Rollback()
}

func (c *checking) blobs(ctx context.Context) error {
	var all []content.Info
	if err := c.s.content.Walk(ctx, func(info content.Info) error {
		if len(c.owners[info.Digest.String()]) > 0 && !c.s.consuming.has(info.Digest) { // others are a pull's, of whatever becomes of them
			all = append(all, info)
			c.total += info.Size
		}
		return nil
	}); err != nil {
		return err
	}
	folders, err := c.folders(ctx)
	if err != nil {
		return err
	}
	for _, f := range folders {
		size, _ := blobSize(f) // of a lost one nothing is to be read
		c.total += size
	}
	for _, info := range all {
		err := c.s.verifyOnDisk(ctx, info.Digest)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c.Blobs++
		c.progress(info.Size)
		if err == nil {
			continue
		}
		if _, gone := c.s.content.Info(ctx, info.Digest); errdefs.IsNotFound(gone) {
			continue // collected meanwhile
		}
		if c.s.consuming.has(info.Digest) {
			continue
		}
		if !damaged(err) {
			return err
		}
		if err := c.dropBlob(ctx, info.Digest, err); err != nil {
			return err
		}
	}
	return nil
}

// dropBlob quarantines a blob. The unpacked layers of its images are kept for a while: the collector finds its way to them through the blob.
func (c *checking) dropBlob(ctx context.Context, d digest.Digest, reason error) error {
	names := c.owners[d.String()]
	for _, name := range names {
		named, err := reference.ParseNamed(name)
		if err != nil || c.tops[name] == "" {
			continue
		}
		lease, err := c.s.leases.Create(ctx, leases.WithID(resumePrefix+purpose(named)+digest.FromString(d.String()).Encoded()[:8]), leases.WithExpiration(resumeTime))
		if err == nil {
			err = c.s.leases.AddResource(ctx, lease, leases.Resource{Type: "snapshots/" + overlayfs, ID: c.tops[name]})
		}
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
	}
	if len(names) > 0 {
		c.s.collectAfter(resumeTime)
	}
	if err := c.s.dropBlob(ctx, d, reason); err != nil {
		return err
	}
	c.damage(Damage{Kind: "blob", Object: d.String(), Reason: reason, Images: names, Quarantined: true})
	return c.s.reread(ctx)
}

// folders are the places of committed layers by chain ID.
func (c *checking) folders(ctx context.Context) (map[string]string, error) {
	all := map[string]string{}
	err := c.s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			all[info.Name] = info.Labels[upperLabel]
		}
		return nil
	})
	return all, err
}

func (c *checking) layers(ctx context.Context) error {
	all, err := c.folders(ctx)
	if err != nil {
		return err
	}
	for _, chain := range slices.Sorted(maps.Keys(all)) {
		if err := c.layer(ctx, chain, all[chain]); err != nil {
			return err
		}
	}
	return nil
}

func (c *checking) layer(ctx context.Context, chain, folder string) error {
	size, err := blobSize(folder)
	if err == nil && size > 0 {
		err = verifyLayer(ctx, blobOf(folder))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.progress(size)
	c.Layers++
	switch {
	case err == nil && size == 0:
		c.Unchecked++
		return nil
	case err == nil:
		return nil
	case !errors.Is(err, ErrCorrupt) && !errors.Is(err, erofs.ErrDamaged) && !errors.Is(err, syscall.EIO):
		if _, gone := c.s.snapshots.Stat(ctx, chain); errdefs.IsNotFound(gone) {
			return nil // collected meanwhile
		}
		return err
	}
	return c.quarantine(ctx, chain, folder, err)
}

// verifyLayer reads a layer's file from the disk: what is in memory may be better than what is there.
func verifyLayer(ctx context.Context, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fsys.DropCache(f); err != nil {
		return err
	}
	return errors.Join(erofs.Verify(ctx, f), fsys.DropCache(f))
}

// quarantine takes a layer out of use, unless a pull has mended it since it was read.
func (c *checking) quarantine(ctx context.Context, chain, folder string, reason error) error {
	if err := c.s.locks.Lock(ctx, chainPrefix+chain); err != nil {
		return err
	}
	defer c.s.locks.Unlock(chainPrefix + chain)
	if _, gone := c.s.snapshots.Stat(ctx, chain); errdefs.IsNotFound(gone) {
		return nil // collected meanwhile
	}
	size, err := blobSize(folder)
	if err == nil && size > 0 && verifyLayer(ctx, blobOf(folder)) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.s.quarantine(ctx, folder, reason); err != nil {
		return err
	}
	c.damage(Damage{Kind: "layer", Object: chain, Reason: reason, Images: c.owners[chain], Quarantined: true})
	return nil
}

func (c *checking) damage(d Damage) {
	if _, told := c.told[d.Object]; told {
		return
	}
	c.told[d.Object] = struct{}{}
	c.Damaged++
	for _, name := range d.Images {
		c.broken[name] = struct{}{}
	}
	if c.r.Damaged != nil {
		c.r.Damaged(d)
	}
}

func (c *checking) progress(n int64) {
	c.Bytes += n
	if c.r.Progress != nil {
		c.r.Progress(c.Bytes, c.total)
	}
}

// byDigest sorts references by digest before tags.
func byDigest(ref string) int {
	if strings.Contains(ref, "@") {
		return 0
	}
	return 1
}

// repair pulls what is broken again: by digest first, for by its tag another image may be there by now.
func (c *checking) repair(ctx context.Context) error {
	if !c.r.Repair {
		return nil
	}
	names := slices.Sorted(maps.Keys(c.broken))
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(byDigest(a), byDigest(b)) })
	for _, name := range names {
		_, err := c.s.Status(name)
		if isNotFound(err) {
			if c.removed(ctx, name) {
				continue
			}
			_, err = c.s.Pull(ctx, PullRequest{Ref: name})
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			c.Repaired++
		}
		if c.r.Repaired != nil {
			c.r.Repaired(name, err)
		}
	}
	return nil
}

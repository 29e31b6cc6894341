// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// images finds out which image has what. One whose documents cannot be read has those that can.
func (c *checking) images(ctx context.Context) error {
	all, err := c.s.images.List(ctx)
	if err != nil {
		return err
	}
	idx := c.s.index.Load()
	for _, im := range all {
		own := func(id string) { c.owners[id] = append(c.owners[id], im.Name) }
		t, err := c.s.walk(im.Target, func(_ string, desc ocispec.Descriptor) ([]byte, error) {
			own(desc.Digest.String())
			return c.s.readDocument(ctx, desc)
		})
		if c.removed(ctx, im.Name) {
			continue
		}
		c.Images++
		if err != nil {
			c.broken[im.Name] = struct{}{}
			c.lost(ctx, im, err)
			continue
		}
		listed := idx.byID[idx.byRef[im.Name]]
		if listed == nil {
			c.broken[im.Name] = struct{}{}
		}
		if listed != nil && listed.Snapshotter != "" {
			if err := c.remoteLayers(ctx, *listed, im.Name); err != nil {
				return err
			}
		} else {
			c.tops[im.Name] = t.top()
		}
		for i := range t.layers {
			own(t.chain[i].String())
		}
		kept, err := c.s.keepsLayers(ctx, t)
		if err != nil {
			return err
		}
		if !kept { // a blob that is here is a pull's of another image
			continue
		}
		for _, l := range slices.Concat(t.layers, t.unnamed) {
			own(l.Digest.String())
		}
	}
	return nil
}

// removed tells whether somebody has taken an image's name away meanwhile: it is nobody's damage, and not to be pulled.
func (c *checking) removed(ctx context.Context, name string) bool {
	_, err := c.s.images.Get(ctx, name)
	return errdefs.IsNotFound(err)
}

// lost reports documents that are in no books any more: blobs does not come by them.
func (c *checking) lost(ctx context.Context, im images.Image, err error) {
	if !errdefs.IsNotFound(err) {
		return
	}
	for id, names := range c.owners {
		d := digest.Digest(id)
		if !slices.Contains(names, im.Name) || d.Validate() != nil {
			continue
		}
		if _, err := c.s.content.Info(ctx, d); errdefs.IsNotFound(err) {
			c.damage(Damage{Kind: "blob", Object: id, Reason: err, Images: names, Quarantined: true})
		}
	}
}

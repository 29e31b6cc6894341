// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/spec"
)

// findImage finds the image that the container is made from.
func (c *Container) findImage() (image.Image, error) {
	ref := c.Config.GetImage().GetImage()
	im, err := c.m.parts.Images.Status(ref)
	if err == nil {
		err = im.Runnable()
	}
	if err != nil {
		return image.Image{}, fmt.Errorf("%s: image %q: %w", c, ref, err)
	}
	return im, nil
}

// resolveVolumes finds the images that the config mounts, and the places of anonymous volumes.
func (c *Container) resolveVolumes(im image.Image) (images, places []string, err error) {
	for i, m := range c.Config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		found, err := c.m.parts.Images.Status(m.GetImage().GetImage())
		if err != nil {
			return nil, nil, fmt.Errorf("mounts[%d] %s: image %q: %w: %w", i, m.GetContainerPath(), m.GetImage().GetImage(), ErrImageVolume, err)
		}
		images = append(images, found.ID)
	}
	places, err = c.m.parts.Specs.ImageVolumes(im, c.Config)
	return images, places, err
}

// volumeIDs are the images to be mounted, each once however many mounts show a part of it.
func (r containerRecord) volumeIDs() []string {
	ids := slices.Sorted(slices.Values(r.MountImages))
	return slices.Compact(ids)
}

func (c *Container) volumePath(n int) string { return filepath.Join(c.paths.volumes, strconv.Itoa(n)) }

func (c *Container) mountVolumes(all []mount.Overlay) error {
	for i, o := range all {
		if err := os.MkdirAll(c.volumePath(i), 0o700); err != nil {
			return fmt.Errorf("%w: %w", ErrImageVolume, err)
		}
		o.Label = c.facts().SELinux.Mount
		if err := c.m.parts.Host.MountOverlay(c.volumePath(i), o); err != nil {
			return fmt.Errorf("%w: %w", ErrImageVolume, err)
		}
	}
	return nil
}

func (c *Container) unmountVolumes() error {
	var errs []error
	for i := range c.facts().volumeIDs() {
		errs = append(errs, c.m.parts.Host.Unmount(c.volumePath(i)))
	}
	return errors.Join(errs...)
}

// imageMounts are where the images of Config.Mounts are mounted, by the mount's index.
func (c *Container) imageMounts() map[int]string {
	r := c.facts()
	ids, next, at := r.volumeIDs(), 0, map[int]string{}
	for i, m := range c.Config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		n, _ := slices.BinarySearch(ids, r.MountImages[next])
		at[i] = c.volumePath(n)
		next++
	}
	return at
}

func (c *Container) anonymousVolumes() []spec.Volume {
	var all []spec.Volume
	for i, place := range c.facts().Volumes {
		all = append(all, spec.Volume{Destination: place, Source: c.m.parts.Images.VolumeFolder(c.ID, i)})
	}
	return all
}

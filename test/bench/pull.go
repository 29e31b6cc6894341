// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/registry"
)

// imageSet is the registry of the run and what it serves.
type imageSet struct {
	*registry.Server
	busybox, pause string
	// big are the images of the part pull.
	big []bigImage
}

// bigImage is a shape that images have. There is one image for each repetition: what was pulled before would be found there, in the
// page cache or in the content store, even after its removal.
type bigImage struct {
	name string
	refs []string
}

// shape is layers of so many files with so many bytes each.
type shape struct {
	repo                string
	layers, files, size int
}

// shapes are what real images look like: many small files, large ones, one huge layer, many layers.
func shapes(p plan) []shape {
	all := []shape{
		{"files", 4, 5000 / p.shrink, 10000},
		{"blobs", 8, 32 / p.shrink, 1 << 20},
		{"many", 60, max(1, 20/p.shrink), 10000},
	}
	if p.huge {
		all = append(all, shape{"huge", 1, 2048 / p.shrink, 1 << 20})
	}
	return all
}

func prepareImages(p plan) (*imageSet, error) {
	server, err := registry.New()
	if err != nil {
		return nil, err
	}
	s := &imageSet{Server: server}
	if err := s.fill(p); err != nil {
		server.Close()
		return nil, err
	}
	return s, nil
}

func (s *imageSet) fill(p plan) error {
	im, err := registry.Busybox()
	if err != nil {
		return err
	}
	if s.busybox, _, err = s.Push("busybox:1", im); err != nil {
		return err
	}
	tree, err := registry.BusyboxTree()
	if err != nil {
		return err
	}
	if im, err = registry.Build(registry.Spec{Layers: []registry.Tree{tree},
		Config: v1.Config{Entrypoint: []string{"sleep", "2147483647"}}}); err != nil {
		return err
	}
	if s.pause, _, err = s.Push("pause:1", im); err != nil {
		return err
	}
	if !slices.Contains(p.parts, "pull") {
		return nil
	}
	fmt.Fprintln(os.Stderr, "making images to pull")
	for _, shape := range shapes(p) {
		b := bigImage{name: fmt.Sprintf("pull %d layers, %d files, %d MB", shape.layers, shape.layers*shape.files, shape.layers*shape.files*shape.size/1000000)}
		for i := range p.pulls {
			ref, err := s.push(shape, i)
			if err != nil {
				return err
			}
			b.refs = append(b.refs, ref)
		}
		s.big = append(s.big, b)
	}
	return nil
}

// push makes the n-th image of a shape; it shares no layer with another.
func (s *imageSet) push(shape shape, n int) (string, error) {
	var layers []registry.Tree
	for i := range shape.layers {
		layers = append(layers, registry.Files(fmt.Sprintf("l%d", i), shape.files, shape.size, uint64(n)<<32|uint64(i)))
	}
	im, err := registry.Build(registry.Spec{Layers: layers})
	if err != nil {
		return "", err
	}
	ref, _, err := s.Push(fmt.Sprintf("%s:%d", shape.repo, n), im)
	return ref, err
}

// settling is how long a runtime may go on after a removal, with garbage collection, before the next pull.
const settling = 2 * time.Second

// pull gets each big image and removes it again.
func (r *rig) pull(ctx context.Context) error {
	for _, b := range r.images.big {
		for _, ref := range b.refs {
			spec := &cri.ImageSpec{Image: ref}
			err := r.cpu(b.name+": CPU", 1, func() error {
				_, err := r.timed(b.name, func() error {
					_, err := r.d.Images.PullImage(ctx, &cri.PullImageRequest{Image: spec})
					return err
				})
				return err
			})
			_, removeErr := r.timed("RemoveImage after "+b.name, func() error {
				_, err := r.d.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec})
				return err
			})
			if err := errors.Join(err, removeErr); err != nil {
				return err
			}
			time.Sleep(settling)
		}
	}
	return nil
}

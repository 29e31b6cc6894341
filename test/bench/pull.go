// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/registry"
)

// imageSet is the registry of the run and what it serves.
type imageSet struct {
	*registry.Server
	busybox, pause string
	// big are the images of the part pull, by name.
	big []bigImage
}

type bigImage struct{ name, ref string }

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
	for _, b := range []struct {
		repo                string
		layers, files, size int
	}{
		{"files", 4, 5000 / p.shrink, 10000},
		{"blobs", 8, 32 / p.shrink, 1 << 20},
	} {
		var layers []registry.Tree
		for i := range b.layers {
			layers = append(layers, registry.Files(fmt.Sprintf("l%d", i), b.files, b.size, uint64(i)))
		}
		im, err := registry.Build(registry.Spec{Layers: layers})
		if err != nil {
			return err
		}
		ref, _, err := s.Push(b.repo+":1", im)
		if err != nil {
			return err
		}
		s.big = append(s.big, bigImage{fmt.Sprintf("pull %d layers, %d files, %d MB", b.layers, b.layers*b.files, b.layers*b.files*b.size/1000000), ref})
	}
	return nil
}

// pull gets each big image and removes it again.
func (r *rig) pull(ctx context.Context) error {
	for _, b := range r.images.big {
		for range r.pulls {
			spec := &cri.ImageSpec{Image: b.ref}
			err := r.cpu(b.name+": CPU", 1, func() error {
				_, err := r.timed(b.name, func() error {
					_, err := r.d.Images.PullImage(ctx, &cri.PullImageRequest{Image: spec})
					return err
				})
				return err
			})
			_, removeErr := r.timed("remove what took "+b.name, func() error {
				_, err := r.d.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec})
				return err
			})
			if err := errors.Join(err, removeErr); err != nil {
				return err
			}
		}
	}
	return nil
}

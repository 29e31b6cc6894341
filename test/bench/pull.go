// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/registry"
)

// imageSet is the registry of the run and what it serves.
type imageSet struct {
	*registry.Server
	busybox, pause string
	// big are the images of the part pull, cold those of the part cold.
	big  []bigImage
	cold bigImage
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
	// runs: there is a busybox below.
	runs bool
}

// shapes are what real images look like: many small files, large ones, one huge layer, many layers.
func shapes(p plan) []shape {
	all := []shape{
		{repo: "files", layers: 4, files: 20000 / p.shrink, size: 4000},
		{repo: "blobs", layers: 8, files: 32 / p.shrink, size: 1 << 20},
		{repo: "huge", layers: 1, files: 2048 / p.shrink, size: 1 << 20},
		{repo: "many", layers: 60, files: max(1, 20/p.shrink), size: 10000},
	}
	return slices.DeleteFunc(all, func(s shape) bool { return !slices.Contains(p.shapes, s.repo) })
}

// coldShape is an image of an ordinary size: a program's runtime and libraries, and the program.
func coldShape(p plan) shape {
	return shape{repo: "cold", layers: 4, files: 1500 / p.shrink, size: 10000, runs: true}
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
	if slices.Contains(p.parts, "pull") {
		for _, shape := range shapes(p) {
			b, err := s.shaped(p, shape)
			if err != nil {
				return err
			}
			s.big = append(s.big, b)
		}
	}
	if slices.Contains(p.parts, "cold") {
		if s.cold, err = s.shaped(p, coldShape(p)); err != nil {
			return err
		}
	}
	return nil
}

// shaped makes images of a shape.
func (s *imageSet) shaped(p plan, shape shape) (bigImage, error) {
	b := bigImage{name: fmt.Sprintf("%d layers, %d files, %d MB", shape.layers, shape.layers*shape.files, shape.layers*shape.files*shape.size/1000000)}
	for i := range p.pulls {
		fmt.Fprintf(os.Stderr, "making image %d of %d: %s\n", i+1, p.pulls, b.name)
		ref, err := s.push(shape, i)
		if err != nil {
			return b, err
		}
		b.refs = append(b.refs, ref)
		debug.FreeOSMemory() // what it was made of is several times its size
	}
	return b, nil
}

// push makes the n-th image of a shape; it shares no layer with another.
func (s *imageSet) push(shape shape, n int) (string, error) {
	var layers []registry.Tree
	if shape.runs {
		tree, err := registry.BusyboxTree()
		if err != nil {
			return "", err
		}
		tree = slices.Clone(tree)
		tree.File("etc/image", []byte(shape.repo+strconv.Itoa(n)), 0o644)
		layers = append(layers, tree)
	}
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
		name := "pull " + b.name
		for _, ref := range b.refs {
			err := r.atRest()
			if err == nil {
				err = r.cpu(name+": CPU", 1, func() error {
					_, err := r.timed(name, func() error { return r.pullImage(ctx, ref) })
					return err
				})
			}
			if err := errors.Join(err, r.peak(name), r.removeImage(ctx, name, ref)); err != nil {
				return err
			}
		}
	}
	return nil
}

// cold starts a pod of an image that is not here, as a kubelet does: the sandbox, the image, the container.
func (r *rig) cold(ctx context.Context) error {
	name := "cold start " + r.images.cold.name
	warm := r.k.Image
	defer func() { r.k.Image = warm }()
	for _, ref := range r.images.cold.refs {
		if err := r.atRest(); err != nil {
			return err
		}
		var p pod
		err := r.cpu(name+": CPU", 1, func() error {
			_, err := r.timed(name, func() error {
				var err error
				p, _, err = r.startWith(ctx, false, func() error { r.k.Image = ref; return r.pullImage(ctx, ref) })
				return err
			})
			return err
		})
		if p.sandbox != "" {
			_, stopErr := r.stopPod(ctx, p, false)
			err = errors.Join(err, stopErr)
		}
		if err := errors.Join(err, r.peak(name), r.removeImage(ctx, name, ref)); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) pullImage(ctx context.Context, ref string) error {
	_, err := r.d.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	return nil
}

// removeImage is followed by the time that a runtime has for its garbage collection.
func (r *rig) removeImage(ctx context.Context, after, ref string) error {
	_, err := r.timed("RemoveImage after "+after, func() error {
		_, err := r.d.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
		return err
	})
	time.Sleep(settling)
	return err
}

// atRest has the disk write what is still to be written, which would else be the next pull's to wait for, and the daemon's peak of memory begin anew.
func (r *rig) atRest() error {
	syscall.Sync()
	if r.socket != "" {
		return nil
	}
	// proc(5), clear_refs: 5 resets the peak of the resident set.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", r.d.PID()), []byte("5"), 0); err != nil {
		return fmt.Errorf("reset peak of memory: %w", err)
	}
	return nil
}

// peak records the most memory that the daemon had resident since atRest, files that it maps included.
func (r *rig) peak(of string) error {
	if r.socket != "" {
		return nil
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.d.PID()))
	if err != nil {
		return fmt.Errorf("read peak of memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return fmt.Errorf("read peak of memory: %w", err)
			}
			r.t.add(r.kind, of+": daemon's peak of memory (RSS, MB)", kb/1024)
			return nil
		}
	}
	return errors.New("the daemon has no peak of memory")
}

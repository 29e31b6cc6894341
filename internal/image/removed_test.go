// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// readHook is a content store of which the first read is held up by something else.
type readHook struct {
	content.Store
	first func()
}

func (r readHook) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	r.first()
	return r.Store.ReaderAt(ctx, desc)
}

func TestAnImageThatIsRemovedDuringACheckIsNoDamage(t *testing.T) {
	for name, collect := range map[string]bool{"removed": false, "removed and collected": true} {
		t.Run(name, func(t *testing.T) {
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "1"})))
			mustPull(t, s, ref)
			s.content = readHook{s.content, sync.OnceFunc(func() {
				if err := s.Remove(t.Context(), ref); err != nil {
					t.Error(err)
				}
				if !collect {
					return
				}
				if err := s.GC(t.Context()); err != nil {
					t.Error(err)
				}
			})}
			asked := reg.blobs.Load()
			if got, found := check(t, s, true); len(found) > 0 || got.Repaired > 0 || reg.blobs.Load() != asked {
				t.Errorf("%+v, %v", got, found)
			}
			if _, err := s.Status(ref); !errors.Is(err, ErrNotFound) {
				t.Errorf("it is back: %v", err)
			}
		})
	}
}

// kept is a list of images from which one cannot be deleted.
type kept struct {
	images.Store
	name string
}

var errKept = errors.New("it cannot be deleted")

func (k kept) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	if name == k.name {
		return errKept
	}
	return k.Store.Delete(ctx, name, opts...)
}

// TestPruningGoesOnAfterAnError has two damaged images, of which nothing can be read. The first one stays, whichever that is.
func TestPruningGoesOnAfterAnError(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	refs := map[string]string{} // by their digests' references
	for _, name := range []string{"a:1", "b:1"} {
		ref := reg.push(t, name, imageOf(t, v1.Config{User: name[:1]}, layerOf(t, map[string]string{"f": name})))
		im := mustPull(t, s, ref)
		refs[im.RepoDigests[0]] = ref
	}
	targets := s.index.Load().targets
	for _, ref := range refs {
		if err := os.Remove(s.blobFile(targets[ref].String())); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.reread(t.Context()); err != nil {
		t.Fatal(err)
	}
	var first, second string
	for _, ref := range refs {
		switch {
		case first == "":
			first = ref
		case targets[ref] < targets[first]:
			first, second = ref, first
		default:
			second = ref
		}
	}
	s.images = kept{s.images, first}
	gone, err := s.Prune(t.Context(), PruneRequest{InUse: func() map[string]bool { return nil }})
	if !errors.Is(err, errKept) {
		t.Errorf("got %v", err)
	}
	if len(gone) != 1 || gone[0].RepoTags[0] != second {
		t.Errorf("%+v is pruned, want %s", gone, second)
	}
	if left := s.index.Load().damaged; left[second] != "" || left[first] == "" {
		t.Errorf("left are %v", left)
	}
}

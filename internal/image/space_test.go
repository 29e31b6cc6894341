// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// smallDisk is a file system of that many bytes.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func freeOn(t *testing.T, dir string) int64 {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

func TestAFullDiskIsTypedAndLeavesNothing(t *testing.T) {
	reg := newRegistry(t)
	for name, tc := range map[string]struct {
		image   v1.Image
		fetches int64 // of layers, at most
	}{
		"compressed layers do not fit":       {imageOf(t, v1.Config{}, storedLayer(t, map[string]string{"f": incompressible(40 << 20)})), 1}, // the configuration's
		"an unpacked layer does not fit":     {imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": strings.Repeat("x", 60<<20)})), 2},
		"two layers do not fit side by side": {imageOf(t, v1.Config{}, layerOf(t, map[string]string{"a": strings.Repeat("x", 30<<20)}), layerOf(t, map[string]string{"b": strings.Repeat("y", 30<<20)})), 3},
	} {
		t.Run(name, func(t *testing.T) {
			disk := smallDisk(t, "48m")
			s := openStore(t, disk)
			before := freeOn(t, disk)
			ref := reg.push(t, "big:1", tc.image)
			reg.blobs.Store(0)
			if im, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrNoSpace) {
				t.Fatalf("%v, %v", im, err)
			}
			if got := reg.blobs.Load(); got > tc.fetches {
				t.Errorf("%d blobs were fetched, want at most %d", got, tc.fetches)
			}
			eventually(t, "the space is given back", func() bool { return freeOn(t, disk) > before-1<<20 })
			small := reg.push(t, "small:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
			mustPull(t, s, small)
		})
	}
}

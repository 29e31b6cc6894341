// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// memory is the most that a test may have in use beside what it had before: a pull's buffers, and what the garbage collector leaves.
const memory = 400 << 20

// peakOf does something and tells the most memory that was in use meanwhile, beside what was before.
func peakOf(do func()) int64 {
	inUse := func() int64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return int64(s[0].Value.Uint64())
	}
	runtime.GC()
	before := inUse()
	return max(before, highest(inUse, do)) - before
}

// TestBombsEndSoonAndTakeLittle has layers that are small on the network and endless on the disk, in memory or in the time that they take.
func TestBombsEndSoonAndTakeLittle(t *testing.T) {
	zeros := int64(96 << 20) // more than may be left unexplained
	if fullSize {
		zeros = 16 << 30
	}
	whole := tarOf(t, map[string]string{"f": "x"})
	huge := bytes.Clone(whole[:512])
	copy(huge[124:136], append([]byte{0x80, 0, 0, 0, 0, 0x10}, make([]byte, 6)...)) // a file of 2^52 bytes
	sum := 8 * int64(' ')
	for i, b := range huge {
		if i < 148 || i >= 156 {
			sum += int64(b)
		}
	}
	copy(huge[148:], fmt.Sprintf("%06o\x00 ", sum))
	for _, how := range []types.MediaType{types.OCILayer, types.OCILayerZStd} {
		for kind, c := range map[string]struct {
			begin []byte
			want  error
		}{"zeros behind the end": {whole, ErrCorrupt}, "a file larger than any disk": {huge, ErrNoSpace}} {
			behind := zeros
			if errors.Is(c.want, ErrNoSpace) && !fullSize { // its first header is enough
				behind = 1 << 20
			}
			blob := compressed(t, how, c.begin, behind)
			for _, snapshotter := range []string{erofsForm, overlayfs} {
				t.Run(fmt.Sprintf("%s %s %s", kind, strings.TrimPrefix(string(how), "application/vnd.oci.image.layer.v1."), snapshotter), func(t *testing.T) {
					dir, reg := t.TempDir(), newRegistry(t)
					s := openWith(t, dir, form(snapshotter))
					ref := reg.push(t, "bomb:1", imageFrom(t, blob, how, whole))
					var err error
					begin := time.Now()
					if peak := peakOf(func() { _, err = s.Pull(t.Context(), PullRequest{Ref: ref}) }); peak > memory {
						t.Errorf("%d MB of memory were in use for a layer of %d kB", peak>>20, len(blob)>>10)
					}
					if !errors.Is(err, c.want) || len(s.List()) != 0 {
						t.Errorf("got %v, want %v", err, c.want)
					}
					if took := time.Since(begin); took > inTime {
						t.Errorf("it took %s", took)
					}
					if taken := allocated(dir); taken > 8<<20 {
						t.Errorf("%d bytes of the disk are taken", taken)
					}
				})
			}
		}
	}
}

// compressed is a layer that begins so and goes on with zeros.
func compressed(t *testing.T, how types.MediaType, begin []byte, zeros int64) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	if how == types.OCILayerZStd {
		w, err = zstd.NewWriter(&out, zstd.WithWindowSize(128<<20), zstd.WithEncoderLevel(zstd.SpeedFastest))
	} else {
		w, err = gzip.NewWriterLevel(&out, gzip.BestSpeed)
	}
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	for left := zeros; err == nil && left > 0; left -= int64(len(chunk)) {
		if left == zeros {
			_, err = w.Write(begin)
		}
		if err == nil {
			_, err = w.Write(chunk)
		}
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestDocumentsOfNoHonestRegistryCostLittle has documents that are made to keep a node busy: each gives its error, for little memory.
func TestDocumentsOfNoHonestRegistryCostLittle(t *testing.T) {
	const manifestType, indexType = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
	sum := digest.FromString("x")
	config := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":5}`, sum)
	layer := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":5}`, sum)
	index := func(to []byte) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, indexType, indexType, digest.FromBytes(to), len(to))
	}
	nested := [][]byte{index([]byte("the end"))}
	for range 2 * maxDepth {
		nested = append(nested, index(nested[len(nested)-1]))
	}
	// Whatever is asked for comes: no index can have its own digest in it.
	itself := bytes.Replace(index(make([]byte, 100)), []byte(digest.FromBytes(make([]byte, 100))), []byte(sum), 1)
	itself = bytes.Replace(itself, []byte(`"size":100`), fmt.Appendf(nil, `"size":%d`, len(itself)), 1)
	for kind, c := range map[string]struct {
		media string
		all   [][]byte // the last is what the tag stands for
		want  error
	}{
		"ten thousand layers":    {manifestType, [][]byte{[]byte(`{"schemaVersion":2,"config":` + config + `,"layers":[` + strings.Repeat(layer+",", 9999) + layer + `]}`)}, ErrUnsupported},
		"indexes without an end": {indexType, nested, ErrUnsupported},
		"ten thousand manifests": {indexType, [][]byte{[]byte(`{"schemaVersion":2,"manifests":[` + strings.Repeat(layer+",", 9999) + layer + `]}`)}, ErrUnsupported},
		"100 MB":                 {manifestType, nil, ErrCorrupt},
		"an index of itself":     {indexType, [][]byte{itself}, ErrCorrupt},
	} {
		t.Run(kind, func(t *testing.T) {
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", c.media)
				if c.all == nil {
					chunk := bytes.Repeat([]byte(" "), 1<<20)
					for range 100 {
						if _, err := w.Write(chunk); err != nil {
							break
						}
					}
					return true
				}
				doc := c.all[len(c.all)-1]
				for _, d := range c.all {
					if strings.HasSuffix(r.URL.Path, digest.FromBytes(d).String()) {
						doc = d
					}
				}
				w.Header().Set("Docker-Content-Digest", digest.FromBytes(doc).String())
				w.Header().Set("Content-Length", fmt.Sprint(len(doc)))
				if r.Method == http.MethodGet {
					if _, err := io.Copy(w, bytes.NewReader(doc)); err != nil {
						t.Log(err)
					}
				}
				return true
			})
			var err error
			if peak := peakOf(func() { _, err = s.Pull(t.Context(), PullRequest{Ref: reg.host() + "/x:1"}) }); peak > memory {
				t.Errorf("%d MB of memory were in use", peak>>20)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

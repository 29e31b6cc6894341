// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

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
	for kind, c := range map[string]struct {
		media string
		all   [][]byte // the last is what the tag stands for
		want  error
	}{
		"ten thousand layers":    {manifestType, [][]byte{[]byte(`{"schemaVersion":2,"config":` + config + `,"layers":[` + strings.Repeat(layer+",", 9999) + layer + `]}`)}, ErrUnsupported},
		"indexes without an end": {indexType, nested, ErrUnsupported},
		"ten thousand manifests": {indexType, [][]byte{[]byte(`{"schemaVersion":2,"manifests":[` + strings.Repeat(layer+",", 9999) + layer + `]}`)}, ErrUnsupported},
		"100 MB":                 {manifestType, nil, ErrCorrupt},
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
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := s.Pull(t.Context(), PullRequest{Ref: reg.host() + "/x:1"}); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > 400<<20 {
				t.Errorf("%d MB were allocated in all", used>>20)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// incompressible is data that makes a layer as large as itself.
func incompressible(n int) string {
	b := make([]byte, n)
	x := uint64(n)
	for i := range b {
		x = x*6364136223846793005 + 1442695040888963407
		b[i] = byte(x >> 56)
	}
	return string(b)
}

func isBlobGet(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
}

// layerPath is what a layer's GET ends with.
func layerPath(t *testing.T, im v1.Image, i int) string {
	t.Helper()
	layers, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[i].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return "/blobs/" + d.String()
}

func hostsToml(t *testing.T, registry string, server string, mirrors ...string) string {
	t.Helper()
	certs := t.TempDir()
	if err := os.MkdirAll(filepath.Join(certs, registry), 0o700); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("server = %q\n", server)
	for _, m := range mirrors {
		toml += fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", m)
	}
	if err := os.WriteFile(filepath.Join(certs, registry, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	return certs
}

func TestABrokenConnectionIsResumedWhereItBroke(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(1 << 20)}))
	ref, blob := reg.push(t, "x:1", pushed), layerPath(t, pushed, 0)
	var ranges sync.Map
	var cuts atomic.Int64
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, blob) || r.Method != http.MethodGet {
			return false
		}
		ranges.Store(r.Header.Get("Range"), true)
		whole := reg.blob(t, r.URL.Path)
		if cuts.Add(1) > 3 {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(whole))
			return true
		}
		from, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-"))
		w.Header().Set("Content-Length", strconv.Itoa(len(whole)-from))
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(whole)-1, len(whole)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(whole[from : from+200_000])
		w.(http.Flusher).Flush()
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			time.Sleep(20 * time.Millisecond) // so that what was written arrives before the reset
			c.(*net.TCPConn).SetLinger(0)
			c.Close() // RST
		}
		return true
	})
	im := mustPull(t, s, ref)
	if got := readInRootfs(t, s, im, "f"); got != incompressible(1<<20) {
		t.Error("content is wrong")
	}
	resumed := 0
	ranges.Range(func(k, _ any) bool {
		if k != "" && k != "bytes=0-" {
			resumed++
		}
		return true
	})
	if resumed == 0 {
		t.Error("every try began at the start")
	}
}

func TestARegistryWithoutRangesIsAskedForAllOfIt(t *testing.T) {
	for kind, status := range map[string]int{"says so": http.StatusRequestedRangeNotSatisfiable, "sends all": http.StatusOK} {
		t.Run(kind, func(t *testing.T) {
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(1 << 20)}))
			ref, blob := reg.push(t, "x:1", pushed), layerPath(t, pushed, 0)
			var cut atomic.Bool
			reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				whole := reg.blob(t, r.URL.Path)
				switch {
				case !strings.HasSuffix(r.URL.Path, blob):
					return false
				case cut.CompareAndSwap(false, true):
					w.Header().Set("Content-Length", strconv.Itoa(len(whole)))
					w.Write(whole[:300_000])
					panic(http.ErrAbortHandler)
				case r.Header.Get("Range") != "":
					w.WriteHeader(status)
				}
				if status == http.StatusOK || r.Header.Get("Range") == "" {
					w.Write(whole)
				}
				return true
			})
			if got := readInRootfs(t, s, mustPull(t, s, ref), "f"); got != incompressible(1<<20) {
				t.Error("content is wrong")
			}
		})
	}
}

func TestATrickleIsAStallAndEnds(t *testing.T) {
	t.Parallel()
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(1 << 20)}))
	ref, blob := reg.push(t, "x:1", pushed), layerPath(t, pushed, 0)
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, blob) {
			return false
		}
		w.Header().Set("Content-Length", "1000000")
		for {
			if _, err := w.Write([]byte("x")); err != nil {
				return true
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return true
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	hurry(s, true)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, err := s.Pull(ctx, PullRequest{Ref: ref})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "stalled") || !strings.Contains(err.Error(), "fetch layer sha256:") {
		t.Fatalf("got %v", err)
	}
}

func TestAWrongDigestIsTriedOnceMoreAndLeavesNothingBehind(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(100_000)}))
	ref, blob := reg.push(t, "x:1", pushed), layerPath(t, pushed, 0)
	var bad atomic.Int64 // answers that are still to be wrong
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, blob) || bad.Add(-1) < 0 {
			return false
		}
		whole := bytes.Clone(reg.blob(t, r.URL.Path))
		whole[500] ^= 1
		w.Write(whole)
		return true
	})
	bad.Store(1000)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	bad.Store(1)
	mustPull(t, s, ref)
}

func TestLayersThatCannotBeUnpackedAreCorrupt(t *testing.T) {
	good := tarOf(t, map[string]string{"f": incompressible(100_000)})
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(good)
	w.Close()
	flipped := bytes.Clone(z.Bytes())
	flipped[len(flipped)/2] ^= 0xff
	for kind, blob := range map[string][]byte{"no archive": []byte("this is no gzip"), "cut gzip": z.Bytes()[:z.Len()/2], "flipped bit": flipped,
		"other diff ID": good, "cut tar": good[:3000]} {
		t.Run(kind, func(t *testing.T) {
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			raw := good
			if kind == "other diff ID" {
				raw = []byte("something else")
			}
			ref := reg.push(t, "bad:1", imageFrom(t, blob, types.OCILayer, raw))
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "unpack layer sha256:") {
				t.Errorf("got %v", err)
			}
			if n := len(s.List()); n != 0 {
				t.Errorf("%d images are visible", n)
			}
			left := 0
			s.walkSnapshots(t, func(name string) {
				if strings.HasPrefix(name, extractPrefix) {
					left++
				}
			})
			if left > 0 {
				t.Errorf("%d half-unpacked layers are left", left)
			}
		})
	}
}

// imageFrom makes an image of one layer whose blob is as given and whose diff ID is that of raw.
func imageFrom(t *testing.T, blob []byte, media types.MediaType, raw []byte) v1.Image {
	t.Helper()
	im, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		mutate.Addendum{Layer: static.NewLayer(blob, media), MediaType: media})
	if err != nil {
		t.Fatal(err)
	}
	file, err := im.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	sum, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	file.RootFS.DiffIDs, file.OS, file.Architecture = []v1.Hash{sum}, "linux", "amd64"
	if im, err = mutate.ConfigFile(im, file); err != nil {
		t.Fatal(err)
	}
	return im
}

func TestWhatThisNodeCannotRunIsRefusedBeforeLayersAreFetched(t *testing.T) {
	l := layerOf(t, map[string]string{"f": "x"})
	plain := imageOf(t, v1.Config{}, l)
	many := make([]v1.Layer, maxLayers+1)
	for i := range many {
		many[i] = l
	}
	arm := func() v1.Image {
		file, err := plain.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		file = file.DeepCopy()
		file.Architecture = "s390x"
		im, err := mutate.ConfigFile(plain, file)
		if err != nil {
			t.Fatal(err)
		}
		return im
	}()
	for kind, c := range map[string]struct {
		image any
		says  string
	}{
		"an artifact without files": {mutate.ConfigMediaType(plain, "application/vnd.cncf.helm.config.v1+json"), "no file to mount"},
		"another platform":          {arm, "s390x"},
		"encrypted layers":          {imageFrom(t, []byte("x"), "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", nil), "encrypted"},
		"too many layers":           {imageOf(t, v1.Config{}, many...), "161 layers"},
		"user out of range":         {imageOf(t, v1.Config{User: "4294967296"}, l), "4294967296"},
		"user with sign":            {imageOf(t, v1.Config{User: "+0"}, l), "+0"},
		"an index without this platform": {mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: arm,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}}), "only for linux/s390x"},
	} {
		t.Run(kind, func(t *testing.T) {
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			ref := ""
			switch im := c.image.(type) {
			case v1.Image:
				ref = reg.push(t, "x:1", im)
			case v1.ImageIndex:
				ref = reg.pushIndex(t, "x:1", im)
			}
			var layers atomic.Int64
			reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, layerPath(t, plain, 0)) {
					layers.Add(1)
				}
				return false
			})
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if layers.Load() > 0 {
				t.Error("layers were fetched")
			}
		})
	}
}

func TestManifestsOfNoHonestRegistry(t *testing.T) {
	huge := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","x":"` + strings.Repeat("x", 9<<20) + `"}`
	for kind, c := range map[string]struct {
		media, body string
		want        error
	}{
		"schema 1":                   {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[{}]}`, ErrUnsupported},
		"schema 1 under other name":  {"application/vnd.oci.image.manifest.v1+json", `{"schemaVersion":1,"fsLayers":[{}]}`, ErrUnsupported},
		"index and manifest at once": {"application/vnd.oci.image.index.v1+json", `{"schemaVersion":2,"manifests":[{"digest":"sha256:1"}],"layers":[{"digest":"sha256:1"}]}`, ErrCorrupt},
		"no JSON":                    {"application/vnd.oci.image.manifest.v1+json", `<html>`, ErrCorrupt},
		"nothing":                    {"application/vnd.oci.image.manifest.v1+json", `{}`, ErrUnsupported},
		"bad digest": {"application/vnd.oci.image.manifest.v1+json",
			`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:../../x","size":5}}`, ErrCorrupt},
		"huge": {"application/vnd.oci.image.manifest.v1+json", huge, nil},
	} {
		t.Run(kind, func(t *testing.T) {
			reg, s := newRegistry(t), openStore(t, t.TempDir())
			reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", c.media)
				io.WriteString(w, c.body) // without a digest header: the client has to read it
				return true
			})
			_, err := s.Pull(t.Context(), PullRequest{Ref: reg.host() + "/x:1"})
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestLayersAreNotFetchedFromWhereAManifestSays(t *testing.T) {
	elsewhere := newRegistry(t)
	var asked atomic.Bool
	elsewhere.misbehave(func(w http.ResponseWriter, _ *http.Request) bool {
		asked.Store(true)
		w.WriteHeader(http.StatusInternalServerError)
		return true
	})
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	im, err := mutate.Append(imageOf(t, v1.Config{}), mutate.Addendum{Layer: layerOf(t, map[string]string{"f": "x"}), URLs: []string{elsewhere.URL + "/metadata"}})
	if err != nil {
		t.Fatal(err)
	}
	mustPull(t, s, reg.push(t, "x:1", im))
	if asked.Load() {
		t.Error("a manifest made the node connect to another host")
	}
}

func TestMirrors(t *testing.T) {
	pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(10_000)}))
	blob := layerPath(t, pushed, 0)
	for kind, c := range map[string]func(reg *registryServer) func(w http.ResponseWriter, r *http.Request) bool{
		"silent": func(*registryServer) func(http.ResponseWriter, *http.Request) bool {
			return func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
		},
		"500": func(*registryServer) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(http.StatusInternalServerError)
				return true
			}
		},
		"429 with a long wait": func(*registryServer) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Retry-After", "30")
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			}
		},
		"empty": func(*registryServer) func(http.ResponseWriter, *http.Request) bool {
			return func(http.ResponseWriter, *http.Request) bool { return false }
		},
		"wrong content": func(reg *registryServer) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, blob) {
					whole := bytes.Clone(reg.blob(t, r.URL.Path))
					whole[100] ^= 1
					w.Write(whole)
					return true
				}
				r.URL.Host, r.Host = reg.host(), reg.host()
				reg.Config.Handler.ServeHTTP(w, r)
				return true
			}
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			reg, mirror := newRegistry(t), newRegistry(t)
			ref := reg.push(t, "x:1", pushed)
			mirror.misbehave(c(reg))
			s := openStore(t, t.TempDir(), hostsToml(t, reg.host(), reg.URL, mirror.URL))
			hurry(s, kind == "silent")
			begin := time.Now()
			mustPull(t, s, ref)
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestTheRegistrysOwnErrorIsTold(t *testing.T) {
	t.Parallel()
	reg, dead := newRegistry(t), newRegistry(t)
	dead.Close()
	certs := hostsToml(t, reg.host(), reg.URL, dead.URL)
	for code, want := range map[int]error{404: ErrNotFound, 401: ErrUnauthorized, 403: ErrUnauthorized, 503: ErrUnavailable, 418: ErrUnavailable} {
		reg.misbehave(func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"errors":[{"code":"CODE","message":"see https://u:p@host/x?token=secret"}]}`)
			return true
		})
		s := openStore(t, t.TempDir(), certs)
		hurry(s, false)
		_, err := s.Pull(t.Context(), PullRequest{Ref: reg.host() + "/x:1"})
		if !errors.Is(err, want) || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), reg.host()) || !strings.Contains(err.Error(), "resolve") {
			t.Errorf("%d: got %v, want %v", code, err, want)
		}
	}
}

func TestAWrongPasswordIsSentOnce(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	var sent atomic.Int64
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if _, _, ok := r.BasicAuth(); ok {
			sent.Add(1)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: reg.host() + "/x:1", Auth: &Auth{Username: "u", Password: "wrong"}}); !errors.Is(err, ErrUnauthorized) {
		t.Fatal(err)
	}
	if n := sent.Load(); n != 1 {
		t.Errorf("it was sent %d times: accounts get locked so", n)
	}
}

func TestTokens(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	reg.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			user, pass, _ := r.BasicAuth()
			ok := user == "u" && pass == "right"
			if r.Method == http.MethodPost {
				ok = r.PostFormValue("refresh_token") == "identity" || r.PostFormValue("username") == "u" && r.PostFormValue("password") == "right"
			}
			if !ok {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			json.NewEncoder(w).Encode(map[string]string{"token": "tok", "access_token": "tok"})
			return true
		case r.Header.Get("Authorization") == "Bearer tok", r.Header.Get("Authorization") == "Bearer brought":
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s"`, reg.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	for kind, a := range map[string]*Auth{"password": {Username: "u", Password: "right"}, "identity": {IdentityToken: "identity"}, "registry token": {RegistryToken: "brought"},
		"server address": {Username: "u", Password: "right", ServerAddress: "http://" + reg.host() + "/v1/"}} {
		if _, err := openStore(t, t.TempDir()).Pull(t.Context(), PullRequest{Ref: ref, Auth: a}); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	for kind, a := range map[string]*Auth{"password": {Username: "u", Password: "wrong"}, "identity": {IdentityToken: "other"}, "registry token": {RegistryToken: "other"},
		"none": nil, "other server": {Username: "u", Password: "right", ServerAddress: "elsewhere"}, "no base64": {Auth: "%"}} {
		if _, err := openStore(t, t.TempDir()).Pull(t.Context(), PullRequest{Ref: ref, Auth: a}); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: got %v", kind, err)
		}
	}
}

func TestRetryAfterIsKept(t *testing.T) {
	t.Parallel()
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	var first atomic.Int64
	reg.misbehave(func(w http.ResponseWriter, _ *http.Request) bool {
		if first.CompareAndSwap(0, time.Now().UnixNano()) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		if d := time.Since(time.Unix(0, first.Load())); d < time.Second {
			t.Errorf("asked again after %s", d)
		}
		return false
	})
	mustPull(t, s, ref)
}

func TestAPullThatNobodyWaitsForEnds(t *testing.T) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), func(c *Config) { c.StallTimeout = time.Minute })
	s.abandonAfter = 50 * time.Millisecond
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	asked, gone := make(chan struct{}), make(chan struct{})
	var askedOnce, goneOnce sync.Once
	reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if isBlobGet(r) {
			askedOnce.Do(func() { close(asked) })
			<-r.Context().Done()
			goneOnce.Do(func() { close(gone) })
			return true
		}
		return false
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		<-asked // a pull that is abandoned before it asks for a blob has no connection to give up
		cancel()
	}()
	if _, err := s.Pull(ctx, PullRequest{Ref: ref}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-time.After(20 * time.Second): // less than what an answer may take to begin
		t.Fatal("it goes on for nobody")
	}
	reg.misbehave(nil)
	mustPull(t, s, ref)
}

func TestAlwaysPullingWhatIsHereAsksOnce(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	ref := reg.push(t, "x:1", imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": "x"})))
	mustPull(t, s, ref)
	var n atomic.Int64
	reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/" {
			n.Add(1)
		}
		return false
	})
	stats := s.bolt.Stats()
	before := stats.TxStats.GetWrite()
	mustPull(t, s, ref)
	stats = s.bolt.Stats()
	after := stats.TxStats.GetWrite()
	if n.Load() != 1 || after != before {
		t.Errorf("%d requests, %d writes; want 1 and none", n.Load(), after-before)
	}
}

func TestProgressIsTold(t *testing.T) {
	reg, s := newRegistry(t), openWith(t, t.TempDir(), func(c *Config) { c.StallTimeout = time.Minute })
	pushed := imageOf(t, v1.Config{}, layerOf(t, map[string]string{"f": incompressible(100_000)}))
	ref, blob := reg.push(t, "x:1", pushed), layerPath(t, pushed, 0)
	told := make(chan struct{}) // that the layer is being fetched
	reg.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, blob) {
			select {
			case <-told:
			case <-r.Context().Done():
			}
		}
		return false
	})
	var all []Progress
	var once sync.Once
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Progress: func(p Progress) {
		if all = append(all, p); p.Stage == "fetch" && p.Layers == 1 {
			once.Do(func() { close(told) })
		}
	}}); err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	if len(all) < 2 || last.Stage != "record" || last.Bytes != last.Total || last.Bytes < 100_000 || last.Unpacked != 1 {
		t.Errorf("got %+v", all)
	}
}

func TestCollectionDoesNotDisturbPulls(t *testing.T) {
	reg, s := newRegistry(t), openStore(t, t.TempDir())
	shared := layerOf(t, map[string]string{"shared": incompressible(50_000)})
	var refs []string
	for i := range 6 {
		refs = append(refs, reg.push(t, fmt.Sprintf("i%d:1", i), imageOf(t, v1.Config{User: strconv.Itoa(i)}, shared,
			layerOf(t, map[string]string{"own": fmt.Sprint(i) + incompressible(10_000)}))))
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := s.GC(t.Context()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var pulls sync.WaitGroup
	for _, ref := range refs {
		pulls.Go(func() {
			for range 4 {
				im, err := s.Pull(t.Context(), PullRequest{Ref: ref})
				if err == nil {
					err = s.Remove(t.Context(), im.ID)
				}
				if err != nil {
					t.Error(err)
				}
			}
			mustPull(t, s, ref)
		})
	}
	pulls.Wait()
	close(done)
	wg.Wait()
	for i, im := range s.List() {
		if got := readInRootfs(t, s, im, "own"); !strings.HasSuffix(got, incompressible(10_000)) {
			t.Errorf("image %d is damaged", i)
		}
	}
}

// pushIndex is push for an index.
func (s *registryServer) pushIndex(t *testing.T, ref string, idx v1.ImageIndex) string {
	t.Helper()
	full := s.host() + "/" + ref
	r, err := name.ParseReference(full, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(r, idx); err != nil {
		t.Fatal(err)
	}
	return full
}

// blob is what the registry has at a path.
func (s *registryServer) blob(t *testing.T, path string) []byte {
	w := &recorder{}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+path, nil)
	if err != nil {
		t.Error(err)
		return nil
	}
	s.inner.ServeHTTP(w, r)
	return w.Bytes()
}

type recorder struct {
	bytes.Buffer
	h http.Header
}

func (r *recorder) Header() http.Header {
	if r.h == nil {
		r.h = http.Header{}
	}
	return r.h
}

func (*recorder) WriteHeader(int) {}

func (s *Store) walkSnapshots(t *testing.T, f func(name string)) {
	t.Helper()
	err := s.snapshots.Walk(scoped(t.Context()), func(_ context.Context, info snapshots.Info) error { f(info.Name); return nil })
	if err != nil {
		t.Fatal(err)
	}
}

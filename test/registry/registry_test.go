// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestEachVariantIsAWholeImage(t *testing.T) {
	s := Start(t)
	layers := []Tree{Files("d", 3, 100, 1), Files("e", 3, 100, 2)}
	for tag, spec := range map[string]Spec{
		"oci": {Layers: layers}, "docker": {Layers: layers, Docker: true}, "zstd": {Layers: layers, Zstd: true}, "raw": {Layers: layers, Raw: true},
	} {
		ref, _ := s.MustPush(t, "variants:"+tag, MustBuild(t, spec))
		parsed, err := name.ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		im, err := remote.Image(parsed)
		if err != nil {
			t.Fatal(err)
		}
		got, err := im.Layers()
		if err != nil || len(got) != len(layers) {
			t.Fatalf("%s: %d layers, %v", tag, len(got), err)
		}
		for i, l := range got {
			body, err := l.Uncompressed()
			if err != nil {
				t.Fatalf("%s: %v", tag, err)
			}
			data, err := io.ReadAll(body)
			want, _ := layers[i].tar()
			if err != nil || !bytes.Equal(data, want) {
				t.Errorf("%s: layer %d came back as %d bytes, %v", tag, i, len(data), err)
			}
		}
	}
	index, err := Index(MustBuild(t, Spec{Layers: layers}), MustBuild(t, Spec{Layers: layers, Arch: "arm64"}))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil || len(manifest.Manifests) != 2 || manifest.Manifests[1].Platform.Architecture != "arm64" {
		t.Errorf("index is %v, %v", manifest, err)
	}
}

func TestFaultsStrikeAndHeal(t *testing.T) {
	s := Start(t)
	im := MustBuild(t, Spec{Layers: []Tree{Files("d", 3, 1000, 1)}})
	ref, _ := s.MustPush(t, "app:1", im)
	url := "http://" + strings.Replace(ref, "/app:1", "/v2/app/manifests/1", 1)
	get := func() (int, string, error) {
		client := http.Client{Timeout: 200 * time.Millisecond}
		r, err := client.Get(url)
		if err != nil {
			return 0, "", err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		return r.StatusCode, string(body), err
	}
	_, good, err := get()
	if err != nil {
		t.Fatal(err)
	}
	ran := false
	for name, c := range map[string]struct {
		fault Fault
		check func(code int, body string, err error) bool
	}{
		"status": {Fault{Do: Status(429, 1)}, func(code int, body string, _ error) bool { return code == 429 && strings.Contains(body, "TOOMANY") }},
		"stall":  {Fault{Do: Stall(time.Minute)}, func(_ int, _ string, err error) bool { return err != nil }},
		"half":   {Fault{Do: StallBody(5, time.Minute)}, func(_ int, body string, err error) bool { return err != nil && body == good[:5] }},
		"corrupt": {Fault{Do: Corrupt}, func(code int, body string, err error) bool {
			return err == nil && len(body) == len(good) && body != good
		}},
		"reset": {Fault{Do: Reset(7)}, func(_ int, body string, err error) bool { return err != nil && len(body) <= 7 }},
		"hook":  {Fault{Do: After(7, func() { ran = true }, false)}, func(_ int, body string, err error) bool { return err == nil && body == good && ran }},
		"other": {Fault{Match: "/blobs/", Do: Status(500, 0)}, func(_ int, body string, err error) bool { return err == nil && body == good }},
	} {
		heal := s.Inject(c.fault)
		if code, body, err := get(); !c.check(code, body, err) {
			t.Errorf("%s: %d, %q, %v", name, code, body, err)
		}
		heal()
		if _, body, err := get(); err != nil || body != good {
			t.Errorf("%s healed: %q, %v", name, body, err)
		}
	}
	s.Inject(Fault{Times: 1, Do: Status(500, 0)})
	if code, _, _ := get(); code != 500 {
		t.Errorf("first of one: %d", code)
	}
	if code, _, _ := get(); code != 200 {
		t.Errorf("second of one: %d", code)
	}
}

func TestCredentialsOpenTheRegistry(t *testing.T) {
	s := Start(t)
	ref, _ := s.MustPush(t, "private:1", MustBuild(t, Spec{Config: v1.Config{}}))
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		server Auth
		client authn.AuthConfig
		ok     bool
	}{
		"basic":          {Auth{}, authn.AuthConfig{Username: "u", Password: "p"}, true},
		"nobody":         {Auth{}, authn.AuthConfig{}, false},
		"bearer":         {Auth{Bearer: true}, authn.AuthConfig{Username: "u", Password: "p"}, true},
		"wrong":          {Auth{Bearer: true}, authn.AuthConfig{Username: "u", Password: "q"}, false},
		"identity token": {Auth{Bearer: true, IdentityToken: "t"}, authn.AuthConfig{IdentityToken: "t"}, true},
	} {
		c.server.Username, c.server.Password = "u", "p"
		s.SetAuth(&c.server)
		_, err := remote.Head(parsed, remote.WithAuth(authn.FromConfig(c.client)))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

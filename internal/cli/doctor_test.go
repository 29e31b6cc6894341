// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/doctor"
)

func TestDoctorTellsWhatIsWrongAndExitsWithIt(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.sock")
	got := berthIn(t.Context(), "", "doctor", "--socket", missing)
	if got.code != 1 || !strings.Contains(got.out, "✗ socket     there is no socket at "+missing) || !strings.Contains(got.out, "→ start the daemon") {
		t.Errorf("got %+v", got)
	}
	got = berthIn(t.Context(), "", "doctor", "--socket", missing, "-o", "json")
	var all []doctor.Finding
	if err := json.Unmarshal([]byte(got.out), &all); err != nil || got.code != 1 || len(all) == 0 {
		t.Errorf("%v, got %+v", err, got)
	}
	if got := berthIn(t.Context(), "", "doctor", "-o", "yaml"); got.code != 1 || !strings.Contains(got.err, "table, json") {
		t.Errorf("got %+v", got)
	}
}

func TestASupportBundleHasNoSecrets(t *testing.T) {
	f := populated(t)
	for _, p := range f.pods {
		p.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": `{"env":[{"name":"DB_PASSWORD","value":"hunter2"}]}`, "colour": "turquoise"}
	}
	for _, c := range f.containers {
		c.Labels = map[string]string{"example.com/api-key": "hunter2"}
	}
	got := f.berth(t, "debug", "dump", "--file", "-")
	if got.code != 0 {
		t.Fatalf("code %d, %s", got.code, got.err)
	}
	zipped, err := gzip.NewReader(strings.NewReader(got.out))
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for archive := tar.NewReader(zipped); ; {
		head, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if parts[head.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Contains(parts["berth/pods.json"], []byte("front")) || parts["berth/doctor.json"] == nil || parts["berth/host/version"] == nil {
		t.Errorf("parts %v", parts)
	}
	for name, text := range parts {
		if bytes.Contains(text, []byte("hunter2")) {
			t.Errorf("%s tells a secret: %.2000s", name, text)
		}
	}
	if !bytes.Contains(parts["berth/pods.json"], []byte("turquoise")) {
		t.Errorf("what is no secret is missing: %.2000s", parts["berth/pods.json"])
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		`{"password": "p\"4ss", "name": "x"}`:                                                                `{"password": "REDACTED", "name": "x"}`,
		`{"name": "DB_PASSWORD", "value": "p\"4ss", "x": 1}`:                                                 `{"name": "DB_PASSWORD", "value": "REDACTED", "x": 1}`,
		`{"name": "COLOUR", "value": "red"}`:                                                                 `{"name": "COLOUR", "value": "red"}`,
		`"last-applied": "{\"password\":\"p\\\"4ss\",\"a\":\"b\"}"`:                                          `"last-applied": "{\"password\":\"REDACTED\",\"a\":\"b\"}"`,
		`"last-applied": "[{\"name\":\"API_TOKEN\",\"value\":\"t\\\\x\"},{\"name\":\"A\",\"value\":\"b\"}]"`: `"last-applied": "[{\"name\":\"API_TOKEN\",\"value\":\"REDACTED\"},{\"name\":\"A\",\"value\":\"b\"}]"`,
		`DB_PASSWORD=hunter2 next`:                                                                           `DB_PASSWORD="REDACTED" next`,
		`Authorization: Bearer abc.def`:                                                                      `Authorization: "REDACTED"`,
		`"identityToken":"eyJ"`:                                                                              `"identityToken":"REDACTED"`,
		`proxy https://user:pass@proxy:3128/x`:                                                               `proxy https://REDACTED@proxy:3128/x`,
		`api_key: k1`:                                                                                        `api_key: "REDACTED"`,
		`image docker.io/library/busybox@sha256:abc took=3ms`:                                                `image docker.io/library/busybox@sha256:abc took=3ms`,
		"level=INFO msg=\"image is pulled\" image=a/b:1 size=12":                                             "level=INFO msg=\"image is pulled\" image=a/b:1 size=12",
	} {
		if got := string(redact([]byte(in))); got != want {
			t.Errorf("%s became %s", in, got)
		}
	}
}

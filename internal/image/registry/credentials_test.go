// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
)

func write(t *testing.T, file, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return file
}

// hosts is a folder with a hosts.toml for the registry at url.
func hosts(t *testing.T, url, text string) []string {
	t.Helper()
	dir := t.TempDir()
	_, host, _ := strings.Cut(url, "://")
	write(t, filepath.Join(dir, host, "hosts.toml"), fmt.Sprintf("server = %q\n", url)+text, 0o600)
	return []string{dir}
}

func named(t *testing.T, ref string) reference.Named {
	t.Helper()
	name, err := reference.ParseDockerRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCredentialsOfFiles(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	write(t, bin+"/docker-credential-good", "#!/bin/sh\nread -r s; echo '{\"ServerURL\":\"'$s'\",\"Username\":\"helper\",\"Secret\":\"'$s'\"}'\n", 0o755)
	write(t, bin+"/docker-credential-token", "#!/bin/sh\necho '{\"Username\":\"<token>\",\"Secret\":\"refresh\"}'\n", 0o755)
	write(t, bin+"/docker-credential-none", "#!/bin/sh\necho credentials not found in native keychain; exit 1\n", 0o755)
	dir := t.TempDir()
	first := write(t, dir+"/1.json", `{"auths":{"r.example":{"username":"u","password":"p"},"https://index.docker.io/v1/":{"auth":"aHViOnA="},
		"r.example/team":{"username":"team","password":"p"},"*.glob.example":{"username":"glob","password":"p"},"empty.example":{}},
		"credHelpers":{"h.example":"good","t.example":"token","n.example":"none"}}`, 0o600)
	second := write(t, dir+"/2.json", `{"auths":{"n.example":{"username":"second","password":"p"}},"credsStore":"good"}`, 0o600)
	c := newClient()
	c.cfg.CredentialFiles = []string{dir + "/missing.json", first, second}
	for ref, want := range map[string]string{
		"r.example/x":          "u",
		"r.example/team/x":     "team",
		"r.example/teammate/x": "u",
		"docker.io/x":          "hub",
		"a.glob.example/x":     "glob",
		"h.example/x":          "helper",
		"t.example/x":          "",
		"n.example/x":          "second",
		"empty.example/x":      "helper",
		"a.b.glob.example/x":   "helper",
	} {
		a, err := c.configured(t.Context(), named(t, ref))
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		user, secret, err := a.credentials()
		if err != nil || user != want || secret == "" || ref == "t.example/x" && secret != "refresh" {
			t.Errorf("%s: %q, %v", ref, user, err)
		}
	}
	c.cfg.CredentialFiles = []string{first}
	if a, err := c.configured(t.Context(), named(t, "other.example/x")); a != nil || err != nil {
		t.Errorf("a stranger gets %v, %v", a, err)
	}
}

func TestBrokenCredentialFilesAndHelpersTellNoSecrets(t *testing.T) {
	bin, dir := t.TempDir(), t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	write(t, bin+"/docker-credential-fails", "#!/bin/sh\necho geheim; echo geheim >&2; exit 1\n", 0o755)
	write(t, bin+"/docker-credential-babbles", "#!/bin/sh\necho '{\"Username\":\"geheim'\n", 0o755)
	write(t, bin+"/docker-credential-floods", "#!/bin/sh\nhead -c 10000000 /dev/zero\n", 0o755)
	write(t, bin+"/docker-credential-hangs", "#!/bin/sh\nexec sleep 600\n", 0o755)
	for kind, text := range map[string]string{
		"no JSON":       `{"auths":{"r.example":{"password":"geheim"`,
		"wrong form":    `{"auths":"geheim"}`,
		"fails":         `{"credsStore":"fails"}`,
		"babbles":       `{"credsStore":"babbles"}`,
		"floods":        `{"credsStore":"floods"}`,
		"hangs":         `{"credsStore":"hangs"}`,
		"no helper":     `{"credsStore":"is-not-there"}`,
		"path":          `{"credsStore":"../../bin/sh"}`,
		"too long":      `{"auths":{"` + strings.Repeat("x", maxCredentialFile) + `":{}}}`,
		"of a registry": `{"credHelpers":{"r.example":"fails"}}`,
	} {
		t.Run(kind, func(t *testing.T) {
			c := newClient()
			c.cfg.CredentialFiles = []string{write(t, filepath.Join(dir, kind), text, 0o600)}
			if kind == "hangs" {
				c.cfg.HelperTime = 100 * time.Millisecond
			}
			begin := time.Now()
			_, err := c.Session(t.Context(), Request{Name: named(t, "r.example/x")})
			if err == nil || strings.Contains(err.Error(), "geheim") || kind == "hangs" && !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

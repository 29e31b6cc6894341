// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestAnEncodedEnvironmentComesBackWithWhatCameLater(t *testing.T) {
	text := base64.StdEncoding.EncodeToString([]byte("PATH=/bin\x00BINARY=\xff\xfe\x00HOME=/home/app\x00EMPTY=\x00TERM=xterm"))
	for _, parts := range [][]string{{text}, {text[:7], text[7:20], text[20:]}} {
		environ := []string{"HOME=/root", "TERM=dumb", "NEW=1"}
		for i, part := range parts {
			environ = append(environ, envPrefix+string(rune('0'+i))+"="+part)
		}
		got, err := decodeEnv(environ)
		if want := []string{"PATH=/bin", "BINARY=\xff\xfe", "HOME=/home/app", "EMPTY=", "TERM=dumb", "NEW=1"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%d parts: %q, %v", len(parts), got, err)
		}
	}
	for _, bad := range [][]string{{envPrefix + "1=" + text}, {envPrefix + "0=%"}, {envPrefix + "0=" + text, envPrefix + "2=" + text}} {
		if got, err := decodeEnv(bad); err == nil {
			t.Errorf("%q", got)
		}
	}
}

func TestCommandsAreFoundByTheirOwnPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"run": 0o755, "data": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"A=b", "PATH=/none:" + dir}
	if got, err := lookCommand("run", env); err != nil || got != dir+"/run" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := lookCommand("./x", env); err != nil || got != "./x" {
		t.Errorf("%q, %v", got, err)
	}
	for _, name := range []string{"data", "absent"} {
		if got, err := lookCommand(name, env); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if code, err := Env([]string{"berth-no-such-program"}); code != notFound || err == nil || !strings.Contains(err.Error(), "berth-no-such-program") {
		t.Errorf("%d, %v", code, err)
	}
	if code, err := Env(nil); code != notExecutable || err == nil {
		t.Errorf("%d, %v", code, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/test/transcript"
)

func configFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestServeHandsItsFlagsToTheDaemon(t *testing.T) {
	var got ServeFlags
	o := Options{Out: io.Discard, Err: io.Discard, Serve: func(_ context.Context, f ServeFlags) error {
		got = f
		return nil
	}}
	code := New(o).Run(t.Context(), strings.Fields("serve --config /c --root /r --state /s --socket unix:///x.sock"))
	if want := (ServeFlags{Config: "/c", Root: "/r", State: "/s", Socket: "/x.sock"}); code != 0 || got != want {
		t.Errorf("exit code %d, got %+v, want %+v", code, got, want)
	}
	var errs transcript.Text
	o.Err, o.Serve = &errs, func(context.Context, ServeFlags) error { return errors.New("root /r is locked") }
	if code := New(o).Run(t.Context(), []string{"serve"}); code != 1 || errs.String() != "berth: root /r is locked\n" {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}

func TestConfigCheckSaysAllThatIsWrong(t *testing.T) {
	file := configFile(t, "version = 1\nroott = \"/x\"\n[log]\nlevel = \"loud\"\n")
	for _, args := range [][]string{{"config", "check", file}, {"--config", file, "config", "check"}} {
		got := berthIn(t.Context(), "", args...)
		if got.code != 1 || got.out != "" || !strings.Contains(got.err, "roott") || !strings.Contains(got.err, "loud") {
			t.Errorf("%q: %+v", args, got)
		}
	}
	if got := berthIn(t.Context(), "", "config", "check", configFile(t, "version = 1\nroot = \"/x\"\n")); got.code != 0 || !strings.HasPrefix(got.out, "the configuration is valid; ") {
		t.Errorf("got %+v", got)
	}
}

func TestConfigShowKnowsFlagsAndFormats(t *testing.T) {
	file := configFile(t, "version = 1\n")
	for format, want := range map[string]string{"text": "flag --root", "json": `"/flagged"`} {
		if got := berthIn(t.Context(), "", "--config", file, "config", "show", "--root", "/flagged", "-o", format); got.code != 0 || !strings.Contains(got.out, want) {
			t.Errorf("%s: %+v", format, got)
		}
	}
	if got := berthIn(t.Context(), "", "config", "show", "-o", "xml"); got.code != 1 || got.err != "berth: output \"xml\" is not one of text, json\n" {
		t.Errorf("got %+v", got)
	}
}

func TestConfigDefaultIsAValidFile(t *testing.T) {
	text := berthIn(t.Context(), "", "config", "default")
	if got := berthIn(t.Context(), "", "config", "check", configFile(t, text.out)); text.code != 0 || got.code != 0 {
		t.Errorf("check of the default: %+v", got)
	}
}

func TestTheConfigurationsSocketIsUsed(t *testing.T) {
	t.Setenv("BERTH_SOCKET", "")
	f := populated(t)
	file := configFile(t, "version = 1\nsocket = \""+f.socket+"\"\n")
	if got := berthIn(t.Context(), "", "--config", file, "pods", "-q", "--name", "front"); got.code != 0 || got.out != id("b1")+"\n" {
		t.Errorf("got %+v", got)
	}
}

func TestVersionIsToldWithoutADaemon(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone.sock")
	got := berthIn(t.Context(), "", "version", "--socket", gone)
	if got.code != 1 || !strings.HasPrefix(got.out, "CLIENT   berth   0.9   go") || !strings.HasPrefix(got.err, "berth: cannot reach berth at "+gone) {
		t.Errorf("got %+v", got)
	}
	if got := berthIn(t.Context(), "", "version", "--client", "-o", "json"); got.code != 0 || !strings.Contains(got.out, `"version": "0.9"`) {
		t.Errorf("got %+v", got)
	}
}

func TestCompletionOffersWhatThereIs(t *testing.T) {
	f := populated(t)
	for args, want := range map[string]string{
		"__complete stop fr":       "front\tpod\n",
		"__complete help config d": "default\tPrint the default file: every key with its meaning and default\n",
		"__complete logs w":        "web\tcontainer of front\n",
		"__complete rmi dock":      "docker.io/library/busybox:1\n",
	} {
		got := f.berth(t, strings.Fields(args)...)
		if got.code != 0 || !strings.HasPrefix(got.out, want) {
			t.Errorf("%s: %+v", args, got)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := berthIn(t.Context(), "", "completion", shell); got.code != 0 || len(got.out) < 1000 {
			t.Errorf("%s: exit code %d, %d bytes, %s", shell, got.code, len(got.out), got.err)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/shim/wire"
)

func TestAnswersOfAllGenerationsOfShimsAreRead(t *testing.T) {
	for _, c := range []struct {
		name, out, address string
		version            int
		err                string
	}{
		{"containerd 1.x", "unix:///run/s/1\n", "unix:///run/s/1", 2, ""},
		{"containerd 2.0", `{"version":3,"address":"unix:///run/s/2","protocol":"ttrpc"}`, "unix:///run/s/2", 3, ""},
		{"containerd 2.3", string(wire.Marshal(&wire.BootstrapResult{Version: 3, Address: "unix:///run/s/3", Protocol: "ttrpc"})), "unix:///run/s/3", 3, ""},
		{"nothing", "", "", 0, "is no address"},
		{"words", "usage: shim", "", 0, "is no address"},
		{"half an object", `{"version":3,`, "", 0, "is no address"},
		{"a later version", `{"version":9,"address":"unix:///x"}`, "", 0, "version 9"},
		{"another protocol", `{"version":3,"address":"unix:///x","protocol":"grpc"}`, "", 0, "grpc"},
		{"another network", `{"version":3,"address":"tcp://10.0.0.1:1"}`, "", 0, "not a unix socket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			address, version, err := parseAnswer([]byte(c.out))
			if c.err == "" && (err != nil || address != c.address || version != c.version) {
				t.Errorf("got %q, %d, %v", address, version, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %v, want an error with %q", err, c.err)
			}
		})
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("unix:///x"))
	f.Add([]byte(`{"version":3,"address":"unix:///x"}`))
	f.Add(wire.Marshal(&wire.BootstrapResult{Version: 2, Address: "unix:///x"}))
	f.Fuzz(func(t *testing.T, out []byte) {
		if address, version, err := parseAnswer(out); err == nil && (!strings.HasPrefix(address, "unix://") || version < 2 || version > 3) {
			t.Errorf("got %q, %d", address, version)
		}
	})
}

// script is a shim's program made of shell.
func script(t *testing.T, text string) *command {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "containerd-shim-test-v1")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return &command{shim: path, root: filepath.Join(dir, "root"), id: "c1", verb: "run", options: map[string]string{}}
}

// bundle is a container's folder with a configuration.
func bundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestShimsThatDoNotStartAreNamedWithTheirWords(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"dies":            {"echo no hardware >&2; exit 3", "no hardware"},
		"answers garbage": {"echo hello", `"hello" is no address`},
		"says nothing":    {"exit 0", "is no address"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := script(t, c.text).start(bundle(t))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "containerd-shim-test-v1") {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := (&command{shim: "/no/such/shim", root: t.TempDir(), id: "c1"}).start(bundle(t)); err == nil || !strings.Contains(err.Error(), "/no/such/shim") {
		t.Errorf("missing program: %v", err)
	}
}

func TestAShimHasABundleOfItsOwn(t *testing.T) {
	own := t.TempDir()
	config := []byte(`{"root":{"path":"/r"}}`)
	if err := os.WriteFile(filepath.Join(own, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	c := script(t, `echo '{"Status":0}' >exit.json; echo changed >config.json; echo unix:///x`)
	if _, err := c.start(own); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(own)
	if err != nil || len(entries) != 1 {
		t.Errorf("in our bundle: %v, %v", entries, err)
	}
	if data, err := os.ReadFile(filepath.Join(own, "config.json")); string(data) != string(config) {
		t.Errorf("our configuration: %q, %v", data, err)
	}
	if data, err := os.ReadFile(filepath.Join(c.bundle(), "exit.json")); err != nil {
		t.Errorf("the shim's bundle: %q, %v", data, err)
	}
	if _, err := c.start(t.TempDir()); err == nil {
		t.Error("a bundle without a configuration")
	}
}

func TestAShimThatHangsUpOrAnswersGarbageIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := []string{"", "HTTP/1.1 400 Bad Request\r\n\r\n", "\x00\x00\x00\x02\x00\x00\x00\x01\x02\x00\xff\xff"}
	go func() {
		for _, a := range answers {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			buffer := make([]byte, 4096)
			_, _ = conn.Read(buffer)
			_, _ = conn.Write([]byte(a))
			conn.Close()
		}
	}()
	for _, a := range answers {
		c, err := dial("unix://"+path, 3)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.call(callLimit, "Kill", &wire.KillRequest{ID: "c1"}, &wire.Empty{}); err == nil || notFound(err) {
			t.Errorf("answer %q: %v", a, err)
		}
		c.close()
	}
	if _, err := dial("unix:///no/such/socket", 3); err == nil {
		t.Error("a socket that is not there")
	}
}

func TestCommandLinesThatNameNothingAreRefused(t *testing.T) {
	for _, args := range [][]string{{}, {"--shim", "/s"}, {"--shim", "/s", "--root", "/r", "kill", "../x", "9"}, {"--shim", "/s", "--root", "/r", "kill", "x", "y"},
		{"--shim", "/s", "--root", "/r", "--unknown", "delete", "x"}, {"--shim"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
	c, err := parse([]string{"--shim", "/s", "--root", "/r", "--log", "/l", "--log-format", "json", "delete", "--force", "x"})
	if err != nil || c.verb != "delete" || !c.force || c.id != "x" {
		t.Errorf("got %+v, %v", c, err)
	}
}

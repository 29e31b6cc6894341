// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFirstValidFileInNameOrderIsUsed(t *testing.T) {
	const list, single = `{"name":"%s","plugins":[{"type":"p"}]}`, `{"name":"%s","type":"p"}`
	for _, c := range []struct {
		what  string
		files map[string]string
		name  string // of the network, "" for none
		want  string // in the error or among the invalid
	}{
		{"empty", nil, "", "no CNI configuration in "},
		{"other endings", map[string]string{"1.yaml": "x", "README": "x", "2.conflist.bak": "x"}, "", "no CNI configuration in "},
		{"a list", map[string]string{"1.conflist": fmt.Sprintf(list, "one")}, "one", ""},
		{"a single plugin", map[string]string{"1.conf": fmt.Sprintf(single, "one")}, "one", ""},
		{"a single plugin as json", map[string]string{"1.json": fmt.Sprintf(single, "one")}, "one", ""},
		{"a list in a .conf", map[string]string{"1.conf": fmt.Sprintf(list, "one")}, "one", ""},
		{"order", map[string]string{"20.conf": fmt.Sprintf(single, "b"), "10.conflist": fmt.Sprintf(list, "a"), "30.json": fmt.Sprintf(single, "c")}, "a", ""},
		{"first is no JSON", map[string]string{"1.conf": `{"name":`, "2.conf": fmt.Sprintf(single, "b")}, "b", "1.conf: parse JSON"},
		{"first is empty", map[string]string{"1.conf": "", "2.conf": fmt.Sprintf(single, "b")}, "b", "1.conf: parse JSON"},
		{"no type", map[string]string{"1.conf": `{"name":"a"}`}, "", "neither plugins nor a type"},
		{"no name", map[string]string{"1.conf": `{"type":"a"}`}, "", "name"},
		{"bad name", map[string]string{"1.conf": fmt.Sprintf(single, "../x")}, "", "network name"},
		{"bad name of a list", map[string]string{"1.conflist": fmt.Sprintf(list, "../x")}, "", "network name"},
		{"long name", map[string]string{"1.conf": fmt.Sprintf(single, strings.Repeat("n", 150))}, "", "150 bytes"},
		{"no plugins", map[string]string{"1.conflist": `{"name":"a","plugins":[]}`}, "", "no plugins"},
		{"no plugins key", map[string]string{"1.conflist": `{"name":"a"}`}, "", "no plugin"},
		{"plugin is a path", map[string]string{"1.conf": `{"name":"a","type":"../../bin/sh"}`}, "", "not a file name"},
		{"future", map[string]string{"1.conf": `{"name":"a","type":"p","cniVersion":"7.0.0"}`}, "", "7.0.0 is newer than"},
		{"nonsense version", map[string]string{"1.conf": `{"name":"a","type":"p","cniVersion":"new"}`}, "", "cniVersion"},
		{"too large", map[string]string{"1.conf": `{"name":"a","type":"p","x":"` + strings.Repeat("x", maxConf) + `"}`}, "", "more than 1048576 bytes"},
		{"plugins in files", map[string]string{"1.conflist": `{"name":"a","plugins":[{"type":"p"}]}`, "a/5.conf": `{"type":"q"}`}, "a", ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			n := newNode(t)
			for name, text := range c.files {
				n.write(name, text)
			}
			s := readConfDir(n.cfg.ConfDir)
			err := s.notReady(n.cfg.ConfDir)
			if c.name == "" {
				wantError(t, err, c.want)
				if !errors.Is(err, ErrNotReady) {
					t.Errorf("%v is not ErrNotReady", err)
				}
				return
			}
			if err != nil || s.list.Name != c.name {
				t.Fatalf("%+v, %v", s.list, err)
			}
			if got := fmt.Sprint(s.invalid); !strings.Contains(got, c.want) {
				t.Errorf("invalid: %s", got)
			}
		})
	}
}

func TestFilesThatAreNoneAreNotWaitedFor(t *testing.T) {
	n := newNode(t)
	if err := syscall.Mkfifo(filepath.Join(n.cfg.ConfDir, "1.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.write("2.conf/inner", "x") // a folder with the name of a file
	n.write("3.conf", `{"name":"a","type":"p"}`)
	done := make(chan *snapshot)
	go func() { done <- readConfDir(n.cfg.ConfDir) }()
	select {
	case s := <-done:
		if s.list == nil || len(s.invalid) != 1 {
			t.Errorf("%+v", s)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it hangs on a named pipe")
	}
}

func TestPluginsInFilesOfTheirOwnAreRemembered(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", passing)
	n.write("1.conflist", `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"first"}]}`)
	n.write("pods/5.conf", `{"type":"second"}`)
	net := n.start()
	if _, err := net.Attach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.cfg.ConfDir); err != nil {
		t.Fatal(err)
	}
	if err := n.start().Detach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	n.wantCalls("first ADD", "second ADD", "second DEL", "first DEL")
}

// within waits for a condition; on an idle machine a second is enough.
func within(t testing.TB, what string, ok func() bool) {
	t.Helper()
	started := time.Now()
	for !ok() {
		if time.Since(started) > 10*time.Second {
			t.Fatalf("%s: not within ten seconds", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestReadyFollowsTheFolder(t *testing.T) {
	n := newNode(t)
	n.cfg.ConfDir = filepath.Join(n.dir, "etc", "cni", "net.d") // three folders that do not exist
	n.plugin("p", "")
	net := n.start()
	ready := func() bool { return net.Ready() == nil }
	in := func(name string) func() bool { return func() bool { return ready() && net.Info().Name == name } }
	wantError(t, net.Ready(), "no CNI configuration in "+n.cfg.ConfDir)
	n.write("20.conf", `{"name":"a","type":"p"}`)
	within(t, "folders made and a file written", in("a"))
	n.write("10.conf.tmp", `{"name":"b","type":"p"}`)
	if err := os.Rename(filepath.Join(n.cfg.ConfDir, "10.conf.tmp"), filepath.Join(n.cfg.ConfDir, "10.conf")); err != nil {
		t.Fatal(err)
	}
	within(t, "an earlier file renamed in", in("b"))
	n.write("10.conf", `{"name":"c","type":"p"}`)
	within(t, "the file rewritten", in("c"))
	n.write("10.conf", `{"name":`)
	within(t, "the file spoilt", func() bool { return in("a")() && len(net.Info().Invalid) == 1 })
	if err := os.Rename(filepath.Join(n.dir, "etc", "cni"), filepath.Join(n.dir, "etc", "cni.old")); err != nil {
		t.Fatal(err)
	}
	within(t, "a folder above moved away", func() bool { return !ready() })
	n.write("1.conf", `{"name":"d","type":"p"}`)
	within(t, "the folders made again", in("d"))
	if err := os.RemoveAll(filepath.Join(n.dir, "etc")); err != nil {
		t.Fatal(err)
	}
	within(t, "all removed", func() bool { return !ready() })
	target := filepath.Join(n.dir, "elsewhere")
	n.write(filepath.Join(target, "1.conflist"), `{"name":"e","plugins":[{"type":"p"}]}`)
	if err := os.MkdirAll(filepath.Dir(n.cfg.ConfDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, n.cfg.ConfDir); err != nil {
		t.Fatal(err)
	}
	within(t, "a symbolic link to the folder", in("e"))
	n.write(filepath.Join(target, "e", "9.conf"), `{"type":"p"}`)
	within(t, "a plugin in a file of its own", func() bool { return len(net.Info().Plugins) == 2 })
	n.write(filepath.Join(target, "e", "8.conf"), `{"type":"p"}`)
	within(t, "another one", func() bool { return len(net.Info().Plugins) == 3 })
}

func TestFolderIsReadAgainWhereNothingCanBeWatched(t *testing.T) {
	n := newNode(t)
	n.plugin("p", "")
	net := n.start()
	if err := net.watch.close(); err != nil {
		t.Fatal(err)
	}
	net.stop()
	net.work.Wait()
	net.watch = nil // as when the kernel has no inotify instance left
	n.write("1.conf", `{"name":"a","type":"p"}`)
	time.Sleep(rereadAfter)
	if err := net.Ready(); err != nil {
		t.Error(err)
	}
}

func TestDefaultConflistIsValid(t *testing.T) {
	for _, c := range []struct{ four, six, want string }{
		{"10.88.0.0/16", "", `[[{"subnet":"10.88.0.0/16"}]]`},
		{"", "fd00::/64", `[[{"subnet":"fd00::/64"}]]`},
		{"10.88.0.0/16", "fd00::/64", `[[{"subnet":"10.88.0.0/16"}],[{"subnet":"fd00::/64"}]]`},
	} {
		n := newNode(t)
		n.write("1.conflist", string(DefaultConflist("berth", "berth0", c.four, c.six)))
		list, err := readConf(filepath.Join(n.cfg.ConfDir, "1.conflist"))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(binaries(list)); got != "[bridge portmap host-local]" {
			t.Error(got)
		}
		var bridge struct {
			Bridge string
			IPAM   struct{ Ranges, Routes json.RawMessage }
		}
		if err := json.Unmarshal(list.Plugins[0].Bytes, &bridge); err != nil || bridge.Bridge != "berth0" || string(bridge.IPAM.Ranges) != c.want {
			t.Errorf("%s, %v", list.Plugins[0].Bytes, err)
		}
		if strings.Contains(string(bridge.IPAM.Routes), "::") != (c.six != "") {
			t.Errorf("routes %s", bridge.IPAM.Routes)
		}
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*Config){
		"conf_dir": func(c *Config) { c.ConfDir = "net.d" },
		"cache":    func(c *Config) { c.CacheDir = "" },
		"bin_dirs": func(c *Config) { c.BinDirs = nil },
		`"bin"`:    func(c *Config) { c.BinDirs = []string{"bin"} },
		"timeout":  func(c *Config) { c.AddTimeout = 0 },
		"of -1ns":  func(c *Config) { c.DelTimeout = -1 },
		"of -2ns":  func(c *Config) { c.MissingGrace = -2 },
	} {
		c := Default()
		spoil(&c)
		wantError(t, c.Validate(), want)
	}
}

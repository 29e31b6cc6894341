// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/netns"
)

const inside = "BERTH_NETWORK_TEST_INSIDE"

// TestMain runs the tests a second time, in a network namespace of their own: bridges, addresses and rules that real
// plugins make, and top chains that portmap leaves for ever, never touch the machine.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	code, err := runInside()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests of the network need root:", err)
		code = 1
	}
	os.Exit(code)
}

func runInside() (code int, err error) {
	dir, err := os.MkdirTemp("", "berth-network-test-")
	if err != nil {
		return 1, err
	}
	pin := filepath.Join(dir, "host")
	if err := netns.Create(netns.Request{Pins: map[netns.Kind]string{netns.Net: pin}}); err != nil {
		return 1, errors.Join(err, os.Remove(dir))
	}
	defer func() { err = errors.Join(err, netns.Remove(pin), os.Remove(dir)) }()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := netns.Do(pin, cmd.Start); err != nil { // a child is born in its parent's namespace
		return 1, err
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	} else if err != nil {
		return 1, err
	}
	return 0, nil
}

// said waits until a plugin has written text to a file of the node.
func (n *node) said(file, text string) {
	n.t.Helper()
	within(n.t, file+" has "+text, func() bool {
		data, err := os.ReadFile(filepath.Join(n.dir, file))
		return err == nil && strings.Contains(string(data), text)
	})
}

// node is a conf_dir, plugins and a cache of a test's own.
type node struct {
	t        testing.TB
	cfg      Config
	dir, bin string
	log      strings.Builder
}

func newNode(t testing.TB) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, dir: dir, bin: filepath.Join(dir, "bin")}
	n.cfg = Default()
	n.cfg.ConfDir, n.cfg.BinDirs, n.cfg.CacheDir = filepath.Join(dir, "net.d"), []string{n.bin}, filepath.Join(dir, "cache")
	n.cfg.ForeignCacheDirs = []string{filepath.Join(dir, "foreign")}
	n.cfg.AddTimeout, n.cfg.DelTimeout, n.cfg.CheckTimeout = 20*time.Second, 20*time.Second, 5*time.Second
	for _, d := range []string{n.cfg.ConfDir, n.bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// plugin writes a fake: it notes how it was called and goes on with the script.
func (n *node) plugin(name, script string) {
	n.t.Helper()
	text := fmt.Sprintf("#!/bin/sh\nconf=$(cat)\necho \"%[1]s $CNI_COMMAND\" >> %[2]s/calls\n"+
		"printf '%%s' \"$conf\" > %[2]s/%[1]s.$CNI_COMMAND.conf\nenv > %[2]s/%[1]s.$CNI_COMMAND.env\n%[3]s\n", name, n.dir, script)
	path := filepath.Join(n.bin, name)
	n.write(path+".new", text)
	if err := os.Chmod(path+".new", 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		n.t.Fatal(err)
	}
}

// answering is the script of a plugin that gives the pod addresses.
func answering(ips ...string) string {
	var list []string
	for _, ip := range ips {
		list = append(list, fmt.Sprintf(`{"address":%q,"interface":1}`, ip))
	}
	return fmt.Sprintf(`[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/x","mac":"aa:bb:cc:dd:ee:ff"}],"ips":[%s]}'`,
		strings.Join(list, ","))
}

func (n *node) write(path, text string) {
	n.t.Helper()
	if !filepath.IsAbs(path) {
		path = filepath.Join(n.cfg.ConfDir, path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) read(name string) string {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.dir, name))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(data)
}

// calls returns what the fakes were called for since the last time.
func (n *node) calls() []string {
	n.t.Helper()
	path := filepath.Join(n.dir, "calls")
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		n.t.Fatal(err)
	}
	if len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func (n *node) wantCalls(want ...string) {
	n.t.Helper()
	if got := n.calls(); !slices.Equal(got, want) {
		n.t.Errorf("plugins were called for %q, want %q", got, want)
	}
}

// start is a daemon's life on the node.
func (n *node) start() *Network {
	n.t.Helper()
	net, err := New(n.cfg, slog.New(slog.NewTextHandler(&n.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := net.Close(); err != nil {
			n.t.Error(err)
		}
	})
	return net
}

func (n *node) wantNothingCached(net *Network) {
	n.t.Helper()
	if ids, err := net.Cached(context.Background()); err != nil || len(ids) > 0 {
		n.t.Errorf("the cache holds %v, %v", ids, err)
	}
	if files, err := os.ReadDir(filepath.Join(n.cfg.CacheDir, "results")); err != nil || len(files) > 0 {
		n.t.Errorf("the cache folder holds %v, %v", files, err)
	}
}

func sandbox(id string) Attachment {
	return Attachment{ID: id, Name: "web", Namespace: "shop", UID: "u-1"}
}

func twoPlugins(version string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"pods","plugins":[{"type":"first","capabilities":{"dns":true}},
		{"type":"second","capabilities":{"portMappings":true,"bandwidth":false}}]}`, version)
}

// passing hands the previous result on.
const passing = `[ $CNI_COMMAND != ADD ] || printf '%s' "$conf" | sed 's/.*"prevResult"://; s/,"runtimeConfig".*//; s/,"type".*//'`

func wantError(t testing.TB, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", texts)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q has no %q", err, text)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRoutesTakeTheirNetworks(t *testing.T) {
	for line, want := range map[string]string{
		"eth0	00027B0A	00000000	0001	0	0	0	00FFFFFF	0	0	0":        "10.123.2.0/24",
		"docker0	000011AC	00000000	0001	0	0	0	0000FFFF	0	0	0":     "172.17.0.0/16",
		"eth0	00000000	0100000A	0003	0	0	100	00000000	0	0	0":      "",
		"Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask": "",
		"eth0	xyz": "",
	} {
		got := ""
		if p, ok := route(line); ok {
			got = p.String()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

func TestSubnetOverlapsNothing(t *testing.T) {
	taken, err := takenNetworks()
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		subnet, err := freeSubnet()
		if err != nil {
			t.Fatal(err)
		}
		p, err := netip.ParsePrefix(subnet)
		if err != nil || p.Bits() != 24 || overlaps(p, taken) {
			t.Errorf("%s, %v; taken are %v", subnet, err, taken)
		}
	}
	ten := netip.MustParsePrefix("10.0.0.0/8")
	if !overlaps(netip.MustParsePrefix("10.1.2.0/24"), []netip.Prefix{ten}) {
		t.Error("a subnet in 10/8 does not overlap it")
	}
}

func TestOnlyAnEmptyFolderIsTaken(t *testing.T) {
	dir := t.TempDir()
	if got, err := emptyDir(filepath.Join(dir, "new")); err != nil || got != filepath.Join(dir, "new") {
		t.Errorf("a new folder: %q, %v", got, err)
	}
	if _, err := emptyDir(dir); err == nil {
		t.Error("a folder with something in it is taken, and would be removed")
	}
}

func TestBusyboxMustBeStatic(t *testing.T) {
	dynamic, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := findBusybox([]string{"/nowhere", dynamic}); err == nil || !strings.Contains(err.Error(), "busybox-static") || !strings.Contains(err.Error(), dynamic) {
		t.Errorf("a program with libraries: %v", err)
	}
	if _, err := findBusybox([]string{"/nowhere", "/etc/passwd"}); err == nil || !strings.Contains(err.Error(), "there is no busybox") {
		t.Errorf("no program: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if static, err := isStatic(self); err != nil {
		t.Errorf("this test: %v, %v", static, err)
	}
}

func TestReportIsReadableWithoutATerminal(t *testing.T) {
	var out bytes.Buffer
	d := &demo{out: &out, plain: true}
	d.say("one\ntwo")
	d.report("a step", 1234*time.Millisecond, nil)
	d.detail.Reset()
	d.report("another", 0, errors.New("first\nsecond"))
	want := "ok     a step (1.2s)\n    one\n    two\n\nFAILED another (0s)\n    first\n    second\n\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestImageCanBeMadeAndServed(t *testing.T) {
	busybox := filepath.Join(t.TempDir(), "busybox")
	if err := os.WriteFile(busybox, []byte("not really"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := startRegistry()
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if size, err := r.push(t.Context(), repository, busybox); err != nil || !strings.HasPrefix(size, "2 layers") {
		t.Errorf("%q, %v", size, err)
	}
	if _, err := r.push(t.Context(), repository, "/nowhere"); err == nil {
		t.Error("an image was made of nothing")
	}
}

func TestConfigurationIsTheDemosOwn(t *testing.T) {
	d := &demo{layout: layout{dir: "/d", netns: "/d/netns", cgroup: "berth-demo-x", network: "n", bridge: "b", subnet: "10.1.2.0/24", ipam: "/d/ipam"},
		programs: programs{runc: "/p/runc", cni: "/p/cni"}}
	text := d.configText()
	for _, want := range []string{`conf_dir = "/d/net.d"`, `bin_dirs = ["/p/cni", "/opt/cni/bin", "/usr/lib/cni"]`, `parent = "berth-demo-x"`, `path = "/p/runc"`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	conflist, err := d.conflist()
	if err != nil || !strings.Contains(conflist, `"dataDir": "/d/ipam"`) || !strings.Contains(conflist, `"bridge": "b"`) {
		t.Errorf("%v\n%s", err, conflist)
	}
}

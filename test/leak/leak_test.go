// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A check that never fails is none: each kind of leftover is made, found, and swept away.
func TestEachKindOfLeftoverIsFoundAndSwept(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("makes mounts, links, rules and cgroups: needs root, and is left out with -short")
	}
	dir, err := os.MkdirTemp("/tmp", "bt-leak-")
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("%06x", os.Getpid())
	s := Scope{Dir: dir, Network: "bt-net-" + id, Bridge: "bt" + id, IPAM: dir + "/ipam", Cgroup: "berth-t-" + id,
		Tidy: map[string]int{dir + "/pods": 2}}
	t.Cleanup(func() { s.Sweep() })
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	run("ip", "link", "add", s.Bridge, "type", "bridge") // stays: the bridge plugin never removes it
	before, err := s.Take()
	if err != nil {
		t.Fatal(err)
	}
	roots, err := CgroupRoots()
	if err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "1000")
	sleeper.Dir = dir
	chain := "CNI-" + strings.Repeat("0a1b2c3d", 3)
	for _, c := range []struct {
		name, want string
		leave      func()
	}{
		{"process", "sleep 1000", func() {
			if err := sleeper.Start(); err != nil {
				t.Fatal(err)
			}
			go sleeper.Wait()
		}},
		{"mount", "mount " + dir + "/pods/m", func() {
			if err := os.MkdirAll(dir+"/pods/m", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mount("none", dir+"/pods/m", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		}},
		{"file", "file " + dir + "/pods/m", func() {}},
		{"port", "port veth" + id, func() {
			run("ip", "link", "add", "veth"+id, "type", "veth", "peer", "name", "vp"+id)
			run("ip", "link", "set", "veth"+id, "master", s.Bridge)
		}},
		{"rule", "rule -A " + chain, func() {
			run("iptables", "-w", "-t", "nat", "-N", chain)
			run("iptables", "-w", "-t", "nat", "-A", chain, "-d", "10.99.0.0/24", "-j", "ACCEPT", "-m", "comment", "--comment", `name: "`+s.Network+`" id: "x"`)
			run("iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "-s", "10.99.0.9/32", "-j", chain, "-m", "comment", "--comment", `name: "`+s.Network+`" id: "x"`)
		}},
		{"cgroup", "cgroup " + filepath.Join(roots[0], s.Cgroup, "pod1"), func() {
			if err := os.MkdirAll(filepath.Join(roots[0], s.Cgroup, "pod1"), 0o755); err != nil {
				t.Fatal(err)
			}
		}},
		{"address", "address " + s.IPAM + "/net/10.1.2.3", func() {
			if err := os.MkdirAll(s.IPAM+"/net", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.IPAM+"/net/10.1.2.3", nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		c.leave()
		now, err := s.Take()
		if err != nil {
			t.Fatal(err)
		}
		if left := now.Since(before); !slices.ContainsFunc(left, func(l string) bool { return strings.Contains(l, c.want) }) {
			t.Errorf("%s: %q is not among %q", c.name, c.want, left)
		}
	}
	if err := s.Sweep(); err != nil {
		t.Errorf("sweep: %v", err)
	}
	if left, err := s.Leftovers(before); err != nil || len(left) > 0 {
		t.Errorf("after the sweep: %q, %v", left, err)
	}
}

func TestTheDaemonsDescriptorsAndChildrenAreSeen(t *testing.T) {
	s := Scope{Daemon: os.Getpid(), Descriptors: true}
	before, err := s.Take()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	now, err := s.Take()
	if err != nil {
		t.Fatal(err)
	}
	left := strings.Join(now.Since(before), "\n")
	for _, want := range []string{"descriptor " + f.Name() + " #1", "sleep 1000"} {
		if !strings.Contains(left, want) {
			t.Errorf("%q lacks %q", left, want)
		}
	}
}

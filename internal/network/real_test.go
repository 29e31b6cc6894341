// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdnet "net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/netns"
)

// plugins finds the real plugins: $BERTH_TEST_CNI, or bin/cni of the repository, where make puts them.
func realPlugins(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("BERTH_TEST_CNI")
	if dir == "" {
		dir, _ = filepath.Abs("../../bin/cni")
	}
	for _, p := range []string{"bridge", "host-local", "portmap", "bandwidth"} {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			t.Fatalf("CNI plugin %s is not in %s: run make, or set BERTH_TEST_CNI to the folder of the plugins", p, dir)
		}
	}
	return dir
}

// realNode has a bridge network; at the end nothing of it may be left.
func realNode(t testing.TB, c conflist) *node {
	t.Helper()
	n := newNode(t)
	n.cfg.BinDirs = []string{realPlugins(t)}
	c.Name, c.Bridge, c.DataDir = "pods", "bt0", filepath.Join(n.dir, "ipam")
	if c.Subnets == nil {
		c.Subnets = []string{"10.213.7.0/24"}
	}
	n.write("10.conflist", string(c.encode()))
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "del", "bt0").Run()                                    // there is none when no pod was attached
		if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil { // of the tests' own namespace
			t.Errorf("%s, %v", out, err)
		}
	})
	return n
}

// pod makes a network namespace and unmakes it at the end.
func (n *node) pod(id string) Attachment {
	n.t.Helper()
	a := sandbox(id)
	a.NetnsPath = filepath.Join(n.dir, "pins", id)
	if err := netns.Create(netns.Request{Pins: map[netns.Kind]string{netns.Net: a.NetnsPath}}); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := netns.Remove(a.NetnsPath); err != nil {
			n.t.Error(err)
		}
	})
	return a
}

// wantNothingLeft looks for all that plugins make: links, addresses, rules. Of rules, only those of a pod count: portmap
// and masquerading leave their empty top chains for ever.
func (n *node) wantNothingLeft(net *Network) {
	n.t.Helper()
	n.wantNothingCached(net)
	links, err := stdnet.Interfaces()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, l := range links {
		if l.Name != "lo" && l.Name != "bt0" && !strings.HasPrefix(l.Name, "ifb") && l.Name != "sit0" && l.Name != "ip6tnl0" && l.Name != "tunl0" {
			n.t.Errorf("the interface %s is left", l.Name)
		}
	}
	files, err := filepath.Glob(filepath.Join(n.dir, "ipam", "pods", "*"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		if base := filepath.Base(f); base != "lock" && !strings.HasPrefix(base, "last_reserved_ip") {
			owner, err := os.ReadFile(f)
			n.t.Errorf("the address %s is still reserved, by %q, %v", base, owner, err)
		}
	}
	for _, line := range podRules(n.t) {
		n.t.Errorf("the rule is left: %s", line)
	}
}

func podRules(t testing.TB) []string {
	t.Helper()
	var left []string
	for _, cmd := range [][]string{{"iptables-save", "-t", "nat"}, {"ip6tables-save", "-t", "nat"}, {"nft", "list", "ruleset"}} {
		out, err := exec.Command(cmd[0], cmd[1:]...).Output()
		if err != nil {
			t.Fatalf("%s: %v", cmd[0], err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "CNI-DN-") || strings.Contains(line, ": CNI-") || strings.Contains(line, `"pods"`) ||
				strings.Contains(line, "10.213.7.") || strings.Contains(line, "fd00:213") {
				left = append(left, strings.TrimSpace(line))
			}
		}
	}
	return left
}

// serve answers every connection to a port of the pod with a greeting.
func serve(t *testing.T, pin string, addr string) {
	t.Helper()
	var l stdnet.Listener
	err := netns.Do(pin, func() (err error) {
		l, err = stdnet.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello from "+addr)
			_ = c.Close()
		}
	}()
}

func greeting(addr string) (string, error) {
	c, err := stdnet.DialTimeout("tcp", addr, 3*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return "", err
	}
	data, err := io.ReadAll(c)
	return string(data), err
}

func TestRealPodIsReachedAtItsAddressesAndHostPort(t *testing.T) {
	for _, backend := range []string{"iptables", "nftables"} {
		t.Run(backend, func(t *testing.T) {
			n := realNode(t, conflist{Backend: backend, Version: "1.1.0", Subnets: []string{"10.213.7.0/24", "fd00:213::/64"}})
			net := n.start()
			var err error
			for range 50 {
				if err = net.Ready(); err == nil {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil {
				t.Fatal(err)
			}
			a := n.pod("aa11")
			a.PortMappings = []PortMapping{{HostPort: 18080, ContainerPort: 80, Protocol: "TCP"}}
			r, err := net.Attach(ctx, a)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.IPs) != 2 || !r.IPs[0].Is4() || !r.IPs[1].Is6() {
				t.Fatalf("addresses %v", r.IPs)
			}
			serve(t, a.NetnsPath, ":80")
			gateway := netip.MustParseAddr("10.213.7.1")
			// The bridge is new: its IPv6 address serves only after the kernel has looked for duplicates, two seconds or so.
			if _, err := greeting(fmt.Sprintf("[%s]:80", r.IPs[1])); err != nil {
				t.Logf("first try over IPv6: %v", err)
			}
			for _, addr := range []string{r.IPs[0].String() + ":80", gateway.String() + ":18080", fmt.Sprintf("[%s]:80", r.IPs[1])} {
				if text, err := greeting(addr); err != nil || !strings.HasPrefix(text, "hello from") {
					t.Errorf("%s: %q, %v", addr, text, err)
				}
			}
			if err := net.Check(ctx, a); err != nil {
				t.Error(err)
			}
			wantInside(t, a.NetnsPath, r.IPs)
			wantNoAdvertisements(t)
			if err := net.Detach(ctx, a); err != nil {
				t.Error(err)
			}
			if _, err := greeting(gateway.String() + ":18080"); err == nil {
				t.Error("the host port still leads somewhere")
			}
			n.wantNothingLeft(net)
		})
	}
}

// wantNoAdvertisements: a router advertisement of a pod must not make the host send its traffic through it (CVE-2020-10749).
func wantNoAdvertisements(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		if name != "bt0" && !strings.HasPrefix(name, "veth") {
			continue
		}
		seen++
		if data, err := os.ReadFile(f); err != nil || strings.TrimSpace(string(data)) != "0" {
			t.Errorf("%s: %q, %v", f, data, err)
		}
	}
	if seen != 2 {
		t.Errorf("%d interfaces lead to the pod: %v", seen, files)
	}
}

func wantInside(t *testing.T, pin string, ips []netip.Addr) {
	t.Helper()
	err := netns.Do(pin, func() error {
		eth, err := stdnet.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := eth.Addrs()
		for _, ip := range ips {
			if !slices.ContainsFunc(addrs, func(a stdnet.Addr) bool { return strings.HasPrefix(a.String(), ip.String()+"/") }) {
				t.Errorf("eth0 has %v, not %s", addrs, ip)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRealHostPortOnLoopback(t *testing.T) {
	n := realNode(t, conflist{Backend: "iptables"})
	net := n.start()
	a := n.pod("aa11")
	a.PortMappings = []PortMapping{{HostPort: 18081, ContainerPort: 81}, {HostPort: 18082, ContainerPort: 81, HostIP: "127.0.0.1"}}
	if _, err := net.Attach(ctx, a); err != nil {
		t.Fatal(err)
	}
	serve(t, a.NetnsPath, ":81")
	for _, addr := range []string{"127.0.0.1:18081", "127.0.0.1:18082"} {
		if text, err := greeting(addr); err != nil || text != "hello from :81" {
			t.Errorf("%s: %q, %v", addr, text, err)
		}
	}
	if _, err := greeting("10.213.7.1:18082"); err == nil {
		t.Error("a port of 127.0.0.1 is open elsewhere")
	}
	if err := net.Detach(ctx, a); err != nil {
		t.Error(err)
	}
	n.wantNothingLeft(net)
}

func TestRealLimitOfBandwidthIsSet(t *testing.T) {
	n := realNode(t, conflist{Extra: []map[string]any{{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}}}})
	net := n.start()
	a := n.pod("aa11")
	a.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}
	if _, err := net.Attach(ctx, a); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tc", "qdisc", "show").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "8Mbit") || !strings.Contains(string(out), "16Mbit") {
		t.Errorf("%s, %v", out, err)
	}
	if err := net.Detach(ctx, a); err != nil {
		t.Error(err)
	}
	n.wantNothingLeft(net)
}

func TestRealNamespaceGoneLeaksNoAddress(t *testing.T) {
	n := realNode(t, conflist{Backend: "nftables"})
	a := n.pod("aa11")
	a.PortMappings = []PortMapping{{HostPort: 18080, ContainerPort: 80}}
	if _, err := n.start().Attach(ctx, a); err != nil {
		t.Fatal(err)
	}
	if err := netns.Remove(a.NetnsPath); err != nil { // as a reboot does
		t.Fatal(err)
	}
	net := n.start()
	if err := net.GC(ctx, nil); err != nil {
		t.Fatal(err)
	}
	n.wantNothingCached(net)
	if files, err := filepath.Glob(filepath.Join(n.dir, "ipam", "pods", "10.*")); err != nil || len(files) > 0 {
		t.Errorf("%v is still reserved, %v", files, err)
	}
	// A reboot ends the rules too. Here they stay where the bridge plugin forgets them: it looks at the interface.
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Errorf("%s, %v", out, err)
	}
	within(t, "the kernel has removed the veth pair", func() bool {
		links, err := stdnet.Interfaces()
		return err == nil && !slices.ContainsFunc(links, func(l stdnet.Interface) bool { return strings.HasPrefix(l.Name, "veth") })
	})
}

func TestRealMissingPluginLeaksNoAddress(t *testing.T) {
	n := realNode(t, conflist{Backend: "iptables"})
	real := n.cfg.BinDirs[0]
	for _, p := range []string{"bridge", "host-local", "portmap"} {
		if err := os.Symlink(filepath.Join(real, p), filepath.Join(n.bin, p)); err != nil {
			t.Fatal(err)
		}
	}
	n.cfg.BinDirs = []string{n.bin}
	net := n.start()
	a := n.pod("aa11")
	if _, err := net.Attach(ctx, a); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(n.bin, "portmap")); err != nil {
		t.Fatal(err)
	}
	if err := net.Detach(ctx, a); !errors.Is(err, ErrPluginNotFound) {
		t.Errorf("error %v", err)
	}
	if files, err := filepath.Glob(filepath.Join(n.dir, "ipam", "pods", "10.*")); err != nil || len(files) > 0 {
		t.Errorf("%v is still reserved, %v", files, err)
	}
	if err := os.Symlink(filepath.Join(real, "portmap"), filepath.Join(n.bin, "portmap")); err != nil {
		t.Fatal(err)
	}
	if err := net.Detach(ctx, a); err != nil {
		t.Error(err)
	}
	n.wantNothingLeft(net)
}

// removeUnowned takes away what host-local leaves when it dies between making a reservation's file and writing its owner's ID into it: a
// weakness of the plugin that no DEL mends, because only the ID tells whose it is.
func (n *node) removeUnowned() {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.dir, "ipam", "pods", "10.*"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil {
			n.t.Error(err)
		} else if info.Size() == 0 {
			n.t.Logf("host-local was killed in the middle of reserving %s", filepath.Base(f))
			if err := os.Remove(f); err != nil {
				n.t.Error(err)
			}
		}
	}
}

func TestRealAddThatIsCutOffLeaksNothing(t *testing.T) {
	n := realNode(t, conflist{Backend: "iptables"})
	net := n.start()
	for i := range 8 { // at different moments of the chain
		short := n.start()
		short.cfg.AddTimeout = time.Duration(5+8*i) * time.Millisecond
		a := n.pod(fmt.Sprintf("cut%d", i))
		a.PortMappings = []PortMapping{{HostPort: 18100 + int32(i), ContainerPort: 80}}
		_, cut := short.Attach(ctx, a)
		if err := net.Detach(ctx, a); err != nil {
			t.Errorf("after %v: %v", cut, err)
		}
	}
	n.removeUnowned()
	n.wantNothingLeft(net)
}

func TestRealPodsAllAtOnce(t *testing.T) {
	n := realNode(t, conflist{Backend: "iptables"})
	net := n.start()
	var pods []Attachment
	for i := range 12 {
		a := n.pod(fmt.Sprintf("pod%d", i))
		a.PortMappings = []PortMapping{{HostPort: 18200 + int32(i), ContainerPort: 80}}
		pods = append(pods, a)
	}
	var mu sync.Mutex
	ips := map[netip.Addr]bool{}
	var wg sync.WaitGroup
	for _, a := range pods {
		wg.Go(func() {
			r, err := net.Attach(ctx, a)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ips[r.IPs[0]] = true
		})
	}
	wg.Wait()
	if len(ips) != len(pods) {
		t.Errorf("%d addresses for %d pods", len(ips), len(pods))
	}
	for _, a := range pods {
		wg.Go(func() {
			if err := net.Detach(ctx, a); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n.wantNothingLeft(net)
}

// BenchmarkRealAddDel tells where the time goes; its figures are in milliseconds, medians.
func BenchmarkRealAddDel(b *testing.B) {
	for _, c := range []struct {
		name    string
		list    conflist
		mapping bool
	}{
		{"iptables", conflist{Backend: "iptables"}, false},
		{"iptables+port", conflist{Backend: "iptables"}, true},
		{"nftables", conflist{Backend: "nftables"}, false},
		{"nftables+port", conflist{Backend: "nftables"}, true},
		{"dual/iptables", conflist{Backend: "iptables", Subnets: []string{"10.213.7.0/24", "fd00:213::/64"}}, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			n := realNode(b, c.list)
			net := n.start()
			var add, del []time.Duration
			for i := 0; b.Loop(); i++ {
				a := n.pod(fmt.Sprintf("bench%d", i))
				if c.mapping {
					a.PortMappings = []PortMapping{{HostPort: 18080, ContainerPort: 80}}
				}
				t0 := time.Now()
				if _, err := net.Attach(ctx, a); err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if err := net.Detach(ctx, a); err != nil {
					b.Fatal(err)
				}
				add, del = append(add, t1.Sub(t0)), append(del, time.Since(t1))
			}
			slices.Sort(add)
			slices.Sort(del)
			b.ReportMetric(float64(add[len(add)/2])/1e6, "add-ms")
			b.ReportMetric(float64(del[len(del)/2])/1e6, "del-ms")
		})
	}
}

func TestResultSurvivesTheRecord(t *testing.T) {
	r := Result{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, Network: "pods",
		Interfaces: []Interface{{Name: "eth0", IPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}}}}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Result
	if err := json.Unmarshal(data, &back); err != nil || fmt.Sprint(back) != fmt.Sprint(r) {
		t.Errorf("%+v, %v", back, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bufio"
	"crypto/rand"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programs are what the demo needs from the machine.
type programs struct {
	self, busybox string
	// runc and cni are those installed together with berth; empty: the configuration's defaults.
	runc, cni string
}

// busyboxes are where distributions put a busybox that needs no library.
var busyboxes = []string{"/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox-static", "/bin/busybox.static", "/usr/bin/busybox.static"}

func findPrograms() (programs, error) {
	if os.Geteuid() != 0 {
		return programs{}, errors.New("demo: pods need root: run `sudo berth demo`")
	}
	var p programs
	var err error
	if p.self, err = os.Executable(); err != nil {
		return programs{}, fmt.Errorf("demo: %w", err)
	}
	if p.busybox, err = findBusybox(busyboxes); err != nil {
		return programs{}, err
	}
	dir := filepath.Dir(p.self)
	if info, err := os.Stat(filepath.Join(dir, "runc")); err == nil && info.Mode().IsRegular() {
		p.runc = filepath.Join(dir, "runc")
	}
	if _, err := os.Stat(filepath.Join(dir, "cni", "bridge")); err == nil {
		p.cni = filepath.Join(dir, "cni")
	}
	for _, tool := range []struct{ name, pkg string }{{"ip", "iproute2"}, {"iptables", "iptables"}} {
		if _, err := exec.LookPath(tool.name); err != nil {
			return programs{}, fmt.Errorf("demo: the program %s is missing: install it (Debian, Ubuntu: apt-get install %s)", tool.name, tool.pkg)
		}
	}
	return p, nil
}

func findBusybox(paths []string) (string, error) {
	dynamic := ""
	for _, path := range paths {
		static, err := isStatic(path)
		if err != nil { // not there, or no program
			continue
		}
		if static {
			return path, nil
		}
		dynamic = path
	}
	const install = "install the static one (Debian, Ubuntu: apt-get install busybox-static)"
	if dynamic != "" {
		return "", fmt.Errorf("demo: %s needs libraries, so it cannot be an image by itself: %s", dynamic, install)
	}
	return "", fmt.Errorf("demo: there is no busybox to make an image of: %s", install)
}

// isStatic tells whether a program needs neither a loader nor libraries.
func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}

// layout is where everything of one demo is. All names have the same random part, by which what is left is found.
type layout struct {
	dir, config, log    string
	root, state, socket string
	pods, netns, ipam   string
	// network is the name of the CNI network; bridge its bridge; subnet its IPv4 addresses.
	network, bridge, subnet string
	cgroup                  string
}

func newLayout(dir string) (layout, error) {
	var b [3]byte
	_, _ = rand.Read(b[:]) // it never fails: see its documentation
	id := hex.EncodeToString(b[:])
	subnet, err := freeSubnet()
	if err != nil {
		return layout{}, err
	}
	if dir == "" {
		dir, err = os.MkdirTemp("", "berth-demo-")
	} else {
		dir, err = emptyDir(dir)
	}
	if err != nil {
		return layout{}, fmt.Errorf("demo: %w", err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	return layout{dir: dir, config: in("config.toml"), log: in("berth.log"), root: in("root"), state: in("state"), socket: in("state/berth.sock"),
		pods: in("pods"), netns: in("netns"), ipam: in("ipam"), network: "berth-demo-" + id, bridge: "brdemo" + id, subnet: subnet,
		cgroup: "berth-demo-" + id}, nil
}

// emptyDir refuses a folder with something in it: at the end it is removed.
func emptyDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = os.MkdirAll(dir, 0o700)
	case err == nil && len(entries) > 0:
		err = fmt.Errorf("folder %s is not empty, and would be removed at the end", dir)
	}
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir) // as /proc will name it
}

// freeSubnet is a /24 of 10.0.0.0/8 that overlaps no address and no route of the machine.
func freeSubnet() (string, error) {
	taken, err := takenNetworks()
	if err != nil {
		return "", fmt.Errorf("demo: look for a free subnet: %w", err)
	}
	for range 256 {
		var b [2]byte
		_, _ = rand.Read(b[:]) // it never fails: see its documentation
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, b[0], b[1], 0}), 24)
		if !overlaps(p, taken) {
			return p.String(), nil
		}
	}
	return "", errors.New("demo: no free subnet was found in 10.0.0.0/8")
}

func overlaps(p netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(p) {
			return true
		}
	}
	return false
}

func takenNetworks() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var taken []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, p.Masked())
		}
	}
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if p, ok := route(lines.Text()); ok {
			taken = append(taken, p)
		}
	}
	return taken, lines.Err()
}

// route reads a line of /proc/net/route: interface, destination, gateway, flags, …, mask in field 8; the numbers are
// hexadecimal in the machine's byte order. The default route overlaps everything and takes nothing.
func route(line string) (netip.Prefix, bool) {
	f := strings.Fields(line)
	if len(f) < 8 {
		return netip.Prefix{}, false
	}
	dest, err1 := hex.DecodeString(f[1])
	mask, err2 := hex.DecodeString(f[7])
	if err1 != nil || err2 != nil || len(dest) != 4 || len(mask) != 4 {
		return netip.Prefix{}, false
	}
	order := func(b []byte) [4]byte {
		var out [4]byte
		binary.NativeEndian.PutUint32(out[:], binary.BigEndian.Uint32(b))
		return out
	}
	m := order(mask)
	ones, _ := net.IPv4Mask(m[0], m[1], m[2], m[3]).Size()
	if ones == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(netip.AddrFrom4(order(dest)), ones), true
}

// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/thread"
)

func pinsIn(dir string) map[Kind]string {
	return map[Kind]string{Net: filepath.Join(dir, "net"), IPC: filepath.Join(dir, "ns", "ipc"), UTS: filepath.Join(dir, "ns", "uts")}
}

// mustCreate removes what it created and checks at the end that no mount is left in dir.
func mustCreate(t testing.TB, r Request) {
	t.Helper()
	t.Cleanup(func() {
		if err := Remove(slices.Collect(maps.Values(r.Pins))...); err != nil {
			t.Error(err)
		}
		for _, path := range r.Pins {
			wantNoMount(t, path)
		}
	})
	if err := Create(r); err != nil {
		t.Fatal(err)
	}
}

func wantNoMount(t testing.TB, path string) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), " "+path+" ") {
		t.Errorf("%s is still mounted", path)
	}
}

// inside runs fn in all three namespaces.
func inside(t *testing.T, pins map[Kind]string, fn func() error) {
	t.Helper()
	err := thread.Run(func() (bool, error) {
		for kind, path := range pins {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return false, err
			}
			err = unix.Setns(fd, cloneFlags[kind])
			unix.Close(fd)
			if err != nil {
				return false, err
			}
		}
		return false, fn()
	})
	if err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(data))
}

func TestNewSandboxHasLoopbackNamesAndSysctlsAndHostKeepsItsOwn(t *testing.T) {
	hostShm, hostPort := read(t, "/proc/sys/kernel/shmmni"), read(t, "/proc/sys/net/ipv4/ip_unprivileged_port_start")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	sysctls := map[string]string{"kernel.shmmni": "1234", "kernel.sem": "250 32000 32 100", "fs.mqueue.msg_max": "77",
		"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647", "net.core.somaxconn": "321",
		"net.ipv4.conf.eth0.forwarding": "1"} // eth0 does not exist yet
	pins := pinsIn(t.TempDir())
	mustCreate(t, Request{Pins: pins, Hostname: "pod-1", Domainname: "example.test", Sysctls: sysctls})
	for _, path := range pins {
		if !Pinned(path) {
			t.Errorf("%s is not pinned", path)
		}
	}
	inside(t, pins, func() error {
		want := map[string]string{"kernel/shmmni": "1234", "kernel/sem": "250\t32000\t32\t100", "fs/mqueue/msg_max": "77", "kernel/hostname": "pod-1",
			"kernel/domainname": "example.test", "net/ipv4/ip_unprivileged_port_start": "0", "net/core/somaxconn": "321", "net/ipv4/ping_group_range": "0\t2147483647"}
		for name, value := range want {
			if got := read(t, "/proc/sys/"+name); got != value {
				t.Errorf("%s is %q inside, want %q", name, got, value)
			}
		}
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		if lo.Flags&net.FlagUp == 0 {
			t.Error("lo is down")
		}
		addrs, err := lo.Addrs()
		if got := join(addrs); err != nil || got != "127.0.0.1/8 ::1/128" {
			t.Errorf("lo has %s, %v", got, err)
		}
		return nil
	})
	if now, err := os.Hostname(); err != nil || now != host {
		t.Errorf("the host is called %q now, %v", now, err)
	}
	if got := read(t, "/proc/sys/kernel/shmmni"); got != hostShm {
		t.Errorf("the host's shmmni became %s", got)
	}
	if got := read(t, "/proc/sys/net/ipv4/ip_unprivileged_port_start"); got != hostPort {
		t.Errorf("the host's ip_unprivileged_port_start became %s", got)
	}
}

func TestNamesAndSysctlsAreSetAgain(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	hostShm := read(t, "/proc/sys/kernel/shmmni")
	r := Request{Pins: pinsIn(t.TempDir()), Hostname: "pod-1", Sysctls: map[string]string{"kernel.shmmni": "1234", "net.core.somaxconn": "321"}}
	mustCreate(t, r)
	inside(t, r.Pins, func() error {
		return errors.Join(unix.Sethostname([]byte("other")), os.WriteFile("/proc/sys/kernel/shmmni", []byte("99"), 0), os.WriteFile("/proc/sys/net/core/somaxconn", []byte("99"), 0))
	})
	if err := Reset(r); err != nil {
		t.Fatal(err)
	}
	inside(t, r.Pins, func() error {
		for name, value := range map[string]string{"kernel/hostname": "pod-1", "kernel/shmmni": "1234", "net/core/somaxconn": "99"} { // the last is the network's
			if got := read(t, "/proc/sys/"+name); got != value {
				t.Errorf("%s is %q, want %q", name, got, value)
			}
		}
		return nil
	})
	if now, err := os.Hostname(); err != nil || now != host || read(t, "/proc/sys/kernel/shmmni") != hostShm {
		t.Errorf("the host is %q now, %v", now, err)
	}
	if err := Reset(Request{Pins: map[Kind]string{Net: r.Pins[Net]}, Sysctls: r.Sysctls}); err != nil {
		t.Errorf("with nothing to set: %v", err)
	}
	r.Pins = map[Kind]string{UTS: filepath.Join(t.TempDir(), "none")}
	if err := Reset(r); err == nil {
		t.Error("a namespace that is not there was changed")
	}
}

func join(addrs []net.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

func TestLoopbackCarriesTraffic(t *testing.T) {
	pins := pinsIn(t.TempDir())
	mustCreate(t, Request{Pins: pins})
	var l net.Listener
	err := Do(pins[Net], func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the host reached the pod's loopback address")
	}
	err = Do(pins[Net], func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // net.Dial may use another goroutine
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}})
	})
	if err != nil {
		t.Error(err)
	}
}

func TestDeferredSysctlsAreSetLater(t *testing.T) {
	all := map[string]string{"net.ipv4.conf.eth0.forwarding": "1", "net.ipv4.conf.all.forwarding": "1", "net.ipv4.conf.lo.rp_filter": "1",
		"net.ipv6.neigh.eth0.gc_stale_time": "9", "net.ipv4.tcp_syncookies": "1", "kernel.shmmni": "1"}
	got := DeferredSysctls(all)
	if len(got) != 2 || got["net.ipv4.conf.eth0.forwarding"] != "1" || got["net.ipv6.neigh.eth0.gc_stale_time"] != "9" {
		t.Errorf("deferred %v", got)
	}
	pins := pinsIn(t.TempDir())
	mustCreate(t, Request{Pins: pins})
	if err := SetSysctls(pins[Net], map[string]string{"net.ipv4.conf.lo.rp_filter": "2"}); err != nil {
		t.Error(err)
	}
	err := Do(pins[Net], func() error {
		if got := read(t, "/proc/sys/net/ipv4/conf/lo/rp_filter"); got != "2" {
			t.Errorf("rp_filter is %s", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := SetSysctls(pins[Net], map[string]string{"kernel.shmmni": "2"}); !errors.Is(err, ErrSysctl) {
		t.Errorf("an IPC sysctl of a network namespace: %v", err)
	}
	if err := SetSysctls(filepath.Join(t.TempDir(), "none"), nil); err != nil {
		t.Errorf("nothing to set: %v", err)
	}
}

func TestSysctlsThatPodsMustNotSet(t *testing.T) {
	for _, c := range []struct {
		name, value   string
		net, ipc, uts bool
		want          string // "" for allowed
	}{
		{"net.ipv4.ip_forward", "1", true, false, false, ""},
		{"kernel.shm_rmid_forced", "1", false, true, false, ""},
		{"fs.mqueue.msg_max", "1", false, true, false, ""},
		{"kernel.domainname", "x", false, false, true, ""},
		{"net.ipv4.ip_forward", "1", false, true, true, "network namespace"},
		{"kernel.shmmax", "1", true, false, true, "IPC namespace"},
		{"fs.mqueue.msg_max", "1", true, false, true, "IPC namespace"},
		{"kernel.hostname", "x", true, true, false, "UTS namespace"},
		{"kernel.core_pattern", "|/x", true, true, true, "the host's"},
		{"vm.swappiness", "1", true, true, true, "the host's"},
		{"fs.mqueue", "1", true, true, true, "the host's"},
		{"net", "1", true, true, true, "the host's"},
		{"kernel.shmmax+kernel.core_pattern", "1", true, true, true, "character"},
		{"net/ipv4/ip_forward", "1", true, true, true, "character"},
		{"net.ipv4.conf.eth0/100.forwarding", "1", true, true, true, "character"},
		{"net.../../kernel.core_pattern", "1", true, true, true, "character"},
		{"net...kernel.core_pattern", "1", true, true, true, "empty part"},
		{"net.", "1", true, true, true, "empty part"},
		{"net.ipv4.ip_forward\nkernel.core_pattern", "1", true, true, true, "character"},
		{"net.ipv4.ip_forward\x00", "1", true, true, true, "character"},
		{"net.ipv4.ïp", "1", true, true, true, "character"},
		{"", "1", true, true, true, "empty part"},
		{"net." + strings.Repeat("x", 300), "1", true, true, true, "bytes"},
		{"net.ipv4.ip_forward", "1\n2", true, true, true, "control character"},
		{"net.ipv4.ip_forward", "1\x00", true, true, true, "control character"},
		{"net.ipv4.ip_forward", strings.Repeat("1", 5000), true, true, true, "bytes"},
	} {
		err := ValidateSysctls(map[string]string{c.name: c.value}, c.net, c.ipc, c.uts)
		if c.want == "" {
			if err != nil {
				t.Errorf("%q: %v", c.name, err)
			}
			continue
		}
		if !errors.Is(err, ErrSysctl) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want one with %q", c.name, err, c.want)
		}
	}
	err := ValidateSysctls(map[string]string{"vm.a": "1", "vm.b": "1"}, true, true, true)
	if err == nil || !strings.Contains(err.Error(), "vm.a") || !strings.Contains(err.Error(), "vm.b") {
		t.Errorf("not each bad sysctl is named: %v", err)
	}
}

func TestFailureUndoesEverything(t *testing.T) {
	for _, c := range []struct {
		what  string
		spoil func(*Request)
		want  string
	}{
		{"unknown sysctl", func(r *Request) { r.Sysctls = map[string]string{"net.ipv4.nonsense": "1"} }, "net.ipv4.nonsense"},
		{"refused value", func(r *Request) { r.Sysctls = map[string]string{"net.ipv4.ip_forward": "perhaps"} }, "net.ipv4.ip_forward"},
		{"host's sysctl", func(r *Request) { r.Sysctls = map[string]string{"vm.swappiness": "1"} }, "vm.swappiness"},
		{"long hostname", func(r *Request) { r.Hostname = strings.Repeat("h", 65) }, "hostname"},
		{"last pin under a file", func(r *Request) { r.Pins[UTS] = "/proc/version/uts" }, "pin uts"},
		{"relative pin", func(r *Request) { r.Pins[UTS] = "uts" }, "absolute"},
		{"unknown kind", func(r *Request) { r.Pins["pid"] = "/tmp/x" }, "unknown kind"},
	} {
		t.Run(c.what, func(t *testing.T) {
			r := Request{Pins: pinsIn(t.TempDir()), Hostname: "h"}
			c.spoil(&r)
			err := Create(r)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			for _, path := range r.Pins {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s is left", path)
				}
				wantNoMount(t, path)
			}
		})
	}
}

func TestCreateLeavesForeignPinsAlone(t *testing.T) {
	pins := pinsIn(t.TempDir())
	mustCreate(t, Request{Pins: pins})
	err := Create(Request{Pins: map[Kind]string{Net: pins[Net], IPC: pins[IPC] + "2"}})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating over a pin: %v", err)
	}
	if !Pinned(pins[Net]) {
		t.Error("the other sandbox's namespace was unpinned")
	}
	if _, err := os.Lstat(pins[IPC] + "2"); err == nil {
		t.Error("the half that was made is left")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(t.TempDir(), "target"), link); err != nil {
		t.Fatal(err)
	}
	if err := Create(Request{Pins: map[Kind]string{Net: link}}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating over a symbolic link: %v", err)
	}
}

func TestRemoveIsIdempotentAndToleratesHalfDone(t *testing.T) {
	dir := t.TempDir()
	pins := pinsIn(dir)
	mustCreate(t, Request{Pins: pins})
	if err := unix.Mount(pins[Net], pins[Net], "", unix.MS_BIND, ""); err != nil { // twice
		t.Fatal(err)
	}
	bare, none := filepath.Join(dir, "bare"), filepath.Join(dir, "none", "at", "all")
	if err := os.WriteFile(bare, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Remove(pins[Net], bare, none, "", pins[UTS]); err != nil {
			t.Error(err)
		}
	}
	for _, path := range []string{pins[Net], bare, pins[UTS]} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is left", path)
		}
		wantNoMount(t, path)
	}
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(precious, pins[IPC]); err == nil {
		t.Error("a file with content was taken for a pin")
	}
	if Pinned(pins[IPC]) {
		t.Error("one bad path kept the others from being removed")
	}
}

func TestPinnedAndDoNeedANamespace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if Pinned(file) || Pinned(file+"x") {
		t.Error("a plain file counts as pinned")
	}
	if err := Do(file, func() error { t.Error("it ran"); return nil }); !errors.Is(err, ErrNotPinned) {
		t.Errorf("entering a plain file: %v", err)
	}
	if err := Do(file+"x", func() error { t.Error("it ran"); return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("entering nothing: %v", err)
	}
}

func TestDoComesBackWhateverTheFunctionDoes(t *testing.T) {
	pins := pinsIn(t.TempDir())
	mustCreate(t, Request{Pins: pins})
	home := namespaceOfThread(t)
	wrong := errors.New("wrong")
	if err := Do(pins[Net], func() error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("error %v", err)
	}
	if err := Do(pins[Net], func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that ended its goroutine counts as done")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = Do(pins[Net], func() error { panic("boom") })
	}()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if got := namespaceOfThread(t); got != home {
				t.Errorf("a goroutine runs in %s, want %s", got, home)
			}
			err := Do(pins[Net], func() error {
				if got := namespaceOfThread(t); got == home {
					t.Error("the function runs in the host's namespace")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func namespaceOfThread(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
	}
	return link
}

// TestManySandboxesAtOnceLeakNothing would fail if threads, descriptors or mounts stayed behind.
func TestManySandboxesAtOnceLeakNothing(t *testing.T) {
	dir := t.TempDir()
	fds, threads := count(t, "/proc/self/fd"), count(t, "/proc/self/task")
	for range 4 {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				pins := pinsIn(filepath.Join(dir, string(rune('a'+i))))
				if err := Create(Request{Pins: pins, Hostname: "h"}); err != nil {
					t.Error(err)
				}
				if err := Remove(slices.Collect(maps.Values(pins))...); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if now := count(t, "/proc/self/fd"); now > fds {
		t.Errorf("%d descriptors, %d before", now, fds)
	}
	if now := count(t, "/proc/self/task"); now > threads+10 { // Go keeps a few idle ones
		t.Errorf("%d threads, %d before", now, threads)
	}
	if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(data), dir) {
		t.Errorf("mounts are left below %s, %v", dir, err)
	}
}

func count(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		t.Fatal(err)
	}
	return len(entries)
}

func BenchmarkCreateRemove(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		pins := pinsIn(dir)
		if err := Create(Request{Pins: pins, Hostname: "h", Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := Remove(slices.Collect(maps.Values(pins))...); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

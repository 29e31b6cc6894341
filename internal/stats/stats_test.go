// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/cgroup/usage"
	"github.com/berth-run/berth/internal/linux/netns"
)

// unified is a collector over a folder that looks like cgroup v2.
func unified(t testing.TB) (*Collector, string) {
	t.Helper()
	root := t.TempDir()
	h, err := cgroup.FromMounts(map[string]string{"": root})
	if err != nil {
		t.Fatal(err)
	}
	c := New(Config{Cgroups: h, Driver: cgroup.Cgroupfs, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(c.Close)
	return c, root
}

func write(t testing.TB, root, path, content string) {
	t.Helper()
	name := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestContainersAndPodsAreReadFromTheirCgroups(t *testing.T) {
	c, root := unified(t)
	write(t, root, "pods/p/cpu.stat", "usage_usec 5000\nuser_usec 4000\nsystem_usec 1000\n")
	write(t, root, "pods/p/pids.current", "3\n")
	write(t, root, "pods/p/c/cpu.stat", "usage_usec 2000\nuser_usec 2000\nsystem_usec 0\n")
	write(t, root, "pods/p/c/memory.current", "4096\n")
	if u, err := c.Container("c", "/pods/p/c"); err != nil || u.CPU.Value != 2_000_000 || u.Memory.Value != 4096 || u.NanoCores.Known {
		t.Errorf("got %+v, %v", u, err)
	}
	if u, err := c.Pod("p", "/pods/p"); err != nil || u.CPU.Value != 5_000_000 || u.Tasks.Value != 3 {
		t.Errorf("got %+v, %v", u, err)
	}
	if d, err := c.PodDetail("p", "/pods/p"); err != nil || d.User.Value != 4_000_000 || d.Path != "/pods/p" || d.CPU.Value != 5_000_000 {
		t.Errorf("got %+v, %v", d, err)
	}
	if d, err := c.ContainerDetail("c", "/pods/p/c"); err != nil || d.User.Value != 2_000_000 || d.Path != "/pods/p/c" {
		t.Errorf("got %+v, %v", d, err)
	}
	if _, err := c.Container("none", "/pods/p/none"); !errors.Is(err, usage.ErrGone) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Container("odd", "a:b"); !errors.Is(err, cgroup.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestTheRateIsOfATimeLongEnough(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	var r rate
	for _, s := range []struct {
		ms      int
		counter uint64
		want    usage.Counter
	}{
		{0, 1000, usage.Counter{}},
		{10, 500_000_000, usage.Counter{}}, // too soon
		{2000, 4_000_001_000, usage.Counter{Value: 2_000_000_000, Known: true}},
		{2500, 9_000_000_000, usage.Counter{Value: 2_000_000_000, Known: true}}, // the one before
		{12000, 5_000_001_000, usage.Counter{Value: 100_000_000, Known: true}},
		{13000, 7, usage.Counter{}}, // another cgroup of the same name
		{15000, 7, usage.Counter{Known: true}},
	} {
		if got := r.next(at(s.ms), s.counter); got != s.want {
			t.Errorf("after %d ms: got %+v, want %+v", s.ms, got, s.want)
		}
	}
}

func TestWhatIsGoneIsForgotten(t *testing.T) {
	c, root := unified(t)
	for i := range 3 {
		write(t, root, fmt.Sprintf("c%d/cpu.stat", i), "usage_usec 1\n")
		if _, err := c.Container(fmt.Sprint(i), fmt.Sprintf("/c%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	c.Forget("0")
	c.Forget("unknown")
	c.Keep(map[string]bool{"1": true})
	if len(c.objects) != 1 || c.objects["1"] == nil {
		t.Errorf("kept %v", c.objects)
	}
	if n := openBelow(t, root); n != 1 {
		t.Errorf("%d files are open, want 1", n)
	}
}

// openBelow counts this process's open files below root.
func openBelow(t *testing.T, root string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, root+"/") {
			n++
		}
	}
	return n
}

func TestFilesAreClosedWhenNobodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, root := unified(t)
		write(t, root, "c/cpu.stat", "usage_usec 1\n")
		ask := func() {
			t.Helper()
			if _, err := c.Container("c", "/c"); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		time.Sleep(restTime / 2)
		ask()
		time.Sleep(restTime * 3 / 4)
		synctest.Wait()
		if n := openBelow(t, root); n != 1 {
			t.Errorf("%d files are open while somebody asks, want 1", n)
		}
		time.Sleep(restTime)
		synctest.Wait()
		if n := openBelow(t, root); n != 0 {
			t.Errorf("%d files are open though nobody asks", n)
		}
		ask()
	})
}

func TestANamespaceIsNotKeptBeyondItsPod(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces are made by root only")
	}
	c, _ := unified(t)
	pin := filepath.Join(t.TempDir(), "net")
	if err := netns.Create(netns.Request{Pins: map[netns.Kind]string{netns.Net: pin}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(pin); err != nil {
			t.Error(err)
		}
	})
	held := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasSuffix(to, "/net/dev") {
				n++
			}
		}
		return n
	}
	for name, forget := range map[string]func(){"forget": func() { c.Forget("p") }, "keep": func() { c.Keep(nil) }, "close": c.Close} {
		for range 2 {
			if interfaces, err := c.Network("p", pin); err != nil || len(interfaces) != 0 { // lo is not counted
				t.Fatalf("%s: got %v, %v", name, interfaces, err)
			}
		}
		if n := held(); n != 1 {
			t.Errorf("%s: %d namespaces are held, want 1", name, n)
		}
		if forget(); held() != 0 {
			t.Errorf("%s: the namespace is held still", name)
		}
	}
}

func TestASmallLayerIsCountedAtOnceALargeOneInTheBackground(t *testing.T) {
	c, _ := unified(t)
	small, large := t.TempDir(), t.TempDir()
	write(t, small, "a/b", strings.Repeat("x", 5000))
	for i := range 2 * inlineFiles {
		write(t, large, fmt.Sprint(i), "x")
	}
	if l, ok := c.Layer("small", small); !ok || l.Inodes != 3 || l.Bytes < 5000 {
		t.Errorf("got %+v, %v", l, ok)
	}
	if l, ok := c.Layer("large", large); ok {
		t.Errorf("a large layer was counted while somebody waits: %+v", l)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if l, ok := c.Layer("large", large); ok {
			if l.Inodes != 2*inlineFiles+1 {
				t.Errorf("got %+v", l)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal("the large layer is never counted")
		}
	}
	if l, ok := c.Layer("with volumes", small, filepath.Join(small, "none"), large); ok { // large, as before
		t.Errorf("counted at once: %+v", l)
	}
	if l, ok := c.Layer("twice", small, filepath.Join(small, "none"), small); !ok || l.Inodes != 6 {
		t.Errorf("two folders: %+v, %v", l, ok)
	}
	if l, ok := c.Layer("none", filepath.Join(small, "none")); ok {
		t.Errorf("got %+v", l)
	}
}

func TestACountIsMadeAgainOnlyWhenItIsOldAndSomebodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := unified(t)
		dir := t.TempDir()
		inodes := func() uint64 {
			l, ok := c.Layer("c", dir)
			if !ok {
				t.Fatal("not counted")
			}
			return l.Inodes
		}
		if n := inodes(); n != 1 {
			t.Fatalf("got %d", n)
		}
		write(t, dir, "new", "")
		if n := inodes(); n != 1 {
			t.Errorf("counted again at once: %d", n)
		}
		time.Sleep(minAge + time.Second)
		synctest.Wait()
		if n := inodes(); n != 1 { // the question only asks for a new count
			t.Errorf("counted though nobody asked: %d", n)
		}
		synctest.Wait()
		if n := inodes(); n != 2 {
			t.Errorf("not counted again: %d", n)
		}
		time.Sleep(time.Hour) // the one who counts is gone: else synctest would tell of it
	})
}

func BenchmarkContainer(b *testing.B) {
	c, root := unified(b)
	for name, content := range map[string]string{"cpu.stat": "usage_usec 1\n", "memory.current": "1\n", "memory.max": "max\n",
		"memory.stat": "anon 1\nfile 2\n", "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"} {
		write(b, root, "c/"+name, content)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Container("c", "/c"); err != nil {
			b.Fatal(err)
		}
	}
}

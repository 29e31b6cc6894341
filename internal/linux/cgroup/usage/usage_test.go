// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

func unified(t testing.TB, root string) *cgroup.Hierarchies {
	t.Helper()
	return layout(t, map[string]string{"": root})
}

func layout(t testing.TB, mounts map[string]string) *cgroup.Hierarchies {
	t.Helper()
	h, err := cgroup.FromMounts(mounts)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func legacy(t testing.TB, root string) *cgroup.Hierarchies {
	t.Helper()
	mounts := map[string]string{}
	for _, c := range []string{"cpu", "cpuacct", "memory", "blkio", "pids", "hugetlb"} {
		mounts[c] = filepath.Join(root, c)
	}
	return layout(t, mounts)
}

// hybrid are v1's fixtures with the pressure files of v2's beside them.
func hybrid(t testing.TB) *cgroup.Hierarchies {
	t.Helper()
	mounts := map[string]string{"": "testdata/v2"}
	for _, c := range []string{"cpu", "cpuacct", "memory", "blkio", "pids", "hugetlb"} {
		mounts[c] = "testdata/v1/" + c
	}
	return layout(t, mounts)
}

// common is what the fixtures of both versions hold.
func common() Usage {
	return Usage{CPU: known(1_234_567_000), Memory: known(104857600), InactiveFile: known(20971520), RSS: known(50331648), PageFaults: known(5150),
		MajorFaults: known(31), MemoryLimit: known(268435456), Swap: known(4096)}
}

func TestUsageOfBothVersions(t *testing.T) {
	v1, v2 := common(), common()
	v1.CPU, v1.SwapLimit = known(1_234_567_890), known(0)
	v2.SwapLimit = known(1048576)
	v2.CPUPressure = &PSI{Some: Pressure{1.5, 0.75, 0.25, 123456000}, Full: Pressure{0.5, 0.1, 0.05, 23456000}}
	v2.MemoryPressure = &PSI{Some: Pressure{Total: 11000}, Full: Pressure{Total: 7000}}
	v2.IOPressure = &PSI{Some: Pressure{Avg10: 9.99, Total: 500000}, Full: Pressure{Total: 400000}}
	both := v1
	both.CPUPressure, both.MemoryPressure, both.IOPressure = v2.CPUPressure, v2.MemoryPressure, v2.IOPressure
	for name, c := range map[string]struct {
		h    *cgroup.Hierarchies
		want Usage
	}{"v1": {legacy(t, "testdata/v1"), v1}, "v2": {unified(t, "testdata/v2"), v2}, "hybrid": {hybrid(t), both}} {
		f := Of(c.h, "/pod/ctr")
		for range 2 { // opened, and held
			before := time.Now()
			got, err := f.Read()
			if err != nil {
				t.Fatal(name, err)
			}
			if got.CPUAt.Before(before) || got.MemoryAt.Before(got.CPUAt) || got.MemoryAt.After(time.Now()) {
				t.Errorf("%s: read at %v, %v", name, got.CPUAt, got.MemoryAt)
			}
			got.CPUAt, got.MemoryAt = time.Time{}, time.Time{}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s:\n got %+v\nwant %+v", name, got, c.want)
			}
		}
		if tasks, err := f.Tasks(); err != nil || tasks != known(12) {
			t.Errorf("%s: tasks %v, %v", name, tasks, err)
		}
		f.Close()
		f.Close()
	}
}

func TestDetailOfBothVersions(t *testing.T) {
	want := Detail{User: known(1_000_000_000), System: known(234_567_000), Periods: known(40), ThrottledPeriods: known(7), Throttled: known(650_000_000), Bursts: known(3), Burst: known(5_000_000),
		Cache: known(41943040), Kernel: known(2097152), Mapped: known(8388608), MaxUsage: known(120000000), ActiveFile: known(10485760),
		FailCount: known(12), OOMKills: known(1), Tasks: known(12), TasksMax: known(Unlimited),
		IO: []Device{{254, 0, 90112, 8192, 3, 2, map[string]uint64{"Read": 90112, "Write": 8192}},
			{8, 16, 512, 0, 1, 0, map[string]uint64{"Read": 512, "Write": 0}}},
		HugeTLB: []HugePages{{Size: "1GB"}, {Size: "2MB", Used: 2097152}},
		Limits: Limits{Shares: known(998), Period: known(100000), Quota: known(20000), Memory: known(268435456), Swap: known(1048576),
			MemoryReservation: known(1024)}}
	_, got, err := Of(unified(t, "testdata/v2"), "/pod/ctr").ReadAll()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("v2: %v\n got %+v\nwant %+v", err, got, want)
	}
	want.System, want.TasksMax, want.OwnPageFaults, want.OwnMajorFaults = known(234_567_890), known(100), known(5000), known(30)
	want.IO = []Device{{254, 0, 90112, 8192, 3, 2, map[string]uint64{"Read": 90112, "Write": 8192, "Sync": 90112, "Async": 8192, "Discard": 0, "Total": 98304}}}
	want.HugeTLB = []HugePages{{"2MB", 2097152, known(4194304)}}
	want.Limits = Limits{Shares: known(1024), Period: known(100000), Quota: known(Unlimited), Memory: known(268435456), Swap: known(268435456),
		MemoryReservation: known(Unlimited)}
	_, got, err = Of(legacy(t, "testdata/v1"), "/pod/ctr").ReadAll()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("v1: %v\n got %+v\nwant %+v", err, got, want)
	}
}

func TestDerivedFigures(t *testing.T) {
	u := common()
	if got := u.WorkingSet(); got != known(104857600-20971520) {
		t.Errorf("working set %v", got)
	}
	if got := u.Available(); got != known(268435456-(104857600-20971520)) {
		t.Errorf("available %v", got)
	}
	u.InactiveFile, u.MemoryLimit, u.SwapLimit = known(1<<40), known(Unlimited), known(1)
	if u.WorkingSet() != known(0) || u.Available().Known || u.SwapAvailable() != known(0) {
		t.Errorf("got %v, %v, %v", u.WorkingSet(), u.Available(), u.SwapAvailable())
	}
	if (Usage{}).WorkingSet().Known || (Usage{}).SwapAvailable().Known {
		t.Error("nothing is known of nothing")
	}
}

// Where nobody has a limit, memory.stat says so, and the files of the limits are not read.
func TestLimitsThatNobodyHasAreNotReadOnV1(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{"memory.usage_in_bytes": "4096\n", "memory.limit_in_bytes": "1\n", "memory.memsw.limit_in_bytes": "2\n",
		"memory.stat": "hierarchical_memory_limit 9223372036854771712\nhierarchical_memsw_limit 9223372036854771712\n"} {
		dir := filepath.Join(root, "memory", "c")
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	u, d, err := Of(legacy(t, root), "/c").ReadAll()
	if none := known(Unlimited); err != nil || u.MemoryLimit != none || u.SwapLimit != none || d.Limits.Memory != none || d.Limits.Swap != none {
		t.Errorf("got %+v, %+v, %v", u, d, err)
	}
}

func TestWhatIsDroppedIsNotKeptOpen(t *testing.T) {
	f := Of(unified(t, "testdata/v2"), "/pod/ctr")
	for _, drop := range []bool{false, true} {
		if drop {
			f.Drop()
		}
		if u, err := f.Read(); err != nil || !u.CPU.Known {
			t.Fatalf("got %+v, %v", u, err)
		}
		if n := len(f.open); (n == 0) != drop {
			t.Errorf("dropped: %v, and %d files are open", drop, n)
		}
	}
}

func TestPressureIsParsedAsTheKernelWritesIt(t *testing.T) {
	for text, want := range map[string]*PSI{
		"some avg10=1.50 avg60=0.05 avg300=100.00 total=7\nfull avg10=0.00 avg60=12.34 avg300=0.99 total=0\n": {
			Some: Pressure{1.5, 0.05, 100, 7000}, Full: Pressure{Avg60: 12.34, Avg300: 0.99}},
		"some avg10=x avg60=1. avg300=.5 total=-1 new=1": {Some: Pressure{Avg60: 1}},
		"other avg10=1.00\n":                             nil, "some\n": nil, "": nil,
	} {
		if got := pressure([]byte(text)); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %+v, want %+v", text, got, want)
		}
	}
}

func TestACgroupThatIsGone(t *testing.T) {
	for _, h := range []*cgroup.Hierarchies{legacy(t, "testdata/v1"), unified(t, "testdata/v2")} {
		f := Of(h, "/pod/none")
		if _, err := f.Read(); !errors.Is(err, ErrGone) {
			t.Errorf("got %v", err)
		}
		if _, _, err := f.ReadAll(); !errors.Is(err, ErrGone) {
			t.Errorf("got %v", err)
		}
		if _, err := f.Tasks(); !errors.Is(err, ErrGone) {
			t.Errorf("got %v", err)
		}
	}
}

func TestAnUnreadableFileIsAnError(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "c"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "c", "memory.current"), []byte("many\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Of(unified(t, root), "/c").Read(); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
}

func TestABigFileIsReadWhole(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "c"), 0o755); err != nil {
		t.Fatal(err)
	}
	stat := slices.Concat(make([]byte, 0), []byte("usage_usec 5\n"))
	for len(stat) < 20_000 {
		stat = append(stat, "some_other_key 1\n"...)
	}
	if err := os.WriteFile(filepath.Join(root, "c", "cpu.stat"), append(stat, "system_usec 9\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, d, err := Of(unified(t, root), "/c").ReadAll(); err != nil || d.System != known(9000) {
		t.Errorf("got %+v, %v", d, err)
	}
	u, err := Of(unified(t, root), "/c").Read()
	if err != nil || u.CPU != known(5000) {
		t.Errorf("got %+v, %v", u, err)
	}
}

func TestHeldFilesOfARemovedCgroupSayThatItIsGone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups are made by root only")
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	path := "/berth-usage-" + filepath.Base(t.TempDir())
	if _, err := h.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Remove(t.Context(), path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	f := Of(h, path)
	defer f.Close()
	u, err := f.Read()
	if err != nil || !u.CPU.Known || !u.Memory.Known || u.MemoryLimit != known(Unlimited) {
		t.Fatalf("got %+v, %v", u, err)
	}
	if err := h.Remove(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(); !errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("some avg10=1.50 avg60=0.75 avg300=0.25 total=123456\n"))
	f.Add([]byte("usage_usec 12\n8:0 Read 1\n8:16 rbytes=512 wbytes=0\n"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		_ = pressure(data)
		pairs(data, func([]byte, uint64) {})
		_, _ = number(data)
		_, _, _ = device(data)
	})
}

func BenchmarkRead(b *testing.B) {
	f := Of(legacy(b, "testdata/v1"), "/pod/ctr")
	defer f.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Read(); err != nil {
			b.Fatal(err)
		}
	}
}

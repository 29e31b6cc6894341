// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLimitsOfTheRealKernelAreSetAndReadBack(t *testing.T) {
	h, path := host(t)
	if _, err := h.Create(path); err != nil {
		t.Fatal(err)
	}
	for _, want := range []Limits{
		{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 << 20, Swap: 64 << 20, CpusetCpus: "0"},
		{Memory: 256 << 20, Swap: 256 << 20},                // above the former limit of memory and swap
		{Memory: 32 << 20, Swap: 32 << 20},                  // and below it again
		{CPUQuota: 200000, CPUPeriod: 50000},                // a shorter period
		{CPUQuota: -1},                                      // no limit
		{CPUShares: 2},                                      // the least
		{CPUShares: 262144, CPUQuota: 1000, CPUPeriod: 1e6}, // the most
		{Memory: -1, Swap: -1},
		{},
	} {
		for range 2 { // idempotent
			if err := h.SetLimits(path, want); err != nil {
				t.Fatalf("%+v: %v", want, err)
			}
		}
		got, err := h.ReadLimits(path)
		if err != nil || !got.Same(want) {
			t.Errorf("got %+v, want %+v; %v", got, want, err)
		}
	}
	got, err := h.ReadLimits(path)
	if err != nil || got.CPUPeriod != 1e6 || got.Memory != -1 || got.CpusetCpus != "0" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := h.ReadLimits(path + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := h.SetLimits("/", Limits{Memory: 1}); !errors.Is(err, ErrProtected) {
		t.Error(err)
	}
	if err := h.SetLimits(path, Limits{CpusetCpus: "60000"}); err == nil {
		t.Error("a CPU that is not there is taken")
	}
}

func TestUnifiedLimitsAreReadAsTheCRICountsThem(t *testing.T) {
	h := &Hierarchies{mode: Unified, unified: t.TempDir()}
	h.points = []string{h.unified}
	dir := filepath.Join(h.unified, "pod")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if l, err := h.ReadLimits("/pod"); err != nil || l != (Limits{Swap: 0}) {
		t.Errorf("without controllers: %+v, %v", l, err)
	}
	for name, text := range map[string]string{"cpu.weight": "100\n", "cpu.max": "max 100000\n", "memory.max": "4096\n", "memory.swap.max": "8192\n",
		"cpuset.cpus": "0-1\n", "cpuset.mems": "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := h.ReadLimits("/pod")
	if err != nil || Weight(l.CPUShares) != 100 || l.CPUQuota != -1 || l.CPUPeriod != 100000 || l.Memory != 4096 || l.Swap != 12288 || l.CpusetCpus != "0-1" {
		t.Errorf("%+v, %v", l, err)
	}
	if !l.Same(Limits{CPUShares: 1024, CPUQuota: -1, Memory: 4096 + 17, CpusetCpus: "0,1"}) || l.Same(Limits{CpusetCpus: "0"}) || l.Same(Limits{CPUShares: 2048}) ||
		l.Same(Limits{Memory: 8192}) || l.Same(Limits{CpusetMems: "0"}) {
		t.Error("limits are compared wrongly")
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.max"), []byte("many\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := h.ReadLimits("/pod"); err == nil {
		t.Errorf("%+v", l)
	}
}

func TestUnifiedLimitsAreWrittenWhole(t *testing.T) {
	h := &Hierarchies{mode: Unified}
	got := h.writes(Limits{CPUShares: 1024, CPUQuota: 5000, Memory: 100, Swap: 300, CpusetCpus: "0"}, Limits{CPUPeriod: 20000})
	want := []setting{{"cpu", "cpu.weight", "100"}, {"cpu", "cpu.max", "5000 20000"}, {"memory", "memory.max", "100"}, {"memory", "memory.swap.max", "200"},
		{"cpuset", "cpuset.cpus", "0"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got = h.writes(Limits{CPUQuota: -1, Memory: -1, Swap: -1}, Limits{})
	want = []setting{{"cpu", "cpu.max", "max 100000"}, {"memory", "memory.max", "max"}, {"memory", "memory.swap.max", "max"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSharesAndWeightsMeetAtTheEnds(t *testing.T) {
	for s, want := range map[int64]uint64{0: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := Weight(s); got != want {
			t.Errorf("%d shares are %d, want %d", s, got, want)
		}
	}
	for w := uint64(1); w <= 10000; w++ {
		if got := Weight(shares(w)); got < w || got > w+w/100+1 {
			t.Fatalf("weight %d comes back as %d", w, got)
		}
	}
}

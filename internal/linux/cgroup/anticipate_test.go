// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/proc"
)

func TestAnticipationMovesNobody(t *testing.T) {
	h, _ := host(t)
	before, err := proc.CgroupPaths(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var a Anticipation
	for range 3 {
		a.Begin(h)
	}
	for end := time.Now().Add(10 * time.Second); ; {
		a.mu.Lock()
		on, dir := a.on, a.dir
		a.mu.Unlock()
		if !on && dir != "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not over after 10 s: on %v, folder %q", on, dir)
		}
		time.Sleep(time.Millisecond)
	}
	after, err := proc.CgroupPaths(os.Getpid())
	if err != nil || !maps.Equal(before, after) {
		t.Errorf("from %v to %v, %v", before, after, err)
	}
}

// A cgroup namespace can make /proc/self/cgroup and what is mounted differ.
func TestAnticipationTouchesNoOtherCgroup(t *testing.T) {
	h, path := host(t)
	if _, err := h.Create(path); err != nil {
		t.Fatal(err)
	}
	before, err := proc.CgroupPaths(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	key, point := h.anyHierarchy()
	other, err := FromMounts(map[string]string{key: filepath.Join(point, path)})
	if err != nil {
		t.Fatal(err)
	}
	if h.unified != "" { // a folder of the same name: only its processes tell that it is not ours
		if err := os.MkdirAll(filepath.Join(point, path, before[""]), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var a Anticipation
	if dir, err := a.moveSelf(other); err == nil {
		t.Errorf("moved to %s", dir)
	}
	after, err := proc.CgroupPaths(os.Getpid())
	if err != nil || !maps.Equal(before, after) {
		t.Errorf("from %v to %v, %v", before, after, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

func TestTheTopCgroupGoesWhenItIsOursAndEmpty(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups are made by root only")
	}
	h, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	const path = "/berth-t-top"
	remove := func(path string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := h.Remove(ctx, path); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { remove(path) })
	mark := filepath.Join(t.TempDir(), "mark")
	life := func() *topCgroup { return &topCgroup{cgroups: h, path: path, mark: mark} }
	mkdir := func(top *topCgroup, path string) {
		t.Helper()
		if err := top.create(path); err != nil {
			t.Fatal(err)
		}
	}
	drop := func(top *topCgroup, what string, there bool) {
		t.Helper()
		if err := top.drop(); err != nil {
			t.Fatal(err)
		}
		if exists, err := h.Exists(path); err != nil || exists != there {
			t.Errorf("%s: exists %v, want %v, %v", what, exists, there, err)
		}
	}
	first := life()
	drop(first, "nothing was made", false)
	mkdir(first, path+"/pod")
	drop(first, "a pod is in it", true)
	remove(path + "/pod")
	second := life()
	mkdir(second, path+"/pod")
	remove(path + "/pod")
	drop(second, "made in an earlier life", false)
	if _, err := h.Create(path); err != nil { // as an administrator may
		t.Fatal(err)
	}
	mkdir(second, path+"/pod")
	remove(path + "/pod")
	drop(second, "somebody else's", true)
	mkdir(second, path+"-other")
	remove(path + "-other")
	drop(second, "somebody else's, with pods elsewhere", true)
}

// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/linux/userns"
)

func TestAUserNamespaceOwnsThePodsOthers(t *testing.T) {
	pins := pinsIn(t.TempDir())
	pins[User] = filepath.Join(filepath.Dir(pins[IPC]), "user")
	mustCreate(t, Request{Pins: pins, Hostname: "mapped", Mapping: &userns.Mapping{UIDs: userns.Range{Host: 65536, Size: 4096}, GIDs: userns.Range{Host: 65536, Size: 4096}},
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "11", "kernel.domainname": "example"}})
	user, err := os.Stat(pins[User])
	if err != nil {
		t.Fatal(err)
	}
	for kind, path := range pins {
		if kind == User {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
		if err != nil {
			t.Fatal(err)
		}
		owner := os.NewFile(uintptr(fd), "owner")
		defer owner.Close()
		if info, err := owner.Stat(); err != nil || !os.SameFile(info, user) {
			t.Errorf("the %s namespace has another owner: %v", kind, err)
		}
	}
	delete(pins, User) // a thread cannot enter it
	defer func() { pins[User] = filepath.Join(filepath.Dir(pins[IPC]), "user") }()
	inside(t, pins, func() error {
		for path, want := range map[string]string{"/proc/sys/kernel/hostname": "mapped", "/proc/sys/kernel/domainname": "example",
			"/proc/sys/net/ipv4/ip_forward": "1", "/proc/sys/kernel/shm_rmid_forced": "1", "/proc/sys/fs/mqueue/msg_max": "11"} {
			if got := strings.TrimSpace(read(t, path)); got != want {
				t.Errorf("%s is %q", path, got)
			}
		}
		return nil
	})
	if err := Do(pins[Net], func() error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestAUserNamespaceAlone(t *testing.T) {
	pin := filepath.Join(t.TempDir(), "user")
	mustCreate(t, Request{Pins: map[Kind]string{User: pin}, Mapping: &userns.Mapping{UIDs: userns.Range{Host: 1 << 20, Size: 1}, GIDs: userns.Range{Host: 7, Size: 1}}})
	if !Pinned(pin) {
		t.Error("it is not pinned")
	}
}

func TestAFailedUserNamespaceLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	pins := map[Kind]string{User: filepath.Join(dir, "user"), UTS: filepath.Join(dir, "uts")}
	if err := Create(Request{Pins: pins}); err == nil {
		t.Error("made without a mapping")
	}
	err := Create(Request{Pins: pins, Mapping: &userns.Mapping{UIDs: userns.Range{Size: 1}}})
	if err == nil {
		t.Error("made with half a mapping")
	}
	if err := os.WriteFile(pins[UTS], nil, 0o600); err != nil { // somebody's
		t.Fatal(err)
	}
	err = Create(Request{Pins: pins, Mapping: &userns.Mapping{UIDs: userns.Range{Host: 9, Size: 1}, GIDs: userns.Range{Host: 9, Size: 1}}})
	if !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

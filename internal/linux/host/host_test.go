// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestTheBoundingSetIsTheKernels(t *testing.T) {
	have, err := BoundingSet()
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "CapBnd:")
	bits, err := strconv.ParseUint(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	for n, name := range names {
		if want := bits&(1<<n) != 0; slices.Contains(have, "CAP_"+name) != want {
			t.Errorf("%s: want %v", name, want)
		}
	}
}

func TestTheOOMFloorIsOneThatTheKernelTakes(t *testing.T) {
	caps, err := BoundingSet()
	if err != nil {
		t.Fatal(err)
	}
	floor, err := OOMScoreFloor(caps)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	if floor != -1000 { // with the capability, setting it would only prove that root is root
		if err := os.WriteFile("/proc/self/oom_score_adj", fmt.Appendln(nil, floor), 0); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile("/proc/self/oom_score_adj", before, 0); err != nil {
			t.Error(err)
		}
	}
}

func TestEveryLimitCanBeSet(t *testing.T) {
	caps, err := BoundingSet()
	if err != nil {
		t.Fatal(err)
	}
	all, err := Limits(caps)
	if err != nil || all["RLIMIT_NOFILE"] == 0 {
		t.Fatal(all, err)
	}
	for name, most := range all {
		var before syscall.Rlimit
		if err := syscall.Getrlimit(limitNames[name], &before); err != nil {
			t.Fatal(err)
		}
		if before.Max > most { // lowering it could not be taken back
			t.Fatalf("%s: own hard limit %d is above the highest, %d", name, before.Max, most)
		}
		if err := syscall.Setrlimit(limitNames[name], &syscall.Rlimit{Cur: before.Cur, Max: most}); err != nil {
			t.Errorf("%s: %d: %v", name, most, err)
		}
		if most == math.MaxUint64 {
			continue
		}
		if err := syscall.Setrlimit(limitNames[name], &syscall.Rlimit{Cur: before.Cur, Max: most + 1}); err == nil {
			t.Errorf("%s: %d is not the highest", name, most)
		}
	}
}

func TestTheKernelIsDescribed(t *testing.T) {
	if boot, err := BootID(); err != nil || len(boot) != 36 {
		t.Errorf("%q, %v", boot, err)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	if kernel, err := Kernel(); err != nil || kernel != strings.TrimSpace(string(release)) {
		t.Errorf("%q, %v; want %q", kernel, err, release)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Contains(string(status), "Seccomp_filters:"); Seccomp() != want {
		t.Errorf("seccomp filters: want %v", want)
	}
}

func TestDevicesAreDescribed(t *testing.T) {
	d, err := DeviceOf("/dev/null")
	if err != nil || d.Type != "c" || d.Major != 1 || d.Minor != 3 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := DeviceOf("/etc"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("/etc: %v", err)
	}
	if _, err := DeviceOf("/dev/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/dev/none: %v", err)
	}
}

func TestThePrivilegedGetTheHostsDevicesButNotItsTerminals(t *testing.T) {
	all, err := Devices()
	if err != nil || !slices.ContainsFunc(all, func(d Device) bool { return d.Path == "/dev/zero" }) {
		t.Errorf("%d devices, %v", len(all), err)
	}
	for _, d := range all {
		if d.Path == "/dev/ptmx" || d.Path == "/dev/console" || strings.HasPrefix(d.Path, "/dev/pts/") || strings.HasPrefix(d.Path, "/dev/fd") {
			t.Errorf("%s is among them", d.Path)
		}
	}
}

func TestDevicesOfAFolder(t *testing.T) {
	dir := t.TempDir()
	for name, dev := range map[string]int{"null": 1<<8 | 3, "zero": 1<<8 | 5} {
		if err := syscall.Mknod(filepath.Join(dir, name), syscall.S_IFCHR|0o600, dev); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "empty", "link")); err != nil { // a loop, were it followed
		t.Fatal(err)
	}
	alias := filepath.Join(t.TempDir(), "alias")
	if err := os.Symlink(dir, alias); err != nil {
		t.Fatal(err)
	}
	all, err := DevicesAt(alias)
	if err != nil || len(all) != 2 || all[0].Path != alias+"/null" || all[1].Path != alias+"/zero" || all[1].Minor != 5 {
		t.Errorf("%+v, %v", all, err)
	}
	if one, err := DevicesAt(alias + "/null"); err != nil || len(one) != 1 || one[0].Path != alias+"/null" || one[0].Minor != 3 {
		t.Errorf("%+v, %v", one, err)
	}
	for path, want := range map[string]error{dir + "/empty": ErrNoDevice, "/etc/passwd": ErrNoDevice, dir + "/none": fs.ErrNotExist} {
		if all, err := DevicesAt(path); !errors.Is(err, want) {
			t.Errorf("%s: %+v, %v", path, all, err)
		}
	}
}

func TestNoX32IsWhatTheKernelWasBuiltWith(t *testing.T) {
	config, err := os.Open("/proc/config.gz")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the kernel does not tell its configuration")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer config.Close()
	plain, err := gzip.NewReader(config)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	if NoX32() && bytes.Contains(text, []byte("CONFIG_X86_X32_ABI=y")) {
		t.Error("the kernel has x32")
	}
	if status, err := os.ReadFile("/proc/self/status"); err != nil || bytes.Contains(status, []byte("Seccomp:\t0")) && !NoX32() && !bytes.Contains(text, []byte("CONFIG_X86_X32_ABI=y")) {
		t.Errorf("the kernel has no x32, %v", err)
	}
}

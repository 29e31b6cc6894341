// SPDX-License-Identifier: Apache-2.0

package selinux

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const someLabel = "system_u:object_r:container_file_t:s0:c1,c2"

// labelOf reads a file's label, of a link its own. Without SELinux in the kernel the attribute is text to root.
func labelOf(t *testing.T, path string) string {
	t.Helper()
	var b [256]byte
	n, err := unix.Lgetxattr(path, attribute, b[:])
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestRelabelReachesAllBelowAndNothingElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for attributes of the name space security")
	}
	top := t.TempDir()
	outside, volume := filepath.Join(top, "outside"), filepath.Join(top, "volume")
	if err := errors.Join(os.MkdirAll(outside+"/secret", 0o700), os.MkdirAll(volume+"/a/b", 0o700), os.WriteFile(volume+"/a/b/file", nil, 0o400),
		os.Symlink(outside, volume+"/a/link"), os.Symlink(volume, top+"/way")); err != nil {
		t.Fatal(err)
	}
	for i := range 600 { // more than one read of the folder
		if err := os.WriteFile(fmt.Sprintf("%s/a/%d", volume, i), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Relabel(top+"/way", someLabel); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{volume, volume + "/a", volume + "/a/b", volume + "/a/b/file", volume + "/a/link", volume + "/a/0", volume + "/a/599"} {
		if l := labelOf(t, path); l != someLabel {
			t.Errorf("%s has label %q", path, l)
		}
	}
	for _, path := range []string{outside, outside + "/secret", top, top + "/way"} {
		if l := labelOf(t, path); l == someLabel {
			t.Errorf("%s was relabelled, too", path)
		}
	}
	if err := Relabel(volume+"/a/b/file", someLabel); err != nil { // one file
		t.Error(err)
	}
}

func TestRelabelLeavesTheHostAlone(t *testing.T) {
	way := filepath.Join(t.TempDir(), "way")
	if err := os.Symlink("/etc", way); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/etc", "/etc/", "/var/lib/../log", "/usr/.", way} {
		if err := Relabel(path, someLabel); !errors.Is(err, ErrSystem) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := Relabel("/none/of/that/name", someLabel); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/none/of/that/name") {
		t.Error(err)
	}
	if err := Relabel("/proc/sys", someLabel); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a file system without labels: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package user

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/linux/fsys"
)

func rootfs(t testing.TB, passwd, group string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"passwd": passwd, "group": group} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func p(n int64) *int64 { return &n }

func TestWhoAContainerRunsAs(t *testing.T) {
	root := rootfs(t, "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:w:/var/www:/bin/false\n1234:x:0:0::/:/bin/sh\nbad:x:no:0::/\nevil:x:50:50::relative:/x\n",
		"root:x:0:\nusers:x:100:www,other\nwww:x:34:\nmore:x:101:other,www\n1000:x:7:\n")
	for name, c := range map[string]struct {
		r    Request
		want string
		err  error
	}{
		"nobody said":                 {Request{}, "0:0 [0] /root", nil},
		"image user by name":          {Request{ImageUser: "www"}, "33:34 [34 100 101] /var/www", nil},
		"image user by number":        {Request{ImageUser: "33"}, "33:34 [34 100 101] /var/www", nil},
		"number without entry":        {Request{ImageUser: "1000"}, "1000:0 [0] /", nil},
		"uid:gid":                     {Request{ImageUser: "1003:100"}, "1003:100 [100] /", nil},
		"name:group":                  {Request{ImageUser: "www:users"}, "33:100 [100 101] /var/www", nil},
		"digits are never a name":     {Request{ImageUser: "1234"}, "1234:0 [0] /", nil},
		"digits are never a group":    {Request{ImageUser: "33:1000"}, "33:1000 [100 101 1000] /var/www", nil},
		"request overrides the image": {Request{UID: p(5), ImageUser: "www:users"}, "5:0 [0] /", nil},
		"user and group":              {Request{UID: p(33), GID: p(9)}, "33:9 [9 100 101] /var/www", nil},
		"username":                    {Request{Username: "www"}, "33:34 [34 100 101] /var/www", nil},
		"groups are merged":           {Request{ImageUser: "www", Groups: []int64{7, 100}}, "33:34 [7 34 100 101] /var/www", nil},
		"strict groups":               {Request{ImageUser: "www", Groups: []int64{7}, Strict: true}, "33:34 [7 34] /var/www", nil},
		"home must be a path":         {Request{ImageUser: "evil"}, "50:50 [50] /", nil},
		"unknown name":                {Request{ImageUser: "nobody"}, "", ErrUnknown},
		"unknown group":               {Request{ImageUser: "www:none"}, "", ErrUnknown},
		"entry without a number":      {Request{ImageUser: "bad"}, "", ErrUnknown},
		"overflow to root":            {Request{ImageUser: "4294967296"}, "", ErrRange},
		"above the highest":           {Request{ImageUser: "2147483648"}, "", ErrRange},
		"negative":                    {Request{ImageUser: "-1"}, "", ErrRange},
		"negative from the CRI":       {Request{UID: p(-1)}, "", ErrRange},
		"a sign makes no number":      {Request{ImageUser: "+0"}, "", ErrUnknown},
		"hexadecimal is no number":    {Request{ImageUser: "0x0"}, "", ErrUnknown},
		"digits as username":          {Request{Username: "1234"}, "1234:0 [0] /", nil},
		"username with a group":       {Request{Username: "www:users"}, "", ErrUnknown},
		"group without user":          {Request{ImageUser: ":users"}, "0:100 [100] /root", nil},
		"user without group":          {Request{ImageUser: "www:"}, "33:34 [34 100 101] /var/www", nil},
		"group overflow":              {Request{ImageUser: "0:4294967296"}, "", ErrRange},
		"supplemental out of range":   {Request{Groups: []int64{-1}}, "", ErrRange},
	} {
		u, err := Resolve(root, c.r)
		got := fmt.Sprintf("%d:%d %v %s", u.UID, u.GID, u.Groups, u.Home)
		if err != nil {
			got = ""
		}
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: got %q, %v; want %q, %v", name, got, err, c.want, c.err)
		}
	}
}

func TestImagesWithoutPasswdTakeNumbers(t *testing.T) {
	if u, err := Resolve(t.TempDir(), Request{ImageUser: "12:13"}); err != nil || u.UID != 12 || u.GID != 13 {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestHugeFilesAreRefused(t *testing.T) {
	root := rootfs(t, strings.Repeat("x", maxFile+1), "")
	if _, err := Resolve(root, Request{ImageUser: "x"}); !errors.Is(err, fsys.ErrTooLarge) {
		t.Error(err)
	}
}

func TestAFileForEtcIsNoEtc(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "etc"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if u, err := Resolve(root, Request{ImageUser: "12"}); err != nil || u.UID != 12 {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestMoreGroupsThanTheKernelTakesAreRefused(t *testing.T) {
	var group strings.Builder
	for n := range maxGroups + 1 {
		fmt.Fprintf(&group, "g:x:%d:u\n", n)
	}
	root := rootfs(t, "u:x:1:1::/:/x\n", group.String())
	if _, err := Resolve(root, Request{ImageUser: "u"}); !errors.Is(err, ErrTooMany) {
		t.Error(err)
	}
	if _, err := Resolve(root, Request{ImageUser: "u", Strict: true}); err != nil {
		t.Error(err)
	}
}

func TestPasswdIsReadInsideTheImage(t *testing.T) {
	root := rootfs(t, "", "")
	passwd := filepath.Join(root, "etc/passwd")
	if err := os.Remove(passwd); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/root/etc/passwd", passwd); err != nil {
		t.Fatal(err)
	}
	if u, err := Resolve(root, Request{ImageUser: "daemon"}); !errors.Is(err, ErrUnknown) {
		t.Errorf("%+v, %v: from the host's file", u, err)
	}
}

func TestHomeIsAPathOrTheRoot(t *testing.T) {
	for _, bad := range []string{"relative", "", "/a\rb", "/a\x00b", "/" + strings.Repeat("x", maxHome)} {
		if got := home([]string{"u", "x", "1", "1", "", bad, "/bin/sh"}); got != "/" {
			t.Errorf("%q became %q", bad, got)
		}
	}
	if got := home([]string{"u", "x", "1", "1", "", `/a\nb`, "/bin/sh"}); got != `/a\nb` {
		t.Errorf("a backslash and an n are no newline: %q", got)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", "g:x:5:root\n", "root:g")
	f.Fuzz(func(t *testing.T, passwd, group, image string) {
		u, err := Resolve(rootfs(t, passwd, group), Request{ImageUser: image})
		if err != nil {
			return
		}
		name, _, _ := strings.Cut(image, ":")
		if name != "" && strings.Trim(name, "0123456789") == "" && strings.TrimLeft(name, "0") != strings.TrimLeft(fmt.Sprint(u.UID), "0") {
			t.Errorf("%q became %d", name, u.UID)
		}
		if !strings.HasPrefix(u.Home, "/") || strings.ContainsAny(u.Home, "\x00\r\n:") {
			t.Errorf("home %q", u.Home)
		}
		if !slices.Contains(u.Groups, u.GID) {
			t.Errorf("groups %v lack the first one, %d", u.Groups, u.GID)
		}
	})
}

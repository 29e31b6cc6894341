// SPDX-License-Identifier: Apache-2.0

// Package user resolves whom a container runs as, against the passwd and group files of its root file system, which its image wrote
// and which are therefore read jailed and bounded. All digits are a number and never a name (CVE-2026-46680). For daemon's specs.
package user

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/berth-run/berth/internal/linux/fsys"
)

var (
	// ErrUnknown: the image has no such user or group.
	ErrUnknown = errors.New("unknown user or group")
	// ErrRange: a number that is no user or group ID.
	ErrRange = errors.New("user or group ID is out of range")
	// ErrTooMany: more groups than a process can have.
	ErrTooMany = errors.New("too many groups")
)

const (
	// maxFile bounds passwd and group, in bytes (CVE-2026-47262, CVE-2025-4437).
	maxFile = 1 << 20
	maxID   = 1<<31 - 1
	// maxGroups is the kernel's NGROUPS_MAX.
	maxGroups = 65536
	// maxHome is the kernel's PATH_MAX.
	maxHome = 4096
)

// Request says whom to run as. UID, then Username, then ImageUser ("name", "uid", "uid:gid", "name:group") count.
type Request struct {
	UID, GID  *int64
	Username  string
	ImageUser string
	// Groups are added; with Strict only they are, else also those of the image's group file.
	Groups []int64
	Strict bool
}

// User is whom a process runs as.
type User struct {
	UID, GID uint32
	// Groups has GID too, as the kernel's own list would (CVE-2023-25173).
	Groups []uint32
	// Home is from passwd, "/" where it has none that is one.
	Home string
}

// Resolve finds the user. Errors: ErrUnknown, ErrRange, ErrTooMany, fsys.ErrTooLarge.
func Resolve(rootfs string, r Request) (User, error) {
	passwd, err := readLines(rootfs, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	name, group := r.Username, ""
	switch {
	case r.UID != nil:
		name = strconv.FormatInt(*r.UID, 10)
	case r.Username == "":
		name, group, _ = strings.Cut(r.ImageUser, ":")
	}
	u, login, err := lookUser(passwd, name)
	if err != nil {
		return User{}, err
	}
	groups, err := readLines(rootfs, "/etc/group")
	if err != nil {
		return User{}, err
	}
	if group != "" {
		if u.GID, err = lookGroup(groups, group); err != nil {
			return User{}, err
		}
	}
	if r.GID != nil {
		if u.GID, err = id(strconv.FormatInt(*r.GID, 10)); err != nil {
			return User{}, fmt.Errorf("run_as_group: %w", err)
		}
	}
	return u.withGroups(groups, login, r)
}

func (u User) withGroups(lines []string, login string, r Request) (User, error) {
	u.Groups = []uint32{u.GID}
	for _, g := range r.Groups {
		n, err := id(strconv.FormatInt(g, 10))
		if err != nil {
			return User{}, fmt.Errorf("supplemental group: %w", err)
		}
		u.Groups = append(u.Groups, n)
	}
	if !r.Strict && login != "" {
		for _, line := range lines {
			f := strings.Split(line, ":")
			if len(f) < 4 || !slices.Contains(strings.Split(f[3], ","), login) {
				continue
			}
			if n, err := id(f[2]); err == nil { // a broken line of the image is no reason not to start
				u.Groups = append(u.Groups, n)
			}
		}
	}
	slices.Sort(u.Groups)
	u.Groups = slices.Compact(u.Groups)
	if len(u.Groups) > maxGroups {
		return User{}, fmt.Errorf("%d groups, a process can have %d: %w", len(u.Groups), maxGroups, ErrTooMany)
	}
	return u, nil
}

// lookUser finds a user by number or name; the empty name is root. A number needs no entry.
func lookUser(lines []string, name string) (User, string, error) {
	numeric := digits(name)
	want := uint32(0)
	if numeric || strings.HasPrefix(name, "-") {
		var err error
		if want, err = id(name); err != nil {
			return User{}, "", fmt.Errorf("user: %w", err)
		}
	}
	for _, line := range lines {
		f := strings.Split(line, ":")
		if len(f) < 4 {
			continue
		}
		uid, uerr := id(f[2])
		gid, gerr := id(f[3])
		if uerr != nil || gerr != nil {
			continue
		}
		if name != "" && !numeric && f[0] == name || (name == "" || numeric) && uid == want {
			return User{UID: uid, GID: gid, Home: home(f)}, f[0], nil
		}
	}
	if name == "" || numeric {
		return User{UID: want, Home: "/"}, "", nil
	}
	return User{}, "", fmt.Errorf("user %q is not in the image's /etc/passwd: %w", name, ErrUnknown)
}

func lookGroup(lines []string, name string) (uint32, error) {
	if digits(name) {
		n, err := id(name)
		if err != nil {
			return 0, fmt.Errorf("group: %w", err)
		}
		return n, nil
	}
	for _, line := range lines {
		f := strings.Split(line, ":")
		if len(f) >= 3 && f[0] == name {
			n, err := id(f[2])
			if err != nil {
				return 0, fmt.Errorf("group %q: %w", name, err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("group %q is not in the image's /etc/group: %w", name, ErrUnknown)
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// id takes digits only: strconv's signs would let "+0" be a user that a check for names and numbers has not seen.
func id(s string) (uint32, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || !digits(s) || n > maxID {
		return 0, fmt.Errorf("%q: %w", s, ErrRange)
	}
	return uint32(n), nil
}

// home is an entry's home folder if it can be one: it becomes an environment variable (CVE-2026-15809).
func home(fields []string) string {
	if len(fields) < 6 || len(fields[5]) > maxHome || !strings.HasPrefix(fields[5], "/") || strings.ContainsAny(fields[5], "\x00\n\r") {
		return "/"
	}
	return fields[5]
}

func readLines(rootfs, path string) ([]string, error) {
	data, err := fsys.ReadInRoot(rootfs, path, maxFile)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil // images without one are common: numbers still work
	} else if err != nil {
		return nil, err
	}
	return strings.Split(string(data), "\n"), nil
}

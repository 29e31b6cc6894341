// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// The cgroup drivers: who makes a pod's cgroups.
const (
	// Cgroupfs: berth and the OCI runtime make folders.
	Cgroupfs = "cgroupfs"
	// Systemd: systemd makes slices and scopes on demand, since it wants to be the hierarchies' single writer.
	Systemd = "systemd"
)

// ErrInvalid is wrapped by every error about the form of a name.
var ErrInvalid = errors.New("invalid cgroup name")

const sliceSuffix = ".slice"

// maxComponent is the kernel's limit on a file name, which a cgroup's name is.
const maxComponent = 255

// ValidateDriver tells whether the driver is known.
func ValidateDriver(driver string) error {
	if driver != Cgroupfs && driver != Systemd {
		return fmt.Errorf("%w: driver %q is neither %q nor %q", ErrInvalid, driver, Cgroupfs, Systemd)
	}
	return nil
}

// ValidateParent checks the cgroup parent of a pod, as the CRI has it: a path under cgroupfs, a slice under systemd. A form that
// belongs to the other driver is named as such: a kubelet that disagrees with its runtime about the driver is a common and
// otherwise silent mistake.
func ValidateParent(driver, parent string) error {
	_, err := ParentPath(driver, parent)
	return err
}

// ParentPath returns the absolute path, below each hierarchy's mount point, of a pod's cgroup parent.
func ParentPath(driver, parent string) (string, error) {
	switch driver {
	case Systemd:
		_, expanded, err := parentSlice(parent)
		return expanded, err
	case Cgroupfs:
		return parentFolder(parent)
	}
	return "", ValidateDriver(driver)
}

// SliceName returns the unit's name of a pod's cgroup parent under systemd: its last element where it is a path.
func SliceName(parent string) (string, error) {
	name, _, err := parentSlice(parent)
	return name, err
}

// parentSlice takes the name of a slice, and the path that systemd makes of one: that is what the kubelet sends
// (pkg/kubelet/cm: CgroupName.ToSystemd), /kubepods.slice/kubepods-pod1.slice for kubepods-pod1.slice.
func parentSlice(parent string) (name, expanded string, err error) {
	name = path.Base(parent)
	if strings.Contains(parent, "/") && !strings.HasSuffix(name, sliceSuffix) {
		return "", "", fmt.Errorf("%w: parent %q is a path, but the cgroup driver is systemd, which wants a slice such as "+
			"kubepods-burstable.slice (does the kubelet use cgroupDriver: cgroupfs?)", ErrInvalid, parent)
	}
	if expanded, err = ExpandSlice(name); err != nil {
		return "", "", fmt.Errorf("parent %q: %w", parent, err)
	}
	if parent != name && parent != expanded {
		return "", "", fmt.Errorf("%w: parent %q is not where systemd has %s: want %s", ErrInvalid, parent, name, expanded)
	}
	return name, expanded, nil
}

func parentFolder(parent string) (string, error) {
	absolute := parent
	if !strings.HasPrefix(parent, "/") {
		absolute = "/" + parent
	}
	switch {
	case absolute == "/":
		return "", fmt.Errorf("%w: parent %q is the root", ErrInvalid, parent)
	case path.Clean(absolute) != absolute: // also what has ".." in it
		return "", fmt.Errorf("%w: parent %q is not a clean path (%q)", ErrInvalid, parent, path.Clean(absolute))
	case strings.HasSuffix(absolute, sliceSuffix):
		return "", fmt.Errorf("%w: parent %q is a systemd slice, but the cgroup driver is cgroupfs (does the kubelet use "+
			"cgroupDriver: systemd?)", ErrInvalid, parent)
	}
	for part := range strings.SplitSeq(absolute[1:], "/") {
		if err := component(part); err != nil {
			return "", fmt.Errorf("%w: parent %q: %w", ErrInvalid, parent, err)
		}
	}
	return absolute, nil
}

// component checks one element of a path. A colon would be taken for the systemd form by OCI runtimes; newlines
// break /proc/PID/cgroup for every reader.
func component(part string) error {
	if len(part) > maxComponent {
		return fmt.Errorf("an element is longer than %d bytes", maxComponent)
	}
	if strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r == 0x7f || r == ':' }) {
		return fmt.Errorf("element %q has a colon or a control character", part)
	}
	return nil
}

// ExpandSlice returns the path of a slice: in systemd's naming "a-b.slice" is a child of "a.slice", so it is
// found at /a.slice/a-b.slice. The root slice "-.slice" has no path of its own and is refused.
func ExpandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, sliceSuffix)
	if !ok || name == "" {
		return "", fmt.Errorf("%w: %q does not end in %s", ErrInvalid, slice, sliceSuffix)
	}
	if len(slice) > maxComponent {
		return "", fmt.Errorf("%w: slice name is longer than %d bytes", ErrInvalid, maxComponent)
	}
	if i := strings.IndexFunc(name, notInUnitName); i >= 0 {
		return "", fmt.Errorf("%w: slice %q has the character %q", ErrInvalid, slice, name[i:i+1])
	}
	var expanded, prefix strings.Builder
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("%w: slice %q has an empty part between dashes", ErrInvalid, slice)
		}
		prefix.WriteString(part)
		expanded.WriteString("/" + prefix.String() + sliceSuffix)
		prefix.WriteByte('-')
	}
	return expanded.String(), nil
}

// notInUnitName is systemd's VALID_CHARS for unit names, without ':' and '@': the one separates the parts of an OCI
// cgroupsPath, the other makes a template, which slices cannot be.
func notInUnitName(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune(`-_.\`, r)
}

// ContainerPath returns the cgroupsPath of the OCI spec for a container of a pod with a valid parent. Its last part ends in the
// container's ID: cAdvisor finds containers by that.
func ContainerPath(driver, parent, prefix, id string) string {
	if driver == Systemd {
		return path.Base(parent) + ":" + prefix + ":" + id
	}
	return path.Join("/", parent, id)
}

// ResolveOCI returns the path, below each hierarchy's mount point, that an OCI runtime makes of an absolute or
// "slice:prefix:id" cgroupsPath.
func ResolveOCI(cgroupsPath string) (string, error) {
	parts := strings.Split(cgroupsPath, ":")
	switch {
	case len(parts) == 1 && strings.HasPrefix(cgroupsPath, "/"):
		if err := own(cgroupsPath); err != nil {
			return "", fmt.Errorf("resolve cgroupsPath %q: %w", cgroupsPath, err)
		}
		return path.Clean(cgroupsPath), nil
	case len(parts) == 3 && parts[2] != "" && !strings.Contains(parts[1]+parts[2], "/"):
		slice, err := ExpandSlice(parts[0])
		if err != nil {
			return "", fmt.Errorf("resolve cgroupsPath %q: %w", cgroupsPath, err)
		}
		unit := parts[2] + ".scope"
		if parts[1] != "" {
			unit = parts[1] + "-" + unit
		}
		return slice + "/" + unit, nil
	}
	return "", fmt.Errorf("resolve cgroupsPath %q: %w: neither absolute nor slice:prefix:id", cgroupsPath, ErrInvalid)
}

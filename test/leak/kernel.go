// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func settleBriefly() { time.Sleep(50 * time.Millisecond) }

// mountPoints lists the mounts below the scope's folder, the deepest last.
func (s Scope) mountPoints() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) > 4 && s.Dir != "" && strings.HasPrefix(f[4]+"/", s.Dir+"/") {
			points = append(points, f[4])
		}
	}
	return points, nil
}

func (s Scope) mounts(found Snapshot) error {
	points, err := s.mountPoints()
	for _, p := range points {
		found.add("mount", p)
	}
	return err
}

// links are the ports of the scope's bridge, and veths that no bridge holds: those of a plugin that was
// cut off. A neighbour's veth is in that state for moments only.
func (s Scope) links(found Snapshot) error {
	if s.Bridge == "" {
		return nil
	}
	ports, err := os.ReadDir("/sys/class/net/" + s.Bridge + "/brif")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list ports of %s: %w", s.Bridge, err)
	}
	for _, p := range ports {
		found.add("port", p.Name()+" of "+s.Bridge)
	}
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range all {
		_, err := os.Stat("/sys/class/net/" + l.Name + "/master")
		if strings.HasPrefix(l.Name, "veth") && errors.Is(err, fs.ErrNotExist) {
			found.add("link", l.Name+" without a bridge")
		}
	}
	return nil
}

var (
	saves = []string{"iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"}
	// cniChain matches chains that CNI plugins make for one container.
	cniChain = regexp.MustCompile(`(?m)^:(CNI-(?:DN-|SN-)?[0-9a-f]{10,}) `)
)

// rules are packet filter rules that name the network, and chains of one container that nothing fills.
func (s Scope) rules(found Snapshot) error {
	if s.Network == "" {
		return nil
	}
	for _, tool := range saves {
		out, err := output(tool)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, s.Network) {
				found.add("rule", strings.TrimSpace(line))
			}
		}
		for _, m := range cniChain.FindAllStringSubmatch(out, -1) {
			if !strings.Contains(out, "-A "+m[1]+" ") {
				found.add("chain", m[1]+" without rules")
			}
		}
	}
	out, err := output("nft", "list", "ruleset")
	for line := range strings.Lines(out) {
		if strings.Contains(line, s.Network) && !strings.Contains(line, "CNI-") {
			found.add("nft", strings.TrimSpace(line))
		}
	}
	return err
}

// output runs a tool of the machine; a tool that is not installed says nothing.
func output(tool string, args ...string) (string, error) {
	path, err := exec.LookPath(tool)
	if err != nil {
		return "", nil
	}
	var errText bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", tool, err, errText.String())
	}
	return string(out), nil
}

// CgroupRoots are the mount points of each cgroup hierarchy of the machine.
func CgroupRoots() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	var roots []string
	for line := range strings.Lines(string(data)) {
		before, after, ok := strings.Cut(line, " - cgroup")
		if f := strings.Fields(before); ok && after != "" && len(f) > 4 && !slices.Contains(roots, f[4]) {
			roots = append(roots, f[4])
		}
	}
	return roots, nil
}

// cgroupFolders lists the folders of the scope's cgroup in each hierarchy, parents first.
func (s Scope) cgroupFolders() ([]string, error) {
	if s.Cgroup == "" {
		return nil, nil
	}
	roots, err := CgroupRoots()
	var folders []string
	for _, root := range roots {
		filepath.WalkDir(filepath.Join(root, s.Cgroup), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				folders = append(folders, path)
			}
			return nil // a cgroup that vanishes during the walk is no leak
		})
	}
	return folders, err
}

func (s Scope) cgroups(found Snapshot) error {
	folders, err := s.cgroupFolders()
	for _, f := range folders {
		if filepath.Base(f) != s.Cgroup {
			found.add("cgroup", f)
		}
	}
	return err
}

// addresses are the files that host-local keeps, one for each address that is taken.
func (s Scope) addresses(found Snapshot) error {
	if s.IPAM == "" {
		return nil
	}
	return walk(s.IPAM, 2, func(path string, d fs.DirEntry) {
		if net.ParseIP(d.Name()) != nil {
			found.add("address", path)
		}
	})
}

func (s Scope) files(found Snapshot) error {
	var errs []error
	for dir, depth := range s.Tidy {
		errs = append(errs, walk(dir, depth, func(path string, _ fs.DirEntry) { found.add("file", path) }))
	}
	return errors.Join(errs...)
}

// walk visits what lies up to depth levels below dir; what is not there has nothing to visit.
func walk(dir string, depth int, visit func(string, fs.DirEntry)) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || depth == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		visit(path, e)
		if e.IsDir() {
			if err := walk(path, depth-1, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

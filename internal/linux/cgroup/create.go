// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

// Create makes the cgroup in every hierarchy that has controllers or a name, with its ancestors. It returns the folders
// that it made, ancestors first within a hierarchy: none, if all was there before. It is idempotent, and on
// an error returns what it had made by then.
func (h *Hierarchies) Create(cgroup string) (created []string, err error) {
	if err := own(cgroup); err != nil {
		return nil, fmt.Errorf("create cgroup %q: %w", cgroup, err)
	}
	for _, point := range h.points {
		made, err := h.createIn(point, cgroup)
		created = append(created, made...)
		if err != nil {
			return created, fmt.Errorf("create cgroup %s: %w", cgroup, err)
		}
	}
	return created, nil
}

// createIn makes the path under one mount point, level by level, because each level must be prepared
// before the next can be of use.
func (h *Hierarchies) createIn(point, cgroup string) (created []string, err error) {
	dir := point
	for part := range strings.SplitSeq(strings.Trim(path.Clean(cgroup), "/"), "/") {
		if point == h.unified {
			if err := delegateControllers(dir); err != nil {
				return created, err
			}
		}
		parent := dir
		dir = filepath.Join(dir, part)
		switch err := os.Mkdir(dir, 0o755); { // as every cgroup: it is not a secret, cAdvisor and others read it
		case err == nil:
			created = append(created, dir)
		case !errors.Is(err, fs.ErrExist):
			return created, err
		}
		if point == h.controllers["cpuset"] {
			if err := inheritCpuset(parent, dir); err != nil {
				return created, err
			}
		}
	}
	return created, nil
}

// inheritCpuset copies CPUs and memory nodes from the parent where there are none: a v1 cpuset starts empty and
// lets no process in. An ancestor that another program made and left empty is completed, too.
func inheritCpuset(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		file := filepath.Join(dir, name)
		words, err := readWords(file)
		if err != nil {
			return err
		}
		if len(words) > 0 {
			continue
		}
		data, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := writeFile(file, strings.TrimSpace(string(data))); err != nil {
			return err
		}
	}
	return nil
}

// delegateControllers turns on in dir's children every controller that dir has. One by one, since a single
// refusal would void them all: a controller can be refused for good reasons (processes in dir, realtime threads),
// and whoever needs it later gets a clear error from the OCI runtime.
func delegateControllers(dir string) error {
	controllers, err := readWords(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enabled, err := readWords(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	have := make(map[string]bool, len(enabled))
	for _, controller := range enabled {
		have[controller] = true
	}
	for _, controller := range controllers {
		if have[controller] {
			continue
		}
		err := writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller)
		if err != nil && !refusedController(err) {
			return err
		}
	}
	return nil
}

func refusedController(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EBUSY, syscall.EINVAL, syscall.EOPNOTSUPP, syscall.ENOENT} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// writeFile writes a kernel file in one write, without creating or truncating.
func writeFile(name, content string) error {
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	return errors.Join(err, file.Close())
}

// own tells whether the path names a cgroup other than the root and stays below it.
func own(cgroup string) error {
	for part := range strings.SplitSeq(cgroup, "/") {
		if part == ".." {
			return fmt.Errorf(`%w: ".." in path`, ErrProtected)
		}
	}
	if strings.ContainsRune(cgroup, 0) || path.Clean("/"+cgroup) == "/" {
		return ErrProtected
	}
	return nil
}

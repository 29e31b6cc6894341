// SPDX-License-Identifier: Apache-2.0

// Package hooksd reads OCI hooks directories, schemas 1.0.0 and 0.1.0, as CRI-O and podman do (oci-hooks(5)), and puts the hooks that match a container into
// its spec. Only the daemon uses it.
package hooksd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-run/berth/internal/linux/fsys"
)

const (
	// maxFile bounds one file, maxFiles those of a directory.
	maxFile  = 64 << 10
	maxFiles = 1024
	version  = "1.0.0"
)

// Container is what hooks may ask about.
type Container struct {
	// Annotations are those of the pod and of the container.
	Annotations map[string]string
	// HasBindMounts: the container's request has mounts.
	HasBindMounts bool
}

// file is one hook in schema 1.0.0.
type file struct {
	Version string     `json:"version"`
	Hook    specs.Hook `json:"hook"`
	When    when       `json:"when"`
	Stages  []string   `json:"stages"`
}

// when are the conditions, all of which must hold; at least one must be there.
type when struct {
	Always        *bool             `json:"always"`
	Annotations   map[string]string `json:"annotations"`
	Commands      []string          `json:"commands"`
	HasBindMounts *bool             `json:"hasBindMounts"`

	// any: one of the conditions is enough, as in schema 0.1.0.
	any bool

	annotations []pair
	commands    []*regexp.Regexp
}

// pair is a pattern of an annotation's key and one of its value.
type pair struct{ key, value *regexp.Regexp }

// Inject reads the directories, so that what has changed counts from the next container on, and adds the hooks that match. A file in a later
// directory replaces one of the same name in an earlier one; hooks come in the order of their files' names. A directory that is
// not there is empty. Errors name the file: a hook that cannot be read is not left out, for it may be what keeps a container in its bounds.
func Inject(dirs []string, s *specs.Spec, c Container) error {
	paths, err := find(dirs)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		f, err := read(paths[name])
		if err != nil {
			return fmt.Errorf("hook %s: %w", paths[name], err)
		}
		if f.When.match(s, c) {
			add(s, f)
		}
	}
	return nil
}

// Check reads everything, for errors.
func Check(dirs []string) error { return Inject(dirs, &specs.Spec{}, Container{}) }

// find returns the files by name.
func find(dirs []string) (map[string]string, error) {
	paths := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("hooks directory: %w", err)
		}
		if len(entries) > maxFiles {
			return nil, fmt.Errorf("hooks directory %s has more than %d files", dir, maxFiles)
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".json") {
				paths[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	return paths, nil
}

func read(path string) (*file, error) {
	data, err := fsys.ReadFile(path, maxFile)
	if err != nil {
		return nil, err
	}
	h, err := parse(data)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(h.Hook.Path); err != nil {
		return nil, fmt.Errorf("hook.path: %w", err)
	} else if info.IsDir() || info.Mode()&0o111 == 0 {
		return nil, fmt.Errorf("hook.path: %s is no program", h.Hook.Path)
	}
	return h, nil
}

// parse is strict: an unknown field may be a condition.
func parse(data []byte) (*file, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	var schema struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(data, &schema); err != nil {
		return nil, err
	}
	switch schema.Version {
	case version:
		f := &file{}
		if err := decode(data, f); err != nil {
			return nil, err
		}
		return f, f.validate()
	case oldVersion, "":
		old := &oldFile{}
		if err := decode(data, old); err != nil {
			return nil, err
		}
		return old.current()
	}
	return nil, fmt.Errorf("version %q is not known here; %s and %s are", schema.Version, version, oldVersion)
}

func decode(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func (f *file) validate() error {
	switch {
	case !filepath.IsAbs(f.Hook.Path):
		return fmt.Errorf("hook.path %q is not absolute", f.Hook.Path)
	case f.Hook.Timeout != nil && *f.Hook.Timeout <= 0:
		return fmt.Errorf("hook.timeout %d is not above 0", *f.Hook.Timeout)
	case len(f.Stages) == 0:
		return errors.New("stages is missing")
	}
	for _, stage := range f.Stages {
		if hooksOf(&specs.Hooks{}, stage) == nil {
			return fmt.Errorf("stage %q is not known", stage)
		}
	}
	return f.When.compile()
}

func (w *when) compile() error {
	if w.Always == nil && w.HasBindMounts == nil && len(w.Annotations) == 0 && len(w.Commands) == 0 {
		return errors.New("when has no condition")
	}
	for key, value := range w.Annotations {
		k, err := regexp.Compile(key)
		if err != nil {
			return fmt.Errorf("when.annotations: %w", err)
		}
		v, err := regexp.Compile(value)
		if err != nil {
			return fmt.Errorf("when.annotations: %w", err)
		}
		w.annotations = append(w.annotations, pair{k, v})
	}
	for _, command := range w.Commands {
		c, err := regexp.Compile(command)
		if err != nil {
			return fmt.Errorf("when.commands: %w", err)
		}
		w.commands = append(w.commands, c)
	}
	return nil
}

func (w *when) match(s *specs.Spec, c Container) bool {
	var held []bool
	if w.Always != nil {
		held = append(held, *w.Always)
	}
	if w.HasBindMounts != nil {
		held = append(held, *w.HasBindMounts && c.HasBindMounts) // there is no asking for those without
	}
	for _, p := range w.annotations {
		there := false
		for key, value := range c.Annotations {
			there = there || p.key.MatchString(key) && p.value.MatchString(value)
		}
		held = append(held, there)
	}
	if len(w.commands) > 0 {
		held = append(held, s.Process != nil && len(s.Process.Args) > 0 &&
			slices.ContainsFunc(w.commands, func(r *regexp.Regexp) bool { return r.MatchString(s.Process.Args[0]) }))
	}
	if w.any {
		return slices.Contains(held, true)
	}
	return !slices.Contains(held, false)
}

func add(s *specs.Spec, f *file) {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, stage := range f.Stages {
		list := hooksOf(s.Hooks, stage)
		*list = append(*list, f.Hook)
	}
}

// hooksOf is the list of a stage, nil for one that is not known.
func hooksOf(h *specs.Hooks, stage string) *[]specs.Hook {
	switch stage {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // deprecated by the OCI, and what most files name
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	case "poststop":
		return &h.Poststop
	}
	return nil
}

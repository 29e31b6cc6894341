// SPDX-License-Identifier: Apache-2.0

// Package selinux chooses the SELinux labels of pods and containers, keeps pods' levels apart, and relabels what pods mount. It is the only importer of
// opencontainers/selinux, whose state is global to the process. For pod and daemon.
package selinux

import (
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

// ErrInvalid: the policy that is loaded has no such user, role, type or level.
var ErrInvalid = errors.New("is no label of the policy that is loaded")

// Options replace parts of the policy's own labels for containers; empty leaves one as it is.
type Options struct{ User, Role, Type, Level string }

// Labels are a process' and that of the files which are its own, both empty without SELinux.
type Labels struct {
	Process string `json:"process,omitempty"`
	Mount   string `json:"mount,omitempty"`
}

// kernel is the library, and with it the kernel's policy.
type kernel interface {
	// allocate returns the policy's own labels with a level that nobody has, or the one that is given. Both are empty without SELinux or without labels
	// for containers.
	allocate(level string) (process, mount string, err error)
	// check asks the kernel whether its policy has the label.
	check(label string) error
	reserve(label string) error
	release(label string)
}

type library struct{}

func (library) allocate(level string) (process, mount string, err error) {
	if level == "" {
		return label.InitLabels(nil)
	}
	return label.InitLabels([]string{"level:" + level})
}
func (library) check(l string) error   { return selinux.SecurityCheckContext(l) }
func (library) reserve(l string) error { return selinux.ReserveLabelV2(l) }
func (library) release(l string)       { selinux.ReleaseLabel(l) }

// Policy hands out labels. It is safe for concurrent use.
type Policy struct {
	kernel kernel

	mu sync.Mutex
	// holders counts who has each level: a pod, and containers that have named one. What several have goes with the last of them.
	holders map[string]int
}

// Open returns the kernel's policy; nil: there is no SELinux, or its policy has no labels for containers.
func Open() (*Policy, error) { return open(library{}) }

func open(k kernel) (*Policy, error) {
	process, _, err := k.allocate("")
	if err != nil {
		return nil, fmt.Errorf("read the SELinux policy's labels for containers: %w", err)
	}
	if process == "" {
		return nil, nil
	}
	k.release(process)
	return &Policy{kernel: k, holders: map[string]int{}}, nil
}

// New chooses the labels of a pod, with a level that no other has unless o names one. Release gives it back. ErrInvalid.
func (p *Policy) New(o Options) (Labels, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var base Labels
	var err error
	if base.Process, base.Mount, err = p.kernel.allocate(o.Level); err != nil {
		return Labels{}, fmt.Errorf("choose SELinux labels: %w", err)
	}
	all, err := p.derive(base, o)
	if err != nil {
		if p.holders[levelOf(base.Process)] == 0 {
			p.kernel.release(base.Process)
		}
		return Labels{}, err
	}
	p.holders[levelOf(all.Process)]++
	return all, nil
}

// Derive makes a container's labels of its pod's, and holds their level as New does. ErrInvalid.
func (p *Policy) Derive(pod Labels, o Options) (Labels, error) {
	all, err := p.derive(pod, o)
	if err != nil {
		return Labels{}, err
	}
	return all, p.Hold(all)
}

func (p *Policy) derive(base Labels, o Options) (Labels, error) {
	process, err := replaced(base.Process, map[string]string{"user": o.User, "role": o.Role, "type": o.Type, "level": o.Level})
	if err != nil {
		return Labels{}, err
	}
	// What the container's files are does not depend on what its processes are: their role and type say how they may be used.
	mount, err := replaced(base.Mount, map[string]string{"user": o.User, "level": o.Level})
	if err != nil {
		return Labels{}, err
	}
	if o != (Options{}) {
		for _, l := range []string{process, mount} {
			if err := p.kernel.check(l); err != nil {
				return Labels{}, fmt.Errorf("SELinux label %s: %w: %w", l, ErrInvalid, err)
			}
		}
	}
	return Labels{process, mount}, nil
}

func replaced(of string, parts map[string]string) (string, error) {
	c, err := selinux.NewContext(of)
	if err != nil {
		return "", fmt.Errorf("SELinux label %q: %w", of, err)
	}
	for name, value := range parts {
		if value != "" {
			c[name] = value
		}
	}
	return c.Get(), nil
}

func levelOf(l string) string {
	c, err := selinux.NewContext(l)
	if err != nil {
		return ""
	}
	return c["level"]
}

// Hold takes the level of labels that were chosen in an earlier life.
func (p *Policy) Hold(l Labels) error {
	level := levelOf(l.Process)
	if level == "" {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.kernel.reserve(l.Process); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		return fmt.Errorf("hold SELinux level of %s: %w", l.Process, err)
	}
	p.holders[level]++
	return nil
}

// Release gives the level back. Each New, Derive and Hold wants one.
func (p *Policy) Release(l Labels) {
	level := levelOf(l.Process)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch n := p.holders[level]; n {
	case 0: // also no label at all
	case 1:
		delete(p.holders, level)
		p.kernel.release(l.Process)
	default:
		p.holders[level] = n - 1
	}
}

// Relabel is the package's Relabel.
func (*Policy) Relabel(path, to string) error { return Relabel(path, to) }

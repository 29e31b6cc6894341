// SPDX-License-Identifier: Apache-2.0

// Package qos gives containers classes of block I/O and of CPU cache and memory bandwidth (RDT), which the operator of the node defines in files and
// pods choose by annotation, as in containerd and CRI-O. For daemon; it alone knows the library. The library keeps its classes in
// variables of its own, so there is one Open in a process.
package qos

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/intel/goresctrl/pkg/rdt"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var (
	// ErrUnknown: no class of that name is defined, or pods may not choose it.
	ErrUnknown = errors.New("unknown class")
	// ErrOff: the node's configuration defines no classes of that kind.
	ErrOff = errors.New("no classes are configured")
)

// Config names the files with the classes, in goresctrl's YAML format; empty: classes of that kind are off.
type Config struct{ BlockIO, RDT string }

// Classes are those of this node. It is immutable.
type Classes struct{ blockIO, rdt bool }

// Open reads the files. It writes RDT's classes to /sys/fs/resctrl, which must be mounted.
func Open(c Config, log *slog.Logger) (*Classes, error) {
	if c.BlockIO != "" {
		blockio.SetLogger(log.With("part", "blockio"))
		if err := blockio.SetConfigFromFile(c.BlockIO, false); err != nil {
			return nil, fmt.Errorf("block I/O classes of %s: %w", c.BlockIO, err)
		}
	}
	if c.RDT != "" {
		rdt.SetLogger(log.With("part", "rdt"))
		if err := rdt.Initialize(""); err != nil {
			return nil, fmt.Errorf("RDT classes of %s: %w", c.RDT, err)
		}
		if err := rdt.SetConfigFromFile(c.RDT, false); err != nil {
			return nil, fmt.Errorf("RDT classes of %s: %w", c.RDT, err)
		}
	}
	return &Classes{blockIO: c.BlockIO != "", rdt: c.RDT != ""}, nil
}

// BlockIO is what a class means for a container. ErrOff, ErrUnknown.
func (c *Classes) BlockIO(class string) (*specs.LinuxBlockIO, error) {
	if !c.blockIO {
		return nil, fmt.Errorf("block I/O class %q: %w", class, ErrOff)
	}
	if known := blockio.GetClasses(); !slices.Contains(known, class) {
		return nil, fmt.Errorf("block I/O class %q: there is %s: %w", class, strings.Join(known, ", "), ErrUnknown)
	}
	return blockio.OciLinuxBlockIO(class)
}

// RDT is what a class means for a container. ErrOff, ErrUnknown.
func (c *Classes) RDT(class string) (*specs.LinuxIntelRdt, error) {
	if !c.rdt {
		return nil, fmt.Errorf("RDT class %q: %w", class, ErrOff)
	}
	if _, ok := rdt.GetClass(class); !ok {
		return nil, fmt.Errorf("RDT class %q: %w", class, ErrUnknown)
	}
	return &specs.LinuxIntelRdt{ClosID: class}, nil
}

// Request is who chooses: a container, by its own and its pod's annotations.
type Request struct {
	Container                            string
	ContainerAnnotations, PodAnnotations map[string]string
}

// Apply puts the classes that the annotations choose into the spec. The first error is that of a class which cannot be had; where classes of that
// kind are off, that is ErrOff. The spec is unchanged then.
func (c *Classes) Apply(s *specs.Spec, r Request) error {
	var io *specs.LinuxBlockIO
	var cache *specs.LinuxIntelRdt
	if class := chosen(r, blockio.BlockioContainerAnnotation, blockio.BlockioPodAnnotation, blockio.BlockioPodAnnotationContainerPrefix); class != "" {
		var err error
		if io, err = c.BlockIO(class); err != nil {
			return err
		}
	}
	if class := chosen(r, rdt.RdtContainerAnnotation, rdt.RdtPodAnnotation, rdt.RdtPodAnnotationContainerPrefix); class != "" {
		var err error
		if cache, err = c.RDT(class); err != nil {
			return err
		}
		if _, err := rdt.ContainerClassFromAnnotations(r.Container, r.ContainerAnnotations, r.PodAnnotations); err != nil {
			return fmt.Errorf("%w: %w", ErrUnknown, err) // the class denies to be chosen by annotation
		}
	}
	if io != nil {
		s.Linux.Resources.BlockIO = io
	}
	if cache != nil {
		s.Linux.IntelRdt = cache
	}
	return nil
}

// chosen is the class that the annotations name: the container's own counts before the pod's for that container, and that before the pod's for all.
func chosen(r Request, container, pod, podContainer string) string {
	for _, a := range []struct {
		from map[string]string
		key  string
	}{{r.ContainerAnnotations, container}, {r.PodAnnotations, podContainer + r.Container}, {r.PodAnnotations, pod}} {
		if class, ok := a.from[a.key]; ok {
			return class
		}
	}
	return ""
}

// SPDX-License-Identifier: Apache-2.0

// Package cdi adds devices of the Container Device Interface to OCI specs: what vendors describe in files on this node (device nodes, mounts,
// variables, hooks) is put into the spec of the containers that name such a device. For daemon; it alone knows the library.
package cdi

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

var (
	// ErrName: not of the form vendor/class=name.
	ErrName = errors.New("no CDI device name")
	// ErrUnknown: no file on this node describes the device.
	ErrUnknown = errors.New("unknown CDI device")
)

// maxDevices bounds what one container may name.
const maxDevices = 1024

// netDevicesVersion is the first version of the runtime-spec that moves network devices into containers.
const netDevicesVersion = "1.3.0"

// Devices are those that the files in some folders describe. It is safe for concurrent use and keeps nothing open.
type Devices struct{ dirs []string }

// New looks for descriptions in these folders; of two that describe the same device the one of the later folder counts (CDI specification).
func New(dirs []string) *Devices { return &Devices{slices.Clone(dirs)} }

// Validate checks the form of names. ErrName.
func Validate(names []string) error {
	if len(names) > maxDevices {
		return fmt.Errorf("%d names, at most %d: %w", len(names), maxDevices, ErrName)
	}
	for _, name := range names {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return fmt.Errorf("%.256q: %w: %w", name, ErrName, err)
		}
	}
	return nil
}

// FromAnnotations returns the devices that the annotations cdi.k8s.io/… name, sorted; older device plugins and kubelets use them. ErrName.
func FromAnnotations(annotations map[string]string) ([]string, error) {
	_, names, err := cdi.ParseAnnotations(annotations)
	if err != nil {
		return nil, fmt.Errorf("annotations: %w: %w", ErrName, err)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Asked tells whether there is such an annotation.
func Asked(annotations map[string]string) bool {
	for key := range annotations {
		if strings.HasPrefix(key, cdi.AnnotationPrefix) {
			return true
		}
	}
	return false
}

// Inject adds the devices to the spec. The files are read anew each time, since vendors write them while the daemon runs. A file that cannot be
// read is told of only when a device is missing: one vendor's mistake is not another's. Errors: ErrName, ErrUnknown; the spec may be
// half-changed then.
func (d *Devices) Inject(s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if err := Validate(names); err != nil {
		return err
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(d.dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI descriptions: %w", err)
	}
	missing, err := cache.InjectDevices(s, names...)
	if len(missing) > 0 {
		return errors.Join(fmt.Errorf("%s: in none of the descriptions in %s: %w", strings.Join(missing, ", "), strings.Join(d.dirs, ", "), ErrUnknown),
			problems(cache))
	}
	if err != nil {
		return fmt.Errorf("add CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	if s.Linux != nil && len(s.Linux.NetDevices) > 0 {
		s.Version = netDevicesVersion
	}
	return nil
}

// maxProblems bounds how many of the bad files an error lists.
const maxProblems = 5

func problems(cache *cdi.Cache) error {
	var all []error
	for path, errs := range cache.GetErrors() {
		all = append(all, fmt.Errorf("%s cannot be used: %w", path, errors.Join(errs...)))
	}
	slices.SortFunc(all, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(all[:min(len(all), maxProblems)]...)
}

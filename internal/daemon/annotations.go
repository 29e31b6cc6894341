// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cdi"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/qos"
)

// cdiDevices are the CDI devices that the container names: in its field and, where the operator wants it, in annotations.
func (m specMaker) cdiDevices(c *runtimeapi.ContainerConfig) ([]string, error) {
	var all []string
	for i, d := range c.GetCDIDevices() {
		if err := cdi.Validate([]string{d.GetName()}); err != nil {
			return nil, asked(fmt.Sprintf("CDI_devices[%d].name", i), err)
		}
		all = append(all, d.GetName())
	}
	if !cdi.Asked(c.GetAnnotations()) {
		return all, nil
	}
	if !m.cdiAnnotations {
		m.log.Warn("annotations name CDI devices and are ignored; [cdi] annotations = true honours them", "container", c.GetMetadata().GetName())
		return all, nil
	}
	more, err := cdi.FromAnnotations(c.GetAnnotations())
	if err != nil {
		return nil, asked("annotations", err)
	}
	for _, name := range more {
		if !slices.Contains(all, name) { // older kubelets send both
			all = append(all, name)
		}
	}
	return all, nil
}

// asked says of an error that the request is what is wrong.
func asked(field string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %w", field, pod.ErrInvalid, err)
}

func qosRequest(r pod.SpecRequest) qos.Request {
	return qos.Request{Container: r.Container.GetMetadata().GetName(), ContainerAnnotations: r.Container.GetAnnotations(), PodAnnotations: r.Sandbox.GetAnnotations()}
}

// tolerate lets containers run that name a class on a node which has no classes: pods carry such annotations to all nodes.
func (m specMaker) tolerate(r pod.SpecRequest, err error) error {
	if errors.Is(err, qos.ErrOff) {
		m.log.Warn("an annotation is ignored", "container", r.ContainerID, "reason", err)
		return nil
	}
	return asked("annotations", err)
}

// reserved keys have a meaning of ours or give orders to the OCI runtime that no pod may give, whatever the patterns say: runc sets any property of
// the container's systemd unit by annotation (CVE-2024-3154).
var reserved = []string{"io.kubernetes.cri.", "org.systemd.property.", "run.oci."}

// passedAnnotations are those of the pod and the container that the configuration lets through to their runtime handler.
func (m specMaker) passedAnnotations(r pod.SpecRequest) map[string]string {
	policy := m.handlers[r.Handler]
	out := map[string]string{}
	pass(out, r.Sandbox.GetAnnotations(), policy.podAnnotations)
	pass(out, r.Container.GetAnnotations(), policy.containerAnnotations)
	return out
}

func pass(out, from map[string]string, patterns []string) {
	for key, value := range from {
		if slices.ContainsFunc(reserved, func(prefix string) bool { return strings.HasPrefix(key, prefix) }) {
			continue
		}
		for _, pattern := range patterns {
			// As CRI-O and containerd have it, a star at the end also takes what has slashes; in between it does not.
			prefix, open := strings.CutSuffix(pattern, "*")
			matched, err := path.Match(pattern, key)
			if err == nil && matched || open && !strings.ContainsAny(prefix, "*?[\\") && strings.HasPrefix(key, prefix) {
				out[key] = value
				break
			}
		}
	}
}

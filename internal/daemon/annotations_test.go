// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"log/slog"
	"maps"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
)

func TestOnlyAnnotationsOfTheAllowListReachTheRuntime(t *testing.T) {
	m := specMaker{handlers: map[string]handlerPolicy{
		"kata":  {podAnnotations: []string{"io.katacontainers.*", "example.com/[ab]"}, containerAnnotations: []string{"own/x"}},
		"loose": {podAnnotations: []string{"*"}, containerAnnotations: []string{"org.systemd.property.*", "io.kubernetes.cri.*"}},
	}}
	request := pod.SpecRequest{
		Sandbox: &runtimeapi.PodSandboxConfig{Annotations: map[string]string{"io.katacontainers.config.hypervisor.memory": "1", "io.katacontainers.a/b": "2",
			"example.com/a": "3", "example.com/c": "4", "own/x": "5", "org.systemd.property.ExecStart": "evil", "io.kubernetes.cri.sandbox-id": "other"}},
		Container: &runtimeapi.ContainerConfig{Annotations: map[string]string{"own/x": "6", "own/y": "7", "org.systemd.property.Slice": "evil", "io.kubernetes.cri.container-type": "sandbox"}},
	}
	for handler, want := range map[string]map[string]string{
		"runc":  {},
		"kata":  {"io.katacontainers.config.hypervisor.memory": "1", "io.katacontainers.a/b": "2", "example.com/a": "3", "own/x": "6"},
		"loose": {"io.katacontainers.config.hypervisor.memory": "1", "io.katacontainers.a/b": "2", "example.com/a": "3", "example.com/c": "4", "own/x": "5"},
	} {
		request.Handler = handler
		if got := m.passedAnnotations(request); !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", handler, got, want)
		}
	}
}

func TestCDIDevicesAreNamedByTheFieldAndWhereAllowedByAnnotations(t *testing.T) {
	c := &runtimeapi.ContainerConfig{CDIDevices: []*runtimeapi.CDIDevice{{Name: "v.com/c=a"}},
		Annotations: map[string]string{"cdi.k8s.io/plugin": "v.com/c=a,v.com/c=b"}}
	for allowed, want := range map[bool][]string{false: {"v.com/c=a"}, true: {"v.com/c=a", "v.com/c=b"}} {
		got, err := specMaker{cdiAnnotations: allowed, log: slog.New(slog.DiscardHandler)}.cdiDevices(c)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("annotations %v: %q, %v", allowed, got, err)
		}
	}
	c.CDIDevices[0].Name = "/dev/sda"
	if _, err := (specMaker{}).cdiDevices(c); !errors.Is(err, pod.ErrInvalid) {
		t.Error(err)
	}
	c.CDIDevices, c.Annotations["cdi.k8s.io/plugin"] = nil, "/dev/sda"
	if _, err := (specMaker{cdiAnnotations: true}).cdiDevices(c); !errors.Is(err, pod.ErrInvalid) {
		t.Error(err)
	}
}

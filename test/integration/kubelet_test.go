// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"maps"
	"regexp"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// What a kubelet needs beyond the API's text.

func TestVersionAndStatusSatisfyAKubelet(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{})
	v, err := k.D.Runtime.Version(k.Ctx(), &cri.VersionRequest{Version: "0.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "version", v.Version, "0.1.0")
	equal(t, "API version", v.RuntimeApiVersion, "v1")
	if !onContainerd() {
		equal(t, "runtime name", v.RuntimeName, "berth")
		if !regexp.MustCompile(`^v?\d+\.\d+\.\d+`).MatchString(v.RuntimeVersion) {
			t.Errorf("runtime version %q does not parse: the node would show Unknown", v.RuntimeVersion)
		}
	}
	for _, verbose := range []bool{false, true} {
		s, err := k.D.Runtime.Status(k.Ctx(), &cri.StatusRequest{Verbose: verbose})
		if err != nil {
			t.Fatal(err)
		}
		conditions := map[string]bool{}
		for _, c := range s.Status.Conditions {
			conditions[c.Type] = c.Status
		}
		if !conditions[cri.RuntimeReady] || !conditions[cri.NetworkReady] {
			t.Errorf("conditions are %v", s.Status.Conditions)
		}
		handlers := map[string]*cri.RuntimeHandlerFeatures{}
		for _, h := range s.RuntimeHandlers {
			if handlers[h.Name] != nil {
				t.Errorf("handler %q is listed twice", h.Name)
			}
			handlers[h.Name] = h.Features
		}
		for _, name := range []string{"", "runc"} {
			if handlers[name] == nil || !handlers[name].RecursiveReadOnlyMounts {
				t.Errorf("features of handler %q are %v", name, handlers[name])
			}
		}
		if s.Features == nil {
			t.Error("no features")
		}
		equal(t, "info is there", len(s.Info) > 0, verbose)
		for key, value := range s.Info {
			if key == "config" && !json.Valid([]byte(value)) {
				t.Errorf("info %s is no JSON: %.100s", key, value)
			}
		}
	}
}

func TestRuntimeConfigNamesTheCgroupDriver(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{NoNetwork: true})
	r, err := k.D.Runtime.RuntimeConfig(k.Ctx(), &cri.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "driver", strings.ToLower(r.GetLinux().GetCgroupDriver().String()), k.D.CgroupDriver)
	_, err = k.D.Runtime.UpdateRuntimeConfig(k.Ctx(), &cri.UpdateRuntimeConfigRequest{
		RuntimeConfig: &cri.RuntimeConfig{NetworkConfig: &cri.NetworkConfig{PodCidr: "10.9.0.0/24"}}})
	equal(t, "update of the pod CIDR", err, nil)
}

func TestContainerStatusHasWhatAKubeletReadsBack(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("facts"))
	spec := k.Forever("main")
	spec.Metadata.Attempt = 2
	spec.Image = &cri.ImageSpec{Image: k.Image, UserSpecifiedImage: busyboxRef}
	spec.Labels["Mixed/Case.Key"] = "välue"
	spec.Annotations["io.kubernetes.container.terminationMessagePath"] = "/dev/termination-log"
	spec.Linux.Resources.MemoryLimitInBytes = 32 << 20
	c := p.Start(spec)
	s := c.Status()
	equal(t, "id", s.Id, c.ID)
	equal(t, "name", s.Metadata.Name, "main")
	equal(t, "attempt", s.Metadata.Attempt, 2)
	equal(t, "image ID", s.ImageId, k.Image)
	if s.GetImage().GetImage() == "" || s.ImageRef == "" {
		t.Errorf("image %q, ref %q", s.GetImage().GetImage(), s.ImageRef)
	}
	equal(t, "log path", s.LogPath, c.LogPath())
	if !maps.Equal(s.Labels, spec.Labels) || !maps.Equal(s.Annotations, spec.Annotations) {
		t.Errorf("labels %v, annotations %v", s.Labels, s.Annotations)
	}
	equal(t, "memory limit", s.GetResources().GetLinux().GetMemoryLimitInBytes(), 32<<20)
	r, err := k.D.Runtime.ListContainers(k.Ctx(), &cri.ListContainersRequest{})
	list := kubelet.Must(k, r, err).Containers
	if len(list) != 1 {
		t.Fatalf("%d containers", len(list))
	}
	equal(t, "image ID in the list", list[0].ImageId, k.Image)
	equal(t, "sandbox in the list", list[0].PodSandboxId, p.ID)
	equal(t, "created at", list[0].CreatedAt, s.CreatedAt)
	if !maps.Equal(list[0].Labels, spec.Labels) || !maps.Equal(list[0].Annotations, spec.Annotations) {
		t.Errorf("in the list: labels %v, annotations %v", list[0].Labels, list[0].Annotations)
	}
	verbose, err := k.D.Runtime.ContainerStatus(k.Ctx(), &cri.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if kubelet.Must(k, verbose, err).Info["info"] == "" {
		t.Error("verbose status has no info")
	}
	sandbox, err := k.D.Runtime.PodSandboxStatus(k.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	if kubelet.Must(k, sandbox, err).Info["info"] == "" {
		t.Error("verbose sandbox status has no info")
	}
}

func TestTwoContainersOfOneNameAndAttemptAreRefused(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("names"))
	c := p.Create(k.Forever("main"))
	again, err := p.TryCreate(c.Spec)
	if onContainerd() {
		return
	}
	if err != nil || again.ID != c.ID { // a retry of the same request finds what the first one made
		t.Errorf("the same request again: %v, %v; want %s", again, err, c.ID)
	}
	pod, err := k.TryRunPod(p.Config)
	if err != nil || pod.ID != p.ID {
		t.Errorf("the same sandbox again: %v, %v; want %s", pod, err, p.ID)
	}
}

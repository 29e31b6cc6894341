// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/checkpoint"
)

// fits tells what of a request does not go with a checkpoint.
func fits(from *checkpoint.Pod, r RestorePodRequest) error {
	if from.Handler != r.Handler {
		return fmt.Errorf("the pod was run by runtime handler %q, not %q: %w", from.Handler, r.Handler, ErrState)
	}
	var was runtimeapi.PodSandboxConfig
	if err := lenient.Unmarshal(from.Config, &was); err != nil {
		return fmt.Errorf("sandbox: %w: %w", ErrState, err)
	}
	if !proto.Equal(namespaces(&was), namespaces(r.Config)) {
		return fmt.Errorf("the pod's namespace options were others: %w", ErrState)
	}
	seen := map[string]bool{}
	for _, config := range r.Containers {
		name := config.GetMetadata().GetName()
		n, err := numberOf(from, name)
		if err != nil {
			return err
		}
		if seen[name] {
			return fmt.Errorf("container %q is named twice: %w", name, ErrInvalid)
		}
		seen[name] = true
		var was runtimeapi.ContainerConfig
		if err := lenient.Unmarshal(from.Containers[n].Config, &was); err != nil {
			return fmt.Errorf("container %s: %w: %w", name, ErrState, err)
		}
		if what := difference(&was, config); what != "" {
			return fmt.Errorf("container %s: its %s: the process in the checkpoint has another: %w", name, what, ErrState)
		}
	}
	for _, c := range from.Containers {
		if !seen[c.Name] {
			return fmt.Errorf("container %q of the checkpoint has no configuration: %w", c.Name, ErrInvalid)
		}
	}
	return nil
}

func numberOf(from *checkpoint.Pod, name string) (int, error) {
	for n, c := range from.Containers {
		if c.Name == name {
			return n, nil
		}
	}
	return 0, fmt.Errorf("the checkpoint has no container %q: %w", name, ErrInvalid)
}

// difference names what of a container's configuration is part of the state of its process, so that a checkpoint decides it, and is another now; "": nothing.
// What it does not look at is applied anew.
func difference(was, is *runtimeapi.ContainerConfig) string {
	for _, x := range []struct {
		what string
		same bool
	}{
		{"command", slices.Equal(was.GetCommand(), is.GetCommand())},
		{"args", slices.Equal(was.GetArgs(), is.GetArgs())},
		{"working_dir", was.GetWorkingDir() == is.GetWorkingDir()},
		{"envs", equalEnvs(was.GetEnvs(), is.GetEnvs())},
		{"stdin, stdin_once or tty", was.GetStdin() == is.GetStdin() && was.GetStdinOnce() == is.GetStdinOnce() && was.GetTty() == is.GetTty()},
		{"mounts", equalMounts(was.GetMounts(), is.GetMounts())},
		{"linux.security_context", proto.Equal(was.GetLinux().GetSecurityContext(), is.GetLinux().GetSecurityContext())},
	} {
		if !x.same {
			return x.what
		}
	}
	return ""
}

// equalMounts compares what a process sees of its mounts; where they come from is anew.
func equalMounts(was, is []*runtimeapi.Mount) bool {
	places := func(all []*runtimeapi.Mount) map[string]*runtimeapi.Mount {
		m := make(map[string]*runtimeapi.Mount, len(all))
		for _, x := range all {
			x = proto.CloneOf(x)
			x.HostPath = ""
			m[x.GetContainerPath()] = x
		}
		return m
	}
	return len(was) == len(is) && maps.EqualFunc(places(was), places(is), func(a, b *runtimeapi.Mount) bool { return proto.Equal(a, b) })
}

func equalEnvs(was, is []*runtimeapi.KeyValue) bool {
	return slices.EqualFunc(was, is, func(a, b *runtimeapi.KeyValue) bool { return proto.Equal(a, b) })
}

// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sandboxSecurity(c *runtimeapi.PodSandboxConfig) *runtimeapi.LinuxSandboxSecurityContext {
	c.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}}}
	return c.Linux.SecurityContext
}

func userns(host, length uint32) *runtimeapi.UserNamespace {
	mapping := func() []*runtimeapi.IDMapping { return []*runtimeapi.IDMapping{{HostId: host, Length: length}} }
	return &runtimeapi.UserNamespace{Uids: mapping(), Gids: mapping()}
}

func TestBadSandboxes(t *testing.T) {
	type sandbox = runtimeapi.PodSandboxConfig
	for field, c := range map[string]struct {
		spoil func(*sandbox)
		class error
	}{
		"metadata:":                  {func(c *sandbox) { c.Metadata = nil }, ErrInvalid},
		"metadata.name:":             {func(c *sandbox) { c.Metadata.Name = "" }, ErrInvalid},
		"metadata.namespace:":        {func(c *sandbox) { c.Metadata.Namespace = "a\nb" }, ErrInvalid},
		"metadata.uid:":              {func(c *sandbox) { c.Metadata.Uid = "" }, ErrInvalid},
		"hostname: 65 characters":    {func(c *sandbox) { c.Hostname = strings.Repeat("h", 65) }, ErrInvalid},
		"hostname: \"a/b\"":          {func(c *sandbox) { c.Hostname = "a/b" }, ErrInvalid},
		"hostname: \"a\\nb\"":        {func(c *sandbox) { c.Hostname = "a\nb" }, ErrInvalid},
		"log_directory: \"logs\"":    {func(c *sandbox) { c.LogDirectory = "logs" }, ErrInvalid},
		"log_directory: \"/a\\x00\"": {func(c *sandbox) { c.LogDirectory = "/a\x00" }, ErrInvalid},
		"dns_config.servers[1]": {func(c *sandbox) {
			c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.1", "1.1.1.1\nsearch x"}}
		}, ErrInvalid},
		"dns_config.options[0]":                  {func(c *sandbox) { c.DnsConfig = &runtimeapi.DNSConfig{Options: []string{""}} }, ErrInvalid},
		"port_mappings[0]:":                      {func(c *sandbox) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 65536}} }, ErrInvalid},
		"port_mappings[0].protocol":              {func(c *sandbox) { c.PortMappings = []*runtimeapi.PortMapping{{Protocol: 9}} }, ErrInvalid},
		"windows":                                {func(c *sandbox) { c.Windows = &runtimeapi.WindowsPodSandboxConfig{} }, ErrInvalid},
		"namespace_options.pid: mode 9":          {func(c *sandbox) { sandboxSecurity(c).NamespaceOptions.Pid = 9 }, ErrInvalid},
		"namespace_options.pid: TARGET":          {func(c *sandbox) { sandboxSecurity(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET }, ErrInvalid},
		"namespace_options.network: is CONTAINE": {func(c *sandbox) { sandboxSecurity(c).NamespaceOptions.Network = runtimeapi.NamespaceMode_CONTAINER }, ErrInvalid},
		"userns_options.uids: there are 0":       {func(c *sandbox) { sandboxSecurity(c).NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{} }, ErrInvalid},
		"userns_options.mode: is TARGET": {func(c *sandbox) {
			sandboxSecurity(c).NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_TARGET}
		}, ErrInvalid},
		"userns_options: mode NODE takes no": {func(c *sandbox) {
			u := userns(65536, 65536)
			u.Mode = runtimeapi.NamespaceMode_NODE
			sandboxSecurity(c).NamespaceOptions.UsernsOptions = u
		}, ErrInvalid},
		"userns_options: a pod with a user namespace cannot share the host's PID": {func(c *sandbox) {
			sandboxSecurity(c).NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE, UsernsOptions: userns(65536, 65536)}
		}, ErrInvalid},
		"userns_options: a pod with a user namespace cannot share the host's IPC": {func(c *sandbox) {
			sandboxSecurity(c).NamespaceOptions = &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE, UsernsOptions: userns(65536, 65536)}
		}, ErrInvalid},
		"userns_options.uids: is empty": {func(c *sandbox) { sandboxSecurity(c).NamespaceOptions.UsernsOptions = userns(65536, 0) }, ErrInvalid},
		"userns_options.uids: 2 IDs from 4294967294 of the host": {func(c *sandbox) {
			sandboxSecurity(c).NamespaceOptions.UsernsOptions = userns(4294967294, 2)
		}, ErrInvalid},
		"userns_options.gids: there are 2": {func(c *sandbox) {
			u := userns(65536, 65536)
			u.Gids = append(u.Gids, &runtimeapi.IDMapping{HostId: 1, ContainerId: 65536, Length: 1})
			sandboxSecurity(c).NamespaceOptions.UsernsOptions = u
		}, ErrInvalid},
		"userns_options.gids: begins at ID 1": {func(c *sandbox) {
			u := userns(65536, 65536)
			u.Gids[0].ContainerId = 1
			sandboxSecurity(c).NamespaceOptions.UsernsOptions = u
		}, ErrInvalid},
		"security_context.run_as_group": {func(c *sandbox) { sandboxSecurity(c).RunAsGroup = &runtimeapi.Int64Value{} }, ErrInvalid},
		"security_context.seccomp.localhost_ref": {func(c *sandbox) {
			sandboxSecurity(c).Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		}, ErrInvalid},
		"linux.overhead.cpu_shares":              {func(c *sandbox) { c.Linux = &runtimeapi.LinuxPodSandboxConfig{Overhead: &res{CpuShares: -1}} }, ErrInvalid},
		"linux.resources.memory_limit_in_bytes:": {func(c *sandbox) { c.Linux = &runtimeapi.LinuxPodSandboxConfig{Resources: &res{MemoryLimitInBytes: -5}} }, ErrInvalid},
	} {
		in := ordinaryInput()
		if err := ValidateSandbox(in.Sandbox); err != nil {
			t.Fatal(err)
		}
		c.spoil(in.Sandbox)
		if err := ValidateSandbox(in.Sandbox); !errors.Is(err, c.class) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := ValidateSandbox(nil); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestBadContainers(t *testing.T) {
	type container = runtimeapi.ContainerConfig
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
		return &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
	}
	mount := func(m *runtimeapi.Mount) func(*container) {
		return func(c *container) { c.Mounts = []*runtimeapi.Mount{m} }
	}
	imageMount := func(spoil func(*runtimeapi.Mount)) func(*container) {
		m := &runtimeapi.Mount{ContainerPath: "/c", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "i"}}
		spoil(m)
		return mount(m)
	}
	device := func(d *runtimeapi.Device) func(*container) {
		return func(c *container) { c.Devices = []*runtimeapi.Device{d} }
	}
	env := func(key, value string) func(*container) {
		return func(c *container) { c.Envs = []*runtimeapi.KeyValue{{Key: key, Value: []byte(value)}} }
	}
	security := func(spoil func(*runtimeapi.LinuxContainerSecurityContext)) func(*container) {
		return func(c *container) { spoil(c.Linux.SecurityContext) }
	}
	type sc = *runtimeapi.LinuxContainerSecurityContext
	for _, c := range []struct {
		want  string
		spoil func(*container)
		class error
	}{
		{"metadata:", func(c *container) { c.Metadata = nil }, ErrInvalid},
		{"metadata.name:", func(c *container) { c.Metadata.Name = "a\nb" }, ErrInvalid},
		{"image.image:", func(c *container) { c.Image = nil }, ErrInvalid},
		{"working_dir", func(c *container) { c.WorkingDir = "here" }, ErrInvalid},
		{"windows", func(c *container) { c.Windows = &runtimeapi.WindowsContainerConfig{} }, ErrInvalid},
		{"stop_signal", func(c *container) { c.StopSignal = 999 }, ErrInvalid},
		{"log_path", func(c *container) { c.LogPath = "/abs" }, ErrInvalid},
		{"log_path", func(c *container) { c.LogPath = "a/../../x" }, ErrInvalid},
		{"log_path", func(c *container) { c.LogPath = ".." }, ErrInvalid},
		{"log_path", func(c *container) { c.LogPath = "a\x00" }, ErrInvalid},
		{"envs[0]: the key is empty", env("", "x"), ErrInvalid},
		{"envs[0]: key \"A=B\"", env("A=B", "x"), ErrInvalid},
		{"envs[0]: key", env("A\x00", "x"), ErrInvalid},
		{"envs[0]: the value of A", env("A", "secret\x00"), ErrInvalid},
		{"mounts[0].container_path", mount(&runtimeapi.Mount{HostPath: "/h"}), ErrInvalid},
		{"mounts[0].container_path", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "relative"}), ErrInvalid},
		{"mounts[0].container_path", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/a/../"}), ErrInvalid},
		{"mounts[0].host_path", mount(&runtimeapi.Mount{HostPath: "h", ContainerPath: "/c"}), ErrInvalid},
		{"mounts[0].propagation", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c", Propagation: 7}), ErrInvalid},
		{"mounts[0].recursive_read_only", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c", RecursiveReadOnly: true}), ErrInvalid},
		{"mounts[0].recursive_read_only", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c", Readonly: true, RecursiveReadOnly: true, Propagation: 1}), ErrInvalid},
		{"mounts[0].mount_options[1]", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c", MountOptions: []string{"noexec", "exec"}}), ErrInvalid},
		{"mounts[0].mount_options[0]", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c", MountOptions: []string{"rw"}}), ErrInvalid},
		{"mounts[0].mount_options[0]", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c", MountOptions: []string{"rshared"}}), ErrInvalid},
		{"mounts[0].readonly", imageMount(func(m *runtimeapi.Mount) { m.Readonly = false }), ErrInvalid},
		{"mounts[0].image.image", imageMount(func(m *runtimeapi.Mount) { m.Image.Image = "" }), ErrInvalid},
		{"mounts[0]: host_path and image", imageMount(func(m *runtimeapi.Mount) { m.HostPath = "/h" }), ErrInvalid},
		{"mounts[0].propagation", imageMount(func(m *runtimeapi.Mount) { m.Propagation = 1 }), ErrInvalid},
		{"mounts[0].image_sub_path", imageMount(func(m *runtimeapi.Mount) { m.ImageSubPath = "a/../../etc" }), ErrInvalid},
		{"mounts[0].image_sub_path", imageMount(func(m *runtimeapi.Mount) { m.ImageSubPath = "/etc" }), ErrInvalid},
		{"mounts[0]: has 1 uidMappings", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c",
			UidMappings: []*runtimeapi.IDMapping{{Length: 1}}}), ErrInvalid},
		{"mounts[0].gidMappings[0]", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c",
			UidMappings: []*runtimeapi.IDMapping{{Length: 1}}, GidMappings: []*runtimeapi.IDMapping{{HostId: 7}}}), ErrInvalid},
		{"mounts[0].image_sub_path", mount(&runtimeapi.Mount{HostPath: "/h", ContainerPath: "/c", ImageSubPath: "x"}), ErrInvalid},
		{"devices[0].host_path", device(&runtimeapi.Device{HostPath: "null", ContainerPath: "/dev/x", Permissions: "r"}), ErrInvalid},
		{"devices[0].container_path", device(&runtimeapi.Device{HostPath: "/dev/null", Permissions: "r"}), ErrInvalid},
		{"devices[0].permissions", device(&runtimeapi.Device{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rx"}), ErrInvalid},
		{"exclude each other", security(func(s sc) { s.RunAsUser, s.RunAsUsername = &runtimeapi.Int64Value{}, "u" }), ErrInvalid},
		{"run_as_group", security(func(s sc) { s.RunAsGroup = &runtimeapi.Int64Value{} }), ErrInvalid},
		{"run_as_user", security(func(s sc) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 32} }), ErrInvalid},
		{"supplemental_groups[1]", security(func(s sc) { s.SupplementalGroups = []int64{0, -1} }), ErrInvalid},
		{"supplemental_groups_policy", security(func(s sc) { s.SupplementalGroupsPolicy = 5 }), ErrInvalid},
		{"masked_paths[0]", security(func(s sc) { s.MaskedPaths = []string{"proc"} }), ErrInvalid},
		{"readonly_paths[0]", security(func(s sc) { s.ReadonlyPaths = []string{"/a\x00"} }), ErrInvalid},
		{"apparmor.profile_type", security(func(s sc) { s.Apparmor = profile(9, "") }), ErrInvalid},
		{"apparmor.localhost_ref", security(func(s sc) { s.Apparmor = profile(runtimeapi.SecurityProfile_Localhost, "") }), ErrInvalid},
		{"apparmor_profile", security(func(s sc) { s.ApparmorProfile = "mine" }), ErrInvalid}, //nolint:staticcheck // deprecated fields are refused
		{"seccomp.localhost_ref", security(func(s sc) { s.Seccomp = profile(runtimeapi.SecurityProfile_Unconfined, "x") }), ErrInvalid},
		{"seccomp_profile_path", security(func(s sc) { s.SeccompProfilePath = "runtime/default" }), ErrInvalid}, //nolint:staticcheck // deprecated fields are refused
		{"namespace_options.network", security(func(s sc) { s.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE }), ErrInvalid},
		{"namespace_options.ipc", security(func(s sc) { s.NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE }), ErrInvalid},
		{"namespace_options.target_id", security(func(s sc) { s.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET }), ErrInvalid},
		{"namespace_options.target_id", security(func(s sc) { s.NamespaceOptions.TargetId = "c2" }), ErrInvalid},
		{"userns_options: a user namespace of the pod, but the sandbox has the host's", security(func(s sc) {
			s.NamespaceOptions.UsernsOptions = userns(65536, 65536)
		}), ErrInvalid},
	} {
		in := ordinaryInput()
		if err := ValidateContainer(in.Container, in.Sandbox); err != nil {
			t.Fatal(err)
		}
		c.spoil(in.Container)
		err := ValidateContainer(in.Container, in.Sandbox)
		if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", c.want, err)
		}
		if _, err := Generate(in); !errors.Is(err, c.class) {
			t.Errorf("%s: Generate made a spec of it: %v", c.want, err)
		}
	}
	if err := ValidateContainer(nil, nil); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

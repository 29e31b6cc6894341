// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// withUsers pulls an image with these users and groups, and returns its ID.
func withUsers(t *testing.T, k *kubelet.Kubelet, name, user string, files map[string]string) string {
	t.Helper()
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	var users registry.Tree
	for path, text := range files {
		users.File(path, []byte(text), 0o644)
	}
	im := registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{tree, users}, Config: v1.Config{User: user, Env: []string{"PATH=" + registry.Path}}})
	ref, _ := images.MustPush(t, name, im)
	return k.Pull(ref)
}

func TestWhoAContainerRunsAsIsResolvedAndReported(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\n1234:x:0:0::/:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:1000:\nusers:x:100:app,www\nmore:x:101:www\n777:x:0:\n",
	}
	p := k.RunPod(k.PodConfig("identity"))
	strict := func(c *cri.LinuxContainerSecurityContext) {
		c.SupplementalGroups, c.SupplementalGroupsPolicy = []int64{4242}, cri.SupplementalGroupsPolicy_Strict
	}
	for i, c := range []struct {
		image string
		edit  func(*cri.LinuxContainerSecurityContext)
		want  string // uid gid groups
	}{
		{"", func(*cri.LinuxContainerSecurityContext) {}, "0 0 [0]"},
		{"www", func(*cri.LinuxContainerSecurityContext) {}, "33 34 [34 100 101]"},
		{"33", func(*cri.LinuxContainerSecurityContext) {}, "33 34 [34 100 101]"},
		{"1003:100", func(*cri.LinuxContainerSecurityContext) {}, "1003 100 [100]"},
		{"www:users", func(*cri.LinuxContainerSecurityContext) {}, "33 100 [100 101]"},
		{"1234", func(*cri.LinuxContainerSecurityContext) {}, "1234 0 [0]"},
		{"33:777", func(*cri.LinuxContainerSecurityContext) {}, "33 777 [100 101 777]"},
		{"www", func(c *cri.LinuxContainerSecurityContext) { c.RunAsUser = &cri.Int64Value{Value: 1000} }, "1000 1000 [100 1000]"},
		{"www", func(c *cri.LinuxContainerSecurityContext) { c.RunAsUsername = "app" }, "1000 1000 [100 1000]"},
		{"www", func(c *cri.LinuxContainerSecurityContext) {
			c.RunAsUser, c.RunAsGroup = &cri.Int64Value{Value: 1000}, &cri.Int64Value{Value: 5}
		}, "1000 5 [5 100]"},
		{"www", func(c *cri.LinuxContainerSecurityContext) { c.SupplementalGroups = []int64{4242} }, "33 34 [34 100 101 4242]"},
		{"www", strict, "33 34 [34 4242]"},
	} {
		spec := k.Forever(fmt.Sprintf("c%d", i))
		spec.Image.Image = withUsers(t, k, fmt.Sprintf("users%d:1", i), c.image, files)
		c.edit(spec.Linux.SecurityContext)
		made := p.Start(spec)
		u := made.Status().GetUser().GetLinux()
		groups := strings.ReplaceAll(strings.Trim(c.want[strings.Index(c.want, "["):], "[]"), " ", "\n")
		if !onContainerd() { // which reports the group twice, or not at all
			equal(t, "status of "+c.want, fmt.Sprint(u.GetUid(), u.GetGid(), u.GetSupplementalGroups()), c.want)
		}
		equal(t, "groups of "+c.want, made.Exec(`id -G | tr " " "\n" | sort -n | uniq`), groups)
		equal(t, "process of "+c.want, made.Exec("echo $(id -u) $(id -g)"), strings.Join(strings.Fields(c.want)[:2], " "))
	}
}

func TestCapabilitiesAreThoseAskedForAndNeverInherited(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := privilegedPod(k, "caps")
	const netAdmin, chown = 1 << 12, 1 << 0
	for name, c := range map[string]struct {
		edit     func(*cri.ContainerConfig)
		has, not uint64
	}{
		"default":  {func(*cri.ContainerConfig) {}, chown, netAdmin},
		"added":    {capabilities("NET_ADMIN", ""), chown | netAdmin, 0},
		"prefixed": {capabilities("cap_net_admin", ""), chown | netAdmin, 0},
		"dropped":  {capabilities("", "CHOWN"), 0, chown | netAdmin},
		"all":      {capabilities("ALL", ""), chown | netAdmin, 0},
		"none":     {capabilities("", "ALL"), 0, chown | netAdmin},
		"one":      {capabilities("NET_ADMIN", "ALL"), netAdmin, chown},
		"privileged": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{Privileged: true, NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}
		}, chown | netAdmin, 0},
	} {
		spec := k.Forever(name)
		c.edit(spec)
		made := p.Start(spec)
		for what, script := range map[string]string{"init": "cat /proc/1/status", "exec": "cat /proc/self/status"} {
			text := made.Exec(script)
			contains(t, name+" "+what, text, "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000")
			for _, set := range []string{"CapEff", "CapPrm", "CapBnd"} {
				_, rest, _ := strings.Cut(text, set+":")
				var bits uint64
				if _, err := fmt.Sscanf(rest, "%x", &bits); err != nil || bits&c.has != c.has || bits&c.not != 0 {
					t.Errorf("%s %s: %s is %x, %v", name, what, set, bits, err)
				}
			}
		}
	}
	if onContainerd() {
		return
	}
	spec := k.Forever("ambient")
	spec.Linux.SecurityContext.Capabilities = &cri.Capability{AddAmbientCapabilities: []string{"NET_ADMIN"}}
	_, err := p.TryCreate(spec)
	wantError(t, err, invalid, "add_ambient_capabilities")
}

func capabilities(add, drop string) func(*cri.ContainerConfig) {
	return func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: strings.Fields(add), DropCapabilities: strings.Fields(drop)}
	}
}

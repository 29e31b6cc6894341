// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// otherDriversParent is what a kubelet sends that uses the other cgroup driver.
func otherDriversParent(k *kubelet.Kubelet) string {
	if k.D.CgroupDriver == cgroup.Systemd {
		return "/kubepods/pod1"
	}
	return "/kubepods.slice/kubepods-pod1.slice"
}

// Each malformed request gets the right code and a text that names stage and object, leaves nothing behind,
// and does not disturb the next correct request.

func TestMalformedSandboxesAreRefused(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := start(t, daemon.Spec{})
	for name, c := range map[string]struct {
		edit    func(*cri.PodSandboxConfig)
		handler string
		codes   []codes.Code
		text    []string
	}{
		"no metadata":     {func(c *cri.PodSandboxConfig) { c.Metadata = nil }, "", invalid, []string{"metadata"}},
		"no name":         {func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" }, "", invalid, []string{"name"}},
		"no namespace":    {func(c *cri.PodSandboxConfig) { c.Metadata.Namespace = "" }, "", invalid, []string{"namespace"}},
		"no uid":          {func(c *cri.PodSandboxConfig) { c.Metadata.Uid = "" }, "", invalid, []string{"uid"}},
		"unknown handler": {func(*cri.PodSandboxConfig) {}, "warp", append(invalid, codes.NotFound), []string{"warp", "handler"}},
		"cgroup parent that climbs": {func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = "/../../etc" },
			"", invalid, []string{"cgroup", "/../../etc"}},
		"cgroup parent of the other driver": {func(c *cri.PodSandboxConfig) { c.Linux.CgroupParent = otherDriversParent(k) },
			"", invalid, []string{"cgroup", otherDriversParent(k), "does the kubelet use"}},
		"sysctl that is not the pod's": {func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} },
			"", invalid, []string{"sysctl", "vm.swappiness"}},
		"sysctl that does not exist": {func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.warp": "1"} },
			"", append(invalid, failures...), []string{"sysctl", "net.ipv4.warp"}},
		"sysctl with a path": {func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net/../../kernel/panic": "1"} },
			"", invalid, []string{"sysctl"}},
		"sysctl with a bad value": {func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "many"} },
			"", append(invalid, failures...), []string{"sysctl", "kernel.shm_rmid_forced"}},
		"net sysctl with the host's network": {func(c *cri.PodSandboxConfig) {
			c.Hostname = ""
			c.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1024"}
		}, "", invalid, []string{"sysctl", "net.core.somaxconn"}},
		"hostname too long": {func(c *cri.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) }, "", append(invalid, failures...), []string{"hostname"}},
		"port out of range": {func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{ContainerPort: 70000, HostPort: 12345}}
		}, "", invalid, []string{"port", "70000"}},
		"host IP that is none": {func(c *cri.PodSandboxConfig) {
			c.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 12345, HostIp: "nowhere"}}
		}, "", append(invalid, failures...), []string{"nowhere"}},
		"relative log folder": {func(c *cri.PodSandboxConfig) { c.LogDirectory = "logs/here" }, "", invalid, []string{"log", "logs/here"}},
	} {
		t.Run(name, func(t *testing.T) {
			k := k.For(t)
			config := k.PodConfig("bad")
			c.edit(config)
			r, err := k.D.Runtime.RunPodSandbox(k.Ctx(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: c.handler})
			wantError(t, err, c.codes, c.text...)
			if err == nil {
				(&kubelet.Pod{Kubelet: k, ID: r.PodSandboxId, Config: config}).Remove()
			}
			list, err := k.D.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{})
			if n := len(kubelet.Must(k, list, err).Items); n != 0 {
				t.Errorf("%d sandboxes are listed", n)
			}
			k.RunPod(k.PodConfig("good")).Remove()
		})
	}
	_, err := k.D.Runtime.RunPodSandbox(k.Ctx(), &cri.RunPodSandboxRequest{})
	wantError(t, err, invalid, "config")
}

func TestMalformedContainersAreRefused(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("host"))
	unknown := strings.Repeat("5e", 32)
	mount := func(m *cri.Mount) func(*cri.CreateContainerRequest) {
		return func(r *cri.CreateContainerRequest) { r.Config.Mounts = []*cri.Mount{m} }
	}
	for name, c := range map[string]struct {
		edit  func(*cri.CreateContainerRequest)
		codes []codes.Code
		text  []string
	}{
		"no config":        {func(r *cri.CreateContainerRequest) { r.Config = nil }, invalid, []string{"config"}},
		"no metadata":      {func(r *cri.CreateContainerRequest) { r.Config.Metadata = nil }, invalid, []string{"metadata"}},
		"no name":          {func(r *cri.CreateContainerRequest) { r.Config.Metadata.Name = "" }, invalid, []string{"name"}},
		"no image":         {func(r *cri.CreateContainerRequest) { r.Config.Image = nil }, invalid, []string{"image"}},
		"unknown image":    {func(r *cri.CreateContainerRequest) { r.Config.Image.Image = "127.0.0.1:1/none:1" }, append(failures, codes.NotFound), []string{"127.0.0.1:1/none:1"}},
		"no sandbox":       {func(r *cri.CreateContainerRequest) { r.PodSandboxId = "" }, missing, []string{"sandbox"}},
		"unknown sandbox":  {func(r *cri.CreateContainerRequest) { r.PodSandboxId = unknown }, notFound, []string{"sandbox", unknown}},
		"sandbox is a way": {func(r *cri.CreateContainerRequest) { r.PodSandboxId = "../../etc" }, missing, []string{"sandbox"}},
		"no such mount source": {mount(&cri.Mount{HostPath: "/no/such/source", ContainerPath: "/m"}),
			append(invalid, append(failures, codes.NotFound)...), []string{"mount", "/no/such/source"}},
		"mount without a source":      {mount(&cri.Mount{ContainerPath: "/m"}), invalid, []string{"mount", "/m"}},
		"mount without a destination": {mount(&cri.Mount{HostPath: "/tmp"}), invalid, []string{"mount", "/tmp"}},
		"relative mount source":       {mount(&cri.Mount{HostPath: "tmp", ContainerPath: "/m"}), append(invalid, failures...), []string{"mount", "tmp"}},
		"recursive read-only mount that is writable": {mount(&cri.Mount{HostPath: "/tmp", ContainerPath: "/m", RecursiveReadOnly: true}),
			invalid, []string{"mount", "/m"}},
		"log path that climbs": {func(r *cri.CreateContainerRequest) { r.Config.LogPath = "../../../log" }, invalid, []string{"log", "../../../log"}},
		"no log folder": {func(r *cri.CreateContainerRequest) { r.Config.LogPath = "not/there.log" },
			append(invalid, append(failures, codes.NotFound)...), []string{"log", "not"}},
		"unknown capability": {func(r *cri.CreateContainerRequest) {
			r.Config.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"CAP_WARP"}}
		}, append(invalid, failures...), []string{"WARP"}},
		"unknown user name": {func(r *cri.CreateContainerRequest) {
			r.Config.Linux.SecurityContext.RunAsUsername = "nobody-here"
		}, append(invalid, failures...), []string{"nobody-here"}},
		"group without user": {func(r *cri.CreateContainerRequest) {
			r.Config.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 7}
		}, invalid, []string{"group"}},
		"no such device": {func(r *cri.CreateContainerRequest) {
			r.Config.Devices = []*cri.Device{{HostPath: "/dev/warp", ContainerPath: "/dev/warp", Permissions: "rwm"}}
		}, append(invalid, failures...), []string{"device", "/dev/warp"}},
		"no such seccomp profile": {func(r *cri.CreateContainerRequest) {
			r.Config.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile.json"}
		}, append(invalid, failures...), []string{"seccomp", "/no/such/profile.json"}},
		"unknown target": {func(r *cri.CreateContainerRequest) {
			r.Config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: unknown}
		}, append(missing, failures...), []string{unknown}},
	} {
		t.Run(name, func(t *testing.T) {
			k := k.For(t)
			good := k.Shell("good", "exit 0")
			if err := os.MkdirAll(filepath.Join(p.Config.LogDirectory, "bad"), 0o755); err != nil {
				t.Fatal(err)
			}
			r := &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: k.Forever("bad"), SandboxConfig: p.Config}
			c.edit(r)
			made, err := k.D.Runtime.CreateContainer(k.Ctx(), r)
			wantError(t, err, c.codes, c.text...)
			if err == nil { // some faults could only show at the start
				k.D.Runtime.RemoveContainer(k.Ctx(), &cri.RemoveContainerRequest{ContainerId: made.ContainerId})
			}
			next := (&kubelet.Pod{Kubelet: k, ID: p.ID, Config: p.Config}).Start(good)
			equal(t, "exit code of the next", next.WaitExit().ExitCode, 0)
			next.Remove()
		})
	}
	p.Stop()
	_, err := p.TryCreate(k.Forever("late"))
	wantError(t, err, failures, "sandbox", p.ID)
}

func TestUnknownAndMalformedIDsAreNamed(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := start(t, daemon.Spec{NoNetwork: true})
	ctx, r := k.Ctx(), k.D.Runtime
	for _, id := range []string{strings.Repeat("77", 32), "../../../etc/passwd", "", "a/b", strings.Repeat("x", 5000), "\x00"} {
		named := id
		if len(id) > 100 || id == "" || id == "\x00" {
			named = "id"
		}
		for name, call := range map[string]func() error{
			"PodSandboxStatus": func() error {
				_, err := r.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
				return err
			},
			"ContainerStatus": func() error {
				_, err := r.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
				return err
			},
			"StartContainer": func() error { _, err := r.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); return err },
			"ExecSync": func() error {
				_, err := r.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
				return err
			},
			"ReopenContainerLog": func() error {
				_, err := r.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: id})
				return err
			},
			"UpdateContainerResources": func() error {
				_, err := r.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: &cri.LinuxContainerResources{CpuShares: 2}})
				return err
			},
		} {
			t.Run(fmt.Sprintf("%s of %.10q", name, id), func(t *testing.T) {
				wantError(t, call(), missing, named)
			})
		}
	}
}

func TestContainersInTheWrongStateAreRefused(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("states"))
	c := p.Start(k.Forever("running"))
	if err := c.TryStart(); err != nil { // a retry after a lost answer is no error
		t.Error(err)
	}
	c.Stop(0)
	wantError(t, c.TryStart(), wrong, c.ID, "exited")
	_, err := k.D.Runtime.UpdateContainerResources(k.Ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: c.ID,
		Linux: &cri.LinuxContainerResources{CpuShares: 2}})
	wantError(t, err, wrong, c.ID, "exited")
	created := p.Create(k.Forever("created"))
	p.Stop()
	wantError(t, created.TryStart(), wrong, created.ID)
	created.Stop(1)
	created.Remove()
}

func TestFaultyRegistriesAreNamed(t *testing.T) {
	t.Parallel()
	reg := registry.Start(t)
	k := start(t, daemon.Spec{NoNetwork: true})
	// Each case has an image of its own: what an earlier one fetched must not help it. These stand for its references.
	const tag, byDigest, wrongDigest = "TAG", "DIGEST", "WRONG"
	any := []codes.Code{codes.Unknown, codes.Internal, codes.Unavailable, codes.NotFound, codes.DataLoss, codes.FailedPrecondition,
		codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.ResourceExhausted, codes.DeadlineExceeded}
	seed := uint64(100)
	for name, c := range map[string]struct {
		ref   string
		fault *registry.Fault
		codes []codes.Code
		text  []string
	}{
		"bad reference":        {ref: "UPPER/Case:::", codes: invalid, text: []string{"UPPER/Case:::"}},
		"empty reference":      {ref: "", codes: invalid, text: []string{"image"}},
		"bad digest":           {ref: "127.0.0.1:1/a@sha256:12", codes: invalid, text: []string{"sha256:12"}},
		"nobody listens":       {ref: "127.0.0.1:1/a:1", codes: any, text: []string{"127.0.0.1:1/a:1", "refused"}},
		"unknown tag":          {ref: tag + "-none", codes: notFound, text: []string{tag + "-none"}},
		"unknown digest":       {ref: wrongDigest, codes: notFound, text: []string{wrongDigest}},
		"401":                  {ref: tag, fault: &registry.Fault{Do: registry.Status(401, 0)}, codes: any, text: []string{tag, "401"}},
		"403":                  {ref: tag, fault: &registry.Fault{Match: "/manifests/", Do: registry.Status(403, 0)}, codes: any, text: []string{tag, "403"}},
		"404 of a layer":       {ref: tag, fault: &registry.Fault{Match: "GET /v2/app/blobs/", Do: registry.Status(404, 0)}, codes: any, text: []string{tag, "not found"}},
		"429 for ever":         {ref: tag, fault: &registry.Fault{Match: "/manifests/", Do: registry.Status(429, 1)}, codes: any, text: []string{tag, "429"}},
		"500 for ever":         {ref: tag, fault: &registry.Fault{Match: "/manifests/", Do: registry.Status(500, 0)}, codes: any, text: []string{tag, "500"}},
		"500 for each layer":   {ref: tag, fault: &registry.Fault{Match: "GET /v2/app/blobs/", Do: registry.Status(500, 0)}, codes: any, text: []string{tag, "500"}},
		"corrupt blobs":        {ref: tag, fault: &registry.Fault{Match: "GET /v2/app/blobs/", Do: registry.Corrupt}, codes: any, text: []string{tag, "digest"}},
		"manifest of another":  {ref: byDigest, fault: &registry.Fault{Match: "GET /v2/app/manifests/", Do: registry.Corrupt}, codes: any, text: []string{byDigest}},
		"connection is reset":  {ref: tag, fault: &registry.Fault{Match: "GET /v2/app/blobs/", Do: registry.Reset(100)}, codes: any, text: []string{tag}},
		"manifest that stalls": {ref: tag, fault: &registry.Fault{Match: "/manifests/", Do: registry.Stall(time.Minute)}, codes: any, text: []string{tag}},
		"layer that stalls":    {ref: tag, fault: &registry.Fault{Match: "GET /v2/app/blobs/", Do: registry.StallBody(100, time.Minute)}, codes: any, text: []string{tag, "2s"}},
	} {
		t.Run(name, func(t *testing.T) {
			if onContainerd() && (c.fault != nil || len(c.codes) == 1) {
				t.Skip("containerd behaves differently here")
			}
			k := k.For(t)
			seed++
			tag, byDigest := reg.MustPush(t, fmt.Sprintf("app:%d", seed), registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{registry.Files("d", 10, 20000, seed)}}))
			fill := strings.NewReplacer("TAG", tag, "DIGEST", byDigest, "WRONG", byDigest[:strings.Index(byDigest, "@")]+"@sha256:"+strings.Repeat("0", 64))
			c.ref = fill.Replace(c.ref)
			for i := range c.text {
				c.text[i] = fill.Replace(c.text[i])
			}
			heal := func() {}
			if c.fault != nil {
				heal = reg.Inject(*c.fault)
			}
			defer heal()
			begin := time.Now()
			_, err := k.D.Images.PullImage(k.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: c.ref}})
			wantError(t, err, c.codes, c.text...)
			if took := time.Since(begin); took > 45*time.Second {
				t.Errorf("the error took %s", took)
			}
			heal()
			k.Pull(tag)
			removeImage(k, tag)
		})
	}
}

// script makes a program and returns its folder.
func script(t *testing.T, name, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// previous reads the result of the plugin before, which a plugin that adds nothing must pass on: libcni sorts the keys.
const previous = `prev=$(sed 's/.*"prevResult":\(.*\),"type":"[a-z]*"}$/\1/')`

func TestACNIPluginThatFailsIsNamedAndUndone(t *testing.T) {
	t.Parallel()
	// The first plugin of the list succeeds, so its work must be undone.
	dir := script(t, "broken", previous+`
case $CNI_COMMAND in
ADD) [ -e "$0.healed" ] || { echo '{"cniVersion":"1.1.0","code":77,"msg":"warp core breach","details":"deck 9"}'; exit 1; };
  echo "$prev" ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac`)
	k := start(t, daemon.Spec{CNIBin: dir, NoNetwork: true})
	conf := strings.Replace(k.D.Conflist(), `{"type": "portmap"`, `{"type": "broken"}, {"type": "portmap"`, 1)
	if err := k.D.WriteConflist(conf); err != nil {
		t.Fatal(err)
	}
	if err := k.D.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		k := k.For(t)
		_, err := k.TryRunPod(k.PodConfig("breach"))
		wantError(t, err, failures, "warp core breach", "network", k.D.Network)
	}
	if err := k.D.WriteConflist(k.D.Conflist()); err != nil {
		t.Fatal(err)
	}
	kubelet.Eventually(t, 5*time.Second, func() string {
		p, err := k.TryRunPod(k.PodConfig("fine"))
		if err != nil {
			return err.Error()
		}
		p.Remove()
		return ""
	})
}

func TestACNIPluginThatHangsHoldsUpOnlyItsPod(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	dir := script(t, "slow", previous+`
case $CNI_COMMAND in
ADD) case $CNI_ARGS in *K8S_POD_NAME=stuck*) sleep 3 ;; *K8S_POD_NAME=hung*) exec sleep 1000 ;; esac; echo "$prev" ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac`)
	k := start(t, daemon.Spec{CNIBin: dir, NoNetwork: true})
	conf := strings.Replace(k.D.Conflist(), `{"type": "portmap"`, `{"type": "slow"}, {"type": "portmap"`, 1)
	if err := k.D.WriteConflist(conf); err != nil {
		t.Fatal(err)
	}
	if err := k.D.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	config := k.PodConfig("stuck")
	short, cancel := context.WithTimeout(k.Ctx(), 500*time.Millisecond)
	defer cancel()
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := k.D.Runtime.RunPodSandbox(short, &cri.RunPodSandboxRequest{Config: config})
	wantError(t, err, []codes.Code{codes.DeadlineExceeded})
	begin := time.Now()
	k.RunPod(k.PodConfig("other")).Remove()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("another pod waited %s", took)
	}
	p := k.RunPod(config) // the retry joins what is under way
	list, err := k.D.Runtime.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{})
	if items := kubelet.Must(k, list, err).Items; len(items) != 1 || items[0].Id != p.ID {
		t.Errorf("sandboxes are %v, want %s alone", items, p.ID)
	}
	k = k.For(t)
	begin = time.Now()
	_, err = k.TryRunPod(k.PodConfig("hung"))
	wantError(t, err, append(failures, codes.DeadlineExceeded), "network", "slow ADD", "no answer within")
	if took := time.Since(begin); took > 12*time.Second {
		t.Errorf("a plugin with a limit of 8 s held its pod for %s", took)
	}
}

func TestACNIPluginThatFailsToDeleteHoldsBackNothingElse(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	dir := script(t, "stubborn", previous+`
case $CNI_COMMAND in
DEL) [ -e "$0.healed" ] || { echo '{"cniVersion":"1.1.0","code":78,"msg":"will not let go"}'; exit 1; } ;;
ADD) echo "$prev" ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac`)
	k := node(t, daemon.Spec{CNIBin: dir, NoNetwork: true})
	conf := strings.Replace(k.D.Conflist(), `{"type": "portmap"`, `{"type": "stubborn"}, {"type": "portmap"`, 1)
	if err := k.D.WriteConflist(conf); err != nil {
		t.Fatal(err)
	}
	if err := k.D.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	p := k.RunPod(k.PodConfig("held"))
	c := p.Start(k.Forever("main"))
	_, err := k.D.Runtime.StopPodSandbox(k.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
	wantError(t, err, failures, "will not let go", "stubborn")
	equal(t, "container", c.Status().State, cri.ContainerState_CONTAINER_EXITED)
	equal(t, "sandbox", p.Status().State, cri.PodSandboxState_SANDBOX_NOTREADY)
	if err := os.WriteFile(filepath.Join(dir, "stubborn.healed"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p.Remove()
}

func TestAPodIsRemovedThoughItsOCIRuntimeIsBroken(t *testing.T) {
	for _, shimGone := range []bool{false, true} {
		t.Run(fmt.Sprintf("shim gone %v", shimGone), func(t *testing.T) {
			t.Parallel()
			berthOnly(t)
			bin, err := daemon.BinDir()
			if err != nil {
				t.Fatal(err)
			}
			dir := script(t, "runc", fmt.Sprintf(`[ -e $0.gone ] && { echo "no such file" >&2; exit 127; }; exec %s "$@"`, filepath.Join(bin, "runc")))
			k := node(t, daemon.Spec{OCIRuntime: filepath.Join(dir, "runc")})
			p := k.RunPod(k.PodConfig("orphan"))
			p.Start(k.Forever("main"))
			p.Create(k.Forever("never-started"))
			if err := os.WriteFile(filepath.Join(dir, "runc.gone"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if shimGone {
				signalShim(t, k, p, syscall.SIGKILL)
			}
			p.Stop()
			p.Remove()
		})
	}
}

func TestAnOCIRuntimeThatFailsIsQuotedAndUndone(t *testing.T) {
	t.Parallel()
	bin, err := daemon.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	// runc itself, but create and run fail with a text of their own while the file "broken" exists.
	dir := script(t, "runc", fmt.Sprintf(`log=/dev/null; prev=
for a in "$@"; do [ "$prev" = --log ] && log=$a; prev=$a; done
case " $* " in *" create "*|*" run "*|*" start "*)
  [ -e %[1]s.broken ] && { echo '{"level":"error","msg":"warp field collapsed","time":"2026-01-01T00:00:00Z"}' >>$log; echo "warp field collapsed" >&2; exit 1; } ;; esac
exec %[2]s "$@"`, "$0", filepath.Join(bin, "runc")))
	broken := filepath.Join(dir, "runc.broken")
	k := node(t, daemon.Spec{OCIRuntime: filepath.Join(dir, "runc")})
	p := k.RunPod(k.PodConfig("broken"))
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := p.Create(k.Forever("main"))
	wantError(t, c.TryStart(), failures, "warp field collapsed", c.ID)
	equal(t, "reason", c.Status().Reason, "StartError")
	c.Remove()
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	p.Start(k.Forever("main")).Exec("true")
}

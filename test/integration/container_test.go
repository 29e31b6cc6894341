// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/leak"
	"github.com/berth-run/berth/test/registry"
)

func TestTwoContainersOfAPodShareNetworkAndMemory(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("pair"))
	p.Start(k.Shell("server", `mkdir /tmp/w && echo hi >/tmp/w/index.html && echo shared >/dev/shm/note && exec httpd -f -p 127.0.0.1:8080 -h /tmp/w`))
	c := p.Start(k.Forever("client"))
	equal(t, "page on localhost", c.Exec("for i in $(seq 50); do wget -qO- http://127.0.0.1:8080/ 2>/dev/null && exit; sleep 0.1; done; exit 1"), "hi")
	equal(t, "/dev/shm", c.Exec("cat /dev/shm/note"), "shared")
	equal(t, "hostname", c.Exec("hostname"), "pair")
	contains(t, "processes of the client", c.Exec("ps"), "sleep")
	if out := c.Exec("ps"); strings.Contains(out, "httpd") {
		t.Errorf("the client sees the server's processes:\n%s", out)
	}
}

func TestWhatAContainerRunsComesFromImageAndConfig(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	im := registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{tree}, Config: v1.Config{
		Entrypoint: []string{"sh", "-c", `echo "$0 $*|$PWD|$(id -u):$(id -g)|$A|$B|$PATH"`, "entry"},
		Cmd:        []string{"from", "image"},
		Env:        []string{"A=image", "B=image"}, WorkingDir: "/tmp/made", User: "app",
	}})
	ref, _ := images.MustPush(t, "configured:1", im)
	id := k.Pull(ref)
	p := k.RunPod(k.PodConfig("config"))
	for name, c := range map[string]struct {
		edit func(*cri.ContainerConfig)
		want string
	}{
		"image alone":   {func(*cri.ContainerConfig) {}, "entry from image|/tmp/made|1000:1000|image|image|" + registry.Path},
		"other args":    {func(c *cri.ContainerConfig) { c.Args = []string{"mine"} }, "entry mine|/tmp/made|1000:1000|image|image|" + registry.Path},
		"other command": {func(c *cri.ContainerConfig) { c.Command = []string{"echo", "x"} }, "x"},
		"command and args": {func(c *cri.ContainerConfig) {
			c.Command, c.Args = []string{"echo"}, []string{"y", "z"}
		}, "y z"},
		"working dir": {func(c *cri.ContainerConfig) { c.WorkingDir = "/etc" }, "entry from image|/etc|1000:1000|image|image|" + registry.Path},
		"environment": {func(c *cri.ContainerConfig) {
			c.Envs = []*cri.KeyValue{{Key: "A", Value: []byte("con=fig")}}
		}, "entry from image|/tmp/made|1000:1000|con=fig|image|" + registry.Path},
		"uid": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 0}
		}, "entry from image|/tmp/made|0:0|image|image|" + registry.Path},
		"uid and gid": {func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser, c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 77}, &cri.Int64Value{Value: 88}
		}, "entry from image|/tmp/made|77:88|image|image|" + registry.Path},
		"user by name": {func(c *cri.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "root" },
			"entry from image|/tmp/made|0:0|image|image|" + registry.Path},
	} {
		spec := k.ContainerConfig(strings.ReplaceAll(name, " ", "-"))
		spec.Image.Image = id
		c.edit(spec)
		made := p.Start(spec)
		made.WaitExit()
		equal(t, name, strings.TrimSpace(made.Output("stdout")), c.want)
	}
}

func TestSecurityContextIsApplied(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("secure"))
	spec := k.Forever("locked")
	sc := spec.Linux.SecurityContext
	sc.RunAsUser, sc.SupplementalGroups = &cri.Int64Value{Value: 1000}, []int64{4242}
	sc.ReadonlyRootfs, sc.NoNewPrivs = true, true
	sc.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
	c := p.Start(spec)
	equal(t, "groups", c.Exec("id -G"), "1000 2000 4242")
	contains(t, "status", c.Exec("cat /proc/1/status"), "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "Seccomp:\t2")
	equal(t, "root is read-only", c.Exec("touch /tmp/x 2>/dev/null || echo ro"), "ro")
	equal(t, "/proc/kcore is masked", c.Exec("wc -c </proc/kcore 2>/dev/null || echo 0"), "0")
	contains(t, "/proc/sys", c.Exec("grep ' /proc/sys ' /proc/mounts"), "ro")

	caps := k.Forever("caps")
	caps.Linux.SecurityContext.Capabilities = &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}}
	equal(t, "NET_ADMIN works", p.Start(caps).Exec("ip link add br9 type bridge && echo made"), "made")

	config := k.PodConfig("privileged")
	config.Linux.SecurityContext.Privileged = true
	spec = k.Forever("privileged")
	spec.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{Privileged: true,
		NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}
	c = k.RunPod(config).Start(spec)
	contains(t, "status", c.Exec("cat /proc/1/status"), "Seccomp:\t0")
	equal(t, "privileged mounts", c.Exec("mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo ok"), "ok")
	equal(t, "host's devices", c.Exec("test -e /dev/loop-control -o -e /dev/kmsg && echo ok"), "ok")
}

func TestMountsAreBoundAsAsked(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	src := filepath.Join(k.D.Dir, "vol")
	for _, dir := range []string{"rw", "ro", "from", "to"} {
		if err := os.MkdirAll(filepath.Join(src, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(src+"/file", []byte("single"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("rw", src+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(src, src, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(src, syscall.MNT_DETACH) })
	if err := syscall.Mount("", src, "", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	spec := k.Forever("main")
	spec.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{Privileged: true,
		NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}}
	spec.Mounts = []*cri.Mount{
		{HostPath: src + "/rw", ContainerPath: "/vol/rw"},
		{HostPath: src + "/ro", ContainerPath: "/vol/ro", Readonly: true},
		{HostPath: src + "/file", ContainerPath: "/vol/deep/file"},
		{HostPath: src + "/link", ContainerPath: "/vol/link"},
		{HostPath: src + "/from", ContainerPath: "/vol/from", Propagation: cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{HostPath: src + "/to", ContainerPath: "/vol/to", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL},
	}
	config := k.PodConfig("mounts")
	config.Linux.SecurityContext.Privileged = true
	c := k.RunPod(config).Start(spec)
	equal(t, "write", c.Exec("echo 1 >/vol/rw/a && cat /vol/link/a"), "1")
	equal(t, "write to a read-only mount", c.Exec("touch /vol/ro/a 2>/dev/null || echo ro"), "ro")
	equal(t, "file", c.Exec("cat /vol/deep/file"), "single")
	if err := os.Mkdir(src+"/from/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", src+"/from/sub", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(src+"/from/sub", syscall.MNT_DETACH) })
	contains(t, "mounts in the container", c.Exec("cat /proc/mounts"), "/vol/from/sub tmpfs")
	c.Exec("mkdir /vol/to/sub && mount -t tmpfs none /vol/to/sub && umount /vol/to/sub && mount -t tmpfs none /vol/to/sub")
	host, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "mounts of the host", string(host), src+"/to/sub tmpfs")
	c.Exec("umount /vol/to/sub")
	got := map[string]*cri.Mount{}
	for _, m := range c.Status().Mounts {
		got[m.ContainerPath] = m
	}
	for _, m := range spec.Mounts {
		g := got[m.ContainerPath]
		if g == nil || g.HostPath != m.HostPath || g.Readonly != m.Readonly || g.Propagation != m.Propagation {
			t.Errorf("mount %s comes back as %v", m.ContainerPath, g)
		}
	}
}

// cgroupFile reads a file of a container's cgroup, from the v1 hierarchy of the controller or from v2.
func cgroupFile(t *testing.T, c *kubelet.Container, controller, v1, v2 string) string {
	t.Helper()
	roots, err := leak.CgroupRoots()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		for _, name := range []string{v1, v2} {
			path := filepath.Join(root, c.Cgroup(), name)
			if data, err := os.ReadFile(path); err == nil && (name == v2 || filepath.Base(root) == controller) {
				return strings.TrimSpace(string(data))
			}
		}
	}
	t.Fatalf("no cgroup of %s has %s or %s", c.ID, v1, v2)
	return ""
}

func TestResourcesAreLimitedAndUpdated(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("limits"))
	spec := k.Forever("main")
	spec.Linux.Resources = &cri.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, CpusetCpus: "0",
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, OomScoreAdj: 500,
		HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}}, // a kubelet always sends them
	}
	c := p.Start(spec)
	read := func(controller, v1, v2 string) string { t.Helper(); return cgroupFile(t, c, controller, v1, v2) }
	equal(t, "cpu quota", strings.TrimSuffix(read("cpu", "cpu.cfs_quota_us", "cpu.max"), " 100000"), "50000")
	equal(t, "memory limit", read("memory", "memory.limit_in_bytes", "memory.max"), fmt.Sprint(64<<20))
	equal(t, "cpuset", read("cpuset", "cpuset.cpus", "cpuset.cpus"), "0")
	equal(t, "oom_score_adj", c.Exec("cat /proc/1/oom_score_adj"), "500")
	equal(t, "memory limit in status", c.Status().GetResources().GetLinux().GetMemoryLimitInBytes(), 64<<20)

	_, err := k.D.Runtime.UpdateContainerResources(k.Ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: c.ID,
		Linux: &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 256, MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "cpu quota after update", strings.TrimSuffix(read("cpu", "cpu.cfs_quota_us", "cpu.max"), " 100000"), "20000")
	equal(t, "memory limit after update", read("memory", "memory.limit_in_bytes", "memory.max"), fmt.Sprint(96<<20))
	equal(t, "cpuset is kept", read("cpuset", "cpuset.cpus", "cpuset.cpus"), "0")
	res := c.Status().GetResources().GetLinux()
	equal(t, "cpu quota in status", res.GetCpuQuota(), 20000)
	equal(t, "cpu shares in status", res.GetCpuShares(), 256)
	equal(t, "memory limit in status after update", res.GetMemoryLimitInBytes(), 96<<20)

	created := p.Create(k.Forever("created"))
	_, err = k.D.Runtime.UpdateContainerResources(k.Ctx(), &cri.UpdateContainerResourcesRequest{ContainerId: created.ID,
		Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	if err := created.TryStart(); err != nil {
		t.Fatal(err)
	}
	equal(t, "limit set before the start", cgroupFile(t, created, "memory", "memory.limit_in_bytes", "memory.max"), fmt.Sprint(32<<20))
}

func TestHowAContainerEndedIsReported(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("ends"))
	for name, c := range map[string]struct {
		script string
		memory int64
		code   int32
		reason string
	}{
		"success": {"exit 0", 0, 0, "Completed"},
		"failure": {"exit 7", 0, 7, "Error"},
		"child":   {"sh -c 'kill -KILL $$'; exit $?", 0, 137, "Error"},
		"oom":     {`x=a; while :; do x="$x$x"; done`, 16 << 20, 137, "OOMKilled"},
	} {
		begin := time.Now()
		spec := k.Shell(name, c.script)
		if c.memory > 0 {
			spec.Linux.Resources.MemoryLimitInBytes, spec.Linux.Resources.MemorySwapLimitInBytes = c.memory, c.memory
		}
		s := p.Start(spec).WaitExit()
		equal(t, name+": exit code", s.ExitCode, c.code)
		equal(t, name+": reason", s.Reason, c.reason)
		at := []time.Time{begin.Add(-time.Second), time.Unix(0, s.CreatedAt), time.Unix(0, s.StartedAt), time.Unix(0, s.FinishedAt), time.Now()}
		for i := range at[1:] {
			if at[i+1].Before(at[i]) && !onContainerd() { // which takes the time of the start after the fact
				t.Errorf("%s: times are not in order: begin, created, started, finished, now: %v", name, at)
			}
		}
	}
}

func TestAStartThatFailsLeavesAnExitedContainer(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("unstartable"))
	c := p.Create(k.ContainerConfig("main", "/no/such/program"))
	wantError(t, c.TryStart(), failures, "/no/such/program")
	s := c.Status()
	equal(t, "state", s.State, cri.ContainerState_CONTAINER_EXITED)
	equal(t, "reason", s.Reason, "StartError")
	equal(t, "exit code", s.ExitCode, 128)
	contains(t, "message", s.Message, "/no/such/program")
	if s.FinishedAt == 0 {
		t.Error("no finishing time")
	}
	wantError(t, c.TryStart(), failures, "exited")
	c.Remove()
	equal(t, "the next one", p.Start(k.Shell("main", "exit 3")).WaitExit().ExitCode, 3)
}

func TestStopGivesTheGraceAndNoMore(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("stops"))
	stop := func(c *kubelet.Container, grace int64, atLeast, atMost time.Duration) {
		t.Helper()
		begin := time.Now()
		c.Stop(grace)
		if took := time.Since(begin); took < atLeast || took > atMost {
			t.Errorf("%s: stop took %s, want %s to %s", c.Spec.Metadata.Name, took, atLeast, atMost)
		}
		equal(t, c.Spec.Metadata.Name+": state", c.Status().State, cri.ContainerState_CONTAINER_EXITED)
	}
	ready := func(c *cri.ContainerConfig) *kubelet.Container {
		t.Helper()
		made := p.Start(c)
		made.WaitOutput("ready")
		return made
	}
	polite := ready(k.Shell("polite", `trap "echo bye; exit 9" TERM; echo ready; while :; do sleep 0.05; done`))
	stop(polite, 10, 0, 3*time.Second)
	equal(t, "polite: exit code", polite.Status().ExitCode, 9)
	equal(t, "polite: reason", polite.Status().Reason, "Error")
	stop(polite, 10, 0, time.Second) // again: nothing to do

	deaf := `trap "" TERM; echo ready; while :; do sleep 0.05; done`
	c := ready(k.Shell("deaf", deaf))
	stop(c, 1, 900*time.Millisecond, 4*time.Second)
	equal(t, "deaf: exit code", c.Status().ExitCode, 137)
	stop(ready(k.Shell("no-grace", deaf)), 0, 0, 2*time.Second)

	c = ready(k.Shell("overridden", deaf))
	long := make(chan error, 1)
	ctx := k.Ctx()
	go func() {
		_, err := k.D.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ID, Timeout: 50})
		long <- err
	}()
	time.Sleep(300 * time.Millisecond)
	stop(c, 1, 0, 5*time.Second)
	select {
	case err := <-long:
		equal(t, "the longer stop", err, nil)
	case <-time.After(2 * time.Second):
		t.Error("the longer stop still waits")
	}
}

func TestTheStopSignalIsTheConfigsOrTheImages(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	ref, _ := images.MustPush(t, "usr1:1", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{tree}, Config: v1.Config{StopSignal: "SIGUSR1"}}))
	id := k.Pull(ref)
	p := k.RunPod(k.PodConfig("signals"))
	script := `for s in TERM USR1 QUIT; do trap "echo $s; exit 0" $s; done; echo ready; while :; do sleep 0.05; done`
	for _, c := range []struct {
		image  string
		signal cri.Signal
		want   string
	}{
		{k.Image, cri.Signal_SIGNAL_RUNTIME_DEFAULT, "TERM"},
		{id, cri.Signal_SIGNAL_RUNTIME_DEFAULT, "USR1"},
		{id, cri.Signal_SIGNAL_SIGQUIT, "QUIT"},
	} {
		spec := k.Shell("stop-by-"+strings.ToLower(c.want), script)
		spec.Image.Image, spec.StopSignal = c.image, c.signal
		made := p.Start(spec)
		made.WaitOutput("ready")
		made.Stop(5)
		contains(t, "output", made.Output("stdout"), c.want)
	}
}

func TestARunningContainerIsRemovedByForce(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("forced"))
	c := p.Start(k.Forever("main"))
	c.Remove()
	c.Remove()
	_, err := k.D.Runtime.ContainerStatus(k.Ctx(), &cri.ContainerStatusRequest{ContainerId: c.ID})
	wantError(t, err, notFound, c.ID)
	again := p.Start(k.Forever("main")) // the name is free
	if again.ID == c.ID {
		t.Error("the same id was given twice")
	}
}

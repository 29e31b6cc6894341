// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// artifact is an image to be mounted: data, programs, and links that lead out of it.
func artifact(t *testing.T, k *kubelet.Kubelet, name string) (ref, id string) {
	t.Helper()
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(k.D.Dir, "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(outside+"/secret", []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	tree.Dir("models", 0o755)
	tree.File("models/weights", []byte("weights of "+name), 0o644)
	tree.Symlink("latest", "models")
	tree.Symlink("models/up", "../../../../../../../.."+outside)
	tree.Symlink("abs", outside)
	tree.Symlink("proc-link", "/proc/self/root"+outside)
	ref, _ = images.MustPush(t, name+":1", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{tree}}))
	return ref, k.Pull(ref)
}

func imageMount(at, image, sub string) *cri.Mount {
	return &cri.Mount{ContainerPath: at, Readonly: true, Image: &cri.ImageSpec{Image: image}, ImageSubPath: sub}
}

func TestImagesAreMountedAsVolumes(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	_, id := artifact(t, k, "volume")
	p := k.RunPod(k.PodConfig("images"))
	spec := k.Forever("main")
	spec.Mounts = []*cri.Mount{imageMount("/all", id, ""), imageMount("/part", id, "models"), imageMount("/linked", id, "latest"),
		{ContainerPath: "/strict", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}, Image: &cri.ImageSpec{Image: id}}}
	c := p.Start(spec)
	equal(t, "all of the image", c.Exec("cat /all/models/weights"), "weights of volume")
	equal(t, "a part of it", c.Exec("cat /part/weights"), "weights of volume")
	equal(t, "by a link in it", c.Exec("cat /linked/weights"), "weights of volume")
	equal(t, "a program of it", c.Exec("/all/bin/busybox echo ran"), "ran")
	for _, dir := range []string{"/all", "/part", "/strict"} {
		equal(t, dir, c.Exec("touch "+dir+"/x 2>/dev/null || echo refused; mount -o remount,rw "+dir+" 2>/dev/null; touch "+dir+"/x 2>/dev/null || echo refused"),
			"refused\nrefused")
	}
	if !onContainerd() {
		equal(t, "a program of a noexec volume", c.Exec("/strict/bin/busybox echo ran 2>/dev/null || echo refused"), "refused")
		for i, m := range c.Status().Mounts {
			equal(t, fmt.Sprintf("image_ref of mount %d", i), m.GetImage().GetImageRef(), id)
		}
	}
	for _, m := range spec.Mounts {
		if m.Image.ImageRef != "" {
			t.Error("the request was changed")
		}
	}
}

func TestAnImageVolumeShowsNothingElse(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	_, id := artifact(t, k, "traversal")
	p := k.RunPod(k.PodConfig("traversal"))
	for i, c := range []struct {
		edit func(*cri.Mount)
		want []string
	}{
		{func(m *cri.Mount) { m.ImageSubPath = "models/../../outside" }, []string{"image_sub_path"}},
		{func(m *cri.Mount) { m.ImageSubPath = "/etc" }, []string{"image_sub_path"}},
		{func(m *cri.Mount) { m.ImageSubPath = "none" }, []string{"image_sub_path", "no such file"}},
		{func(m *cri.Mount) { m.ImageSubPath = "models/weights" }, []string{"image_sub_path", "not a directory"}},
		{func(m *cri.Mount) { m.ImageSubPath = "models/up" }, []string{"image_sub_path"}},
		{func(m *cri.Mount) { m.ImageSubPath = "abs" }, []string{"image_sub_path"}},
		{func(m *cri.Mount) { m.ImageSubPath = "proc-link" }, []string{"image_sub_path"}},
		{func(m *cri.Mount) { m.Readonly = false }, []string{"readonly", "image volume"}},
		{func(m *cri.Mount) { m.HostPath = "/etc" }, []string{"host_path"}},
		{func(m *cri.Mount) { m.Image.Image = "sha256:" + strings.Repeat("0", 64) }, []string{"ImageVolumeMountFailed", "mounts[0]"}},
	} {
		spec := k.Forever(fmt.Sprint("c", i))
		m := imageMount("/v", id, "")
		c.edit(m)
		spec.Mounts = []*cri.Mount{m}
		made, err := p.TryCreate(spec)
		if err == nil && onContainerd() {
			made.Remove()
			continue
		}
		wantError(t, err, []codes.Code{codes.InvalidArgument, codes.NotFound, codes.Unknown}, c.want...)
	}
}

func TestAnImageThatIsMountedKeepsItsLayers(t *testing.T) {
	t.Parallel()
	berthOnly(t) // containerd's lease is of another make
	k := node(t, daemon.Spec{})
	ref, id := artifact(t, k, "kept")
	spec := k.Forever("main")
	spec.Mounts = []*cri.Mount{imageMount("/v", id, "models"), imageMount("/w", id, "")}
	c := k.RunPod(k.PodConfig("kept")).Start(spec)
	if _, err := k.D.Images.RemoveImage(k.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Restart(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	equal(t, "after the image's removal and a crash", c.Exec("cat /v/weights; test -x /w/bin/busybox && echo there"), "weights of keptthere")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "host mounts of two volumes of one image", strings.Count(string(mounts), c.ID+"/volumes/"), 1)
	c.Remove() // the leak check sees the rest
}

func TestVolumesThatTheImageAsksFor(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	tree.Dir("data", 0o750)
	tree.File("data/seed", []byte("seed"), 0o640)
	ref, _ := images.MustPush(t, "volumes:1", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{tree},
		Config: v1.Config{Volumes: map[string]struct{}{"/data": {}, "relative": {}, "/mine": {}, "/proc": {}, "/": {}}}}))
	id := k.Pull(ref)
	mine := filepath.Join(k.D.Dir, "mine")
	if err := os.Mkdir(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine+"/host", []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := k.RunPod(k.PodConfig("volumes"))
	spec := k.Forever("main")
	spec.Image.Image = id
	spec.Linux.SecurityContext.ReadonlyRootfs = true
	spec.Mounts = []*cri.Mount{{HostPath: mine, ContainerPath: "/mine"}}
	c := p.Start(spec)
	equal(t, "what the image has there", c.Exec("stat -c %a /data && cat /data/seed"), "750\nseed")
	equal(t, "writable though the root is not", c.Exec("touch /data/x /relative/y && echo written; touch /z 2>/dev/null || echo refused"), "written\nrefused")
	equal(t, "the request's mount wins", c.Exec("cat /mine/host"), "host")
	c.Exec("dd if=/dev/zero of=/data/large bs=1k count=512 2>/dev/null && sync")
	if r, err := k.D.Runtime.ContainerStats(k.Ctx(), &cri.ContainerStatsRequest{ContainerId: c.ID}); err != nil {
		t.Error(err)
	} else if used := r.GetStats().GetWritableLayer().GetUsedBytes().GetValue(); used < 512<<10 && !onContainerd() {
		t.Errorf("the volumes are not among what the container uses: %d bytes", used)
	}
	again := k.Forever("again")
	again.Image.Image = id
	equal(t, "another container has its own", p.Start(again).Exec("ls /data"), "seed")
	if !onContainerd() {
		contains(t, "kept with the container", strings.Join(glob(t, k.D.Root+"/rootfs/"+c.ID+"/volumes/*/*"), " "), "/x", "/y")
		c.Remove()
		equal(t, "gone with it", len(glob(t, k.D.Root+"/rootfs/"+c.ID+"*")), 0)
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func target(c *cri.ContainerConfig, id string) *cri.ContainerConfig {
	o := c.Linux.SecurityContext.NamespaceOptions
	o.Pid, o.TargetId = cri.NamespaceMode_TARGET, id
	return c
}

func TestAContainerJoinsAnothersProcesses(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("target"))
	first := p.Start(k.Shell("first", "exec sleep 4321"))
	c := p.Start(target(k.Forever("debug"), first.ID))
	contains(t, "processes", c.Exec("ps"), "sleep 4321")
	equal(t, "PID 1", c.Exec("tr '\\0' ' ' </proc/1/cmdline"), "sleep 4321")
	contains(t, "through the one that joined", p.Start(target(k.Forever("more"), c.ID)).Exec("ps"), "sleep 4321")
	_, err := p.TryCreate(target(k.Forever("nobody"), strings.Repeat("0", 64)))
	wantError(t, err, []codes.Code{codes.InvalidArgument, codes.NotFound, codes.Unknown}, "target_id", "not found")
	other := k.RunPod(k.PodConfig("other")).Start(k.Forever("stranger"))
	_, err = p.TryCreate(target(k.Forever("strange"), other.ID))
	wantError(t, err, []codes.Code{codes.InvalidArgument, codes.Unknown}, "target_id", "belongs to")
	if onContainerd() {
		return
	}
	// The target is what it is at the start, not at the creation.
	waiting := p.Create(k.Shell("waiting", "exec sleep 5432"))
	early := p.Create(target(k.Forever("early"), waiting.ID))
	late := p.Create(target(k.Forever("late"), first.ID))
	if err := waiting.TryStart(); err != nil {
		t.Fatal(err)
	}
	if err := early.TryStart(); err != nil {
		t.Fatal(err)
	}
	contains(t, "a target started later", early.Exec("ps"), "sleep 5432")
	first.Stop(0)
	first.WaitExit()
	wantError(t, late.TryStart(), []codes.Code{codes.FailedPrecondition}, "target_id", first.ID, "exited")
	_, err = p.TryCreate(target(k.Forever("after"), first.ID))
	wantError(t, err, []codes.Code{codes.FailedPrecondition}, "target_id", "has exited")
	if left := glob(t, k.D.State+"/pods/*/*/target-pid"); len(left) != 0 {
		t.Errorf("pinned for longer than the start: %v", left)
	}
}

func TestOCIArtifactsAreMountedAsVolumes(t *testing.T) {
	t.Parallel()
	berthOnly(t) // containerd mounts no artifacts
	k := node(t, daemon.Spec{})
	ref, _ := registry.MustPushArtifact(t, images.Host, "model:1", registry.Artifact{Type: "application/vnd.example.model.v1", Files: []registry.ArtifactFile{
		{Name: "model/weights.bin", Data: []byte("weights")}, {Name: "LICENSE", MediaType: "text/plain", Data: []byte("free")}}})
	id := k.Pull(ref)
	p := k.RunPod(k.PodConfig("artifacts"))
	spec := k.Forever("main")
	spec.Mounts = []*cri.Mount{imageMount("/all", ref, ""), imageMount("/model", id, "model"),
		{ContainerPath: "/strict", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}, Image: &cri.ImageSpec{Image: id}}}
	c := p.Start(spec)
	equal(t, "the files", c.Exec("cat /all/LICENSE /all/model/weights.bin /model/weights.bin /strict/LICENSE"), "freeweightsweightsfree")
	equal(t, "writing", c.Exec("touch /all/x 2>/dev/null || echo refused; rm /model/weights.bin 2>/dev/null || echo refused"), "refused\nrefused")
	if _, err := k.D.Images.RemoveImage(k.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Restart(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	equal(t, "after the artifact's removal and a crash", c.Exec("cat /all/LICENSE"), "free")

	k.Pull(ref)
	runs := k.Forever("runs")
	runs.Image.Image = id
	_, err := p.TryCreate(runs)
	wantError(t, err, []codes.Code{codes.FailedPrecondition}, "OCI artifact", "application/vnd.example.model.v1")
}

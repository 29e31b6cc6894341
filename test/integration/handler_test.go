// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// layerForms counts the layers that the daemon keeps as files, and all of them.
func layerForms(t *testing.T, d *daemon.Daemon) (files, all int) {
	t.Helper()
	folders, err := filepath.Glob(filepath.Join(d.Root, "image/overlayfs/snapshots/*/fs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range folders {
		if _, err := os.Stat(filepath.Join(filepath.Dir(f), "layer.erofs")); err == nil {
			files++
		}
	}
	return files, len(folders)
}

// TestAHandlersPolicyIsKept has one OCI runtime twice: as it is by default, and with all that a handler can say of its pods.
func TestAHandlersPolicyIsKept(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	bin, err := daemon.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	k := node(t, daemon.Spec{Config: fmt.Sprintf("\n[images]\nsnapshotter = \"overlayfs\"\n[runtimes.strict]\npath = %q\nsnapshotter = \"erofs\"\ncgroup_driver = \"cgroupfs\"\n"+
		"privileged = false\nrlimits = [\"nofile=77:99\"]\npod_annotations = [\"example.com/*\"]\ncontainer_annotations = [\"example.org/a\"]\nsandbox_container = \"always\"\n",
		filepath.Join(bin, "runc"))})
	loose := k.RunPod(k.PodConfig("loose")).Start(k.Forever("main"))
	files, before := layerForms(t, k.D)
	equal(t, "layers that are files, with the default handler", files, 0)

	strict := *k
	strict.Handler = "strict"
	config := strict.PodConfig("strict")
	config.Linux.SecurityContext.Privileged = true
	config.Annotations = map[string]string{"example.com/seen": "1", "other.com/hidden": "1"}
	p := strict.RunPod(config)
	cc := strict.Forever("main")
	cc.Annotations = map[string]string{"example.org/a": "2", "example.org/b": "2"}
	c := p.Start(cc)
	equal(t, "limits", c.Exec("ulimit -Sn; ulimit -Hn"), "77\n99")
	if files, all := layerForms(t, k.D); files == 0 || all <= before {
		t.Errorf("%d of %d layers are files once a container of the handler is there", files, all)
	}
	equal(t, "its files", c.Exec("echo x >/new && cat /new"), "x")
	spec, err := os.ReadFile(filepath.Join(k.D.State, "pods", p.ID, c.ID, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "spec", string(spec), "example.com/seen", "example.org/a")
	if strings.Contains(string(spec), "hidden") || strings.Contains(string(spec), "example.org/b") {
		t.Error("annotations that the handler is not to see are in the spec")
	}
	privileged := strict.Forever("privileged")
	privileged.Linux = &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{Privileged: true}}
	_, err = p.TryCreate(privileged)
	wantError(t, err, []codes.Code{codes.InvalidArgument}, `runtime handler "strict" takes no privileged containers`)

	// Pulled for a handler, an image is there in its form; for one that is not configured it is not pulled.
	_, before = layerForms(t, k.D)
	if _, err := k.D.Images.PullImage(k.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: busyboxRef, RuntimeHandler: "strict"}}); err != nil {
		t.Fatal(err)
	}
	if _, after := layerForms(t, k.D); after != before {
		t.Errorf("%d layers, want %d: the form was there", after, before)
	}
	_, err = k.D.Images.PullImage(k.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: busyboxRef, RuntimeHandler: "strickt"}})
	wantError(t, err, []codes.Code{codes.InvalidArgument}, "strict")

	// The second form lives as long as its container, the image removed or not.
	if _, err := k.D.Images.RemoveImage(k.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: busyboxRef}}); err != nil {
		t.Fatal(err)
	}
	equal(t, "after the image's removal", c.Exec("cat /bin/busybox | wc -c"), loose.Exec("cat /bin/busybox | wc -c"))
	p.Stop()
	p.Remove()
	loose.Stop(0)
	loose.Remove()
	kubelet.Eventually(t, daemon.Slow(20e9), func() string {
		if _, all := layerForms(t, k.D); all > 0 {
			return fmt.Sprintf("%d layers are left", all)
		}
		return ""
	})
}

// TestAHandlersCgroupDriver has a handler whose runtime makes its cgroups itself, on whatever driver this machine's pods have.
func TestAHandlersCgroupDriver(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	bin, err := daemon.BinDir()
	if err != nil {
		t.Fatal(err)
	}
	handler := fmt.Sprintf("\n[runtimes.plain]\npath = %q\ncgroup_driver = ", filepath.Join(bin, "runc"))
	k := node(t, daemon.Spec{Config: handler + "\"cgroupfs\"\n"})
	systemd := os.Getenv("BERTH_TEST_CGROUP_DRIVER") == "systemd"
	plain := *k
	plain.Handler = "plain"
	for name, in := range map[string]*kubelet.Kubelet{"standard": k, "plain": &plain} {
		config := in.Forever("main")
		config.Linux.Resources.MemoryLimitInBytes = 48 << 20
		p := in.RunPod(in.PodConfig(name))
		c := p.Start(config)
		cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pidOf(t, c)))
		if err != nil {
			t.Fatal(err)
		}
		if scope := strings.Contains(string(cgroups), ".scope"); scope != (systemd && in == k) {
			t.Errorf("%s: a systemd scope: %v, in %s", name, scope, cgroups)
		}
		contains(t, name+": its cgroup is the pod's", string(cgroups), strings.Trim(k.D.CgroupParent, "/"))
		equal(t, name+": limit", c.Status().GetResources().GetLinux().GetMemoryLimitInBytes(), 48<<20)
		update := &cri.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 40 << 20}}
		if _, err := k.D.Runtime.UpdateContainerResources(k.Ctx(), update); err != nil {
			t.Errorf("%s: update: %v", name, err)
		}
		equal(t, name+": updated limit", c.Status().GetResources().GetLinux().GetMemoryLimitInBytes(), 40<<20)
		equal(t, name+": exec", c.Exec("echo fine"), "fine")
		p.Stop()
		p.Remove()
	}
	if systemd {
		return
	}
	d, err := daemon.New(k.Ctx(), daemon.Spec{Config: handler + "\"systemd\"\n"})
	if err == nil {
		t.Error("a handler with systemd's cgroups on a node without them is taken")
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	} else {
		contains(t, "error", err.Error(), "runtimes.plain", "cgroup_driver")
	}
}

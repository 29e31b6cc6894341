// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
)

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCDIDevicesAreInjected(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	dir := t.TempDir()
	k := node(t, daemon.Spec{Config: fmt.Sprintf("[cdi]\nspec_dirs = [%q]\nannotations = true\n", dir)})
	p := k.RunPod(k.PodConfig("cdi"))
	spec := k.Forever("main")
	spec.CDIDevices = []*cri.CDIDevice{{Name: "vendor.example/gpu=a"}}
	_, err := p.TryCreate(spec)
	wantError(t, err, invalid, "vendor.example/gpu=a", dir)

	writeFile(t, dir+"/extra", "from the vendor")
	writeFile(t, dir+"/gpu.json", fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": "vendor.example/gpu", "devices": [{"name": "a", "containerEdits": {
 "env": ["GPU=a"], "deviceNodes": [{"path": "/dev/gpu-a", "hostPath": "/dev/fuse", "permissions": "r"}],
 "mounts": [{"hostPath": %q, "containerPath": "/gpu/extra", "options": ["ro", "bind"]}]}}]}`, dir+"/extra"))
	c := p.Start(spec)
	equal(t, "variable, file and device", c.Exec("echo $GPU; cat /gpu/extra; echo; stat -c %F /dev/gpu-a"), "a\nfrom the vendor\ncharacter special file")
	equal(t, "rule", c.Exec("(: </dev/gpu-a) 2>/dev/null && (: >/dev/gpu-a) 2>/dev/null || echo read only"), "read only")

	old := k.Forever("by-annotation")
	old.Annotations["cdi.k8s.io/plugin_x"] = "vendor.example/gpu=a"
	equal(t, "by annotation", p.Start(old).Exec("echo $GPU"), "a")
	plain := k.Forever("plain")
	equal(t, "without", p.Start(plain).Exec("echo $GPU; ls /dev/gpu-a 2>/dev/null || echo none"), "none")
	bad := k.Forever("bad")
	bad.CDIDevices = []*cri.CDIDevice{{Name: "../../etc"}}
	_, err = p.TryCreate(bad)
	wantError(t, err, invalid, "CDI_devices[0].name")
}

func TestBlockIOClassesThrottle(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	devices, err := filepath.Glob("/sys/block/*/queue/scheduler")
	if err != nil || len(devices) == 0 {
		t.Skipf("this machine has no block devices with a queue in /sys/block (%v)", err)
	}
	disk := strings.Split(devices[0], "/")[3]
	number, err := os.ReadFile("/sys/block/" + disk + "/dev")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "classes.yaml")
	writeFile(t, file, fmt.Sprintf("Classes:\n  slow:\n  - Devices: [/dev/%s]\n    ThrottleReadBps: 10M\n", disk))
	if _, err := os.Stat("/dev/" + disk); err != nil {
		t.Skipf("the disk has no device node: %v", err)
	}
	k := node(t, daemon.Spec{Config: fmt.Sprintf("[qos]\nblockio_config = %q\n", file)})
	config := k.PodConfig("slow")
	config.Annotations["blockio.resources.beta.kubernetes.io/pod"] = "slow"
	c := k.RunPod(config).Start(k.Forever("main"))
	got := cgroupFile(t, c, "blkio", "blkio.throttle.read_bps_device", "io.max")
	contains(t, "throttle of "+disk, got, strings.TrimSpace(string(number)), "10000000")
	config = k.PodConfig("unknown")
	config.Annotations["blockio.resources.beta.kubernetes.io/pod"] = "warp"
	_, err = k.RunPod(config).TryCreate(k.Forever("main"))
	wantError(t, err, invalid, "warp", "slow")
}

func TestAnnotationsOfTheAllowListReachTheRuntime(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{Runc: `pod_annotations = ["example.com/*"]` + "\n" + `container_annotations = ["*"]`})
	config := k.PodConfig("annotated")
	config.Annotations["example.com/a"], config.Annotations["other.com/b"] = "1", "2"
	p := k.RunPod(config)
	spec := k.Forever("main")
	spec.Annotations["c"], spec.Annotations["org.systemd.property.Slice"], spec.Annotations["io.kubernetes.cri.sandbox-id"] = "3", "evil", "other"
	c := p.Start(spec)
	data, err := os.ReadFile(filepath.Join(k.D.State, "pods", p.ID, c.ID, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var oci struct{ Annotations map[string]string }
	if err := json.Unmarshal(data, &oci); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"example.com/a": "1", "other.com/b": "", "c": "3", "org.systemd.property.Slice": "", "io.kubernetes.cri.sandbox-id": p.ID} {
		equal(t, key, oci.Annotations[key], want)
	}
}

// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// Where kubeadm puts the kubelet's configuration and the flags that go before it.
const (
	kubeletConfig = "/var/lib/kubelet/config.yaml"
	kubeletFlags  = "/var/lib/kubelet/kubeadm-flags.env"
)

// kubelet is what counts of a kubelet's configuration.
type kubelet struct {
	Endpoint     string `json:"containerRuntimeEndpoint"`
	CgroupDriver string `json:"cgroupDriver"`
	FailCgroupV1 *bool  `json:"failCgroupV1"`
	from         string
}

func (d *Doctor) checkKubelet(ctx context.Context, r report) {
	flags := d.kubeletCommand()
	k, err := d.kubelet(flags)
	if err != nil {
		r.warn("see that the file is right", "the kubelet's configuration cannot be read: %v", err)
		return
	}
	if k.from == "" {
		r.ok("no kubelet is configured on this machine")
		return
	}
	if want := "unix://" + d.Config.Socket; strings.TrimPrefix(k.Endpoint, "unix://") != d.Config.Socket {
		r.fail("set containerRuntimeEndpoint: "+want+" and restart the kubelet", "the kubelet (%s) talks to %q", k.from, k.Endpoint)
	} else {
		r.ok("the kubelet (%s) talks to %s", k.from, d.Config.Socket)
	}
	if d.exists("/sys/fs/cgroup/memory") && !d.exists("/sys/fs/cgroup/cgroup.controllers") && (k.FailCgroupV1 == nil || *k.FailCgroupV1) {
		r.warn("boot with cgroup v2, or set failCgroupV1: false", "a kubelet from 1.35 on does not start on cgroup v1")
	}
	d.compareDrivers(ctx, r, k)
}

// compareDrivers finds the disagreement that makes pods vanish from the kubelet's accounting. A kubelet from 1.28 on asks the runtime, and
// its own setting counts no more.
func (d *Doctor) compareDrivers(ctx context.Context, r report, k kubelet) {
	if d.client == nil {
		return
	}
	rc, err := d.client.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	if err != nil {
		r.warn("see the daemon's log", "the daemon does not tell its cgroup driver: %v", err)
		return
	}
	ours := strings.ToLower(rc.GetLinux().GetCgroupDriver().String())
	theirs := k.CgroupDriver
	if theirs == "" {
		theirs = "cgroupfs"
	}
	if theirs != ours {
		r.warn("set cgroupDriver: "+ours+" for the kubelet, or [cgroup] driver for Berth; a kubelet from 1.28 on follows the runtime by itself",
			"the kubelet is configured for the cgroup driver %s, Berth uses %s", theirs, ours)
		return
	}
	r.ok("the kubelet and Berth use the cgroup driver %s", ours)
}

// kubelet reads the kubelet's configuration: the file, and before it the flags.
func (d *Doctor) kubelet(flags map[string]string) (kubelet, error) {
	var k kubelet
	file := d.KubeletConfig
	if file == "" {
		file = flags["config"]
	}
	if file == "" {
		file = kubeletConfig
	}
	text, err := d.read(file)
	if err != nil {
		return k, err
	}
	if text != "" {
		if err := yaml.Unmarshal([]byte(text), &k); err != nil {
			return k, err
		}
		k.from = file
	}
	env, err := d.read(kubeletFlags)
	if err != nil {
		return k, err
	}
	for _, source := range []struct {
		from  string
		flags map[string]string
	}{{kubeletFlags, parseFlags(strings.Fields(strings.Trim(strings.TrimPrefix(env, "KUBELET_KUBEADM_ARGS="), `"`)))}, {"its command line", flags}} {
		if endpoint := source.flags["container-runtime-endpoint"]; endpoint != "" {
			k.Endpoint, k.from = endpoint, source.from
		}
		if driver := source.flags["cgroup-driver"]; driver != "" {
			k.CgroupDriver = driver
		}
	}
	return k, nil
}

// kubeletCommand is the flags of the kubelet that runs, if one does.
func (d *Doctor) kubeletCommand() map[string]string {
	comms, err := filepath.Glob(d.path("/proc/[0-9]*/comm"))
	if err != nil {
		return nil
	}
	for _, comm := range comms {
		if name, err := os.ReadFile(comm); err != nil || strings.TrimSpace(string(name)) != "kubelet" {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(comm), "cmdline"))
		if err != nil {
			continue // it has ended
		}
		return parseFlags(strings.Split(string(line), "\x00"))
	}
	return nil
}

// parseFlags reads --name=value and --name value; a flag without a value has the empty one.
func parseFlags(words []string) map[string]string {
	flags := make(map[string]string)
	for i, w := range words {
		name, isFlag := strings.CutPrefix(w, "--")
		if !isFlag {
			continue
		}
		name, value, given := strings.Cut(name, "=")
		if !given && i+1 < len(words) && !strings.HasPrefix(words[i+1], "-") {
			value = words[i+1]
		}
		flags[name] = value
	}
	return flags
}

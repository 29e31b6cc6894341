// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// BinDir is where the programs under test are: BERTH_TEST_BIN, or bin/ of the repository.
func BinDir() (string, error) {
	if dir := os.Getenv("BERTH_TEST_BIN"); dir != "" {
		return dir, nil
	}
	root, err := RepoDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "bin"), nil
}

// RepoDir is the repository that the working folder is in.
func RepoDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.Contains(string(data), "module github.com/berth-run/berth\n") {
			return dir, nil
		}
	}
	return "", errors.New("not in Berth's repository")
}

func (d *Daemon) binary() string {
	switch {
	case d.Spec.Program != "":
		return d.Spec.Program
	case d.Spec.Kind == Containerd:
		return filepath.Join(d.Spec.Bin, "containerd", "containerd")
	default:
		return filepath.Join(d.Spec.Bin, "berth")
	}
}

func (d *Daemon) command() (argv, env []string) {
	if d.Spec.Kind == Containerd {
		path := filepath.Join(d.Spec.Bin, "containerd") + ":" + d.Spec.Bin + ":" + os.Getenv("PATH")
		return []string{d.binary(), "--config", d.ConfigPath}, []string{"PATH=" + path}
	}
	return []string{d.binary(), "serve", "--config", d.ConfigPath, "--root", d.Root, "--state", d.State, "--socket", d.Socket},
		[]string{"GOTRACEBACK=all"}
}

// tidy are the folders that must be empty without pods.
func (d *Daemon) tidy() map[string]int {
	if d.Spec.Kind == Containerd {
		return map[string]int{
			d.Root + "/io.containerd.grpc.v1.cri/containers": 1, d.Root + "/io.containerd.grpc.v1.cri/sandboxes": 1,
			d.State + "/io.containerd.runtime.v2.task/k8s.io": 1,
		}
	}
	return map[string]int{
		d.Root + "/pods": 3, d.Root + "/rootfs": 1, d.Root + "/quarantine": 1, d.Root + "/network": 3,
		d.State + "/pods": 2, d.State + "/runc": 1, d.Netns: 1,
	}
}

func (d *Daemon) cniBin() string {
	dirs := fmt.Sprintf("%q", filepath.Join(d.Spec.Bin, "cni"))
	if d.Spec.CNIBin != "" {
		dirs = fmt.Sprintf("%q, ", d.Spec.CNIBin) + dirs
	}
	return dirs
}

func (d *Daemon) config() string {
	if d.Spec.Kind == Containerd {
		return d.containerdConfig()
	}
	return fmt.Sprintf(`version = 1
%s

[network]
conf_dir = %q
bin_dirs = [%s]
netns_dir = %q
add_timeout = %q
del_timeout = %q

[runtimes.runc]
path = %q
%s

[shim]
path = %q

[cgroup]
driver = %q
parent = %q

[registry]
config_path = %q
stall_timeout = %q
%s`, d.Spec.Global, d.ConfDir, d.cniBin(), d.Netns, Slow(8*time.Second), Slow(8*time.Second), d.Spec.OCIRuntime, d.Spec.Runc, filepath.Join(d.Spec.Bin, "berth-shim"), d.CgroupDriver, d.CgroupParent,
		d.CertsDir, Slow(2*time.Second), d.Spec.Config)
}

func (d *Daemon) containerdConfig() string {
	return fmt.Sprintf(`version = 3
root = %q
state = %q
temp = %q
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing"]
[grpc]
address = %q
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
%s
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = %q
SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%s]
conf_dir = %q
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q
%s`, d.Root, d.State, d.Dir+"/tmp", d.Socket, d.Spec.Runc, d.Spec.OCIRuntime, d.cniBin(), d.ConfDir, d.CertsDir, d.Spec.PauseImage, d.Spec.Config)
}

// Conflist is a bridge with IPv4 and IPv6 addresses, masquerading and port mapping.
func (d *Daemon) Conflist() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.1.0", "name": %q,
  "plugins": [
    {"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q,
       "ranges": [[{"subnet": "%s0/24"}], [{"subnet": "%s/64"}]],
       "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`, d.Network, d.Bridge, d.IPAM, d.Subnet4, d.Subnet6)
}

// WriteConflist puts a network configuration into the folder that the daemon watches, whole at once.
func (d *Daemon) WriteConflist(text string) error {
	path := filepath.Join(d.ConfDir, "10-test.conflist")
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return fmt.Errorf("write conflist: %w", err)
	}
	return os.Rename(path+".new", path)
}

// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-run/berth/internal/linux/host"
)

// Controllers that pods need; io (blkio on v1) and devices are used where they are there.
var (
	needed     = []string{"cpu", "cpuset", "memory", "pids"}
	neededByV1 = []string{"devices", "freezer"}
)

func (d *Doctor) checkCgroups(_ context.Context, r report) {
	v2, err := d.read("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		r.fail("run this as root", "cgroups: %v", err)
		return
	}
	var have []string
	want := needed
	version := "v2"
	if v2 != "" {
		have = strings.Fields(v2)
	} else {
		version, want = "v1", slices.Concat(needed, neededByV1)
		if have, err = d.v1Controllers(); err != nil {
			r.fail("run this as root", "cgroups: %v", err)
			return
		}
	}
	missing := slices.DeleteFunc(slices.Clone(want), func(c string) bool { return slices.Contains(have, c) })
	switch {
	case len(have) == 0:
		r.fail("mount cgroup2 on /sys/fs/cgroup", "no cgroup hierarchy is mounted")
	case len(missing) > 0:
		r.fail("enable them in the kernel's configuration or command line (cgroup_enable=, cgroup_disable=) and boot again",
			"cgroup %s lacks the controllers %s", version, strings.Join(missing, ", "))
	case version == "v1":
		r.warn("boot with systemd.unified_cgroup_hierarchy=1: memory QoS, PSI, swap limits and rootless delegation need v2, and Kubernetes gives v1 up",
			"the node runs on cgroup v1")
	default:
		r.ok("cgroup v2 with %s", strings.Join(have, ", "))
	}
}

// v1Controllers are those that a v1 hierarchy is mounted for.
func (d *Doctor) v1Controllers() ([]string, error) {
	mounts, err := d.read("/proc/mounts")
	var all []string
	for line := range strings.Lines(mounts) {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "cgroup" {
			all = append(all, strings.Split(f[3], ",")...)
		}
	}
	return all, err
}

// oldest kernel with all that pods get here: mount API, pidfd and clone3 are in 5.10, the kubelet wants as much.
var oldest = [2]int{5, 10}

func (d *Doctor) checkKernel(_ context.Context, r report) {
	release, err := d.read("/proc/sys/kernel/osrelease")
	if err != nil || release == "" {
		r.warn("mount /proc", "the kernel's release cannot be read")
		return
	}
	if v := kernelVersion(release); v[0] < oldest[0] || v[0] == oldest[0] && v[1] < oldest[1] {
		r.fail("use a kernel of "+strconv.Itoa(oldest[0])+"."+strconv.Itoa(oldest[1])+" or later", "the kernel %s is too old", release)
	} else {
		r.ok("kernel %s", release)
	}
	if has, err := d.mounts(release, "overlay"); err != nil {
		r.warn("mount /proc", "file systems: %v", err)
	} else if !has {
		r.fail("modprobe overlay, and name it in /etc/modules-load.d/berth.conf", "the kernel has no overlayfs: images cannot be mounted")
	}
	for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"} {
		if !d.exists("/proc/self/ns/" + ns) {
			r.fail("use a kernel that is built with all namespaces", "the kernel has no %s namespaces", ns)
		}
	}
	if !d.exists("/proc/self/ns/user") {
		r.warn("use a kernel that is built with user namespaces", "the kernel has no user namespaces: pods with hostUsers: false cannot run")
	}
}

// mounts tells whether the kernel has a file system, or a module of it, which it loads by itself when one is mounted.
func (d *Doctor) mounts(release, name string) (bool, error) {
	systems, err := d.read("/proc/filesystems")
	if err != nil || slices.Contains(strings.Fields(systems), name) {
		return err == nil, err
	}
	modules, err := d.read("/lib/modules/" + release + "/modules.dep")
	return err == nil && strings.Contains(modules, "/"+name+".ko"), nil
}

// kernelVersion is major and minor, zeros where there are none.
func kernelVersion(release string) (v [2]int) {
	for i, part := range strings.SplitN(release, ".", 3) {
		if i < len(v) {
			digits := strings.TrimRight(part, strings.TrimLeft(part, "0123456789"))
			v[i], _ = strconv.Atoi(digits) // 0 for what is no number
		}
	}
	return v
}

func (d *Doctor) checkSecurity(_ context.Context, r report) {
	actions, err := d.read("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil || !slices.Contains(strings.Fields(actions), "errno") {
		r.warn("use a kernel with CONFIG_SECCOMP_FILTER", "the kernel filters no system calls: RuntimeDefault seccomp profiles have no effect")
	}
	enabled, err := d.read("/sys/module/apparmor/parameters/enabled")
	if err != nil {
		r.warn("run this as root", "AppArmor: %v", err)
	}
	switch on := strings.HasPrefix(enabled, "Y"); {
	case on && !d.hasProgram("apparmor_parser"):
		r.fail("install the package apparmor, then restart the daemon", "AppArmor is on and apparmor_parser is missing: no default profile can be loaded")
	case on:
		r.ok("AppArmor is on")
	case d.exists("/sys/fs/selinux/enforce"):
		r.ok("SELinux is there")
	default:
		r.ok("neither AppArmor nor SELinux is on: pods run without")
	}
}

// hasProgram looks where packages put programs for root.
func (d *Doctor) hasProgram(name string) bool { return d.program(name) != "" }

// program is where it is, in the order of a shim's PATH; "" nowhere.
func (d *Doctor) program(name string) string {
	for _, dir := range []string{"/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"} {
		if d.exists(dir + name) {
			return d.path(dir + name)
		}
	}
	return ""
}

// setting is a sysctl that pods need.
type setting struct {
	name  string
	least int
	level Level
	// need holds where the file is only there when something uses it.
	optional bool
	why      string
}

var settings = []setting{
	{"net/ipv4/ip_forward", 1, Fail, false, "pods reach nothing beyond this node"},
	{"net/ipv6/conf/all/forwarding", 1, Warn, true, "pods reach nothing beyond this node by IPv6"},
	{"net/bridge/bridge-nf-call-iptables", 1, Warn, true, "Services do not work between pods on one bridge"},
	{"net/bridge/bridge-nf-call-ip6tables", 1, Warn, true, "IPv6 Services do not work between pods on one bridge"},
	{"fs/inotify/max_user_instances", 512, Warn, false, "programs that watch files fail once many pods run (too many open files)"},
	{"fs/inotify/max_user_watches", 65536, Warn, false, "programs that watch files fail once many pods run (no space left on device)"},
	{"kernel/pid_max", 65536, Warn, false, "a node full of pods runs out of process numbers"},
}

func (d *Doctor) checkSysctls(_ context.Context, r report) {
	good := 0
	for _, s := range settings {
		path := "/proc/sys/" + s.name
		text, err := d.read(path)
		if err != nil || text == "" {
			if !s.optional {
				r.warn("mount /proc", "the setting %s cannot be read", s.name)
			}
			continue
		}
		value, err := strconv.Atoi(text)
		if err == nil && value >= s.least {
			good++
			continue
		}
		name := strings.ReplaceAll(s.name, "/", ".")
		f := r.add(s.level, "sysctl -w "+name+"="+strconv.Itoa(s.least)+", and the same line in /etc/sysctl.d/90-kubernetes.conf", "%s is %s: %s", name, text, s.why)
		f.fix = func() error { return os.WriteFile(d.path(path), []byte(strconv.Itoa(s.least)+"\n"), 0o644) }
	}
	r.ok("%d kernel settings are as pods need them", good)
}

func (d *Doctor) checkClock(_ context.Context, r report) {
	asked := host.ClockSynced
	if d.fakeClock != nil {
		asked = d.fakeClock
	}
	synced, err := asked()
	switch {
	case err != nil:
		r.warn("", "the clock's state cannot be read: %v", err)
	case !synced:
		r.warn("run chrony or systemd-timesyncd: certificates and leases need the right time", "nothing keeps the clock right")
	default:
		r.ok("the clock is kept right")
	}
}

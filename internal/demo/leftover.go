// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/linux/iptables"
)

// state is what the demo's plugins change on the machine outside of its own things; it is put back.
type state struct {
	// chains are the chains of the nat table, among them those that all networks of a machine share.
	chains []string
	// forward is net.ipv4.ip_forward, which the bridge plugin switches on.
	forward string
}

const forwardSetting = "/proc/sys/net/ipv4/ip_forward"

func look(ctx context.Context) (state, error) {
	forward, err := os.ReadFile(forwardSetting)
	if err != nil {
		return state{}, fmt.Errorf("demo: %w", err)
	}
	rules, err := natRules(ctx)
	if err != nil {
		return state{}, fmt.Errorf("demo: %w", err)
	}
	s := state{forward: strings.TrimSpace(string(forward))}
	for _, r := range rules {
		if len(r) == 2 && r[0] == "-N" {
			s.chains = append(s.chains, r[1])
		}
	}
	return s, nil
}

// settle is how long things may take to vanish after the last command has returned: PID 1 of some machines reaps orphans every
// two seconds, and the kernel takes a network namespace's links down later.
const settle = 5 * time.Second

// leftovers are what the demo's daemon, pods and plugins have left behind.
func (d *demo) leftovers(ctx context.Context) []string {
	for end := time.Now().Add(settle); ; time.Sleep(100 * time.Millisecond) {
		left := d.leftNow(ctx)
		if len(left) == 0 || time.Now().After(end) || ctx.Err() != nil {
			return left
		}
	}
}

func (d *demo) leftNow(ctx context.Context) []string {
	var left []string
	add := func(kind string, things []string, err error) {
		if err != nil {
			left = append(left, fmt.Sprintf("whether a %s is left is not known: %v", kind, err))
		}
		for _, t := range things {
			left = append(left, kind+" "+t)
		}
	}
	processes, err := d.processes()
	var texts []string
	for _, p := range processes {
		texts = append(texts, p.String())
	}
	add("process", texts, err)
	mounts, err := d.mounts() // pinned network namespaces are mounts too
	add("mount", mounts, err)
	ports, err := d.ports()
	add("link", ports, err)
	rules, err := d.ownRules(ctx)
	texts = nil
	for _, r := range rules {
		texts = append(texts, strings.Join(r, " "))
	}
	add("rule", texts, err)
	cgroups, err := d.cgroups()
	add("cgroup", slices.DeleteFunc(cgroups, func(c string) bool { return filepath.Base(c) == d.cgroup }), err)
	addresses, err := filepath.Glob(d.ipam + "/*/*")
	add("address", slices.DeleteFunc(addresses, func(f string) bool { return net.ParseIP(filepath.Base(f)) == nil }), err)
	for _, dir := range []string{d.root + "/pods", d.root + "/rootfs", d.root + "/quarantine", d.state + "/pods", d.state + "/runc", d.netns, d.pods} {
		entries, err := filepath.Glob(dir + "/*")
		add("file", entries, err)
	}
	return left
}

// found is a process that belongs to the demo.
type found struct {
	pid     int
	command string
}

func (f found) String() string { return strconv.Itoa(f.pid) + " " + f.command }

// processes are those that belong to the demo, without the daemon as long as it is wanted.
func (d *demo) processes() ([]found, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []found
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if command, mine := d.owns(pid); mine {
			all = append(all, found{pid, command})
		}
	}
	return all, nil
}

// owns tells whether a process names the demo's folder in its command, program, working folder or root, or is in its cgroup. One
// that ends meanwhile, or is a zombie, is none.
func (d *demo) owns(pid int) (command string, mine bool) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	cmdline, err := os.ReadFile(dir + "cmdline")
	if err != nil || len(cmdline) == 0 {
		return "", false
	}
	command = strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
	mine = strings.Contains(command, d.dir+"/")
	for _, link := range []string{"exe", "cwd", "root"} {
		to, err := os.Readlink(dir + link)
		mine = mine || err == nil && strings.HasPrefix(to+"/", d.dir+"/")
	}
	cgroup, err := os.ReadFile(dir + "cgroup")
	return command, mine || err == nil && bytes.Contains(cgroup, []byte("/"+d.cgroup))
}

// mounts are those below the demo's folder, the deepest last.
func (d *demo) mounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], d.dir+"/") {
			all = append(all, f[4])
		}
	}
	return all, nil
}

// ports are the links at the demo's bridge.
func (d *demo) ports() ([]string, error) {
	ports, err := filepath.Glob("/sys/class/net/" + d.bridge + "/brif/*")
	for i, p := range ports {
		ports[i] = filepath.Base(p)
	}
	return ports, err
}

// natRules are the lines of `iptables -t nat -S`.
func natRules(ctx context.Context) ([]iptables.Rule, error) {
	var errText bytes.Buffer
	cmd := exec.CommandContext(ctx, "iptables", "-w", "10", "-t", "nat", "-S")
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list packet filter rules: %w: %s", err, strings.TrimSpace(errText.String()))
	}
	var rules []iptables.Rule
	for line := range strings.Lines(string(out)) {
		rules = append(rules, iptables.Parse(line))
	}
	return rules, nil
}

// ownRules are rules that name the demo's network: the plugins put its name into their comments.
func (d *demo) ownRules(ctx context.Context) ([]iptables.Rule, error) {
	rules, err := natRules(ctx)
	return slices.DeleteFunc(rules, func(r iptables.Rule) bool { return !strings.Contains(strings.Join(r, " "), d.network) }), err
}

// cgroups are the demo's cgroup and those below it in each hierarchy, parents first.
func (d *demo) cgroups() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		before, _, ok := strings.Cut(line, " - cgroup")
		f := strings.Fields(before)
		if !ok || len(f) < 5 {
			continue
		}
		err := filepath.WalkDir(filepath.Join(f[4], d.cgroup), func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it vanishes while it is looked at
			}
			if err == nil && e.IsDir() && !slices.Contains(all, path) {
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
	}
	return all, nil
}

// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-run/berth/internal/linux/fsys"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/network"
)

// plugin is what counts of a CNI plugin's configuration here.
type plugin struct {
	Type   string `json:"type"`
	IPMasq bool   `json:"ipMasq"`
	IPAM   struct {
		Type    string `json:"type"`
		DataDir string `json:"dataDir"`
	} `json:"ipam"`
}

// conflist is what counts of a CNI configuration here: which plugins it calls. A single plugin's file has them at the top.
type conflist struct {
	Name string `json:"name"`
	plugin
	Plugins []plugin `json:"plugins"`
}

func (c conflist) plugins() []plugin { return append([]plugin{c.plugin}, c.Plugins...) }

func (c conflist) programs() []string {
	var names []string
	for _, p := range c.plugins() {
		names = append(names, p.Type, p.IPAM.Type)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return n == "" })
}

// filters are the plugins that set up packet filter rules, by programs that they start.
func (c conflist) filters() (names []string) {
	for _, p := range c.plugins() {
		if p.Type == "portmap" || p.Type == "firewall" || p.IPMasq {
			names = append(names, p.Type)
		}
	}
	return names
}

// errNoNetwork means that no network is configured.
var errNoNetwork = errors.New("has no configuration")

// conflist reads the configuration in force: the first file in the order of names.
func (d *Doctor) conflist() (file string, list conflist, err error) {
	dir := d.Config.Network.ConfDir
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return "", list, err
	}
	for _, e := range entries { // sorted
		if ext := filepath.Ext(e.Name()); slices.Contains([]string{".conf", ".conflist", ".json"}, ext) {
			file = filepath.Join(dir, e.Name())
			break
		}
	}
	if file == "" {
		return "", list, errNoNetwork
	}
	data, err := fsys.ReadFile(file, maxFile)
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	return file, list, err
}

func (d *Doctor) checkNetwork(ctx context.Context, r report) {
	file, list, err := d.conflist()
	if file == "" {
		r.fail("install a network provider (it writes its file there), or write one: see https://www.cni.dev; pods with host network run without",
			"the CNI folder %s %v", d.Config.Network.ConfDir, err)
		return
	}
	if err != nil {
		r.fail("correct the file; the first in the order of names is the one in use", "CNI configuration %s: %v", file, err)
		return
	}
	missing := 0
	for _, program := range list.programs() {
		if !d.hasPlugin(program) {
			missing++
			r.fail("install the CNI plugins (package containernetworking-plugins, or the network provider's), or name their folder in [network] bin_dirs",
				"CNI plugin %s of %s is in none of %s", program, file, strings.Join(d.pluginDirs(), ", "))
		}
	}
	if missing > 0 {
		return
	}
	if filters := list.filters(); len(filters) > 0 && !d.hasProgram("iptables") && !d.hasProgram("nft") {
		r.fail("install the package iptables, or nftables", "the CNI plugins %s of %s need iptables or nft, and neither is there", strings.Join(filters, ", "), file)
	}
	r.ok("CNI configuration %s (network %s) with the plugins %s", file, list.Name, strings.Join(list.programs(), ", "))
	if d.NetworkTest {
		d.tryNetwork(ctx, r)
	}
}

func (d *Doctor) pluginDirs() []string {
	dirs := slices.Clone(d.Config.Network.BinDirs)
	if self, err := os.Executable(); err == nil {
		dirs = append(dirs, filepath.Join(filepath.Dir(self), "cni"))
	}
	return dirs
}

func (d *Doctor) hasPlugin(name string) bool {
	return slices.ContainsFunc(d.pluginDirs(), func(dir string) bool {
		info, err := os.Stat(filepath.Join(dir, name))
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
	})
}

// tryNetwork connects a network namespace of its own as a pod's and disconnects it again.
func (d *Doctor) tryNetwork(ctx context.Context, r report) {
	dir, err := os.MkdirTemp("", "berth-doctor-")
	if err != nil {
		r.warn("see that /tmp can be written to", "network test: %v", err)
		return
	}
	defer os.RemoveAll(dir)
	result, err := d.connect(ctx, dir)
	if err != nil {
		r.fail("the text names the plugin that failed; its own documentation knows more", "network test: %v", err)
		return
	}
	r.ok("network test: a scratch namespace got %v and gave it back", result.IPs)
}

func (d *Doctor) connect(ctx context.Context, dir string) (result network.Result, err error) {
	cfg := network.Default()
	cfg.ConfDir, cfg.BinDirs, cfg.CacheDir = d.Config.Network.ConfDir, d.pluginDirs(), filepath.Join(dir, "cache")
	net, err := network.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, net.Close()) }()
	pin := filepath.Join(dir, "netns")
	if err := netns.Create(netns.Request{Pins: map[netns.Kind]string{netns.Net: pin}}); err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, netns.Remove(pin)) }()
	a := network.Attachment{ID: "doctor" + strings.ToLower(rand.Text()), Name: "berth-doctor", Namespace: "default", UID: "doctor", NetnsPath: pin}
	result, err = net.Attach(ctx, a)
	if derr := net.Detach(context.WithoutCancel(ctx), a); derr != nil {
		err = errors.Join(err, fmt.Errorf("disconnect again: %w", derr))
	}
	return result, err
}

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

// conflist is what counts of a CNI configuration here: which plugins it calls.
type conflist struct {
	Name    string `json:"name"`
	Type    string `json:"type"` // of a single plugin's file
	Plugins []struct {
		Type string `json:"type"`
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	} `json:"plugins"`
	IPAM struct {
		Type string `json:"type"`
	} `json:"ipam"`
}

func (c conflist) programs() []string {
	names := []string{c.Type, c.IPAM.Type}
	for _, p := range c.Plugins {
		names = append(names, p.Type, p.IPAM.Type)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return n == "" })
}

func (d *Doctor) checkNetwork(ctx context.Context, r report) {
	dir := d.Config.Network.ConfDir
	entries, err := os.ReadDir(dir)
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); slices.Contains([]string{".conf", ".conflist", ".json"}, ext) {
			files = append(files, e.Name())
		}
	}
	if len(files) == 0 {
		why := "has no configuration"
		if err != nil && !os.IsNotExist(err) {
			why = err.Error()
		}
		r.fail("install a network provider (it writes its file there), or write one: see https://www.cni.dev; pods with host network run without",
			"the CNI folder %s %s", dir, why)
		return
	}
	slices.Sort(files)
	file := filepath.Join(dir, files[0])
	data, err := fsys.ReadFile(file, maxFile)
	var list conflist
	if err == nil {
		err = json.Unmarshal(data, &list)
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

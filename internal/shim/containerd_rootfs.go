// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// mountRootfs mounts what containerd's snapshotter says, one on the other; nothing: the bundle has its root file system.
func mountRootfs(bundle string, mounts []wire.Mount) error {
	if len(mounts) == 0 {
		return nil
	}
	target := filepath.Join(bundle, shimapi.RootfsName)
	if err := os.Mkdir(target, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, m := range mounts {
		if err := mountOne(m, target); err != nil {
			return errors.Join(err, mount.Detach(target))
		}
	}
	return nil
}

// beyond are options that are no options of a file system, but wishes to the program that mounts it.
var beyond = []string{"loop", "uidmap=", "gidmap=", "X-containerd.", "X-mount."}

func mountOne(m wire.Mount, target string) error {
	if m.Target != "" {
		return rpc.Errorf(rpc.Unimplemented, "mount on %q below the root file system: this shim mounts only its root", m.Target)
	}
	for _, option := range m.Options {
		for _, prefix := range beyond {
			if strings.HasPrefix(option, prefix) {
				return rpc.Errorf(rpc.Unimplemented, "mount %s with option %q: this shim does not know it", m.Type, option)
			}
		}
	}
	if overlay, ok := longOverlay(m); ok {
		return overlay.On(target)
	}
	return mount.Mount{Type: m.Type, Source: m.Source, Options: m.Options}.On(target)
}

// longOverlay is the mount of an overlay with options that are more than the kernel reads, said more briefly.
func longOverlay(m wire.Mount) (mount.Overlay, bool) {
	var o mount.Overlay
	if m.Type != "overlay" || len(strings.Join(m.Options, ",")) < os.Getpagesize() {
		return o, false
	}
	for _, option := range m.Options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir":
			o.Layers = strings.Split(value, ":")
		case "upperdir":
			o.Upper = value
		case "workdir":
			o.Work = value
		default:
			o.Options = append(o.Options, option)
		}
	}
	if len(o.Layers) == 0 {
		return o, false
	}
	o.Root = filepath.Dir(o.Layers[0])
	for i := 0; i < len(o.Layers); i++ { // from the start again with each folder further up
		name, below := strings.CutPrefix(o.Layers[i], strings.TrimSuffix(o.Root, "/")+"/")
		if !below || name == "" {
			if o.Root == "/" || o.Root == "." {
				return o, false
			}
			o.Root, i = filepath.Dir(o.Root), -1
		}
	}
	for i, layer := range o.Layers {
		o.Layers[i] = strings.TrimPrefix(layer, strings.TrimSuffix(o.Root, "/")+"/")
	}
	return o, true
}

// unmountRootfs is idempotent.
func unmountRootfs(bundle string) error {
	return mount.Detach(filepath.Join(bundle, shimapi.RootfsName))
}

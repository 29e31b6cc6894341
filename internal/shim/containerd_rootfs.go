// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berth-run/berth/internal/linux/memfd"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/linux/reaper"
	"github.com/berth-run/berth/internal/linux/userns"
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

// unmountRootfs is idempotent.
func unmountRootfs(bundle string) error {
	return mount.DetachOverlay(filepath.Join(bundle, shimapi.RootfsName))
}

// beyond are options that are no options of a file system, but wishes to the program that mounts it.
var beyond = []string{"loop", "uidmap=", "gidmap=", "X-containerd.", "X-mount."}

func mountOne(m wire.Mount, target string) error {
	if m.Target != "" {
		return rpc.Errorf(rpc.Unimplemented, "mount on %q below the root file system: this shim mounts only its root", m.Target)
	}
	mapping, mapped, err := takeMapping(&m)
	if err != nil {
		return err
	}
	for _, option := range m.Options {
		for _, prefix := range beyond {
			if strings.HasPrefix(option, prefix) {
				return rpc.Errorf(rpc.Unimplemented, "mount %s with option %q: this shim does not know it", m.Type, option)
			}
		}
	}
	if mapped {
		return mountMapped(m, mapping, target)
	}
	if m.Type == "overlay" && len(strings.Join(m.Options, ",")) >= os.Getpagesize() {
		overlay, err := overlayOf(m)
		if err != nil {
			return err
		}
		return overlay.On(target)
	}
	return mount.Mount{Type: m.Type, Source: m.Source, Options: m.Options}.On(target)
}

// takeMapping takes uidmap=CONTAINER:HOST:SIZE and gidmap=… from the options of an overlay: containerd's words for a container whose user namespace
// they are.
func takeMapping(m *wire.Mount) (mapping userns.Mapping, mapped bool, err error) {
	if m.Type != "overlay" {
		return mapping, false, nil
	}
	var uids, gids bool
	var rest []string
	for _, option := range m.Options {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "uidmap":
			mapping.UIDs, err = parseRange(value)
			uids = true
		case "gidmap":
			mapping.GIDs, err = parseRange(value)
			gids = true
		default:
			rest = append(rest, option)
		}
		if err != nil {
			return mapping, false, rpc.Errorf(rpc.InvalidArgument, "mount overlay with option %q: %v", option, err)
		}
	}
	if uids != gids {
		return mapping, false, rpc.Errorf(rpc.InvalidArgument, "mount overlay: uidmap and gidmap come together")
	}
	m.Options = rest
	return mapping, uids, nil
}

// parseRange knows one range from 0 on, which is what Kubernetes has.
func parseRange(text string) (userns.Range, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 3 || parts[0] != "0" {
		return userns.Range{}, errors.New("this shim knows one range that begins with 0")
	}
	host, err := strconv.ParseUint(parts[1], 10, 32)
	if err != nil {
		return userns.Range{}, err
	}
	size, err := strconv.ParseUint(parts[2], 10, 32)
	if err != nil {
		return userns.Range{}, err
	}
	if size == 0 {
		return userns.Range{}, errors.New("it maps nothing")
	}
	return userns.Range{Host: uint32(host), Size: uint32(size)}, nil
}

func mountMapped(m wire.Mount, mapping userns.Mapping, target string) error {
	overlay, err := overlayOf(m)
	if err != nil {
		return err
	}
	ns, err := userns.Open(mapping)
	if err != nil {
		return err
	}
	defer ns.Close()
	overlay.UserNS = fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
	return overlay.On(target)
}

// overlayOf is an overlay whose layers are named from the folder on that they have in common: so they may be more than the kernel reads, and
// are found in a mount that shows other owners.
func overlayOf(m wire.Mount) (mount.Overlay, error) {
	var o mount.Overlay
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
	for _, layer := range o.Layers {
		if !filepath.IsAbs(layer) || filepath.Clean(layer) != layer || layer == "/" {
			return o, rpc.Errorf(rpc.InvalidArgument, "mount overlay: layer %q is not a clean absolute path", layer)
		}
		if o.Root == "" {
			o.Root = filepath.Dir(layer)
		}
		for !strings.HasPrefix(layer, strings.TrimSuffix(o.Root, "/")+"/") {
			o.Root = filepath.Dir(o.Root)
		}
	}
	if len(o.Layers) == 0 {
		return o, rpc.Errorf(rpc.InvalidArgument, "mount overlay: there are no layers")
	}
	for i, layer := range o.Layers {
		o.Layers[i] = strings.TrimPrefix(layer, strings.TrimSuffix(o.Root, "/")+"/")
	}
	return o, nil
}

// MountAction is the action of the program that mounts a root file system for us, with a CreateTaskRequest as its input, where that takes a process
// of its own: the one that is first in a user namespace must be waited for by whoever made it, and all that we wait for is the reaper's.
const MountAction = "mount"

// mountElsewhere is mountRootfs in a process of its own where that must be.
func mountElsewhere(r *reaper.Reaper, null *os.File, req *wire.CreateTaskRequest) error {
	mapped := false
	for _, m := range req.Rootfs {
		_, is, err := takeMapping(&m)
		if err != nil {
			return err
		}
		mapped = mapped || is
	}
	if !mapped {
		return mountRootfs(req.Bundle, req.Rootfs)
	}
	input, err := memfd.New("mounts", wire.Marshal(&wire.CreateTaskRequest{Bundle: req.Bundle, Rootfs: req.Rootfs}))
	if err != nil {
		return err
	}
	defer input.Close()
	words, err := memfd.New("words", nil)
	if err != nil {
		return err
	}
	defer words.Close()
	process, err := r.Start(reaper.Command{
		Path: "/proc/self/exe", Args: []string{os.Args[0], MountAction}, Dir: "/", Files: []uintptr{input.Fd(), null.Fd(), words.Fd()},
	})
	if err != nil {
		return err
	}
	if exit := process.Exit(); exit.Code() != 0 {
		return fmt.Errorf("mount the root file system: %s", strings.TrimSpace(string(tail(words, maxRuntimeError))))
	}
	return nil
}

// MountFrom does what a CreateTaskRequest says of the root file system.
func MountFrom(in io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(in, maxSpec))
	if err != nil {
		return err
	}
	var req wire.CreateTaskRequest
	if err := wire.Unmarshal(data, &req); err != nil {
		return err
	}
	if !filepath.IsAbs(req.Bundle) {
		return fmt.Errorf("bundle %q is not an absolute path", req.Bundle)
	}
	return mountRootfs(req.Bundle, req.Rootfs)
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/leak"
)

// rig is one runtime during its turn.
type rig struct {
	plan
	kind   daemon.Kind
	d      *daemon.Daemon
	k      *kubelet.Kubelet
	images *imageSet
	t      *table
	// usage reads the CPU time of everything that the runtime started, nil when nobody counts.
	usage func() (time.Duration, error)
}

// enter moves the shell into the cgroup of its first argument and becomes the rest.
const enter = `mkdir -p "$0" && echo $$ >"$0/cgroup.procs" && exec "$@"`

func newRig(ctx context.Context, p plan, kind daemon.Kind, images *imageSet, t *table) (*rig, error) {
	r := &rig{plan: p, kind: kind, images: images, t: t}
	if p.socket != "" {
		d, err := daemon.Attach(p.socket)
		if err != nil {
			return nil, err
		}
		r.d = d
	} else {
		d, err := daemon.Prepare(daemon.Spec{Kind: program(kind), Bin: p.bin, OCIRuntime: p.oci[kind], PauseImage: images.pause})
		if err != nil {
			return nil, err
		}
		r.d = d
		if err := d.Claim(); err != nil {
			return nil, errors.Join(err, d.Close())
		}
		parent, usage, err := cpuCgroup(d.CgroupParent)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		r.usage = usage
		d.Spec.Launcher = []string{"sh", "-c", enter, parent + "/daemon"}
		if err := widen(d); err != nil {
			return nil, errors.Join(err, d.Close())
		}
		if err := errors.Join(d.Launch(ctx), d.WaitNetwork(ctx, true)); err != nil {
			return nil, errors.Join(err, errors.New(d.LogTail(20)), d.Close())
		}
	}
	r.k = &kubelet.Kubelet{D: r.d}
	pulled, err := r.d.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: images.busybox}})
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	r.k.Image = pulled.ImageRef
	// The first pod makes the bridge and, with containerd, pulls the pause image.
	warm, _, err := r.startPod(ctx, false)
	if err != nil {
		return nil, errors.Join(err, errors.New(r.d.LogTail(20)), r.close())
	}
	if _, err := r.stopPod(ctx, warm, false); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// widen gives the daemon's network room for a thousand pods instead of 253.
func widen(d *daemon.Daemon) error {
	var a, b, c int
	if _, err := fmt.Sscanf(d.Subnet4, "%d.%d.%d.", &a, &b, &c); err != nil {
		return fmt.Errorf("subnet %s: %w", d.Subnet4, err)
	}
	return d.WriteConflist(strings.Replace(d.Conflist(), d.Subnet4+"0/24", fmt.Sprintf("%d.%d.%d.0/22", a, b, c&^3), 1))
}

// close ends the runtime and takes all that it made away; a foreign one only gives back the image.
func (r *rig) close() error {
	var err error
	if r.socket != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err = r.d.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: r.images.busybox}})
	}
	return errors.Join(err, r.d.Close())
}

// cpuCgroup finds the folder of a cgroup that counts CPU time, of whatever is or was below it.
func cpuCgroup(name string) (dir string, usage func() (time.Duration, error), err error) {
	roots, err := leak.CgroupRoots()
	if err != nil {
		return "", nil, err
	}
	for _, file := range []string{"cpuacct.usage", "cpu.stat"} { // the second is of v2
		for _, root := range roots {
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				continue
			}
			dir = filepath.Join(root, name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return "", nil, fmt.Errorf("make cgroup: %w", err)
			}
			return dir, func() (time.Duration, error) { return readUsage(filepath.Join(dir, file)) }, nil
		}
	}
	return "", nil, errors.New("no cgroup hierarchy counts CPU time")
}

func readUsage(path string) (time.Duration, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read CPU usage: %w", err)
	}
	text, unit := strings.TrimSpace(string(data)), time.Nanosecond
	if after, ok := strings.CutPrefix(text, "usage_usec "); ok {
		text, _, _ = strings.Cut(after, "\n")
		unit = time.Microsecond
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read CPU usage of %s: %w", path, err)
	}
	return time.Duration(n) * unit, nil
}

// cpu runs f and records the CPU time that the runtime used for it, for each of n things.
func (r *rig) cpu(metric string, n int, f func() error) error {
	if r.usage == nil {
		return f()
	}
	before, err := r.usage()
	if err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	after, err := r.usage()
	if err != nil {
		return err
	}
	r.t.add(r.kind, metric, milliseconds(after-before)/float64(n))
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// timed records how long f takes.
func (r *rig) timed(metric string, f func() error) (time.Duration, error) {
	begin := time.Now()
	err := f()
	took := time.Since(begin)
	if err == nil && metric != "" {
		r.t.add(r.kind, metric, milliseconds(took))
	}
	return took, err
}

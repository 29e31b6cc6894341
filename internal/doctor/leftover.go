// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/fsys"
	"github.com/berth-run/berth/internal/linux/mount"
)

// young is how fresh something may be without a pod: it is being made or taken away.
const young = time.Minute

// known are the IDs of the pods and containers that the daemon has.
type known map[string]bool

// checkLeftOver compares what is pinned, mounted, assigned and recorded on the machine with the pods that the daemon knows.
func (d *Doctor) checkLeftOver(ctx context.Context, r report) {
	if d.client == nil {
		return
	}
	ids, pods, err := d.known(ctx)
	if status.Code(err) == codes.Unimplemented {
		return
	}
	if err != nil {
		r.fail("see the daemon's log", "pods cannot be listed: %v", status.Convert(err).Message())
		return
	}
	aside, err := filepath.Glob(filepath.Join(d.Config.Root, "quarantine", "*"))
	if err == nil && len(aside) > 0 {
		r.warn("look at them, then delete them: what they held is released", "%d unreadable records are set aside in %s", len(aside), filepath.Join(d.Config.Root, "quarantine"))
	}
	const sweep = "restart the daemon: it sweeps what no pod owns (pods stay)"
	found := 0
	for _, o := range d.orphans(ids) {
		found++
		r.warn(sweep, "%s belongs to no pod", o)
	}
	mounts, err := d.leakedMounts(ids)
	if err != nil {
		r.warn("mount /proc", "mounts: %v", err)
	}
	for _, m := range mounts {
		found++
		r.warn(sweep, "the mount %s belongs to no pod", m)
	}
	for _, a := range d.leakedAddresses(ids) {
		found++
		r.warn("restart the daemon: it gives back what no pod has (pods stay); if it is there still, delete the file", "%s", a)
	}
	if found == 0 {
		r.ok("%d pods, and nothing on the machine that belongs to none of them", pods)
	}
}

func (d *Doctor) known(ctx context.Context) (ids known, pods int, err error) {
	list, err := d.client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, 0, err
	}
	containers, err := d.client.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, 0, err
	}
	ids = known{}
	for _, p := range list.GetItems() {
		ids[p.GetId()] = true
	}
	for _, c := range containers.GetContainers() {
		ids[c.GetId()] = true
	}
	return ids, len(list.GetItems()), nil
}

// orphans are state folders, records, writable layers and pinned network namespaces of pods and containers that nobody knows.
func (d *Doctor) orphans(ids known) []string {
	const prefix = "berth-"
	var all []string
	look := func(pattern, prefix string) {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return // only a malformed pattern is an error
		}
		for _, p := range paths {
			if !ids[filepath.Base(p)[len(prefix):]] && old(p) {
				all = append(all, p)
			}
		}
	}
	look(filepath.Join(d.Config.State, "pods", "*"), "")
	look(filepath.Join(d.Config.Root, "pods", "*"), "")
	look(filepath.Join(d.Config.Root, "rootfs", "*"), "")
	look(filepath.Join(d.Config.Network.NetnsDir, prefix+"*"), prefix)
	return all
}

func old(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && time.Since(info.ModTime()) > young
}

// containerID is how a container's folder in that of its pod is called.
var containerID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// leakedMounts are those in the state folders of pods and containers that nobody knows.
func (d *Doctor) leakedMounts(ids known) (leaked []string, err error) {
	table, err := d.read("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	pods := filepath.Join(d.Config.State, "pods")
	points, err := mount.BelowIn(strings.NewReader(table), pods)
	if err != nil {
		return nil, err
	}
	for _, point := range points {
		if point == pods {
			continue
		}
		part := strings.SplitN(strings.TrimPrefix(point, pods+"/"), "/", 3)
		owner := filepath.Join(pods, part[0])
		ours := ids[part[0]]
		if ours && len(part) > 1 && containerID.MatchString(part[1]) {
			owner, ours = owner+"/"+part[1], ids[part[1]]
		}
		if !ours && old(owner) {
			leaked = append(leaked, point)
		}
	}
	return leaked, nil
}

// leakedAddresses tells of what network plugins hold for pods that nobody knows: by our own notes, and by those of the usual address plugin.
func (d *Doctor) leakedAddresses(ids known) (leaked []string) {
	notes, _ := filepath.Glob(filepath.Join(d.Config.Root, "network", "results", "*")) // no pattern of ours is malformed
	for _, file := range notes {
		var note struct{ ContainerID, NetworkName string }
		data, err := fsys.ReadFile(file, maxFile)
		if err != nil || json.Unmarshal(data, &note) != nil || note.ContainerID == "" || ids[note.ContainerID] || !old(file) {
			continue
		}
		leaked = append(leaked, fmt.Sprintf("the network %s holds addresses for %s, which is no pod: %s", note.NetworkName, note.ContainerID, file))
	}
	for _, dir := range d.addressFolders() {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, file := range files {
			id, ok := holder(file)
			if ok && !ids[id] && old(file) && !d.isOthers(id) {
				leaked = append(leaked, fmt.Sprintf("the address %s is held for %.80s, which is no pod: %s", filepath.Base(file), id, file))
			}
		}
	}
	return leaked
}

// addressFolders are those in which host-local, where the configuration in force names it, keeps a file for each address.
func (d *Doctor) addressFolders() (dirs []string) {
	_, list, err := d.conflist()
	if err != nil {
		return nil // checkNetwork tells
	}
	for _, p := range list.plugins() {
		if p.IPAM.Type != "host-local" {
			continue
		}
		dir := p.IPAM.DataDir
		if dir == "" {
			dir = d.path("/var/lib/cni/networks")
		}
		dirs = append(dirs, filepath.Join(dir, list.Name))
	}
	return dirs
}

// holder is the pod that an address is held for: host-local writes its ID into the first line of the address's file.
func holder(file string) (id string, ok bool) {
	if net.ParseIP(filepath.Base(file)) == nil {
		return "", false
	}
	data, err := fsys.ReadFile(file, maxFile)
	id, _, _ = strings.Cut(string(data), "\n")
	id = strings.TrimSpace(id)
	return id, err == nil && id != ""
}

// isOthers tells whether another runtime on this node has noted that it connected the pod.
func (d *Doctor) isOthers(id string) bool {
	notes, err := filepath.Glob(d.path("/var/lib/cni/results/*-" + id + "-*"))
	return err != nil || len(notes) > 0 // an ID with characters of patterns is nobody's of ours
}

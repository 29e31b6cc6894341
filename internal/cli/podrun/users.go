// SPDX-License-Identifier: Apache-2.0

package podrun

import (
	"context"
	"errors"
	"math/rand/v2"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/manifest"
)

// Where the users of pods with a user namespace are on the host: above what systemd takes for its own containers (up to 0x6fffffff), far above
// what the kubelet takes (65536 × 110 from 65536 on), and below 2^31, which some programs cannot count beyond.
const (
	firstBlock = 0x7000
	blocks     = 0x0fff
)

// freeIDs finds users and groups of the host that no other pod has: nobody else shall own what this one writes. Two runs at the same time
// choose by chance.
func (r *run) freeIDs(ctx context.Context) (first uint32, err error) {
	if !r.Pod.OwnUsers() {
		return 0, nil
	}
	taken, err := r.takenBlocks(ctx)
	if err != nil {
		return 0, err
	}
	for _, i := range rand.Perm(blocks) { //nolint:gosec // G404: nothing secret, only different
		if block := uint32(firstBlock + i); !taken[block] {
			return block * manifest.UserIDs, nil
		}
	}
	return 0, errors.New("hostUsers: false: all users that pods could have are taken; remove pods with `berth rm`")
}

// takenBlocks are those that the users of other pods are in, in units of manifest.UserIDs.
func (r *run) takenBlocks(ctx context.Context) (map[uint32]bool, error) {
	rpc, cancel := r.Client.Read(ctx)
	defer cancel()
	list, err := r.Client.Runtime.ListPodSandbox(rpc, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, r.Client.Error("list pods", err)
	}
	taken := map[uint32]bool{}
	for _, pod := range list.GetItems() {
		st, err := r.Client.Runtime.PodSandboxStatus(rpc, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.GetId()})
		if criclient.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, r.Client.Error("status of pod "+criclient.Short(pod.GetId()), err)
		}
		users := st.GetStatus().GetLinux().GetNamespaces().GetOptions().GetUsernsOptions()
		for _, m := range append(users.GetUids(), users.GetGids()...) {
			for id := uint64(m.GetHostId()) / manifest.UserIDs; id*manifest.UserIDs < uint64(m.GetHostId())+uint64(m.GetLength()); id++ {
				taken[uint32(id)] = true
			}
		}
	}
	return taken, nil
}

// abilities asks what the pod's runtime handler can do.
func (r *run) abilities(ctx context.Context) error {
	rpc, cancel := r.Client.Read(ctx)
	defer cancel()
	answer, err := r.Client.Runtime.Status(rpc, &runtimeapi.StatusRequest{})
	if err != nil {
		return r.Client.Error("status of the runtime", err)
	}
	for _, h := range answer.GetRuntimeHandlers() {
		if h.GetName() == r.Pod.Handler() {
			r.recursiveReadOnly = h.GetFeatures().GetRecursiveReadOnlyMounts()
		}
	}
	return nil
}

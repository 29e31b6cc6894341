// SPDX-License-Identifier: Apache-2.0

package manifest

import runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

// UserIDs is how many users and groups a pod with a user namespace has: as many as the kubelet gives.
const UserIDs = 65536

// OwnUsers tells that the pod's users are not the host's (hostUsers: false).
func (p *Pod) OwnUsers() bool { return p.Spec.HostUsers != nil && !*p.Spec.HostUsers }

// userNamespace maps the pod's users and groups to those of the host from first on; nil: it has the host's.
func (p *Pod) userNamespace(first uint32) *runtimeapi.UserNamespace {
	if !p.OwnUsers() {
		return nil
	}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: mapping(first), Gids: mapping(first)}
}

func mapping(first uint32) []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{HostId: first, Length: UserIDs}}
}

// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// evictTimeout bounds the stop of a container that a plugin wants gone. Plugins do not wait for it.
const evictTimeout = time.Minute

// The protocol lets plugins ask for evictions in three messages; the library passes them on from none. They are read off the wire here.

// seeEvictions looks into what plugins answer.
func (n *NRI) seeEvictions(answer proto.Message) {
	if a, ok := answer.(interface {
		GetEvict() []*api.ContainerEviction
	}); ok {
		n.evict(a.GetEvict())
	}
}

// takeEvictions looks into what plugins ask for by themselves.
func (n *NRI) takeEvictions(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, serve ttrpc.Method) (any, error) {
	return serve(ctx, func(into any) error {
		if err := unmarshal(into); err != nil {
			return err
		}
		if r, ok := into.(*api.UpdateContainersRequest); ok {
			n.evict(r.GetEvict())
		}
		return nil
	})
}

// evict stops containers in the background, one after the other: a plugin's answer must not wait for their grace periods, and the
// request that is in flight may be theirs.
func (n *NRI) evict(all []*api.ContainerEviction) {
	if len(all) == 0 || n.node == nil {
		return
	}
	go func() {
		for _, e := range all {
			ctx, cancel := context.WithTimeout(context.Background(), evictTimeout)
			if err := n.node.HookEvict(ctx, e.GetContainerId(), e.GetReason()); err != nil {
				n.log.Warn("eviction asked for by a plugin", "container", e.GetContainerId(), "reason", e.GetReason(), "error", err)
			}
			cancel()
		}
	}()
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// TestAPluginEvictsAContainer: the library's client has no word for it, the protocol has.
func TestAPluginEvictsAContainer(t *testing.T) {
	t.Parallel()
	k, socket := nriNode(t, "")
	p := k.RunPod(k.PodConfig("pod"))
	victim, other := p.Start(k.Forever("victim")), p.Start(k.Forever("other"))
	plugin := &nriPlugin{}
	evict := func(ctx context.Context, request *ttrpc.Request, response *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
		if request.GetMethod() == "UpdateContainers" {
			payload, err := proto.Marshal(&api.UpdateContainersRequest{Evict: []*api.ContainerEviction{{ContainerId: victim.ID, Reason: "too loud"}}})
			if err != nil {
				return err
			}
			request.Payload = payload
		}
		return call(ctx, request, response)
	}
	plugin.connect(t, socket, "evictor", stub.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(evict)}, nil))
	if _, err := plugin.stub.UpdateContainers(nil); err != nil {
		t.Fatal(err)
	}
	kubelet.Eventually(t, daemon.Slow(60*time.Second), func() string {
		if st := victim.Status(); st.State != cri.ContainerState_CONTAINER_EXITED || st.Message != "evicted by an NRI plugin: too loud" {
			return "the container is " + st.State.String() + " " + st.Message
		}
		return ""
	})
	equal(t, "the other one", other.Exec("echo fine"), "fine")
	kubelet.Eventually(t, daemon.Slow(20*time.Second), func() string {
		if told := plugin.told(); told != "sync; has victim; has other; stopped victim" && told != "sync; has other; has victim; stopped victim" {
			return "told: " + told
		}
		return ""
	})
}

// nriEnder fails to hear of each end in its own way.
type nriEnder struct {
	nriPlugin
	fail func() error
	ends atomic.Int32
}

func (p *nriEnder) end() error { p.ends.Add(1); return p.fail() }

func (p *nriEnder) StopPodSandbox(context.Context, *api.PodSandbox) error   { return p.end() }
func (p *nriEnder) RemovePodSandbox(context.Context, *api.PodSandbox) error { return p.end() }
func (p *nriEnder) RemoveContainer(context.Context, *api.PodSandbox, *api.Container) error {
	return p.end()
}

// TestWhatEndsIsHeldUpByNoPlugin has a required plugin that refuses, hangs or leaves when it is told of an end, and one behind it.
func TestWhatEndsIsHeldUpByNoPlugin(t *testing.T) {
	t.Parallel()
	k, socket := nriNode(t, "request_timeout = \"1s\"\nrequired_plugins = [\"guard\"]\n")
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	for name, fail := range map[string]func(p *nriEnder) error{
		"refuses": func(*nriEnder) error { return errors.New("stay") },
		"hangs":   func(*nriEnder) error { <-hang; return nil },
		"leaves":  func(p *nriEnder) error { p.stub.Stop(); return nil },
	} {
		guard, behind := &nriEnder{}, &nriPlugin{index: "20"}
		guard.fail = func() error { return fail(guard) }
		guard.connectAs(t, guard, socket, "guard")
		behind.connect(t, socket, "behind")
		p := k.RunPod(k.PodConfig(name))
		p.Start(k.Forever(name))
		begin := time.Now()
		p.Stop()
		p.Remove()
		if took := time.Since(begin); took > daemon.Slow(30*time.Second) {
			t.Errorf("%s: the pod took %s to go", name, took)
		}
		contains(t, name+": the plugin behind it", behind.told(), "stopped "+name, "removed "+name)
		if guard.ends.Load() == 0 {
			t.Errorf("%s: it was told of nothing", name)
		}
		guard.stub.Stop()
		behind.stub.Stop()
	}
}

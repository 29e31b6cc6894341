// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// listener follows the events of a daemon.
type listener struct {
	*kubelet.Kubelet
	stream cri.RuntimeService_GetContainerEventsClient
	last   map[string]int64
}

func listen(k *kubelet.Kubelet) *listener {
	k.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	k.T.Cleanup(cancel)
	s, err := k.D.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	return &listener{k, kubelet.Must(k, s, err), map[string]int64{}}
}

// next is the next event, which must carry what a kubelet needs of it.
func (l *listener) next() *cri.ContainerEventResponse {
	l.T.Helper()
	e, err := l.stream.Recv()
	if err != nil {
		l.T.Fatal(err)
	}
	md := e.GetPodSandboxStatus().GetMetadata()
	if md.GetUid() == "" || e.GetPodSandboxStatus().GetId() == "" {
		l.T.Errorf("an event that a kubelet drops: %v", e)
	}
	pod := e.GetPodSandboxStatus().GetId()
	if e.GetCreatedAt() <= l.last[pod] || e.GetCreatedAt() > time.Now().UnixNano() {
		l.T.Errorf("time of the event: %d after %d", e.GetCreatedAt(), l.last[pod])
	}
	l.last[pod] = e.GetCreatedAt()
	return e
}

func (l *listener) want(id string, types ...string) (e *cri.ContainerEventResponse) {
	l.T.Helper()
	for _, want := range types {
		e = l.next()
		if got := e.GetContainerEventType().String(); e.GetContainerId() != id || got != "CONTAINER_"+want+"_EVENT" {
			l.T.Fatalf("got %s of %s, want %s of %s", got, e.GetContainerId(), want, id)
		}
	}
	return e
}

func states(e *cri.ContainerEventResponse) (out []string) {
	for _, c := range e.GetContainersStatuses() {
		out = append(out, c.GetMetadata().GetName()+" "+c.GetState().String())
	}
	return out
}

func TestEventsTellAPodsLife(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	early := listen(k)
	p := k.RunPod(k.PodConfig("events"))
	e := early.want(p.ID, "CREATED", "STARTED")
	equal(t, "state", e.GetPodSandboxStatus().GetState(), cri.PodSandboxState_SANDBOX_READY)
	equal(t, "address", e.GetPodSandboxStatus().GetNetwork().GetIp(), p.IP())
	a := p.Start(k.Forever("a"))
	e = early.want(a.ID, "CREATED", "STARTED")
	equal(t, "statuses", fmt.Sprint(states(e)), "[a CONTAINER_RUNNING]")
	b := p.Start(k.Shell("b", "exit 3"))
	early.want(b.ID, "CREATED", "STARTED")
	e = early.want(b.ID, "STOPPED")
	equal(t, "statuses", fmt.Sprint(states(e)), "[a CONTAINER_RUNNING b CONTAINER_EXITED]")
	equal(t, "exit code", e.GetContainersStatuses()[1].GetExitCode(), 3)

	r, err := k.D.Runtime.PodSandboxStatus(k.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if at := kubelet.Must(k, r, err).GetTimestamp(); at <= e.GetCreatedAt() {
		t.Errorf("a status asked for after the event is of %d, the event of %d", at, e.GetCreatedAt())
	}

	// Who comes later is told what there is.
	late := listen(k)
	late.want(p.ID, "STARTED")
	late.want(a.ID, "STARTED")
	e = late.want(b.ID, "STOPPED")
	equal(t, "statuses", fmt.Sprint(states(e)), "[a CONTAINER_RUNNING b CONTAINER_EXITED]")

	b.Remove()
	p.Remove()
	for _, l := range []*listener{early, late} {
		e = l.want(b.ID, "DELETED")
		equal(t, "statuses", fmt.Sprint(states(e)), "[a CONTAINER_RUNNING]")
		l.want(p.ID, "STOPPED")
		l.want(a.ID, "STOPPED", "DELETED")
		e = l.want(p.ID, "DELETED")
		equal(t, "state", e.GetPodSandboxStatus().GetState(), cri.PodSandboxState_SANDBOX_NOTREADY)
		equal(t, "uid", e.GetPodSandboxStatus().GetMetadata().GetUid(), p.Config.Metadata.Uid)
	}
}

func TestAfterARestartEventsTellWhatThereIs(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("restart"))
	stays, ends := p.Start(k.Forever("stays")), p.Start(k.Forever("ends"))
	before := listen(k)
	for range 3 {
		before.next()
	}
	took, err := k.D.Signal(syscall.SIGTERM, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := before.stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	t.Logf("stopped in %s", took)
	if err := k.D.Restart(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	after := listen(k)
	after.want(p.ID, "STARTED")
	var got []string
	for range 2 {
		e := after.next()
		got = append(got, e.GetContainerId()+" "+e.GetContainerEventType().String())
	}
	slices.Sort(got)
	want := []string{stays.ID + " CONTAINER_STARTED_EVENT", ends.ID + " CONTAINER_STARTED_EVENT"}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	ends.Stop(0)
	after.want(ends.ID, "STOPPED")
}

func TestASubscriberThatNeverReadsStopsNobody(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	listen(k) // and never read
	keen := listen(k)
	p := k.RunPod(k.PodConfig("deaf"))
	keen.want(p.ID, "CREATED", "STARTED")
	for i := range 20 {
		c := p.Create(k.Forever(fmt.Sprint("c", i)))
		keen.want(c.ID, "CREATED")
		c.Remove()
		keen.want(c.ID, "DELETED")
	}
}

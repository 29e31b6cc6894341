// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
)

// drain reads a streamed list to its end.
func drain[R any, T proto.Message](t *testing.T, s grpc.ServerStreamingClient[R], err error, items func(*R) []T) (all []T) {
	t.Helper()
	for err == nil {
		var r *R
		if r, err = s.Recv(); err == nil {
			some := items(r)
			if len(some) == 0 {
				t.Error("a message without items")
			}
			all = append(all, some...)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return all
}

func TestStreamedListsAreTheLists(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("one"))
	c := p.Start(k.Forever("main"))
	p.Create(k.Forever("other"))
	k.RunPod(k.PodConfig("two"))
	rt := k.D.Runtime

	sandboxes, err := rt.StreamPodSandboxes(k.Ctx(), &cri.StreamPodSandboxesRequest{})
	equal(t, "sandboxes", len(drain(t, sandboxes, err, (*cri.StreamPodSandboxesResponse).GetPodSandboxes)), 2)
	sandboxes, err = rt.StreamPodSandboxes(k.Ctx(), &cri.StreamPodSandboxesRequest{Filter: &cri.PodSandboxFilter{Id: p.ID}})
	list, err2 := rt.ListPodSandbox(k.Ctx(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: p.ID}})
	one := drain(t, sandboxes, err, (*cri.StreamPodSandboxesResponse).GetPodSandboxes)
	if err2 != nil || len(one) != 1 || !proto.Equal(one[0], list.GetItems()[0]) {
		t.Errorf("got %v, want %v, %v", one, list, err2)
	}
	containers, err := rt.StreamContainers(k.Ctx(), &cri.StreamContainersRequest{})
	equal(t, "containers", len(drain(t, containers, err, (*cri.StreamContainersResponse).GetContainers)), 2)
	containers, err = rt.StreamContainers(k.Ctx(), &cri.StreamContainersRequest{Filter: &cri.ContainerFilter{State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}}})
	equal(t, "running", drain(t, containers, err, (*cri.StreamContainersResponse).GetContainers)[0].GetId(), c.ID)
	cs, err := rt.StreamContainerStats(k.Ctx(), &cri.StreamContainerStatsRequest{})
	stats := drain(t, cs, err, (*cri.StreamContainerStatsResponse).GetContainerStats)
	if len(stats) != 1 || stats[0].GetAttributes().GetId() != c.ID || stats[0].GetCpu() == nil {
		t.Errorf("got %v", stats)
	}
	ps, err := rt.StreamPodSandboxStats(k.Ctx(), &cri.StreamPodSandboxStatsRequest{})
	equal(t, "sandbox stats", len(drain(t, ps, err, (*cri.StreamPodSandboxStatsResponse).GetPodSandboxStats)), 2)
	ms, err := rt.StreamPodSandboxMetrics(k.Ctx(), &cri.StreamPodSandboxMetricsRequest{})
	equal(t, "metrics", len(drain(t, ms, err, (*cri.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics)), 2)
	images, err := k.D.Images.StreamImages(k.Ctx(), &cri.StreamImagesRequest{})
	equal(t, "images", len(drain(t, images, err, (*cri.StreamImagesResponse).GetImages)), 1)
	images, err = k.D.Images.StreamImages(k.Ctx(), &cri.StreamImagesRequest{Filter: &cri.ImageFilter{Image: &cri.ImageSpec{Image: "none:1"}}})
	equal(t, "no images", len(drain(t, images, err, (*cri.StreamImagesResponse).GetImages)), 0)
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/imageapi/imagepb"
)

func (f *fakeCRI) RunPodSandbox(_ context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := &fakePod{config: r.Config, PodSandbox: &runtimeapi.PodSandbox{Id: id(fmt.Sprintf("a%d", len(f.pods))), Metadata: r.Config.Metadata,
		CreatedAt: time.Now().UnixNano()}}
	f.pods = append(f.pods, p)
	f.called("run pod %s", r.Config.Metadata.Name)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: p.Id}, nil
}

func (f *fakeCRI) CreateContainer(_ context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.pod(r.PodSandboxId); err != nil {
		return nil, err
	}
	c := &runtimeapi.ContainerStatus{Id: id(fmt.Sprintf("c%d", len(f.configs))), Metadata: r.Config.Metadata, Image: r.Config.Image,
		LogPath: filepath.Join(r.SandboxConfig.LogDirectory, r.Config.LogPath), CreatedAt: time.Now().UnixNano()}
	f.containers = append(f.containers, c)
	f.configs = append(f.configs, r.Config)
	f.podOf[c.Id] = r.PodSandboxId
	f.called("create %s/%d", c.Metadata.Name, c.Metadata.Attempt)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.Id}, nil
}

func (f *fakeCRI) StartContainer(_ context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	f.called("start %s/%d", c.Metadata.Name, c.Metadata.Attempt)
	log := ""
	acts := f.acts[c.Metadata.Name]
	if len(acts) == 0 {
		acts = []act{{}}
	}
	a := acts[min(int(c.Metadata.Attempt), len(acts)-1)]
	for _, line := range a.lines {
		log += "2026-01-02T15:04:05.000000001Z " + line + "\n"
	}
	if err := os.WriteFile(c.LogPath, []byte(log), 0o600); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	c.State = runtimeapi.ContainerState_CONTAINER_RUNNING
	if !a.forever {
		c.State, c.ExitCode = runtimeapi.ContainerState_CONTAINER_EXITED, a.code
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (f *fakeCRI) StopContainer(_ context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	f.called("stop %s in %ds", c.Metadata.Name, r.Timeout)
	c.State, c.ExitCode = runtimeapi.ContainerState_CONTAINER_EXITED, 143
	return &runtimeapi.StopContainerResponse{}, nil
}

func (f *fakeCRI) RemoveContainer(_ context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.containers = slices.DeleteFunc(f.containers, func(c *runtimeapi.ContainerStatus) bool {
		if c.Id == r.ContainerId {
			f.called("remove %s/%d", c.Metadata.Name, c.Metadata.Attempt)
		}
		return c.Id == r.ContainerId
	})
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (f *fakeCRI) StopPodSandbox(_ context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.pod(r.PodSandboxId)
	if err != nil {
		return nil, err
	}
	f.called("stop pod %s", p.Metadata.Name)
	p.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (f *fakeCRI) RemovePodSandbox(_ context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods = slices.DeleteFunc(f.pods, func(p *fakePod) bool {
		if p.Id == r.PodSandboxId {
			f.called("remove pod %s", p.Metadata.Name)
		}
		return p.Id == r.PodSandboxId
	})
	f.containers = slices.DeleteFunc(f.containers, func(c *runtimeapi.ContainerStatus) bool { return f.podOf[c.Id] == r.PodSandboxId })
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

func (f *fakeCRI) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &runtimeapi.ListImagesResponse{Images: slices.Clone(f.images)}, nil
}

func (f *fakeCRI) image(name string) *runtimeapi.Image {
	for _, im := range f.images {
		if im.Id == name || slices.Contains(im.RepoTags, name) || slices.Contains(im.RepoDigests, name) {
			return im
		}
	}
	return nil
}

func (f *fakeCRI) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &runtimeapi.ImageStatusResponse{Image: f.image(r.Image.Image)}, nil
}

func (f *fakeCRI) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("pull %s", r.Image.Image)
	f.auth = r.Auth
	if f.image(r.Image.Image) == nil {
		f.images = append(f.images, &runtimeapi.Image{Id: "sha256:" + id("e"), RepoTags: []string{r.Image.Image}, Size: 2_200_000})
	}
	return &runtimeapi.PullImageResponse{ImageRef: f.image(r.Image.Image).Id}, nil
}

func (f *fakeCRI) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("remove image %s", r.Image.Image)
	return &runtimeapi.RemoveImageResponse{}, nil
}

// operator is the fake's berth.v1.Images, of which it serves what the tests need.
type operator struct {
	imagepb.UnimplementedImagesServer
	fake *fakeCRI
}

// Pull brings nothing until its client leaves.
func (o operator) Pull(r *imagepb.PullRequest, out grpc.ServerStreamingServer[imagepb.PullResponse]) error {
	if !o.fake.ours {
		return o.UnimplementedImagesServer.Pull(r, out)
	}
	if err := out.Send(&imagepb.PullResponse{Phase: "fetch"}); err != nil {
		return err
	}
	o.fake.mu.Lock()
	o.fake.called("pull %s", r.GetImage().GetImage())
	o.fake.mu.Unlock()
	<-out.Context().Done()
	return out.Context().Err()
}

func (o operator) Untag(ctx context.Context, r *imagepb.UntagRequest) (*imagepb.UntagResponse, error) {
	f := o.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ours {
		return o.UnimplementedImagesServer.Untag(ctx, r)
	}
	for _, im := range f.images {
		if i := slices.Index(im.RepoTags, r.Name); i >= 0 {
			im.RepoTags = slices.Delete(slices.Clone(im.RepoTags), i, i+1)
			f.called("untag %s", r.Name)
			return &imagepb.UntagResponse{ImageId: im.Id, Name: r.Name, Left: im.RepoTags}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "image %q: not found", r.Name)
}

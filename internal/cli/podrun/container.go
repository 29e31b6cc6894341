// SPDX-License-Identifier: Apache-2.0

package podrun

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/manifest"
)

const (
	// look is how often a container is looked at.
	look = 200 * time.Millisecond
	// away is how long the daemon may be away while the pod runs on.
	away = 2 * time.Minute
	// A container that ends soon is started again after firstDelay, then twice as long, up to lastDelay. One that ran for steady
	// begins anew.
	firstDelay = time.Second
	lastDelay  = 30 * time.Second
	steady     = 10 * time.Minute
)

// start makes and starts one attempt of a container.
func (r *run) start(ctx context.Context, c *corev1.Container, attempt uint32) (id string, err error) {
	image := r.images[c.Image]
	facts := manifest.ContainerFacts{Image: image.GetId(), ImageUser: image.GetUsername(), Attempt: attempt, PodIPs: r.ips,
		VolumePath: r.files.volume, VolumeImage: func(ref string) string { return r.images[ref].GetId() }, HostsFile: r.files.hosts,
		FirstID: r.firstID, RecursiveReadOnly: r.recursiveReadOnly}
	if uid := image.GetUid(); uid != nil {
		facts.ImageUID = &uid.Value
	}
	config, err := r.Pod.Container(c, facts)
	if err != nil {
		return "", err
	}
	if err := r.files.makeLogDir(c.Name); err != nil {
		return "", err
	}
	err = r.patiently(ctx, attempt, func(rpc context.Context) error {
		made, err := r.Client.Runtime.CreateContainer(rpc, &runtimeapi.CreateContainerRequest{PodSandboxId: r.podID, Config: config, SandboxConfig: r.config})
		id = made.GetContainerId()
		return err
	})
	if err != nil {
		return "", r.Client.Error("create container "+c.Name, err)
	}
	err = r.patiently(ctx, attempt, func(rpc context.Context) error {
		_, err := r.Client.Runtime.StartContainer(rpc, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	})
	if err != nil {
		return "", r.Client.Error("start container "+c.Name, err)
	}
	return id, nil
}

// patiently makes a request, and makes it again while nobody answers: a daemon that is away comes back, and its pods run on. The
// first attempt of a container is not waited for: its user is there to see the error.
func (r *run) patiently(ctx context.Context, attempt uint32, request func(context.Context) error) error {
	begin := time.Now()
	for {
		rpc, cancel := r.Client.Change(ctx, 0)
		err := request(rpc)
		cancel()
		if attempt == 0 || status.Code(err) != codes.Unavailable || time.Since(begin) > away {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(look):
		}
	}
}

// supervise runs a container until it has ended and again says that this was it.
func (r *run) supervise(ctx context.Context, c *corev1.Container, again func(code int) bool) (code int, err error) {
	delay := firstDelay
	var before, last string // the attempts that are kept: berth logs -p shows the one before
	for attempt := uint32(0); ; attempt++ {
		id, err := r.start(ctx, c, attempt)
		if err != nil {
			return 0, err
		}
		begun := time.Now()
		ended := func(context.Context) {}
		if !r.Detach {
			ended = r.logs.follow(c.Name, r.files.logFile(c.Name, attempt))
		}
		st, err := r.waitExit(ctx, c.Name, id)
		if err != nil {
			return 0, err
		}
		ended(ctx)
		code = int(st.GetExitCode())
		if !again(code) {
			if code != 0 {
				r.Note("%s", exited(c.Name, st))
			}
			return code, nil
		}
		if before != "" {
			if err := r.removeContainer(ctx, before); err != nil {
				return 0, err
			}
		}
		before, last = last, id
		if time.Since(begun) >= steady {
			delay = firstDelay
		}
		r.Note("%s; it is started again in %s", exited(c.Name, st), delay)
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(delay):
		}
		delay = min(2*delay, lastDelay)
	}
}

func exited(name string, st *runtimeapi.ContainerStatus) string {
	text := fmt.Sprintf("container %s has ended with exit code %d", name, st.GetExitCode())
	if reason := st.GetReason(); reason != "" && reason != "Error" && reason != "Completed" {
		text += " (" + reason + ")"
	}
	return text
}

// waitExit looks at a container until it has exited. The daemon may be away for a while: its containers are not.
func (r *run) waitExit(ctx context.Context, name, id string) (*runtimeapi.ContainerStatus, error) {
	var gone time.Time
	for {
		rpc, cancel := r.Client.Read(ctx)
		answer, err := r.Client.Runtime.ContainerStatus(rpc, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == nil:
			gone = time.Time{}
			if answer.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
				return answer.GetStatus(), nil
			}
		case criclient.IsNotFound(err):
			return nil, fmt.Errorf("container %s was removed", name)
		case status.Code(err) == codes.Unavailable && gone.IsZero():
			gone = time.Now()
			r.Note("berth is away; the pod runs on")
		case status.Code(err) == codes.Unavailable && time.Since(gone) < away:
		default:
			return nil, r.Client.Error("status of container "+name, err)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(look):
		}
	}
}

func (r *run) removeContainer(ctx context.Context, id string) error {
	rpc, cancel := r.Client.Change(ctx, 0)
	defer cancel()
	_, err := r.Client.Runtime.RemoveContainer(rpc, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	if err != nil && !criclient.IsNotFound(err) {
		return r.Client.Error("remove container "+criclient.Short(id), err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Ask tells of a step that a plugin may refuse. When one does, those that have agreed already are told that the pod or container is gone
// again. Errors: ErrRefused, ErrRequired.
func (n *NRI) Ask(ctx context.Context, e Event, p Pod, c *Container) error {
	pod, ctr := podMessage(p), n.message(ctx, c)
	name := ""
	if c != nil {
		name = c.Name
	}
	err := n.do(ctx, p, name, func() error {
		switch e {
		case RunSandbox:
			return n.lib.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: pod})
		case StartContainer:
			return n.lib.StartContainer(ctx, &api.StartContainerRequest{Pod: pod, Container: ctr})
		}
		return fmt.Errorf("event %d cannot be refused", e)
	})
	if err != nil && e == RunSandbox {
		n.Tell(ctx, StopSandbox, p, nil)
		n.Tell(ctx, RemoveSandbox, p, nil)
	}
	return err
}

// Tell tells of what is so already. Errors of plugins are logged: what ends must end.
func (n *NRI) Tell(ctx context.Context, e Event, p Pod, c *Container) {
	pod, ctr := podMessage(p), n.message(ctx, c)
	err := n.do(ctx, Pod{}, "", func() error {
		switch e {
		case PostUpdateSandbox:
			return n.lib.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: pod})
		case StopSandbox:
			return n.lib.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: pod})
		case RemoveSandbox:
			return n.lib.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: pod})
		case PostCreateContainer:
			return n.lib.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: pod, Container: ctr})
		case PostStartContainer:
			return n.lib.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: pod, Container: ctr})
		case PostUpdateContainer:
			return n.lib.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: pod, Container: ctr})
		case RemoveContainer:
			return n.lib.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: pod, Container: ctr})
		}
		return fmt.Errorf("event %d is not told", e)
	})
	if err != nil {
		n.log.WarnContext(ctx, "a plugin fails to hear of an event", "event", e, "error", err)
	}
}

// CreateContainer lets plugins adjust a container before it exists. When one of them refuses, or the adjustments cannot be made, all are
// told that the container is gone again. Errors: ErrRefused, ErrRequired.
func (n *NRI) CreateContainer(ctx context.Context, p Pod, c Container) (Created, error) {
	pod, ctr := podMessage(p), n.message(ctx, &c)
	env := slices.Clone(ctr.GetEnv())
	var response *api.CreateContainerResponse
	err := n.do(ctx, p, c.Name, func() (err error) {
		response, err = n.lib.CreateContainer(ctx, &api.CreateContainerRequest{Pod: pod, Container: ctr})
		if err == nil {
			err = n.checkRequired(p, c.Name)
		}
		return err
	})
	var made Created
	if err == nil {
		made, err = n.adjust(c.Spec, withRemovals(response.GetAdjust(), env, ctr.GetEnv()))
	}
	if err == nil {
		made.Updates, err = fromUpdates(response.GetUpdate())
	}
	if err != nil {
		n.Undo(ctx, p, c)
	}
	return made, err
}

// withRemovals adds the variables that plugins have removed from the environment and set to nothing else. The library leaves them out of the sum of all adjustments, but takes
// them out of the request that it shows to the next plugin: after is the environment there.
func withRemovals(adjust *api.ContainerAdjustment, before, after []string) *api.ContainerAdjustment {
	left := map[string]bool{}
	for _, e := range after {
		name, _, _ := strings.Cut(e, "=")
		left[name] = true
	}
	for _, e := range before {
		name, _, _ := strings.Cut(e, "=")
		if left[name] {
			continue
		}
		left[name] = true
		if adjust == nil {
			adjust = &api.ContainerAdjustment{}
		}
		adjust.Env = append(adjust.Env, &api.KeyValue{Key: api.MarkForRemoval(name)})
	}
	return adjust
}

// Undo tells plugins that a container that they had a say in has not come to be.
func (n *NRI) Undo(ctx context.Context, p Pod, c Container) {
	c.State = runtimeapi.ContainerState_CONTAINER_EXITED
	n.StopContainer(ctx, p, c)
	n.Tell(ctx, RemoveContainer, p, &c)
}

// UpdateContainer lets plugins change an update of resources. It returns the update to make, and updates of other containers.
// Errors: ErrRefused, ErrRequired.
func (n *NRI) UpdateContainer(ctx context.Context, p Pod, c Container, r *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, []Update, error) {
	pod, ctr := podMessage(p), n.message(ctx, &c)
	var response *api.UpdateContainerResponse
	err := n.do(ctx, p, c.Name, func() (err error) {
		response, err = n.lib.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: pod, Container: ctr, LinuxResources: fromCRI(r)})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	all, err := fromUpdates(response.GetUpdate())
	if err != nil {
		return nil, nil, err
	}
	var others []Update
	for _, u := range all {
		if u.Container == c.ID {
			u.Resources.OomScoreAdj = r.GetOomScoreAdj() // plugins have no word for it
			r = u.Resources
		} else {
			others = append(others, u)
		}
	}
	return r, others, nil
}

// UpdateSandbox lets plugins refuse an update of a pod's resources. Errors: ErrRefused, ErrRequired.
func (n *NRI) UpdateSandbox(ctx context.Context, p Pod, overhead, resources *runtimeapi.LinuxContainerResources) error {
	pod := podMessage(p)
	return n.do(ctx, p, "", func() error {
		_, err := n.lib.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{Pod: pod, OverheadLinuxResources: fromCRI(overhead), LinuxResources: fromCRI(resources)})
		return err
	})
}

// StopContainer tells of a container that has ended, and returns what plugins want to give to others. Errors of plugins are logged.
func (n *NRI) StopContainer(ctx context.Context, p Pod, c Container) []Update {
	pod, ctr := podMessage(p), n.message(ctx, &c)
	var response *api.StopContainerResponse
	err := n.do(ctx, Pod{}, "", func() (err error) {
		response, err = n.lib.StopContainer(ctx, &api.StopContainerRequest{Pod: pod, Container: ctr})
		return err
	})
	var updates []Update
	if err == nil {
		updates, err = fromUpdates(response.GetUpdate())
	}
	if err != nil {
		n.log.WarnContext(ctx, "a plugin fails to hear of a stopped container", "container", c.ID, "error", err)
	}
	return updates
}

func (n *NRI) message(ctx context.Context, c *Container) *api.Container {
	if c == nil {
		return nil
	}
	m, err := containerMessage(*c)
	if err != nil {
		n.log.WarnContext(ctx, "plugins are told of a container without its spec", "container", c.ID, "error", err)
	}
	return m
}

// do lets one request go to the plugins, when its turn has come. A request about pod p, or its container of that name, fails when a plugin that it requires does not answer;
// without a pod it cannot fail so.
func (n *NRI) do(ctx context.Context, p Pod, container string, request func() error) error {
	select {
	case n.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-n.turn }()
	n.calls.begin()
	err := request()
	switch {
	case err == nil && p.ID != "":
		return n.calls.missed(n.required(p, container))
	case err == nil || errors.Is(err, ErrRequired):
		return err
	}
	if ctx.Err() == nil && unanswered(err) { // by a validator, or by a plugin that wants requests to fail with it
		return fmt.Errorf("%w: %s", ErrRequired, err.Error())
	}
	// Its text only: a plugin's error brings a gRPC status along, which is not the answer to our caller.
	return fmt.Errorf("%w: %s", ErrRefused, err.Error())
}

// unanswered tells whether a request failed because a plugin has not answered, or is gone.
func unanswered(err error) bool {
	return slices.ContainsFunc([]error{context.DeadlineExceeded, ttrpc.ErrClosed, ttrpc.ErrServerClosed, ttrpc.ErrProtocol},
		func(e error) bool { return errors.Is(err, e) })
}

func fromUpdates(updates []*api.ContainerUpdate) ([]Update, error) {
	var all []Update
	for _, u := range updates {
		if u == nil { // the library's word for: as it was asked for
			continue
		}
		one, err := fromUpdate(u)
		if err != nil && !u.GetIgnoreFailure() {
			return nil, fmt.Errorf("%w: %w", ErrRefused, err)
		} else if err == nil {
			all = append(all, one)
		}
	}
	return all, nil
}

// SPDX-License-Identifier: Apache-2.0

// Package podrun carries out a pod manifest over the CRI, as a kubelet would: images, sandbox, init containers, containers, restarts,
// logs, and the end of it all. It is for internal/cli.
package podrun

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/manifest"
)

// Request is one run of a pod.
type Request struct {
	Client *criclient.Client
	Pod    *manifest.Pod
	// Folders are where the pod's files are made; LogDir, if set, takes its logs instead, and is not removed with the pod.
	Folders Folders
	LogDir  string
	// Detach leaves the pod running; Keep leaves it there when its containers have ended.
	Detach, Keep bool
	// Pull fetches an image.
	Pull func(ctx context.Context, ref string) error
	// Out and Err take the containers' streams; Note takes what is to be said about the run, a line each.
	Out, Err io.Writer
	Note     func(format string, args ...any)
}

// Result is how a pod ended, or that it runs.
type Result struct {
	PodID string
	// ExitCode is the first code of a container that is not 0, in the order of the manifest.
	ExitCode int
	// Interrupted tells that the run ended because its context did.
	Interrupted bool
}

// endTime bounds the clean-up after an interrupted run, beyond the pod's grace period.
const endTime = time.Minute

// Run runs the pod. Attached, it returns when the pod has ended or ctx has; then the pod is removed unless it is to be kept.
func Run(ctx context.Context, r Request) (Result, error) {
	if r.Pod.UID == "" {
		r.Pod.UID = apitypes.UID(NewUID())
	}
	run := &run{Request: r, images: map[string]*runtimeapi.Image{}, logs: newMux(r.Out, r.Err, r.Pod)}
	code, err := run.up(ctx)
	res := Result{PodID: run.podID, ExitCode: code, Interrupted: ctx.Err() != nil}
	switch {
	case res.Interrupted:
		err = nil // whatever was cut off
	case err == nil && r.Detach:
		return res, nil
	case err == nil && r.Keep:
		run.logs.wait()
		return res, nil
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), run.grace()+endTime)
	defer cancel()
	return res, errors.Join(err, run.down(end))
}

// NewUID is a random UUID, for a pod.
func NewUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails: see its documentation
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// run is one run of a pod under way.
type run struct {
	Request
	files  *files
	logs   *mux
	images map[string]*runtimeapi.Image // by the name in the manifest
	podID  string
	ips    []string
	config *runtimeapi.PodSandboxConfig
	// firstID is where the pod's users and groups begin on the host, if it has its own.
	firstID uint32
	// recursiveReadOnly: the runtime handler can make mounts so.
	recursiveReadOnly bool
}

func (r *run) grace() time.Duration {
	return time.Duration(*r.Pod.Spec.TerminationGracePeriodSeconds) * time.Second
}

// up brings everything up in order; attached, it goes on until the containers have ended.
func (r *run) up(ctx context.Context) (code int, err error) {
	if err := r.pullAll(ctx); err != nil {
		return 0, err
	}
	if err := r.abilities(ctx); err != nil {
		return 0, err
	}
	if r.firstID, err = r.freeIDs(ctx); err != nil {
		return 0, err
	}
	if r.files, err = makeFiles(r.Folders, r.LogDir, r.Pod); err != nil {
		return 0, err
	}
	if err := r.sandbox(ctx); err != nil {
		return 0, err
	}
	for i := range r.Pod.Spec.InitContainers {
		c := &r.Pod.Spec.InitContainers[i]
		// An init container that has succeeded is done, whatever the policy.
		code, err := r.supervise(ctx, c, func(code int) bool {
			return code != 0 && r.Pod.Spec.RestartPolicy != corev1.RestartPolicyNever
		})
		if err != nil {
			return 0, err
		}
		if code != 0 {
			r.Note("init container %s has failed: the pod is not started", c.Name)
			return code, r.failed()
		}
	}
	if r.Detach {
		return 0, r.startAll(ctx)
	}
	return r.attached(ctx)
}

// failed is an error for a run that nobody watches the exit code of.
func (r *run) failed() error {
	if r.Detach {
		return errors.New("pod " + r.Pod.Name + " was removed again")
	}
	return nil
}

func (r *run) startAll(ctx context.Context) error {
	for i := range r.Pod.Spec.Containers {
		c := &r.Pod.Spec.Containers[i]
		if _, err := r.start(ctx, c, 0); err != nil {
			return err
		}
	}
	if r.Pod.Spec.RestartPolicy != corev1.RestartPolicyNever {
		r.Note("nobody watches a detached pod: its containers are not restarted")
	}
	return nil
}

// attached runs all containers until each has ended for good, or one cannot be run.
func (r *run) attached(ctx context.Context) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	containers := r.Pod.Spec.Containers
	codes := make([]int, len(containers))
	var all sync.WaitGroup
	for i := range containers {
		all.Go(func() {
			var err error
			if codes[i], err = r.supervise(ctx, &containers[i], r.restarts); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	for _, c := range codes {
		if c != 0 {
			code = c
			break
		}
	}
	return code, context.Cause(ctx)
}

func (r *run) restarts(code int) bool {
	switch r.Pod.Spec.RestartPolicy {
	case corev1.RestartPolicyAlways:
		return true
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	return false
}

// sandbox makes the pod's sandbox, and the files that need its address.
func (r *run) sandbox(ctx context.Context) error {
	facts := manifest.SandboxFacts{LogDir: r.files.logs, FirstID: r.firstID}
	var err error
	if r.Pod.Spec.DNSConfig != nil {
		if facts.HostDNS, err = hostDNS(); err != nil {
			return err
		}
	}
	if r.config, err = r.Pod.Sandbox(facts); err != nil {
		return err
	}
	// An interrupted request would go on in the daemon, and make a pod that nobody knows of.
	rpc, cancel := r.Client.Change(context.WithoutCancel(ctx), 0)
	defer cancel()
	made, err := r.Client.Runtime.RunPodSandbox(rpc, &runtimeapi.RunPodSandboxRequest{Config: r.config, RuntimeHandler: r.Pod.Handler()})
	if err != nil {
		return r.Client.Error("run pod "+r.Pod.Name, err)
	}
	r.podID = made.GetPodSandboxId()
	status, err := r.Client.Runtime.PodSandboxStatus(rpc, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.podID})
	if err != nil {
		return r.Client.Error("status of pod "+r.Pod.Name, err)
	}
	network := status.GetStatus().GetNetwork()
	if network.GetIp() != "" {
		r.ips = append(r.ips, network.GetIp())
	}
	for _, ip := range network.GetAdditionalIps() {
		r.ips = append(r.ips, ip.GetIp())
	}
	if r.Pod.Spec.HostNetwork {
		return nil
	}
	return r.files.writeHosts(r.Pod.HostsFile(r.ips), int(r.firstID))
}

// down ends and removes what up has made, as far as it came. What containers say at their end is still shown.
func (r *run) down(ctx context.Context) error {
	var err error
	if r.podID != "" {
		err = StopPod(ctx, r.Client, r.podID, r.grace())
	}
	r.logs.end()
	if r.podID != "" && err == nil {
		rpc, cancel := r.Client.Change(ctx, 0)
		defer cancel()
		_, err = r.Client.Runtime.RemovePodSandbox(rpc, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.podID})
		err = r.Client.Error("remove pod "+r.Pod.Name, err)
	}
	if err != nil { // what still runs still needs its volumes
		return err
	}
	return r.files.remove()
}

// StopPod ends a pod's containers, each with the grace period, then its sandbox. The sandbox alone would be ended without grace.
func StopPod(ctx context.Context, c *criclient.Client, id string, grace time.Duration) error {
	rpc, cancel := c.Change(ctx, grace)
	defer cancel()
	list, err := c.Runtime.ListContainers(rpc, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: id,
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return c.Error("list containers", err)
	}
	errs := make([]error, len(list.GetContainers()))
	var all sync.WaitGroup
	for i, container := range list.GetContainers() {
		all.Go(func() { errs[i] = StopContainer(ctx, c, container.GetId(), grace) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err = c.Runtime.StopPodSandbox(rpc, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return c.Error("stop pod "+criclient.Short(id), err)
}

// StopContainer ends a container; one that is gone meanwhile is ended.
func StopContainer(ctx context.Context, c *criclient.Client, id string, grace time.Duration) error {
	rpc, cancel := c.Change(ctx, grace)
	defer cancel()
	_, err := c.Runtime.StopContainer(rpc, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64((grace + time.Second - 1) / time.Second)})
	if err != nil && !criclient.IsNotFound(err) {
		return c.Error("stop container "+criclient.Short(id), err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// workload is what each container runs: nothing, for ever.
const workload = "100000"

// pod is a sandbox with one container.
type pod struct{ sandbox, container string }

// startPod runs a pod of one container and says how long it took; record keeps its steps, too.
func (r *rig) startPod(ctx context.Context, record bool) (pod, time.Duration, error) {
	return r.startWith(ctx, record, func() error { return nil })
}

// startWith is startPod, with the image fetched when the sandbox runs.
func (r *rig) startWith(ctx context.Context, record bool, fetch func() error) (pod, time.Duration, error) {
	metric := func(name string) string {
		if !record {
			return ""
		}
		return name
	}
	config := r.k.PodConfig("bench")
	var p pod
	run, err := r.timed(metric("RunPodSandbox"), func() error {
		a, err := r.d.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
		p.sandbox = a.GetPodSandboxId()
		return err
	})
	if err == nil {
		err = fetch()
	}
	if err != nil {
		return p, 0, err
	}
	spec := r.k.ContainerConfig("main", "sleep", workload)
	if err := os.MkdirAll(filepath.Dir(filepath.Join(config.LogDirectory, spec.LogPath)), 0o755); err != nil {
		return p, 0, fmt.Errorf("make log folder: %w", err)
	}
	create, err := r.timed(metric("CreateContainer"), func() error {
		a, err := r.d.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.sandbox, Config: spec, SandboxConfig: config})
		p.container = a.GetContainerId()
		return err
	})
	if err != nil {
		return p, 0, err
	}
	start, err := r.timed(metric("StartContainer"), func() error {
		_, err := r.d.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container})
		return err
	})
	return p, run + create + start, err
}

// stopPod takes a pod away as a kubelet does, without a grace period, and says how long it took; record
// keeps its steps, too.
func (r *rig) stopPod(ctx context.Context, p pod, record bool) (all time.Duration, err error) {
	for _, step := range []struct {
		name string
		call func() error
	}{
		{"StopContainer", func() error {
			_, err := r.d.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container})
			return err
		}},
		{"StopPodSandbox", func() error {
			_, err := r.d.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.sandbox})
			return err
		}},
		{"RemoveContainer", func() error {
			_, err := r.d.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container})
			return err
		}},
		{"RemovePodSandbox", func() error {
			_, err := r.d.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
			return err
		}},
	} {
		metric := step.name
		if !record {
			metric = ""
		}
		took, err := r.timed(metric, step.call)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", step.name, err)
		}
		all += took
	}
	return all, nil
}

// life starts and stops pods one after another.
func (r *rig) life(ctx context.Context) error {
	return r.cpu("CPU per pod, start and teardown", r.sequential, func() error {
		for range r.sequential {
			p, took, err := r.startPod(ctx, true)
			if err != nil {
				return err
			}
			r.t.add(r.kind, "pod start", milliseconds(took))
			took, err = r.stopPod(ctx, p, true)
			if err != nil {
				return err
			}
			r.t.add(r.kind, "pod teardown", milliseconds(took))
		}
		return nil
	})
}

// workers is how many calls run side by side.
const workers = 4

// each calls f for 0 to n-1, some of them side by side, and stops after an error.
func each(ctx context.Context, n int, f func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	todo := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range todo {
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range n {
		select {
		case todo <- i:
		case <-ctx.Done():
		}
	}
	close(todo)
	wg.Wait()
	return context.Cause(ctx)
}

// crowd starts pods side by side and returns them.
func (r *rig) crowd(ctx context.Context, n int, started func(time.Duration)) ([]pod, error) {
	pods := make([]pod, n)
	err := each(ctx, n, func(ctx context.Context, i int) error {
		p, took, err := r.startPod(ctx, false)
		pods[i] = p
		if err == nil {
			started(took)
		}
		return err
	})
	return pods, err
}

// parallel starts many pods, four at once, and takes them away in the same way.
func (r *rig) parallel(ctx context.Context) error {
	return r.cpu("4 at once: CPU per pod", r.plan.parallel, func() error {
		var pods []pod
		all, err := r.timed("", func() (err error) {
			pods, err = r.crowd(ctx, r.plan.parallel, func(d time.Duration) { r.t.add(r.kind, "4 at once: pod start", milliseconds(d)) })
			return err
		})
		if err != nil {
			return err
		}
		r.t.add(r.kind, "4 at once: wall time per pod", milliseconds(all)/float64(r.plan.parallel))
		return each(ctx, len(pods), func(ctx context.Context, i int) error {
			took, err := r.stopPod(ctx, pods[i], false)
			r.t.add(r.kind, "4 at once: pod teardown", milliseconds(took))
			return err
		})
	})
}

// exec runs true in one container, again and again.
func (r *rig) exec(ctx context.Context) error {
	p, _, err := r.startPod(ctx, false)
	if err != nil {
		return err
	}
	err = r.cpu("ExecSync true: CPU", r.execs, func() error {
		for range r.execs {
			if _, err := r.timed("ExecSync true", func() error {
				a, err := r.d.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: 10})
				if err == nil && a.ExitCode != 0 {
					err = fmt.Errorf("exit code %d", a.ExitCode)
				}
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	})
	_, stopErr := r.stopPod(ctx, p, false)
	return errors.Join(err, stopErr)
}

// implemented tells an error from a call that the runtime does not know yet.
func implemented(err error) bool { return status.Code(err) != codes.Unimplemented }

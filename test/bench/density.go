// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// density looks at a runtime with many pods at rest: memory, CPU, lists, and its restart.
func (r *rig) density(ctx context.Context) error {
	pods, err := r.crowd(ctx, r.dense, func(time.Duration) {})
	if err == nil {
		err = errors.Join(r.rest(ctx), r.lists(ctx), r.restart(ctx))
	}
	if ctx.Err() != nil { // cut off: what is left goes by force
		return context.Cause(ctx)
	}
	return errors.Join(err, each(ctx, len(pods), func(ctx context.Context, i int) error {
		if pods[i].sandbox == "" { // it was not started
			return nil
		}
		_, err := r.stopPod(ctx, pods[i], false)
		return err
	}))
}

// rest measures memory and CPU while nobody asks anything.
func (r *rig) rest(ctx context.Context) error {
	settle, idle := 5*time.Second, 10*time.Second
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	before, err := r.usage()
	if err != nil {
		return err
	}
	select {
	case <-time.After(idle):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	after, err := r.usage()
	if err != nil {
		return err
	}
	r.t.add(r.kind, "at rest: CPU in a second", milliseconds(after-before)/idle.Seconds())
	own, err := pss(r.d.PID())
	if err != nil {
		return err
	}
	r.t.add(r.kind, "at rest: daemon's memory (PSS, MB)", own)
	all, err := r.d.Scope().Processes()
	if err != nil {
		return err
	}
	var helpers float64
	for _, p := range all {
		if p.Command == "sleep "+workload {
			continue
		}
		m, err := pss(p.PID)
		if err != nil {
			return err
		}
		helpers += m
	}
	r.t.add(r.kind, "at rest: helpers' memory per pod (PSS, MB)", helpers/float64(r.dense))
	return nil
}

// pss is a process's share of memory in MB.
func pss(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has no PSS", pid)
}

const (
	samples = 20
	// fewSamples are enough for calls that take seconds, and when listTime is over.
	fewSamples = 3
	listTime   = 20 * time.Second
)

func (r *rig) lists(ctx context.Context) error {
	for _, call := range []struct {
		name string
		ask  func() error
	}{
		{"ListPodSandbox", func() error { _, err := r.d.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); return err }},
		{"ListContainers", func() error { _, err := r.d.Runtime.ListContainers(ctx, &cri.ListContainersRequest{}); return err }},
		{"ListContainerStats", func() error {
			_, err := r.d.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return err
		}},
		{"ListPodSandboxStats", func() error {
			_, err := r.d.Runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return err
		}},
		{"ListPodSandboxMetrics", func() error {
			_, err := r.d.Runtime.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
			return err
		}},
	} {
		for begin, i := time.Now(), 0; i < samples && (i < fewSamples || time.Since(begin) < listTime); i++ {
			_, err := r.timed(fmt.Sprintf("%s of %d pods", call.name, r.dense), call.ask)
			if err != nil && !implemented(err) {
				break
			}
			if err != nil {
				return fmt.Errorf("%s: %w", call.name, err)
			}
		}
	}
	return nil
}

// restart kills the daemon and waits until it knows all pods again.
func (r *rig) restart(ctx context.Context) error {
	if err := r.d.Kill(); err != nil {
		return err
	}
	_, err := r.timed(fmt.Sprintf("restart with %d pods, until they are listed", r.dense), func() error {
		if err := r.d.Launch(ctx); err != nil {
			return err
		}
		a, err := r.d.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err == nil && len(a.Items) != r.dense {
			err = fmt.Errorf("%d pods are listed after the restart, want %d", len(a.Items), r.dense)
		}
		return err
	})
	return err
}

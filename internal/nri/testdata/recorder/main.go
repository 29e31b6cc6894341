// SPDX-License-Identifier: Apache-2.0

// Recorder is an NRI plugin that writes what it is told into the file that its configuration names.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type recorder struct{ out string }

func (r *recorder) note(line string) error {
	f, err := os.OpenFile(r.out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = fmt.Fprintln(f, line)
	return err
}

func (r *recorder) Configure(_ context.Context, config, _, _ string) (api.EventMask, error) {
	r.out = config
	return 0, nil
}

func (r *recorder) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	return nil, r.note("synchronize")
}

func (r *recorder) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return r.note("run " + pod.GetId())
}

func main() {
	s, err := stub.New(&recorder{})
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/runtime"
)

func TestAnExecThatMeetsTheEndOfItsContainerSaysSo(t *testing.T) {
	runc := errors.New("runc: cannot exec in a stopped container")
	end := func(t *testing.T, n *node, s, c string) {
		n.w.mu.Lock()
		n.w.end(n.w.shims[s], c, 0)
		n.w.mu.Unlock()
		eventually(t, "the container has ended", func() bool {
			return mustStatus(t, n, c).State == runtimeapi.ContainerState_CONTAINER_EXITED
		})
	}
	remove := func(t *testing.T, n *node, _, c string) {
		if err := n.RemoveContainer(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, n *node, s, c string)
		err, want error
	}{
		"it runs":                      {nil, runc, nil},
		"it has ended":                 {end, runc, ErrState},
		"it has ended, the shim, too":  {end, runtime.ErrShimGone, ErrState},
		"it is removed":                {remove, runc, ErrNotFound},
		"the shim has forgotten it":    {nil, &runtime.TaskError{Kind: runtime.ErrNotFound}, ErrState},
		"the shim knows first":         {nil, &runtime.TaskError{Kind: runtime.ErrState}, ErrState},
		"the caller has left":          {end, context.Canceled, context.Canceled},
		"the command took too long":    {end, runtime.ErrExecTimeout, runtime.ErrExecTimeout},
		"the client took nothing more": {remove, runtime.ErrClientGone, runtime.ErrClientGone},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, exec := range map[string]func(n *node, c string) error{
				"ExecSync": func(n *node, c string) error { _, err := n.ExecSync(t.Context(), c, []string{"true"}, 0); return err },
				"Exec": func(n *node, c string) error {
					_, err := n.Exec(t.Context(), c, []string{"true"}, runtime.Session{})
					return err
				},
			} {
				n, s, c := running(t)
				n.w.shims[s].exec = func() error {
					if test.meanwhile != nil {
						test.meanwhile(t, n, s, c)
					}
					return test.err
				}
				err := exec(n, c)
				if !errors.Is(err, test.err) {
					t.Errorf("%s: %v", kind, err)
				}
				for _, class := range []error{ErrState, ErrNotFound, context.Canceled, runtime.ErrExecTimeout, runtime.ErrClientGone} {
					if got, want := errors.Is(err, class), errors.Is(test.want, class); got != want {
						t.Errorf("%s: %v: is %v: %v", kind, err, class, got)
					}
				}
			}
		})
	}
}

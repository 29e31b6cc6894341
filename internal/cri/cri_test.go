// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/spec"
)

func TestEachErrorHasTheCodeThatItsCallerActsOn(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{pod.ErrInvalid, codes.InvalidArgument},
		{spec.ErrInvalid, codes.InvalidArgument},
		{pod.ErrNotFound, codes.NotFound},
		{image.ErrNotFound, codes.NotFound},
		{pod.ErrExists, codes.AlreadyExists},
		{pod.ErrState, codes.FailedPrecondition},
		{runtime.ErrExecTimeout, codes.DeadlineExceeded},
		{fmt.Errorf("%w (%w)", pod.ErrInFlight, context.DeadlineExceeded), codes.DeadlineExceeded},
		{fmt.Errorf("%w (%w)", pod.ErrInFlight, context.Canceled), codes.Canceled},
		{image.ErrUnauthorized, codes.Unauthenticated},
		{image.ErrUnavailable, codes.Unavailable},
		{context.Canceled, codes.Canceled},
		{errors.New("anything else"), codes.Internal},
		{status.Error(codes.Unimplemented, "as it is"), codes.Unimplemented},
	} {
		err := Status(fmt.Errorf("sandbox x: %w", c.err))
		if c.err != nil && status.Code(Status(c.err)) != c.want {
			t.Errorf("%v: got %v, want %v", c.err, status.Code(Status(c.err)), c.want)
		}
		if !strings.Contains(err.Error(), "sandbox x") {
			t.Errorf("%v lost its text", err)
		}
	}
	if Status(nil) != nil {
		t.Error("success is an error")
	}
}

func TestTheKubeletFindsItsPrefix(t *testing.T) {
	for want, err := range map[string]error{"RegistryUnavailable": image.ErrUnavailable, "SignatureValidationFailed": image.ErrRefused, "RROUnsupported": pod.ErrRecursiveReadOnly,
		"ImageVolumeMountFailed": pod.ErrImageVolume} {
		s, _ := status.FromError(Status(fmt.Errorf("mounts[0]: %w: %w", pod.ErrInvalid, err)))
		if !strings.HasPrefix(s.Message(), want+": ") {
			t.Errorf("%s: got %q", want, s.Message())
		}
	}
}

func TestSignalsHaveTheirCRINames(t *testing.T) {
	for n, want := range map[int]string{15: "SIGNAL_SIGTERM", 9: "SIGNAL_SIGKILL", 34: "SIGNAL_SIGRTMIN", 37: "SIGNAL_SIGRTMINPLUS3",
		49: "SIGNAL_SIGRTMINPLUS15", 50: "SIGNAL_SIGRTMAXMINUS14", 64: "SIGNAL_SIGRTMAX", 0: "SIGNAL_RUNTIME_DEFAULT", 99: "SIGNAL_RUNTIME_DEFAULT"} {
		if got := stopSignal(n).String(); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
}

func TestSandboxStatusHasWhatTheKubeletValidates(t *testing.T) {
	st := &pod.SandboxStatus{ID: "1", Handler: "runc", Ready: true, CreatedAt: 7, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")},
		Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, Labels: map[string]string{"a": "b"}}}
	out := sandboxStatus(st)
	if out.GetId() != "1" || out.GetCreatedAt() != 7 || out.GetMetadata().GetUid() != "u" || out.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY ||
		out.GetNetwork().GetIp() != "10.0.0.2" || out.GetNetwork().GetAdditionalIps()[0].GetIp() != "fd00::2" || out.GetLabels()["a"] != "b" {
		t.Errorf("got %v", out)
	}
}

func TestCheckpointsOfPodsWantADeadlineAndNoOptions(t *testing.T) {
	s := New(Config{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, x := range map[string]struct {
		call func(ctx context.Context, options map[string]string) error
	}{
		"CheckpointPod": {func(ctx context.Context, options map[string]string) error {
			_, err := s.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{Options: options})
			return err
		}},
		"RestorePod": {func(ctx context.Context, options map[string]string) error {
			_, err := s.RestorePod(ctx, &runtimeapi.RestorePodRequest{Options: options})
			return err
		}},
	} {
		if err := Status(x.call(t.Context(), nil)); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "deadline") {
			t.Errorf("%s without a deadline: %v", name, err)
		}
		if err := Status(x.call(ctx, map[string]string{"leave-frozen": "true"})); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "leave-frozen") {
			t.Errorf("%s with an option: %v", name, err)
		}
	}
	if _, err := s.RestorePod(ctx, &runtimeapi.RestorePodRequest{}); status.Code(Status(err)) != codes.InvalidArgument {
		t.Errorf("without a config: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-run/berth/internal/cri/stream"
	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/nri"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/spec"
)

// classes gives each error that a caller can act on its code; the first match counts.
var classes = []struct {
	err  error
	code codes.Code
}{
	{pod.ErrInvalid, codes.InvalidArgument},
	{spec.ErrInvalid, codes.InvalidArgument},
	{image.ErrInvalidReference, codes.InvalidArgument},
	// The request is well-formed; what the registry holds is not for this node.
	{image.ErrUnsupported, codes.FailedPrecondition},
	{pod.ErrInFlight, codes.DeadlineExceeded},
	// A probe whose timeout is over has failed; any other code would make it unknown to the kubelet.
	{runtime.ErrExecTimeout, codes.DeadlineExceeded},
	{pod.ErrNotFound, codes.NotFound},
	{image.ErrNotFound, codes.NotFound},
	{pod.ErrExists, codes.AlreadyExists},
	{pod.ErrSubscribers, codes.ResourceExhausted},
	{pod.ErrEventsEnded, codes.Unavailable},
	{pod.ErrState, codes.FailedPrecondition},
	{pod.ErrUnsupported, codes.FailedPrecondition},
	{image.ErrRefused, codes.PermissionDenied},
	{image.ErrUnauthorized, codes.Unauthenticated},
	{image.ErrUnavailable, codes.Unavailable},
	{image.ErrSnapshotter, codes.Unavailable},
	{image.ErrCorrupt, codes.DataLoss},
	{image.ErrLayersDropped, codes.FailedPrecondition},
	{image.ErrNoSpace, codes.ResourceExhausted},
	{pod.ErrUnavailable, codes.Unavailable},
	{stream.ErrBusy, codes.ResourceExhausted},
	{runtime.ErrShimGone, codes.Unavailable},
	{runtime.ErrUnsupported, codes.Unimplemented},
	{runtime.ErrState, codes.FailedPrecondition},
	{nri.ErrRequired, codes.Unavailable},
	{nri.ErrRefused, codes.FailedPrecondition},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// Status turns an error of the domain into a gRPC status error. It is the interceptor's to call, once per RPC.
func Status(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	if errors.Is(err, pod.ErrInFlight) && errors.Is(err, context.Canceled) { // the caller has left: this is for the log alone
		return status.Error(codes.Canceled, err.Error())
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return status.Error(c.code, prefix(err)+err.Error())
		}
	}
	return status.Error(codes.Internal, prefix(err)+err.Error())
}

// prefix is what the kubelet looks for at the beginning of a message (k8s.io/cri-api/pkg/errors).
func prefix(err error) string {
	switch {
	case errors.Is(err, image.ErrRefused):
		return "SignatureValidationFailed: "
	case errors.Is(err, image.ErrUnavailable):
		return "RegistryUnavailable: "
	case errors.Is(err, pod.ErrRecursiveReadOnly):
		return "RROUnsupported: "
	case errors.Is(err, pod.ErrImageVolume):
		return "ImageVolumeMountFailed: "
	}
	return ""
}

func isNotFound(err error) bool { return errors.Is(err, image.ErrNotFound) }

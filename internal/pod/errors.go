// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"
)

// What a caller can act on; cri gives each its gRPC code.
var (
	// ErrNotFound: no such sandbox or container.
	ErrNotFound = errors.New("not found")
	// ErrInvalid: the request can never succeed as it is.
	ErrInvalid = errors.New("invalid request")
	// ErrState: the object is not in a state that allows the request.
	ErrState = errors.New("wrong state")
	// ErrExists: another object has the name.
	ErrExists = errors.New("already exists")
	// ErrInFlight: the caller's patience ended before the work did. The work goes on; a retry joins it.
	ErrInFlight = errors.New("still in progress; the work goes on and a retry joins it")
	// ErrUnavailable: something that the request needs is not there now (network, shim) and may come back.
	ErrUnavailable = errors.New("unavailable")
	// ErrImageVolume: an image cannot be mounted as a volume.
	ErrImageVolume = errors.New("image volume")
	// ErrUnsupported: this node, or its OCI runtime, cannot do what the request needs.
	ErrUnsupported = errors.New("not supported here")
	// ErrRecursiveReadOnly: the OCI runtime or the kernel cannot make mounts recursively read-only.
	ErrRecursiveReadOnly = fmt.Errorf("recursive read-only mounts: %w", ErrUnsupported)

	// errGone: the object was removed while the caller held it.
	errGone = errors.New("removed")
)

// SPDX-License-Identifier: Apache-2.0

package pod

import "errors"

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

	// errGone: the object was removed while the caller held it.
	errGone = errors.New("removed")
)

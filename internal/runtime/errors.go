// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What a caller can act on. Each is found with errors.Is.
var (
	// ErrShimGone: nobody listens on the shim's socket any more. What it leaves behind is KillLeftOver's.
	ErrShimGone = errors.New("shim is gone")
	// ErrClosed: Close was called on this connection. It says nothing about the shim.
	ErrClosed = errors.New("connection to shim is closed")
	// ErrBroken: the connection broke while a call was under way, though a shim listens; whether the call
	// had an effect is not known.
	ErrBroken = errors.New("connection to shim broke")
	// ErrNotFound: the shim does not know the container, or the exec.
	ErrNotFound = errors.New("not found")
	// ErrExists: the shim has a container, or exec, of that ID.
	ErrExists = errors.New("exists already")
	// ErrState: the container is not in a state in which this can be done.
	ErrState = errors.New("wrong state")
	// ErrInvalid: a parameter cannot be right.
	ErrInvalid = errors.New("invalid argument")
	// ErrUnsupported: the shim or OCI runtime cannot do this.
	ErrUnsupported = errors.New("not supported")
	// ErrExecTimeout: the exec ran into its own timeout, and was killed.
	ErrExecTimeout = errors.New("exec timed out")
	// ErrNoHandler: no runtime handler of that name is configured.
	ErrNoHandler = errors.New("unknown runtime handler")
	// ErrShimRuns: StartShim found that the sandbox's shim runs already.
	ErrShimRuns = errors.New("shim runs already")
)

// A TaskError is the shim's refusal, with the OCI runtime's own text where that is what failed.
type TaskError struct {
	Op   string // such as "start"
	ID   string // of the container, if the call was about one
	Text string
	// Kind is one of ErrNotFound, ErrExists, ErrState, ErrInvalid, ErrUnsupported, the errors of package context,
	// or nil.
	Kind error
}

func (e *TaskError) Error() string {
	if e.ID == "" {
		return e.Op + ": " + e.Text
	}
	return e.Op + " container " + e.ID + ": " + e.Text
}

func (e *TaskError) Unwrap() error { return e.Kind }

var kinds = map[codes.Code]error{
	codes.NotFound:           ErrNotFound,
	codes.AlreadyExists:      ErrExists,
	codes.FailedPrecondition: ErrState,
	codes.InvalidArgument:    ErrInvalid,
	codes.Unimplemented:      ErrUnsupported,
	codes.DeadlineExceeded:   context.DeadlineExceeded,
	codes.Canceled:           context.Canceled,
}

// translate names the operation and turns a gRPC status into a TaskError.
func translate(op, id string, err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok {
		return &TaskError{Op: op, ID: id, Text: s.Message(), Kind: kinds[s.Code()]}
	}
	if id == "" {
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s container %s: %w", op, id, err)
}

// answered tells that the shim gave an answer, if a negative one, or that the caller went away: the connection is
// as good as before.
func answered(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	_, ok := status.FromError(err)
	return ok
}

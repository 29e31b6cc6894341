// SPDX-License-Identifier: Apache-2.0

package criclient

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// unreachable says why nobody answers at a socket, and what to do.
func unreachable(path string, err error) error {
	var why string
	hint := "is the daemon running? start it with `berth serve`"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		why = "there is no such socket"
	case isNoSocket(path), errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.EPROTOTYPE):
		why, hint = "it is not a socket that can be connected to", "say which one with --socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "nobody listens there"
	case errors.Is(err, fs.ErrPermission):
		why, hint = "permission denied", "run as root or join the socket's group"
	default:
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		why = err.Error()
	}
	return fmt.Errorf("cannot reach berth at %s: %s: %s", path, why, hint)
}

// isNoSocket tells of what is there and something else: the kernel refuses that as it refuses a socket at which nobody listens.
func isNoSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Type() != fs.ModeSocket
}

// rpcError is an error of the runtime in words: without gRPC's decoration, with its code kept.
type rpcError struct {
	op   string
	code codes.Code
	text string
}

func (e rpcError) Error() string { return e.op + ": " + e.text }

// GRPCStatus lets status.Code find the code.
func (e rpcError) GRPCStatus() *status.Status { return status.New(e.code, e.text) }

// Error words the error of one request; op says what was asked of which object. nil stays nil.
func (c *Client) Error(op string, err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", op, err)
	}
	text := s.Message()
	switch s.Code() {
	case codes.DeadlineExceeded:
		if strings.HasPrefix(text, "context deadline exceeded") { // and, where the daemon took the connection but said nothing yet, gRPC's words on that
			text = "no answer in time: berth at " + c.Socket + " is busy or hangs; --timeout waits longer"
		}
	case codes.Unavailable:
		text = "berth at " + c.Socket + ": " + text
	case codes.Unimplemented:
		if text == "" || text == "unknown service runtime.v1.RuntimeService" || text == "unknown service runtime.v1.ImageService" {
			text = "what listens at " + c.Socket + " does not serve the CRI v1: " + text
		}
	case codes.Canceled:
		if text == "context canceled" {
			text = "interrupted"
		}
	}
	return rpcError{op: op, code: s.Code(), text: text}
}

// IsNotFound tells that the object of a request is gone.
func IsNotFound(err error) bool { return status.Code(unwrapStatus(err)) == codes.NotFound }

// IsDeadline tells that a request took longer than was allowed.
func IsDeadline(err error) bool { return status.Code(unwrapStatus(err)) == codes.DeadlineExceeded }

// unwrapStatus finds the error in the chain that has a gRPC status; status.Code itself does so only since it knows errors.As.
func unwrapStatus(err error) error {
	var withStatus interface{ GRPCStatus() *status.Status }
	if errors.As(err, &withStatus) {
		return withStatus.GRPCStatus().Err()
	}
	return err
}

// IsUnavailable tells that nobody answers at the socket now.
func IsUnavailable(err error) bool { return status.Code(unwrapStatus(err)) == codes.Unavailable }

// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"fmt"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
)

// errGone: nobody listens, or the connection broke.
var errGone = rpc.ErrGone

// client calls a shim's Task service.
type client struct {
	*rpc.Client
	service string
}

// dial connects to a shim's address, unix://PATH or an abstract one.
func dial(address string, version int) (*client, error) {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok {
		return nil, fmt.Errorf("shim's address %q is not a unix socket's", address)
	}
	conn, err := rpc.Dial(path, callLimit)
	if err != nil {
		return nil, fmt.Errorf("shim: %w", err)
	}
	return &client{conn, fmt.Sprintf("containerd.task.v%d.Task", version)}, nil
}

// call waits for the answer for limit; 0: as long as the connection lasts.
func (c *client) call(limit time.Duration, method string, request, answer wire.Message) error {
	err := c.Call(limit, c.service, method, request, answer)
	if err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	return nil
}

func (c *client) close() { c.Close() }

func notFound(err error) bool { return rpc.CodeOf(err) == rpc.NotFound }

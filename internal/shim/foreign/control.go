// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/berth-run/berth/internal/shim/wire"
	"github.com/berth-run/berth/internal/shimapi"
)

// connected calls use with a connection to the container's shim.
func (c *command) connected(use func(*client) error) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	shim, err := dial(s.Address, s.Version)
	if err != nil {
		return err
	}
	defer shim.close()
	return use(shim)
}

// kill signals the container. One that has ended has nothing to be killed: its end is on the way. A SIGKILL that the shim does not carry out kills the shim.
func (c *command) kill() error {
	err := c.connected(func(shim *client) error {
		err := shim.call(callLimit, "Kill", &wire.KillRequest{ID: c.id, Signal: uint32(c.signal), All: c.all}, &wire.Empty{})
		switch {
		case notFound(err):
			return nil
		case err == nil && syscall.Signal(c.signal) == syscall.SIGKILL:
			return c.ended(shim)
		}
		return err
	})
	if err == nil || syscall.Signal(c.signal) != syscall.SIGKILL || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return c.killWithShim(err)
}

func (c *command) freeze() error {
	method := map[string]string{"pause": "Pause", "resume": "Resume"}[c.verb]
	return c.connected(func(shim *client) error {
		return shim.call(callLimit, method, &wire.ProcessRequest{ID: c.id}, &wire.Empty{})
	})
}

// update reads the OCI's LinuxResources from standard input.
func (c *command) update() error {
	resources, err := io.ReadAll(io.LimitReader(os.Stdin, maxProcess))
	if err != nil {
		return err
	}
	return c.connected(func(shim *client) error {
		return shim.call(callLimit, "Update", &wire.UpdateTaskRequest{ID: c.id, Resources: wire.Any{TypeURL: shimapi.LinuxResourcesTypeURL, Value: resources}}, &wire.Empty{})
	})
}

// delete frees a container, with force one that runs, too, and ends its shim when that has no other. A shim that is dead or does not answer is
// cleared up after by its own program, as containerd does. What was never there is success with force.
func (c *command) delete() error {
	s, err := c.load()
	if errors.Is(err, fs.ErrNotExist) {
		if c.verb == "delete" && !c.force {
			return err
		}
		return os.RemoveAll(c.dir())
	}
	if err != nil {
		return err
	}
	if s.Address == "" { // cut off before a shim was there: its program may, or may not, have left something
		return c.takeAway(s)
	}
	force := c.force || c.verb != "delete"
	if err := c.deleteTask(s, force); err != nil {
		if !failed(err) && !force {
			return err // the shim's own word
		}
		return c.takeAway(s)
	}
	return os.RemoveAll(c.dir())
}

func (c *command) deleteTask(s state, force bool) error {
	shim, err := dial(s.Address, s.Version)
	if err != nil {
		return err
	}
	defer shim.close()
	if force {
		err := shim.call(callLimit, "Kill", &wire.KillRequest{ID: c.id, Signal: uint32(syscall.SIGKILL), All: true}, &wire.Empty{})
		if err == nil {
			err = shim.call(callLimit, "Wait", &wire.ProcessRequest{ID: c.id}, &wire.WaitResponse{})
		}
		if failed(err) {
			return err
		}
	}
	if err := shim.call(callLimit, "Delete", &wire.ProcessRequest{ID: c.id}, &wire.DeleteResponse{}); err != nil && !notFound(err) {
		return err
	}
	// A shim with other containers stays. One that goes may break the connection instead of answering.
	err = shim.call(callLimit, "Shutdown", &wire.ShutdownRequest{ID: c.id}, &wire.Empty{})
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// clearUp lets the shim's program free what a dead shim has left.
func (c *command) clearUp(s state) error {
	if !exists(filepath.Join(c.bundle(), shimapi.ConfigName)) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), clearUpLimit)
	defer cancel()
	if _, err := output(ctx, c.shimCommand(ctx, s, "delete")); err != nil {
		return fmt.Errorf("%s delete: %w", filepath.Base(c.shim), err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-run/berth/internal/linux/pidfd"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
)

// What a shim refuses, forgets or never answers is done without it: its containers are processes below its own, and a pod must go whatever became of
// its runtime.

const (
	// endLimit is how long a container may take to end once its shim has taken a SIGKILL for it.
	endLimit = 30 * time.Second
	// clearUpLimit bounds the shim's own program when it clears up; with callLimit it is less than who asks for a removal waits.
	clearUpLimit = 15 * time.Second
	// maxProcesses bounds how many processes of a shim are killed.
	maxProcesses = 1 << 15
)

// ended waits until the shim says that the container has.
func (c *command) ended(shim *client) error {
	err := shim.call(endLimit, "Wait", &wire.ProcessRequest{ID: c.id}, &wire.WaitResponse{})
	if notFound(err) {
		return nil
	}
	return err
}

// killWithShim ends the container without the help of its shim: the shim's processes are killed, and with them all containers that it has. The stand-ins
// see that it is gone. reason is what the shim did instead.
func (c *command) killWithShim(reason error) error {
	s, err := c.load()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "container %s: its shim is killed: %v\n", c.id, reason)
	if err := c.killShim(s); err != nil {
		return errors.Join(reason, err)
	}
	return nil
}

// killShim ends a shim that does not answer, with all that it has started: its containers could not be reached any more. It is idempotent.
func (c *command) killShim(s state) error {
	shims, err := c.shims(s)
	if err != nil {
		return err
	}
	all, err := withDescendants(shims)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return pidfd.KillAll(ctx, all...) // parents first: what makes processes goes before them
}

// shims are the shim that said who it is, or those whose command line names the container, as containerd's convention has it: one that was stuck from the
// beginning has said nothing.
func (c *command) shims(s state) ([]proc.ID, error) {
	if s.ShimPID > 1 {
		return []proc.ID{{PID: s.ShimPID, StartTime: s.ShimStart}}, nil
	}
	return proc.Find(func(args []string) bool {
		return filepath.Base(args[0]) == filepath.Base(c.shim) && slices.Contains(args, c.id)
	})
}

// withDescendants are the processes with all below them, parents before children.
func withDescendants(all []proc.ID) ([]proc.ID, error) {
	for i := 0; i < len(all) && len(all) < maxProcesses; i++ {
		if !all[i].Runs() {
			continue
		}
		children, err := proc.Children(all[i].PID)
		if err != nil {
			return nil, err
		}
		for _, pid := range children {
			if p, ok := proc.Identify(pid); ok {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// takeAway frees a container whose shim failed to, in order: the shim is killed, its own program clears up; where that fails, too, what is left is the folder.
// The cgroups are our shim's to empty.
func (c *command) takeAway(s state) error {
	if err := c.killShim(s); err != nil {
		return err
	}
	if err := c.clearUp(s); err != nil {
		fmt.Fprintf(os.Stderr, "container %s is taken away without its shim: %v\n", c.id, err)
	}
	return os.RemoveAll(c.dir())
}

// failed tells errors of a shim that is gone, stuck or out of its mind from its own word.
func failed(err error) bool { return err != nil && rpc.CodeOf(err) == rpc.Unknown }

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
)

func (c *CLI) execCommand() *cobra.Command {
	var stdin, tty, sync bool
	cmd := &cobra.Command{
		Use:   "exec CONTAINER COMMAND [ARG…]",
		Short: "Run a command in a container",
		Long: "Run a command in a running container and wait for it; its output is printed when it has ended, and its exit code is this\n" +
			"command's. --timeout ends the command after that time.",
		Args:              args(2, -1, "a container and a command"),
		ValidArgsFunction: c.completeFirst(criclient.Kinds{Containers: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			if stdin || tty {
				return errors.New("exec -i and -t: streaming comes with a later release; without them the command runs and its output is printed")
			}
			return c.exec(cmd, words[0], words[1:])
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the container is the command's
	f.BoolVarP(&stdin, "interactive", "i", false, "hand on standard input (a later release)")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal (a later release)")
	f.BoolVarP(&sync, "sync", "s", true, "wait for the command's end: what this release always does")
	return cmd
}

func (c *CLI) exec(cmd *cobra.Command, word string, command []string) error {
	client, _, found, err := c.find(cmd.Context(), []string{word}, kindFlags{container: true})
	if err != nil {
		return err
	}
	o := found[0]
	if o.Container.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("exec in %s: it is not running", o)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	if c.timeout > 0 { // the daemon ends the command; this is for a daemon that does not answer
		ctx, cancel = context.WithTimeout(cmd.Context(), c.timeout+30*time.Second)
	}
	defer cancel()
	answer, err := client.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: o.ID(), Cmd: command,
		Timeout: int64((c.timeout + time.Second - 1) / time.Second)})
	if err != nil {
		return client.Error("exec in "+o.String(), err)
	}
	if _, err := cmd.OutOrStdout().Write(answer.GetStdout()); err != nil {
		return err
	}
	if _, err := cmd.ErrOrStderr().Write(answer.GetStderr()); err != nil {
		return err
	}
	if code := answer.GetExitCode(); code != 0 {
		return exitCode(code)
	}
	return nil
}

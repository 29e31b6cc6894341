// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
)

// execFlags are the flags of `berth exec`.
type execFlags struct {
	stdin, tty, sync bool
	stream           streamFlags
}

func (c *CLI) execCommand() *cobra.Command {
	var e execFlags
	cmd := &cobra.Command{
		Use:   "exec CONTAINER COMMAND [ARG…]",
		Short: "Run a command in a container",
		Long: "Run a command in a running container; its exit code is this command's. With -i it reads standard input, with -t it has a\n" +
			"terminal. --timeout ends the command after that time. With --sync the command's output comes in one piece at its end,\n" +
			"as probes ask for it.",
		Example:           "  berth exec -it web sh\n  tar c . | berth exec -i web tar x -C /srv",
		Args:              args(2, -1, "a container and a command"),
		ValidArgsFunction: c.completeFirst(criclient.Kinds{Containers: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			if e.sync && (e.stdin || e.tty) {
				return errors.New("exec --sync: has no standard input and no terminal: leave out -i and -t")
			}
			if err := e.stream.check(); err != nil {
				return err
			}
			return c.exec(cmd, words[0], words[1:], &e)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the container is the command's
	f.BoolVarP(&e.stdin, "interactive", "i", false, "hand on standard input")
	f.BoolVarP(&e.tty, "tty", "t", false, "give the command a terminal; its standard error is then part of its output")
	f.BoolVarP(&e.sync, "sync", "s", false, "print the output when the command has ended (the CRI's ExecSync)")
	e.stream.flags(cmd)
	return cmd
}

func (c *CLI) exec(cmd *cobra.Command, word string, command []string, e *execFlags) error {
	client, o, err := c.runningContainer(cmd.Context(), "exec in", word)
	if err != nil {
		return err
	}
	if e.sync {
		return c.execSync(cmd, client, o, command)
	}
	ctx, cancel := client.Unbounded(cmd.Context())
	defer cancel()
	streams := userStreams(cmd, e.stdin, e.tty)
	answer, err := client.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: o.ID(), Cmd: command, Tty: e.tty, Stdin: streams.Stdin != nil,
		Stdout: true, Stderr: streams.Stderr != nil})
	if err != nil {
		return client.Error("exec in "+o.String(), err)
	}
	if err := e.stream.session(ctx, cmd, answer.GetUrl(), streams); err != nil {
		return sessionError("exec in "+o.String(), err)
	}
	return nil
}

// sessionError names what failed, but leaves an exit code as it is.
func sessionError(what string, err error) error {
	var code exitCode
	if errors.As(err, &code) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// runningContainer finds a container that must be running.
func (c *CLI) runningContainer(ctx context.Context, what, word string) (*criclient.Client, criclient.Object, error) {
	client, _, found, err := c.find(ctx, []string{word}, kindFlags{container: true})
	if err != nil {
		return nil, criclient.Object{}, err
	}
	if found[0].Container.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, criclient.Object{}, fmt.Errorf("%s %s: it is not running", what, found[0])
	}
	return client, found[0], nil
}

// userStreams are the program's own. A terminal has one output.
func userStreams(cmd *cobra.Command, stdin, tty bool) remotecommand.StreamOptions {
	o := remotecommand.StreamOptions{Stdout: cmd.OutOrStdout(), Tty: tty}
	if !tty {
		o.Stderr = cmd.ErrOrStderr()
	}
	if stdin {
		o.Stdin = cmd.InOrStdin()
	}
	return o
}

func (c *CLI) execSync(cmd *cobra.Command, client *criclient.Client, o criclient.Object, command []string) error {
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

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
)

func (c *CLI) attachCommand() *cobra.Command {
	var stdin, tty bool
	var stream streamFlags
	cmd := &cobra.Command{
		Use:   "attach CONTAINER",
		Short: "Connect to the streams of a running container",
		Long: "Print what a running container writes from now on, and with -i hand standard input to it; -t is for a container that has a\n" +
			"terminal. The container goes on when this command ends; with -t, Ctrl-C goes to the container.",
		Args:              args(1, 1, "one container"),
		ValidArgsFunction: c.completeFirst(criclient.Kinds{Containers: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			if err := stream.check(); err != nil {
				return err
			}
			return c.attach(cmd, words[0], stdin, tty, &stream)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&stdin, "interactive", "i", false, "hand standard input to the container")
	f.BoolVarP(&tty, "tty", "t", false, "the container has a terminal")
	stream.flags(cmd)
	return cmd
}

func (c *CLI) attach(cmd *cobra.Command, word string, stdin, tty bool, stream *streamFlags) error {
	client, o, err := c.runningContainer(cmd.Context(), "attach to", word)
	if err != nil {
		return err
	}
	ctx, cancel := client.Unbounded(cmd.Context())
	defer cancel()
	streams := userStreams(cmd, stdin, tty)
	answer, err := client.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: o.ID(), Tty: tty, Stdin: stdin, Stdout: true, Stderr: !tty})
	if err != nil {
		return client.Error("attach to "+o.String(), err)
	}
	if err := stream.session(ctx, cmd, answer.GetUrl(), streams); err != nil {
		return sessionError("attach to "+o.String(), err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
)

func (c *CLI) checkpointCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint CONTAINER FILE",
		Short: "Write a running container's memory and files into an archive",
		Long: "Write the state of a running container's processes, and what it has changed in its root file system, into an archive (tar) on this\n" +
			"node, for checkpointctl to look at, or for containerd or CRI-O to restore. The container stands still meanwhile and then goes on.\n" +
			"The node needs CRIU (the package criu). The archive holds all of the container's memory, secrets included: only root can read it.",
		Example:           "  berth checkpoint web /var/lib/checkpoints/web.tar",
		Args:              args(2, 2, "a container and a file"),
		ValidArgsFunction: c.completeFirst(criclient.Kinds{Containers: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			location, err := filepath.Abs(words[1])
			if err != nil {
				return err
			}
			client, o, err := c.runningContainer(cmd.Context(), "checkpoint", words[0])
			if err != nil {
				return err
			}
			ctx, cancel := client.Unbounded(cmd.Context()) // as long as the memory is large
			defer cancel()
			if _, err := client.Runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: o.ID(), Location: location}); err != nil {
				return client.Error("checkpoint "+o.String(), err)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), location)
			return err
		},
	}
}

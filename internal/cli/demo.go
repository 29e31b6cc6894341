// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"github.com/berth-run/berth/internal/demo"
)

func (c *CLI) demoCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show a pod's whole life, in folders and a network of its own",
		Long: `Start a daemon of its own, serve a registry in process with an image made on the spot, pull it, run a pod of two containers, show its
address, logs and processes, kill the daemon and start it again with the pod still running, remove everything, and check that nothing
is left. It needs root, and touches no other pod of the machine.`,
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ok, err := demo.Run(cmd.Context(), demo.Config{Dir: dir, Out: c.o.Out, Plain: !utf8Locale()})
			if err == nil && !ok {
				return exitCode(1)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder for everything; it must be empty or not there yet (default a new one in /tmp)")
	return cmd
}

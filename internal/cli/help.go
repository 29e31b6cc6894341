// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// helpCommand refuses words that are no command; cobra's own shows the help of the last that is one, as if that had been asked for.
func (c *CLI) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]...",
		Short: "Help about any command",
		ValidArgsFunction: func(_ *cobra.Command, before []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if found, rest, err := c.root.Find(before); err == nil && len(rest) == 0 {
				for _, sub := range found.Commands() {
					if sub.IsAvailableCommand() && strings.HasPrefix(sub.Name(), word) {
						names = append(names, cobra.CompletionWithDesc(sub.Name(), sub.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, words []string) error {
			found, rest, err := c.root.Find(words)
			if err != nil {
				return err
			}
			if err := c.noCommand(found, rest); err != nil {
				return err
			}
			found.InitDefaultHelpFlag() // to be in its help
			return found.Help()
		},
	}
}

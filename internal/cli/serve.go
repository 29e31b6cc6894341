// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/internal/cli/output"
	"github.com/berth-run/berth/internal/config"
)

func (c *CLI) serveCommand() *cobra.Command {
	var flags ServeFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long:  "Run the daemon in the foreground. SIGTERM ends it, and leaves the pods running; SIGHUP makes it read its configuration again.",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags.Config, flags.Socket = c.config, strings.TrimPrefix(c.socket, "unix://")
			return c.o.Serve(cmd.Context(), flags)
		},
	}
	stateFlags(cmd, &flags)
	return cmd
}

func stateFlags(cmd *cobra.Command, flags *ServeFlags) {
	cmd.Flags().StringVar(&flags.Root, "root", "", "folder of what lasts: records, images (default that of the configuration)")
	cmd.Flags().StringVar(&flags.State, "state", "", "folder of what ends with a reboot (default that of the configuration)")
}

func (c *CLI) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the configuration: default, check, show",
		Args:  c.noCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var anywhere bool
	check := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say all that is wrong with the configuration, at once",
		Long: "Say all that is wrong with the configuration, at once: with what the files say, and where they name files, programs or a group\n" +
			"that this machine does not have.\n\n" +
			"Exit codes: 0 if the daemon takes it, 1 if not. Of what the daemon would do without there are warnings.",
		Args: args(0, 1, "one file"),
		RunE: func(cmd *cobra.Command, args []string) error { return c.checkConfig(cmd, args, anywhere) },
	}
	check.Flags().BoolVar(&anywhere, "anywhere", false, "the files are for another machine: what they name is not looked for on this one")
	cmd.AddCommand(&cobra.Command{
		Use:   "default",
		Short: "Print the default file: every key with its meaning and default",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.Default())
			return err
		},
	}, check, c.configShowCommand())
	return cmd
}

func (c *CLI) checkConfig(cmd *cobra.Command, args []string, anywhere bool) error {
	file := c.config
	if len(args) == 1 {
		file = args[0]
	}
	cfg, origins, err := config.Load(config.Options{File: file})
	var problems config.Problems
	if err != nil && !errors.As(err, &problems) {
		return err
	}
	if err == nil && !anywhere {
		var ignored config.Problems
		problems, ignored = config.OnMachine(cfg, origins)
		for _, p := range ignored {
			c.warn("%v", p)
		}
	}
	if len(problems) > 0 {
		for _, p := range problems {
			fmt.Fprintln(cmd.ErrOrStderr(), p.Error())
		}
		return exitCode(1)
	}
	set := 0
	for _, origin := range origins {
		if origin != "default" {
			set++
		}
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "the configuration is valid; %d of %d keys are set\n", set, len(origins))
	return err
}

func (c *CLI) configShowCommand() *cobra.Command {
	var flags ServeFlags
	var format string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the effective values and where each comes from",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.Format(format).Check("text", output.JSON); err != nil {
				return err
			}
			o := config.Options{File: c.config}
			for _, v := range []struct{ key, value string }{{"root", flags.Root}, {"state", flags.State}, {"socket", strings.TrimPrefix(c.socket, "unix://")}} {
				if v.value != "" {
					o.Overrides = append(o.Overrides, config.Override{Key: v.key, Value: v.value, Origin: "flag --" + v.key})
				}
			}
			cfg, origins, err := config.Load(o)
			if err != nil {
				return err
			}
			text, err := config.Show(cfg, origins, format)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	stateFlags(cmd, &flags)
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	return cmd
}

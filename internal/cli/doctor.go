// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/output"
	"github.com/berth-run/berth/internal/config"
	"github.com/berth-run/berth/internal/doctor"
)

func (c *CLI) doctorCommand() *cobra.Command {
	var d doctor.Doctor
	var format string
	var fix, all bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps pods from running on this node, and say what to do",
		Long: "Look for what keeps pods from running on this node, and say what to do.\n\n" +
			"Exit codes: 0 where all is well, 2 where something will be in the pods' way, 1 where pods cannot run.",
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f := output.Format(format)
			if err := f.Check(output.Table, output.JSON); err != nil {
				return err
			}
			return c.doctor(cmd, &d, f, fix, all)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&format, "output", "o", string(output.Table), "table or json")
	flags.BoolVar(&fix, "fix", false, "do what is safe: kernel settings, modes of folders and of the socket")
	flags.BoolVarP(&all, "all", "a", false, "tell also what is well")
	flags.BoolVar(&d.NetworkTest, "network-test", false, "connect a scratch network namespace as a pod's and disconnect it again")
	flags.StringArrayVar(&d.Registries, "registry", nil, "ask this registry and its mirrors for an answer, such as docker.io; may be given again")
	flags.StringVar(&d.KubeletConfig, "kubelet-config", "", "the kubelet's configuration (default as its command line says, else /var/lib/kubelet/config.yaml)")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return cmd
}

// prepareDoctor gives the checks the configuration and a way to the daemon.
func (c *CLI) prepareDoctor(d *doctor.Doctor) error {
	d.Config, d.Origins, d.ConfigError = config.Load(config.Options{File: c.config})
	if d.ConfigError != nil {
		d.Config = config.Defaults()
	}
	d.Version, d.ConfigDir = c.o.Version, filepath.Dir(config.File)
	if c.config != "" {
		if file, err := filepath.Abs(c.config); err == nil {
			d.ConfigDir = filepath.Dir(file)
		}
	}
	endpoint := c.socket
	if endpoint == "" && d.ConfigError == nil {
		var err error
		if endpoint, err = c.endpoint(); err != nil {
			return err
		}
	}
	if endpoint != "" {
		changed := *d.Config
		changed.Socket = strings.TrimPrefix(endpoint, "unix://")
		d.Config = &changed
	}
	socket := d.Config.Socket
	d.Connect = func(ctx context.Context) (runtimeapi.RuntimeServiceClient, error) {
		c.socket = socket
		client, err := c.client(ctx)
		if err != nil {
			return nil, err
		}
		return client.Runtime, nil
	}
	return nil
}

func (c *CLI) doctor(cmd *cobra.Command, d *doctor.Doctor, format output.Format, fix, all bool) error {
	if err := c.prepareDoctor(d); err != nil {
		return err
	}
	found := d.Run(cmd.Context())
	var fixErr error
	if fix {
		found, fixErr = d.Fix()
	}
	var err error
	if format == output.JSON {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		err = enc.Encode(found)
	} else {
		err = printFindings(cmd.OutOrStdout(), found, fix, all)
	}
	switch {
	case err != nil:
		return err
	case fixErr != nil:
		return fixErr
	case doctor.Worst(found) == doctor.Fail:
		return exitCode(1)
	case doctor.Worst(found) == doctor.Warn:
		return exitCode(2)
	}
	return nil
}

// printFindings tells first what is wrong, in the order of the checks, and closes with a count.
func printFindings(w io.Writer, found []doctor.Finding, fix, all bool) error {
	var text strings.Builder
	count := map[doctor.Level]int{}
	fixed, fixable := 0, 0
	for _, f := range found {
		count[f.Level]++
		if f.Level == doctor.OK && !all {
			continue
		}
		mark := map[doctor.Level]string{doctor.OK: "✓", doctor.Warn: "!", doctor.Fail: "✗"}[f.Level]
		fmt.Fprintf(&text, "%s %-10s %s\n", mark, f.Check, f.Text)
		switch {
		case f.Fixed:
			fixed++
			fmt.Fprintf(&text, "  %-10s → done: %s\n", "", f.Do)
		case f.Do != "":
			fmt.Fprintf(&text, "  %-10s → %s\n", "", f.Do)
		}
		if f.Fixable() {
			fixable++
		}
	}
	fmt.Fprintf(&text, "%d failures, %d warnings, %d checks are well", count[doctor.Fail], count[doctor.Warn], count[doctor.OK])
	switch {
	case fixed > 0:
		fmt.Fprintf(&text, "; %d fixed", fixed)
	case fixable > 0 && !fix:
		fmt.Fprintf(&text, "; `berth doctor --fix` puts %d right", fixable)
	}
	text.WriteString("\n")
	_, err := io.WriteString(w, text.String())
	return err
}

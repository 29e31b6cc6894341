// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
)

func (c *CLI) infoCommand() *cobra.Command {
	var d detail
	cmd := &cobra.Command{
		Use:               "info",
		Short:             "Tell whether the runtime and its network are ready, and how it is configured",
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.info(cmd, d) },
	}
	d.flags(cmd, output.Table)
	return cmd
}

func (c *CLI) info(cmd *cobra.Command, d detail) error {
	format, err := d.check(output.Table)
	if err != nil {
		return err
	}
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Read(cmd.Context())
	defer cancel()
	st, err := client.Runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return client.Error("status", err)
	}
	if format != output.Table {
		handlers := make([]proto.Message, len(st.GetRuntimeHandlers()))
		for i, h := range st.GetRuntimeHandlers() {
			handlers[i] = h
		}
		parts := map[string]proto.Message{"status": st.GetStatus()}
		if f := st.GetFeatures(); f != nil {
			parts["features"] = f
		}
		return output.Statuses(cmd.OutOrStdout(), format, d.template, []output.Status{{Parts: parts,
			Lists: map[string][]proto.Message{"runtimeHandlers": handlers}, Info: st.GetInfo()}})
	}
	v, err := client.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return client.Error("version", err)
	}
	rows := output.Head("RUNTIME", v.GetRuntimeName()+" "+v.GetRuntimeVersion()+", CRI "+v.GetRuntimeApiVersion())
	rows.Add("SOCKET", client.Socket)
	for _, condition := range st.GetStatus().GetConditions() {
		rows.Add(condition.GetType(), conditionText(condition))
	}
	if rc, err := client.Runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); err == nil {
		rows.Add("CgroupDriver", strings.ToLower(rc.GetLinux().GetCgroupDriver().String()))
	}
	for _, h := range st.GetRuntimeHandlers() {
		name := h.GetName()
		if name == "" {
			name = "(default)"
		}
		rows.Add("Handler", name+features(h.GetFeatures()))
	}
	return rows.Print(cmd.OutOrStdout())
}

func conditionText(c *runtimeapi.RuntimeCondition) string {
	text := fmt.Sprint(c.GetStatus())
	if c.GetReason() != "" {
		text += ", " + c.GetReason()
	}
	if c.GetMessage() != "" {
		text += ": " + c.GetMessage()
	}
	return text
}

func features(f *runtimeapi.RuntimeHandlerFeatures) string {
	var has []string
	if f.GetRecursiveReadOnlyMounts() {
		has = append(has, "recursive read-only mounts")
	}
	if f.GetUserNamespaces() {
		has = append(has, "user namespaces")
	}
	if len(has) == 0 {
		return ""
	}
	return ": " + strings.Join(has, ", ")
}

func (c *CLI) versionCommand() *cobra.Command {
	var format string
	var clientOnly bool
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Print the versions of this program and of the daemon",
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.version(cmd, output.Format(format), clientOnly) },
	}
	cmd.Flags().StringVarP(&format, "output", "o", "table", "table, json or yaml")
	cmd.Flags().BoolVar(&clientOnly, "client", false, "only this program")
	return cmd
}

func (c *CLI) version(cmd *cobra.Command, format output.Format, clientOnly bool) error {
	if err := format.Check(output.Table, output.JSON, output.YAML); err != nil {
		return err
	}
	var server *runtimeapi.VersionResponse
	var client *criclient.Client
	var err error
	if !clientOnly {
		if client, err = c.client(cmd.Context()); err == nil {
			ctx, cancel := client.Read(cmd.Context())
			defer cancel()
			server, err = client.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
			err = client.Error("version", err)
		}
	}
	// This program's version is known even if the daemon's is not.
	return errors.Join(c.printVersion(cmd.OutOrStdout(), format, server), err)
}

func (c *CLI) printVersion(w io.Writer, format output.Format, server *runtimeapi.VersionResponse) error {
	if format == output.Table {
		rows := output.Head("CLIENT", "berth", c.o.Version, runtime.Version()+" "+runtime.GOOS+"/"+runtime.GOARCH)
		if server != nil {
			rows.Add("SERVER", server.GetRuntimeName(), server.GetRuntimeVersion(), "CRI "+server.GetRuntimeApiVersion())
		}
		return rows.Print(w)
	}
	own, err := json.Marshal(map[string]string{"version": c.o.Version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
	if err != nil {
		return fmt.Errorf("encode version: %w", err)
	}
	s := output.Status{Info: map[string]string{"client": string(own)}}
	if server != nil {
		s.Parts = map[string]proto.Message{"server": server}
	}
	return output.Statuses(w, format, "", []output.Status{s})
}

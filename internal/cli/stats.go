// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
)

func (c *CLI) statsCommand() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use:               "stats [CONTAINER…]",
		Short:             "Show what containers use",
		Args:              args(0, -1, ""),
		ValidArgsFunction: c.complete(criclient.Kinds{Containers: true}),
		RunE:              func(cmd *cobra.Command, words []string) error { return c.stats(cmd, words, &l) },
	}
	l.flags(cmd)
	return cmd
}

func (c *CLI) stats(cmd *cobra.Command, words []string, l *listing) error {
	format, err := l.check()
	if err != nil {
		return err
	}
	client, _, found, err := c.find(cmd.Context(), words, kindFlags{container: true})
	if err != nil {
		return err
	}
	ctx, cancel := client.Read(cmd.Context())
	defer cancel()
	all, err := containerStats(ctx, client, found)
	if err != nil {
		return err
	}
	switch {
	case l.quiet:
		for _, s := range all {
			fmt.Fprintln(cmd.OutOrStdout(), s.GetAttributes().GetId())
		}
		return nil
	case format == output.JSON || format == output.YAML:
		return output.Message(cmd.OutOrStdout(), format, &runtimeapi.ListContainerStatsResponse{Stats: all})
	}
	before := map[string]*runtimeapi.ContainerStats{}
	if slices.ContainsFunc(all, func(s *runtimeapi.ContainerStats) bool { return s.GetCpu().GetUsageNanoCores() == nil }) {
		// Without a rate from the runtime it takes two looks.
		for _, s := range all {
			before[s.GetAttributes().GetId()] = s
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
		if all, err = containerStats(ctx, client, found); err != nil {
			return err
		}
	}
	rows := output.Head("CONTAINER", "NAME", "CPU %", "MEM", "DISK", "INODES")
	for _, s := range all {
		rows.Add(l.shown(s.GetAttributes().GetId()), s.GetAttributes().GetMetadata().GetName(), cpuPercent(before[s.GetAttributes().GetId()], s),
			output.Memory(s.GetMemory().GetWorkingSetBytes().GetValue()), output.Size(s.GetWritableLayer().GetUsedBytes().GetValue()),
			fmt.Sprint(s.GetWritableLayer().GetInodesUsed().GetValue()))
	}
	return rows.Print(cmd.OutOrStdout())
}

// containerStats asks for all containers, and leaves those that were found, all if none was looked for.
func containerStats(ctx context.Context, client *criclient.Client, found []criclient.Object) ([]*runtimeapi.ContainerStats, error) {
	answer, err := client.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, client.Error("stats", err)
	}
	if len(found) == 0 {
		return answer.GetStats(), nil
	}
	return slices.DeleteFunc(answer.GetStats(), func(s *runtimeapi.ContainerStats) bool {
		return !slices.ContainsFunc(found, func(o criclient.Object) bool { return o.ID() == s.GetAttributes().GetId() })
	}), nil
}

func cpuPercent(before, now *runtimeapi.ContainerStats) string {
	if rate := now.GetCpu().GetUsageNanoCores(); rate != nil {
		return fmt.Sprintf("%.2f", float64(rate.GetValue())/1e7)
	}
	elapsed := now.GetCpu().GetTimestamp() - before.GetCpu().GetTimestamp()
	used := int64(now.GetCpu().GetUsageCoreNanoSeconds().GetValue()) - int64(before.GetCpu().GetUsageCoreNanoSeconds().GetValue())
	if before == nil || elapsed <= 0 || used < 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", float64(used)/float64(elapsed)*100)
}

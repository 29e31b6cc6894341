// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
)

func (c *CLI) podsCommand() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use:               "pods",
		Short:             "List pods",
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.pods(cmd, &l) },
	}
	l.flags(cmd)
	l.filterFlags(cmd, "ready or notready")
	cmd.Flags().StringVar(&l.namespace, "namespace", "", "only namespaces that match this regular expression")
	return cmd
}

func podState(text string) (*runtimeapi.PodSandboxStateValue, error) {
	switch strings.ToLower(text) {
	case "":
		return nil, nil
	case "ready":
		return &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}, nil
	case "notready":
		return &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}, nil
	}
	return nil, fmt.Errorf("--state %q is not one of ready, notready", text)
}

func (c *CLI) pods(cmd *cobra.Command, l *listing) error {
	format, err := l.check()
	if err != nil {
		return err
	}
	m, err := l.matcher()
	if err != nil {
		return err
	}
	state, err := podState(l.state)
	if err != nil {
		return err
	}
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Read(cmd.Context())
	defer cancel()
	answer, err := client.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{State: state, LabelSelector: m.labels}})
	if err != nil {
		return client.Error("list pods", err)
	}
	var pods []*runtimeapi.PodSandbox
	for _, p := range answer.GetItems() {
		if m.match(p.GetId(), p.GetMetadata().GetName(), p.GetMetadata().GetNamespace(), p.GetLabels()) {
			pods = append(pods, p)
		}
	}
	pods = newest(l, pods)
	switch {
	case l.quiet:
		return printIDs(cmd, pods)
	case format == output.JSON || format == output.YAML:
		return output.Message(cmd.OutOrStdout(), format, &runtimeapi.ListPodSandboxResponse{Items: pods})
	}
	return c.podTable(ctx, cmd, client, l, pods)
}

func (c *CLI) podTable(ctx context.Context, cmd *cobra.Command, client *criclient.Client, l *listing, pods []*runtimeapi.PodSandbox) error {
	head := []string{"POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"}
	wide := l.format == string(output.Wide)
	if wide {
		head = append(head, "IP")
	}
	rows := output.Head(head...)
	now := time.Now()
	for _, p := range pods {
		handler := p.GetRuntimeHandler()
		if handler == "" {
			handler = "(default)"
		}
		row := []string{l.shown(p.GetId()), output.Ago(p.GetCreatedAt(), now), podStateName(p.GetState()), p.GetMetadata().GetName(),
			p.GetMetadata().GetNamespace(), strconv.Itoa(int(p.GetMetadata().GetAttempt())), handler}
		if wide {
			ips, err := podIPs(ctx, client, p.GetId())
			if err != nil {
				return err
			}
			row = append(row, strings.Join(ips, ","))
		}
		rows.Add(row...)
	}
	return rows.Print(cmd.OutOrStdout())
}

// podIPs are a pod's addresses; one that was removed since it was listed has none.
func podIPs(ctx context.Context, client *criclient.Client, id string) ([]string, error) {
	answer, err := client.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if criclient.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, client.Error("status of pod "+criclient.Short(id), err)
	}
	var ips []string
	network := answer.GetStatus().GetNetwork()
	if ip := network.GetIp(); ip != "" {
		ips = append(ips, ip)
	}
	for _, ip := range network.GetAdditionalIps() {
		ips = append(ips, ip.GetIp())
	}
	return ips, nil
}

func podStateName(s runtimeapi.PodSandboxState) string {
	if s == runtimeapi.PodSandboxState_SANDBOX_READY {
		return "Ready"
	}
	return "NotReady"
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
)

func (c *CLI) eventsCommand() *cobra.Command {
	var follow, noTrunc bool
	var format string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happens to pods and containers",
		Long: "Show the last event of each pod and container that there is; with -f, then each event as it happens.\n" +
			"JSON has one event in each line, with the statuses of the whole pod.",
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.Format(format).Check(output.Table, output.JSON); err != nil {
				return err
			}
			return c.events(cmd, follow, printer{to: cmd.OutOrStdout(), json: output.Format(format) == output.JSON, noTrunc: noTrunc})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	f.BoolVar(&noTrunc, "no-trunc", false, "print whole IDs")
	f.StringVarP(&format, "output", "o", "table", "table or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return cmd
}

func (c *CLI) events(cmd *cobra.Command, follow bool, p printer) error {
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	bound := client.Read
	if follow {
		bound = client.Unbounded
	}
	ctx, cancel := bound(cmd.Context())
	defer cancel()
	stream, err := client.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return client.Error("events", err)
	}
	events := receive(ctx, stream)
	if follow {
		return c.follow(cmd.Context(), client, events, p)
	}
	return c.eventsSoFar(ctx, client, events, p)
}

// received is what came from a stream.
type received struct {
	*runtimeapi.ContainerEventResponse
	err error
}

func receive(ctx context.Context, stream runtimeapi.RuntimeService_GetContainerEventsClient) <-chan received {
	out := make(chan received)
	go func() {
		for {
			e, err := stream.Recv()
			select {
			case out <- received{e, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

func (c *CLI) follow(ctx context.Context, client *criclient.Client, events <-chan received, p printer) error {
	for {
		select {
		case <-ctx.Done():
			return nil // interrupted, which is how following ends
		case e := <-events:
			if e.err != nil {
				return unlessInterrupted(ctx, client.Error("events", e.err))
			}
			if err := p.print(e.ContainerEventResponse); err != nil {
				return err
			}
		}
	}
}

func unlessInterrupted(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	default:
		return err
	}
}

// eventsSoFar prints until every pod and container that there is was told of.
func (c *CLI) eventsSoFar(ctx context.Context, client *criclient.Client, events <-chan received, p printer) error {
	left, err := known(ctx, client)
	if err != nil {
		return err
	}
	for len(left) > 0 {
		select {
		case e := <-events:
			if e.err != nil {
				return client.Error("events", e.err)
			}
			delete(left, e.GetContainerId())
			if err := p.print(e.ContainerEventResponse); err != nil {
				return err
			}
		case <-time.After(200 * time.Millisecond): // what was removed meanwhile is not told of
			now, err := known(ctx, client)
			if err != nil {
				return err
			}
			maps.DeleteFunc(left, func(id string, _ bool) bool { return !now[id] })
		}
	}
	return nil
}

// known are the IDs of all pods and containers: a new subscriber is told of each.
func known(ctx context.Context, client *criclient.Client) (map[string]bool, error) {
	lists, err := client.Lists(ctx, criclient.Kinds{Pods: true, Containers: true})
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, p := range lists.Pods {
		ids[p.GetId()] = true
	}
	for _, c := range lists.Containers {
		ids[c.GetId()] = true
	}
	return ids, nil
}

// printer writes events, a line each.
type printer struct {
	to            io.Writer
	json, noTrunc bool
}

func (p printer) print(e *runtimeapi.ContainerEventResponse) error {
	if p.json {
		raw, err := protojson.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode event: %w", err)
		}
		_, err = fmt.Fprintf(p.to, "%s\n", raw)
		return err
	}
	what := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(e.GetContainerEventType().String(), "CONTAINER_"), "_EVENT"))
	md := e.GetPodSandboxStatus().GetMetadata()
	kind, name, detail := "pod", "", ""
	if e.GetContainerId() != e.GetPodSandboxStatus().GetId() {
		kind = "container"
		for _, c := range e.GetContainersStatuses() {
			if c.GetId() != e.GetContainerId() {
				continue
			}
			name = " " + c.GetMetadata().GetName()
			if what == "stopped" {
				detail = fmt.Sprintf(" exit=%d reason=%s", c.GetExitCode(), c.GetReason())
			}
		}
	}
	l := listing{noTrunc: p.noTrunc}
	_, err := fmt.Fprintf(p.to, "%s %-9s %-7s %s %s/%s%s%s\n", time.Unix(0, e.GetCreatedAt()).UTC().Format("2006-01-02T15:04:05.000000Z"), kind, what,
		l.shown(e.GetContainerId()), output.Printable(md.GetNamespace()), output.Printable(md.GetName()), output.Printable(name), output.Printable(detail))
	return err
}

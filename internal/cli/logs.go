// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/crilog"
)

// logFlags are the flags of `berth logs`.
type logFlags struct {
	follow, timestamps, previous bool
	tail                         int64
	since                        string
}

func (c *CLI) logsCommand() *cobra.Command {
	var l logFlags
	cmd := &cobra.Command{
		Use:   "logs CONTAINER",
		Short: "Print a container's log",
		Long: "Print a container's log, from the file that the runtime writes: its standard output to standard output, its standard error\n" +
			"to standard error. With -f it follows the log through rotation until the container ends.",
		Args:              args(1, 1, "one container"),
		ValidArgsFunction: c.complete(criclient.Kinds{Containers: true}),
		RunE:              func(cmd *cobra.Command, words []string) error { return c.logs(cmd, words[0], l) },
	}
	f := cmd.Flags()
	f.BoolVarP(&l.follow, "follow", "f", false, "go on with what the container writes from now on")
	f.Int64Var(&l.tail, "tail", -1, "only the last N lines; negative is all")
	f.StringVar(&l.since, "since", "", "only what is newer: an age as 5m, or a time as 2026-01-02T15:04:05Z")
	f.BoolVarP(&l.timestamps, "timestamps", "t", false, "put its time before each line")
	f.BoolVarP(&l.previous, "previous", "p", false, "the log of the container's attempt before this one")
	return cmd
}

func sinceTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since %q: is no age as 5m and no time as 2026-01-02T15:04:05Z", text)
	}
	return t, nil
}

func (c *CLI) logs(cmd *cobra.Command, word string, l logFlags) error {
	since, err := sinceTime(l.since, time.Now())
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	client, lists, found, err := c.find(ctx, []string{word}, kindFlags{container: true})
	if err != nil {
		return err
	}
	container := found[0].Container
	if l.previous {
		if container = previous(lists, container); container == nil {
			return fmt.Errorf("%s has no earlier attempt", found[0])
		}
	}
	st, err := containerStatus(ctx, client, container.GetId())
	if err != nil {
		return err
	}
	path := st.GetLogPath()
	if path == "" {
		return fmt.Errorf("%s has no log: it was made without a log path", criclient.Object{Container: container})
	}
	o := crilog.Options{Tail: l.tail, Since: since, Follow: l.follow && st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED,
		Running: func(ctx context.Context) (bool, error) { return stillRuns(ctx, client, container.GetId()) }}
	p := &logPrinter{out: cmd.OutOrStdout(), err: cmd.ErrOrStderr(), timestamps: l.timestamps}
	skipped, err := crilog.Read(ctx, path, o, p.print)
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("log of %s: only root and the members of its group may read %s", criclient.Object{Container: container}, path)
	case err != nil:
		return fmt.Errorf("log of %s: %w", criclient.Object{Container: container}, err)
	case skipped > 0:
		c.warn("%d lines of %s are not in the CRI's format and were left out", skipped, path)
	}
	return nil
}

// previous is the newest attempt of the same container of the same pod before this one.
func previous(lists criclient.Lists, of *runtimeapi.Container) *runtimeapi.Container {
	var found *runtimeapi.Container
	for _, k := range lists.Of(of.GetPodSandboxId()) {
		if k.GetMetadata().GetName() == of.GetMetadata().GetName() && k.GetMetadata().GetAttempt() < of.GetMetadata().GetAttempt() &&
			(found == nil || k.GetMetadata().GetAttempt() > found.GetMetadata().GetAttempt()) {
			found = k
		}
	}
	return found
}

func containerStatus(ctx context.Context, client *criclient.Client, id string) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := client.Read(ctx)
	defer cancel()
	answer, err := client.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		return nil, client.Error("status of container "+criclient.Short(id), err)
	}
	return answer.GetStatus(), nil
}

// stillRuns tells whether a container can write more. While the daemon is away its containers run on.
func stillRuns(ctx context.Context, client *criclient.Client, id string) (bool, error) {
	st, err := containerStatus(ctx, client, id)
	switch {
	case criclient.IsNotFound(err):
		return false, nil
	case criclient.IsUnavailable(err):
		return true, nil
	case err != nil:
		return false, err
	}
	return st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED, nil
}

// logPrinter writes each stream to where it belongs.
type logPrinter struct {
	out, err   io.Writer
	timestamps bool
}

func (p *logPrinter) print(c crilog.Chunk) error {
	w := p.out
	if c.Stream == "stderr" {
		w = p.err
	}
	line := make([]byte, 0, len(c.Time)+1+len(c.Data)+1)
	if c.Begin && p.timestamps {
		line = append(append(line, c.Time...), ' ')
	}
	line = append(line, c.Data...)
	if c.End {
		line = append(line, '\n')
	}
	_, err := w.Write(line)
	return err
}

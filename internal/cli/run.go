// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/internal/cli/manifest"
	"github.com/berth-run/berth/internal/cli/podrun"
)

// runFlags are the flags of `berth run`.
type runFlags struct {
	detach, remove  bool
	podsDir, logDir string
}

func (c *CLI) runCommand() *cobra.Command {
	var r runFlags
	cmd := &cobra.Command{
		Use:   "run FILE",
		Short: "Run a pod from a Kubernetes Pod manifest",
		Long: `Run a pod from a Kubernetes Pod manifest, "-" for standard input.

Without -d the logs of its containers are shown until they have ended, the restart policy is honoured, and the pod is removed at the
end; Ctrl-C stops it. The exit code is that of the pod's containers: the first that is not 0. With -d the pod is left running and its
ID is printed.

What of a manifest is not honoured is refused or warned of, never silently ignored.`,
		Args: args(1, 1, "one manifest"),
		RunE: func(cmd *cobra.Command, files []string) error { return c.run(cmd.Context(), files[0], r) },
	}
	f := cmd.Flags()
	f.BoolVarP(&r.detach, "detach", "d", false, "leave the pod running, and print its ID")
	f.BoolVar(&r.remove, "rm", true, "remove the pod when its containers have ended")
	f.StringVar(&r.logDir, "log-dir", "", "folder for the containers' logs; it is not removed with the pod (default /var/log/berth/NAMESPACE_NAME_UID, which is)")
	podsDirFlag(cmd, &r.podsDir)
	return cmd
}

func (c *CLI) readManifest(file string) (*manifest.Pod, error) {
	in := c.o.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			var path *os.PathError
			if errors.As(err, &path) {
				err = path.Err
			}
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		defer f.Close()
		in = f
	}
	pod, err := manifest.Read(in)
	if err != nil {
		if file == "-" {
			file = "standard input"
		}
		var several interface{ Unwrap() []error }
		if errors.As(err, &several) && len(several.Unwrap()) > 1 {
			return nil, fmt.Errorf("%s:\n%w", file, err)
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return pod, nil
}

func (c *CLI) run(ctx context.Context, file string, r runFlags) error {
	pod, err := c.readManifest(file)
	if err != nil {
		return err
	}
	for _, w := range pod.Warnings {
		c.warn("%s", w)
	}
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	// What a detached run prints on standard output is the pod's ID and nothing else.
	puller := *c
	puller.o.Out = c.o.Err
	res, err := podrun.Run(ctx, podrun.Request{
		Client: client, Pod: pod, Folders: foldersOf(r.podsDir), LogDir: r.logDir, Detach: r.detach, Keep: !r.remove,
		Pull: func(ctx context.Context, ref string) error { return puller.pull(ctx, ref, nil, false) },
		Out:  c.o.Out, Err: c.o.Err,
		Note: func(format string, args ...any) { fmt.Fprintf(c.o.Err, "berth: "+format+"\n", args...) },
	})
	switch {
	case err != nil:
		return err
	case res.Interrupted:
		return context.Cause(ctx)
	case r.detach:
		_, err := fmt.Fprintln(c.o.Out, res.PodID)
		return err
	case res.ExitCode != 0:
		return exitCode(res.ExitCode)
	}
	return nil
}

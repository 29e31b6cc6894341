// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/podrun"
)

// kindFlags narrow down what a word may name.
type kindFlags struct{ pod, container bool }

func (k *kindFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&k.pod, "pod", false, "the words name pods")
	cmd.Flags().BoolVar(&k.container, "container", false, "the words name containers")
	cmd.MarkFlagsMutuallyExclusive("pod", "container")
}

func (k *kindFlags) kinds() criclient.Kinds {
	return criclient.Kinds{Pods: !k.container, Containers: !k.pod}
}

// find looks all words up before anything is done to one of them.
func (c *CLI) find(ctx context.Context, words []string, k kindFlags) (*criclient.Client, criclient.Lists, []criclient.Object, error) {
	client, err := c.client(ctx)
	if err != nil {
		return nil, criclient.Lists{}, nil, err
	}
	lists, err := client.Lists(ctx, criclient.Kinds{Pods: true, Containers: true})
	if err != nil {
		return nil, criclient.Lists{}, nil, err
	}
	var found []criclient.Object
	var errs []error
	for _, w := range words {
		o, err := lists.Find(w, k.kinds())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, o)
	}
	return client, lists, found, errors.Join(errs...)
}

func (c *CLI) stopCommand() *cobra.Command {
	var k kindFlags
	var grace int64
	cmd := &cobra.Command{
		Use:               "stop POD|CONTAINER…",
		Aliases:           []string{"stopp"},
		Short:             "Stop pods or containers",
		Args:              args(1, -1, "pod or container"),
		ValidArgsFunction: c.complete(criclient.Kinds{Pods: true, Containers: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			k.pod = k.pod || cmd.CalledAs() == "stopp"
			if grace < 0 {
				return fmt.Errorf("--time %d: must not be negative", grace)
			}
			client, _, found, err := c.find(cmd.Context(), words, k)
			if err != nil {
				return err
			}
			return each(found, func(o criclient.Object) error {
				if err := stopObject(cmd.Context(), client, o, time.Duration(grace)*time.Second); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "stopped "+o.String())
				return err
			})
		},
	}
	k.flags(cmd)
	cmd.Flags().Int64VarP(&grace, "time", "t", 10, "seconds that containers have to end by themselves")
	return cmd
}

func stopObject(ctx context.Context, client *criclient.Client, o criclient.Object, grace time.Duration) error {
	if o.Pod != nil {
		return podrun.StopPod(ctx, client, o.ID(), grace)
	}
	return podrun.StopContainer(ctx, client, o.ID(), grace)
}

// usualFolders are where `berth run` puts what its pods have on the host.
var usualFolders = podrun.Folders{Pods: "/var/lib/berth-run", Logs: "/var/log/berth"}

// foldersOf are the folders with pods in dir: somebody who wants them elsewhere wants them all elsewhere.
func foldersOf(dir string) podrun.Folders {
	if dir == usualFolders.Pods {
		return usualFolders
	}
	return podrun.Folders{Pods: dir}
}

func podsDirFlag(cmd *cobra.Command, dir *string) {
	usual := usualFolders.Pods
	if env := os.Getenv("BERTH_PODS_DIR"); env != "" {
		usual = env
	}
	cmd.Flags().StringVar(dir, "pods-dir", usual, "folder for the volumes, and if it is not the usual one the logs, of pods that \"berth run\" starts; also $BERTH_PODS_DIR")
}

// rmFlags are the flags of `berth rm`.
type rmFlags struct {
	kindFlags
	force, all bool
	podsDir    string
}

func (c *CLI) rmCommand() *cobra.Command {
	var r rmFlags
	cmd := &cobra.Command{
		Use:               "rm POD|CONTAINER…",
		Aliases:           []string{"rmp"},
		Short:             "Remove pods, with their containers, or containers",
		Args:              args(0, -1, ""),
		ValidArgsFunction: c.complete(criclient.Kinds{Pods: true, Containers: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			r.pod = r.pod || cmd.CalledAs() == "rmp"
			switch {
			case len(words) == 0 && !r.all:
				return args(1, -1, "pod or container, or --all")(cmd, nil)
			case len(words) > 0 && r.all:
				return errors.New("--all takes no further words")
			}
			return c.rm(cmd, words, r)
		},
	}
	r.flags(cmd)
	cmd.Flags().BoolVarP(&r.force, "force", "f", false, "also those that run: they are killed")
	cmd.Flags().BoolVarP(&r.all, "all", "a", false, "all pods")
	podsDirFlag(cmd, &r.podsDir)
	return cmd
}

func (c *CLI) rm(cmd *cobra.Command, words []string, r rmFlags) error {
	client, lists, found, err := c.find(cmd.Context(), words, r.kindFlags)
	if err != nil {
		return err
	}
	if r.all {
		for _, p := range lists.Pods {
			found = append(found, criclient.Object{Pod: p})
		}
	}
	if !r.force {
		for _, o := range found {
			if running(o) {
				return fmt.Errorf("%s is running: stop it first, or use --force", o)
			}
		}
	}
	return each(found, func(o criclient.Object) error {
		if err := removeObject(cmd.Context(), client, o, r); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "removed "+o.String())
		return err
	})
}

// running tells whether a container runs, or the sandbox of a pod is up.
func running(o criclient.Object) bool {
	if o.Pod != nil {
		return o.Pod.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return o.Container.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
}

func removeObject(ctx context.Context, client *criclient.Client, o criclient.Object, r rmFlags) error {
	rpc, cancel := client.Change(ctx, 0)
	defer cancel()
	if o.Pod == nil {
		if r.force {
			if err := podrun.StopContainer(rpc, client, o.ID(), 0); err != nil {
				return err
			}
		}
		_, err := client.Runtime.RemoveContainer(rpc, &runtimeapi.RemoveContainerRequest{ContainerId: o.ID()})
		return client.Error("remove "+o.String(), err)
	}
	if r.force {
		if _, err := client.Runtime.StopPodSandbox(rpc, &runtimeapi.StopPodSandboxRequest{PodSandboxId: o.ID()}); err != nil {
			return client.Error("stop "+o.String(), err)
		}
	}
	if _, err := client.Runtime.RemovePodSandbox(rpc, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: o.ID()}); err != nil {
		return client.Error("remove "+o.String(), err)
	}
	return podrun.RemoveFiles(foldersOf(r.podsDir), o.Pod.GetMetadata())
}

// each does something to all, and goes on after an error, so that one bad word does not keep the others waiting.
func each[T any](all []T, do func(T) error) error {
	var errs []error
	for _, one := range all {
		errs = append(errs, do(one))
	}
	return errors.Join(errs...)
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.SortedFunc(maps.Keys(m), strings.Compare)
}

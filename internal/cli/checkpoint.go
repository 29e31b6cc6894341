// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/podrun"
)

const (
	// checkpointPatience is how long the checkpoint of a pod may take by default: the call must have a limit. It is as long as the memory is large.
	checkpointPatience = 30 * time.Minute
	// checkpointManifest is the file that says what a pod was; maxCheckpointManifest bounds it, in bytes.
	checkpointManifest    = "manifest.json"
	maxCheckpointManifest = 16 << 20
)

func (c *CLI) checkpointCommand() *cobra.Command {
	var pod bool
	cmd := &cobra.Command{
		Use:   "checkpoint CONTAINER FILE | --pod POD FOLDER",
		Short: "Write a running container, or a whole pod, to disk",
		Long: "Write the state of a running container's processes, and what it has changed in its root file system, into an archive (tar) on this\n" +
			"node, for checkpointctl to look at, or for containerd or CRI-O to restore. With --pod, write all running containers of a pod, of one\n" +
			"instant, into an empty folder, for `berth restore` on this node. They stand still meanwhile and then go on.\n" +
			"The node needs CRIU (the package criu). There is all of the containers' memory, secrets included: only root can read it.",
		Example:           "  berth checkpoint web /var/lib/checkpoints/web.tar\n  berth checkpoint --pod shop /var/lib/checkpoints/shop",
		Args:              args(2, 2, "a container and a file, or with --pod a pod and a folder"),
		ValidArgsFunction: c.completeFirst(criclient.Kinds{Pods: true, Containers: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			location, err := filepath.Abs(words[1])
			if err != nil {
				return err
			}
			if pod {
				err = c.checkpointPod(cmd.Context(), words[0], location)
			} else {
				err = c.checkpointContainer(cmd.Context(), words[0], location)
			}
			if err == nil {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), location)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&pod, "pod", false, "a pod as a whole")
	return cmd
}

func (c *CLI) checkpointContainer(ctx context.Context, word, location string) error {
	client, o, err := c.runningContainer(ctx, "checkpoint", word)
	if err != nil {
		return err
	}
	ctx, cancel := client.Unbounded(ctx) // as long as the memory is large
	defer cancel()
	_, err = client.Runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: o.ID(), Location: location})
	return client.Error("checkpoint "+o.String(), err)
}

func (c *CLI) checkpointPod(ctx context.Context, word, folder string) error {
	client, lists, found, err := c.find(ctx, []string{word}, kindFlags{pod: true})
	if err != nil {
		return err
	}
	o := found[0]
	var ids []string
	for _, x := range lists.Containers {
		if x.GetPodSandboxId() == o.ID() && x.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			ids = append(ids, x.GetId())
		}
	}
	if len(ids) == 0 {
		return fmt.Errorf("checkpoint %s: no container of it is running", o)
	}
	ctx, cancel := client.Change(ctx, checkpointPatience)
	defer cancel()
	_, err = client.Runtime.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: o.ID(), OutputPath: folder, ContainerIds: ids})
	return client.Error("checkpoint "+o.String(), err)
}

func (c *CLI) restoreCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "restore FOLDER",
		Short: "Run a pod from a checkpoint",
		Long: "Make a pod of what `berth checkpoint --pod` has written on this node, and let it go on from there. It has the same name, another UID and another\n" +
			"address, and the mounts that the first one had. Pods of a kubelet are restored by the kubelet.",
		Example: "  berth restore /var/lib/checkpoints/shop",
		Args:    args(1, 1, "a folder"),
		RunE: func(cmd *cobra.Command, words []string) error {
			folder, err := filepath.Abs(words[0])
			if err != nil {
				return err
			}
			r, err := restoreRequest(folder, podrun.NewUID())
			if err != nil {
				return fmt.Errorf("restore %s: %w", folder, err)
			}
			id, err := c.restore(cmd.Context(), r)
			if id != "" {
				_, werr := fmt.Fprintln(cmd.OutOrStdout(), id)
				if err == nil {
					err = werr
				}
			}
			return err
		},
	}
}

// restore tells the pod's ID also when one of its containers does not start: there it can be looked at.
func (c *CLI) restore(ctx context.Context, r *runtimeapi.RestorePodRequest) (pod string, err error) {
	client, err := c.client(ctx)
	if err != nil {
		return "", err
	}
	undo, err := makeLogFolders(r)
	if err != nil {
		return "", errors.Join(fmt.Errorf("restore %s: %w", r.GetCheckpointPath(), err), undo())
	}
	ctx, cancel := client.Change(ctx, checkpointPatience)
	defer cancel()
	restored, err := client.Runtime.RestorePod(ctx, r)
	if err != nil { // and there is no pod with which they would be removed
		return "", errors.Join(client.Error("restore "+r.GetCheckpointPath(), err), undo())
	}
	for _, x := range restored.GetRestoredContainers() {
		if _, err := client.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: x.GetContainerId()}); err != nil {
			return restored.GetPodSandboxId(), client.Error("restore container "+x.GetName()+" of pod "+restored.GetPodSandboxId(), err)
		}
	}
	return restored.GetPodSandboxId(), nil
}

// restoreRequest is for a pod like the one in the checkpoint, with a UID of its own.
func restoreRequest(folder, uid string) (*runtimeapi.RestorePodRequest, error) {
	f, err := os.Open(filepath.Join(folder, checkpointManifest))
	if err != nil {
		return nil, fmt.Errorf("no checkpoint of a pod: %w", err)
	}
	defer f.Close()
	var manifest struct {
		Handler    string
		Config     json.RawMessage
		Containers []struct{ Config json.RawMessage }
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxCheckpointManifest))
	if err == nil {
		err = json.Unmarshal(raw, &manifest)
	}
	r := &runtimeapi.RestorePodRequest{CheckpointPath: folder, Config: &runtimeapi.PodSandboxConfig{}, RuntimeHandler: manifest.Handler}
	if err == nil {
		err = protojson.Unmarshal(manifest.Config, r.GetConfig())
	}
	for _, x := range manifest.Containers {
		config := &runtimeapi.ContainerConfig{}
		if err == nil {
			err = protojson.Unmarshal(x.Config, config)
		}
		r.ContainerConfigs = append(r.ContainerConfigs, config)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	renamed(r.GetConfig(), uid)
	for _, config := range r.GetContainerConfigs() {
		if path := config.GetLogPath(); path != "" && !filepath.IsLocal(path) {
			return nil, fmt.Errorf("log path %q leads out of its folder", path)
		}
	}
	return r, nil
}

// renamed gives a pod another UID, also where folders and the cgroup are named for it.
func renamed(config *runtimeapi.PodSandboxConfig, uid string) {
	md := config.GetMetadata()
	if was := md.GetUid(); was != "" {
		config.LogDirectory = strings.ReplaceAll(config.GetLogDirectory(), was, uid)
		names := strings.NewReplacer(was, uid, strings.ReplaceAll(was, "-", "_"), strings.ReplaceAll(uid, "-", "_")) // the second is systemd's
		if linux := config.GetLinux(); linux != nil {
			linux.CgroupParent = names.Replace(linux.GetCgroupParent())
		}
		for _, m := range []map[string]string{config.GetLabels(), config.GetAnnotations()} {
			for k, v := range m {
				if v == was {
					m[k] = uid
				}
			}
		}
	}
	if md != nil {
		md.Uid = uid
	}
}

// makeLogFolders makes what a kubelet makes before the containers; undo removes it while it is empty.
func makeLogFolders(r *runtimeapi.RestorePodRequest) (undo func() error, err error) {
	var made []string // what is in a folder before it
	undo = func() error {
		var errs []error
		for _, dir := range made {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	for _, config := range r.GetContainerConfigs() {
		if r.GetConfig().GetLogDirectory() == "" || config.GetLogPath() == "" {
			continue
		}
		dir := filepath.Dir(filepath.Join(r.GetConfig().GetLogDirectory(), config.GetLogPath()))
		made = append(missing(dir), made...)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return undo, err
		}
	}
	return undo, nil
}

// missing are those of a folder and the folders above it that are not there.
func missing(dir string) (dirs []string) {
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

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

// psFlags are the flags of `berth ps`.
type psFlags struct {
	listing
	all        bool
	pod, image string
}

func (c *CLI) psCommand() *cobra.Command {
	var l psFlags
	cmd := &cobra.Command{
		Use:               "ps",
		Short:             "List containers; without -a or --state only the running ones",
		Args:              args(0, 0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.ps(cmd, &l) },
	}
	l.flags(cmd)
	l.filterFlags(cmd, "created, running, exited or unknown")
	f := cmd.Flags()
	f.BoolVarP(&l.all, "all", "a", false, "containers in every state")
	f.StringVarP(&l.pod, "pod", "p", "", "only those of this pod, by ID or name")
	f.StringVar(&l.image, "image", "", "only those of this image")
	f.StringVar(&l.namespace, "namespace", "", "only pod namespaces that match this regular expression")
	_ = cmd.RegisterFlagCompletionFunc("pod", c.completeFlag(criclient.Kinds{Pods: true})) // the flag is there
	return cmd
}

func (l *psFlags) wanted() (*runtimeapi.ContainerStateValue, error) {
	state := l.state
	if state == "" && !l.all && l.id == "" && !l.latest && l.last == 0 { // as crictl does
		state = "running"
	}
	if state == "" {
		return nil, nil
	}
	value, ok := runtimeapi.ContainerState_value["CONTAINER_"+strings.ToUpper(state)]
	if !ok {
		return nil, fmt.Errorf("--state %q is not one of created, running, exited, unknown", l.state)
	}
	return &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState(value)}, nil
}

func (c *CLI) ps(cmd *cobra.Command, l *psFlags) error {
	format, err := l.check()
	if err != nil {
		return err
	}
	m, err := l.matcher()
	if err != nil {
		return err
	}
	state, err := l.wanted()
	if err != nil {
		return err
	}
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Read(cmd.Context())
	defer cancel()
	lists, err := client.Lists(ctx, criclient.Kinds{Pods: true})
	if err != nil {
		return err
	}
	filter := &runtimeapi.ContainerFilter{State: state, LabelSelector: m.labels}
	if l.pod != "" {
		pod, err := lists.Find(l.pod, criclient.Kinds{Pods: true})
		if err != nil {
			return err
		}
		filter.PodSandboxId = pod.ID()
	}
	imageID := ""
	if l.image != "" {
		image, err := client.Image(ctx, l.image)
		if err != nil {
			return err
		}
		imageID = image.GetId()
	}
	answer, err := client.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter})
	if err != nil {
		return client.Error("list containers", err)
	}
	var containers []*runtimeapi.Container
	for _, k := range answer.GetContainers() {
		namespace := lists.Pod(k.GetPodSandboxId()).GetMetadata().GetNamespace()
		if m.match(k.GetId(), k.GetMetadata().GetName(), namespace, k.GetLabels()) && (imageID == "" || isImage(k, imageID)) {
			containers = append(containers, k)
		}
	}
	containers = newest(&l.listing, containers)
	switch {
	case l.quiet:
		return printIDs(cmd, containers)
	case format == output.JSON || format == output.YAML:
		return output.Message(cmd.OutOrStdout(), format, &runtimeapi.ListContainersResponse{Containers: containers})
	}
	return c.containerTable(ctx, cmd, client, l, lists, containers)
}

func isImage(k *runtimeapi.Container, id string) bool {
	return k.GetImageId() == id || k.GetImageRef() == id || k.GetImage().GetImage() == id
}

func (c *CLI) containerTable(ctx context.Context, cmd *cobra.Command, client *criclient.Client, l *psFlags, lists criclient.Lists,
	containers []*runtimeapi.Container,
) error {
	head := []string{"CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD"}
	wide := l.format == string(output.Wide)
	if wide {
		head = append(head, "NAMESPACE", "EXIT", "REASON")
	}
	rows := output.Head(head...)
	now := time.Now()
	for _, k := range containers {
		pod := lists.Pod(k.GetPodSandboxId()).GetMetadata()
		row := []string{l.shown(k.GetId()), l.shownImage(k.GetImage()), output.Ago(k.GetCreatedAt(), now), containerState(k.GetState()),
			k.GetMetadata().GetName(), strconv.Itoa(int(k.GetMetadata().GetAttempt())), l.shown(k.GetPodSandboxId()), pod.GetName()}
		if wide {
			exit, reason, err := containerExit(ctx, client, k.GetId())
			if err != nil {
				return err
			}
			row = append(row, pod.GetNamespace(), exit, reason)
		}
		rows.Add(row...)
	}
	return rows.Print(cmd.OutOrStdout())
}

// shownImage is the image as the user named it, else its short ID.
func (l *listing) shownImage(image *runtimeapi.ImageSpec) string {
	name := image.GetImage()
	if user := image.GetUserSpecifiedImage(); user != "" {
		return user
	}
	if strings.HasPrefix(name, "sha256:") {
		return l.shown(name)
	}
	return name
}

// containerExit is how a container has ended; it has not as long as it runs.
func containerExit(ctx context.Context, client *criclient.Client, id string) (code, reason string, err error) {
	answer, err := client.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if criclient.IsNotFound(err) {
		return "", "", nil
	}
	if err != nil {
		return "", "", client.Error("status of container "+criclient.Short(id), err)
	}
	st := answer.GetStatus()
	if st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return "", "", nil
	}
	return strconv.Itoa(int(st.GetExitCode())), st.GetReason(), nil
}

func containerState(s runtimeapi.ContainerState) string {
	name := strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
	return strings.ToUpper(name[:1]) + name[1:]
}

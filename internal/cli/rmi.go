// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/imageapi/imagepb"
)

func (c *CLI) rmiCommand(name string, aliases ...string) *cobra.Command {
	var all, prune bool
	cmd := &cobra.Command{
		Use:     name + " IMAGE…",
		Aliases: aliases,
		Short:   "Remove images; containers that use one run on",
		Long: "Remove images; containers that use one run on.\n\n" +
			"An image that is named by its ID or digest goes with all of its names. A name takes only that name away, and the image with its last one.",
		Args:              args(0, -1, ""),
		ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, names []string) error {
			if len(names) == 0 && !all && !prune {
				return args(1, -1, "image, --all or --prune")(cmd, nil)
			}
			return c.rmi(cmd, names, all, prune)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "remove all images that are not pinned")
	cmd.Flags().BoolVarP(&prune, "prune", "q", false, "remove all images that no container uses and that are not pinned")
	return cmd
}

func (c *CLI) rmi(cmd *cobra.Command, words []string, all, prune bool) error {
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Change(cmd.Context(), 0)
	defer cancel()
	targets := map[string]*runtimeapi.Image{} // by what is removed: an ID, or a name
	for _, w := range words {
		im, err := client.Image(ctx, w)
		if err != nil {
			return err
		}
		ref := w
		if bare := strings.TrimPrefix(im.GetId(), "sha256:"); strings.HasPrefix(bare, strings.TrimPrefix(w, "sha256:")) || strings.Contains(w, "@") {
			ref = im.GetId()
		}
		targets[ref] = im
	}
	if all || prune {
		if err := unpinned(ctx, client, all, targets); err != nil {
			return err
		}
	}
	return each(sortedKeys(targets), func(ref string) error {
		done, err := removeImage(ctx, client, ref, targets[ref])
		if err == nil && done != "" {
			_, err = fmt.Fprintln(cmd.OutOrStdout(), done)
		}
		return err
	})
}

// unpinned adds the images that are not pinned: all, or those that no container has.
func unpinned(ctx context.Context, client *criclient.Client, all bool, to map[string]*runtimeapi.Image) error {
	list, err := client.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return client.Error("list images", err)
	}
	used, err := client.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return client.Error("list containers", err)
	}
	for _, im := range list.GetImages() {
		inUse := slices.ContainsFunc(used.GetContainers(), func(k *runtimeapi.Container) bool { return isImage(k, im.GetId()) })
		if !im.GetPinned() && (all || !inUse) {
			to[im.GetId()] = im
		}
	}
	return nil
}

// removeImage removes an image by its ID, or takes a name from it, and says what was done. The CRI's own call takes all names at once, whichever it is given.
func removeImage(ctx context.Context, client *criclient.Client, ref string, im *runtimeapi.Image) (string, error) {
	if ref != im.GetId() {
		answer, err := client.Operator.Untag(ctx, &imagepb.UntagRequest{Name: ref})
		left := answer.GetLeft()
		switch {
		case status.Code(err) == codes.NotFound:
			return "", nil // another word was the same name
		case err == nil && len(left) > 0:
			return fmt.Sprintf("removed the name %s; image %s is still %s", answer.GetName(), criclient.Short(im.GetId()), strings.Join(left, ", ")), nil
		case err == nil:
			return "removed image " + answer.GetName(), nil
		case status.Code(err) != codes.Unimplemented:
			return "", client.Error("remove image "+ref, err)
		case len(im.GetRepoTags()) > 1: // an older daemon, or another runtime
			return "", fmt.Errorf("remove image %s: what listens at %s takes no name alone, and the image is also %s: to remove it with all names say its ID, %s",
				ref, client.Socket, strings.Join(im.GetRepoTags(), ", "), criclient.Short(im.GetId()))
		}
	}
	if _, err := client.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		return "", client.Error("remove image "+ref, err)
	}
	if tags := im.GetRepoTags(); len(tags) > 1 {
		return "removed image " + strings.Join(tags, ", "), nil
	}
	return "removed image " + imageName(im), nil
}

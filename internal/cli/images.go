// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/output"
)

func (c *CLI) imagesCommand() *cobra.Command {
	cmd := c.listImagesCommand("images", "image", "img")
	cmd.AddCommand(c.imageCommands()...)
	return cmd
}

func (c *CLI) listImagesCommand(name string, aliases ...string) *cobra.Command {
	var l listing
	var verbose, digests bool
	cmd := &cobra.Command{
		Use:               name + " [REPOSITORY[:TAG]]",
		Aliases:           aliases,
		Short:             "List images",
		Args:              args(0, 1, "one repository"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.images(cmd, &l, imageView{verbose: verbose, digests: digests, only: strings.Join(args, "")})
		},
	}
	l.flags(cmd)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print all that is known of each image")
	cmd.Flags().BoolVar(&digests, "digests", false, "show the digests")
	return cmd
}

type imageView struct {
	verbose, digests bool
	only             string
}

func (c *CLI) images(cmd *cobra.Command, l *listing, v imageView) error {
	format, err := l.check()
	if err != nil {
		return err
	}
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Read(cmd.Context())
	defer cancel()
	answer, err := client.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return client.Error("list images", err)
	}
	images := slices.DeleteFunc(answer.GetImages(), func(im *runtimeapi.Image) bool { return !v.shows(im) })
	slices.SortStableFunc(images, func(a, b *runtimeapi.Image) int { return cmp.Compare(imageName(a), imageName(b)) })
	switch {
	case l.quiet:
		return printIDs(cmd, images)
	case format == output.JSON || format == output.YAML:
		return output.Message(cmd.OutOrStdout(), format, &runtimeapi.ListImagesResponse{Images: images})
	case v.verbose:
		return printImages(cmd, images)
	}
	head := []string{"IMAGE", "TAG", "IMAGE ID", "SIZE"}
	v.digests = v.digests || format == output.Wide
	if v.digests {
		head = []string{"IMAGE", "TAG", "DIGEST", "IMAGE ID", "SIZE"}
	}
	rows := output.Head(head...)
	for _, im := range images {
		for _, name := range names(im) {
			row := []string{name.repository, name.tag, l.shown(im.GetId()), output.Size(im.GetSize())}
			if v.digests {
				row = slices.Insert(row, 2, l.shown(name.digest))
			}
			rows.Add(row...)
		}
	}
	return rows.Print(cmd.OutOrStdout())
}

// shows tells whether an image has the name that was asked for; a name may leave out its registry, and its tag.
func (v imageView) shows(im *runtimeapi.Image) bool {
	if v.only == "" {
		return true
	}
	for _, ref := range append(slices.Clone(im.GetRepoTags()), im.GetRepoDigests()...) {
		n := parseName(ref)
		for _, full := range []string{n.repository, n.repository + ":" + n.tag, n.repository + "@" + n.digest} {
			if full == v.only || strings.HasSuffix(full, "/"+v.only) {
				return true
			}
		}
	}
	return false
}

func imageName(im *runtimeapi.Image) string {
	if len(im.GetRepoTags()) > 0 {
		return im.GetRepoTags()[0]
	}
	if len(im.GetRepoDigests()) > 0 {
		return im.GetRepoDigests()[0]
	}
	return im.GetId()
}

type name struct{ repository, tag, digest string }

func parseName(ref string) name {
	ref, digest, _ := strings.Cut(ref, "@")
	n := name{repository: ref, digest: digest}
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		n.repository, n.tag = ref[:i], ref[i+1:]
	}
	return n
}

// names are the rows that an image has: one for each tag, else one for each digest, else one.
func names(im *runtimeapi.Image) []name {
	digests := map[string]string{}
	var untagged []name
	for _, ref := range im.GetRepoDigests() {
		n := parseName(ref)
		digests[n.repository] = n.digest
		untagged = append(untagged, name{n.repository, "<none>", n.digest})
	}
	var tagged []name
	for _, ref := range im.GetRepoTags() {
		n := parseName(ref)
		tagged = append(tagged, name{n.repository, n.tag, digests[n.repository]})
	}
	switch {
	case len(tagged) > 0:
		return tagged
	case len(untagged) > 0:
		return untagged
	}
	return []name{{"<none>", "<none>", ""}}
}

func printImages(cmd *cobra.Command, images []*runtimeapi.Image) error {
	for i, im := range images {
		var b strings.Builder
		if i > 0 {
			b.WriteByte('\n')
		}
		line := func(name, value string) {
			if value != "" {
				fmt.Fprintf(&b, "%-8s %s\n", name+":", value)
			}
		}
		line("ID", im.GetId())
		for _, t := range im.GetRepoTags() {
			line("Tag", t)
		}
		for _, d := range im.GetRepoDigests() {
			line("Digest", d)
		}
		line("Size", output.Size(im.GetSize()))
		if uid := im.GetUid(); uid != nil {
			line("User", fmt.Sprint(uid.GetValue()))
		}
		line("User", im.GetUsername())
		if im.GetPinned() {
			line("Pinned", "true")
		}
		if _, err := fmt.Fprint(cmd.OutOrStdout(), b.String()); err != nil {
			return err
		}
	}
	return nil
}

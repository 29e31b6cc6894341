// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
)

// detail are the flags of commands that show all of something.
type detail struct{ format, template string }

func (d *detail) flags(cmd *cobra.Command, usual output.Format) {
	cmd.Flags().StringVarP(&d.format, "output", "o", string(usual), "json, yaml or go-template")
	cmd.Flags().StringVar(&d.template, "template", "", "Go template for -o go-template, such as '{{.status.id}}'")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json", "yaml", "go-template"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

func (d *detail) check(more ...output.Format) (output.Format, error) {
	f := output.Format(d.format)
	if d.template != "" && f != output.Template {
		if f != output.JSON && f != output.Table { // not the default
			return "", fmt.Errorf("--template is for -o go-template, not -o %s", f)
		}
		f = output.Template
	}
	if f == output.Template && d.template == "" {
		return "", errors.New("-o go-template wants --template")
	}
	return f, f.Check(append(more, output.JSON, output.YAML, output.Template)...)
}

func (c *CLI) inspectCommand() *cobra.Command {
	var k kindFlags
	var d detail
	var image bool
	cmd := &cobra.Command{
		Use:               "inspect POD|CONTAINER|IMAGE…",
		Aliases:           []string{"inspectp", "inspecti"},
		Short:             "Show all that is known of pods, containers or images",
		Args:              args(1, -1, "pod, container or image"),
		ValidArgsFunction: c.complete(criclient.Kinds{Pods: true, Containers: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			k.pod = k.pod || cmd.CalledAs() == "inspectp"
			image = image || cmd.CalledAs() == "inspecti"
			format, err := d.check()
			if err != nil {
				return err
			}
			return c.inspect(cmd, words, lookup{k, image}, func(all []output.Status) error {
				return output.Statuses(cmd.OutOrStdout(), format, d.template, all)
			})
		},
	}
	k.flags(cmd)
	d.flags(cmd, output.JSON)
	cmd.Flags().BoolVar(&image, "image", false, "the words name images")
	cmd.MarkFlagsMutuallyExclusive("pod", "container", "image")
	return cmd
}

// lookup says what words may name: with no flag, images too.
type lookup struct {
	kindFlags
	image bool
}

func (c *CLI) inspect(cmd *cobra.Command, words []string, l lookup, show func([]output.Status) error) error {
	client, err := c.client(cmd.Context())
	if err != nil {
		return err
	}
	ctx, cancel := client.Read(cmd.Context())
	defer cancel()
	var lists criclient.Lists
	if !l.image {
		if lists, err = client.Lists(ctx, criclient.Kinds{Pods: true, Containers: true}); err != nil {
			return err
		}
	}
	all := make([]output.Status, 0, len(words))
	for _, w := range words {
		o, err := criclient.Object{}, criclient.ErrNotFound
		if !l.image {
			o, err = lists.Find(w, l.kinds())
		}
		var s output.Status
		switch {
		case err == nil:
			s, err = objectStatus(ctx, client, o)
		case errors.Is(err, criclient.ErrNotFound) && !l.pod && !l.container:
			s, err = imageStatus(ctx, client, w)
			if errors.Is(err, criclient.ErrNotFound) && !l.image {
				err = fmt.Errorf("pod, container or image %q: %w", w, criclient.ErrNotFound)
			}
		}
		if err != nil {
			return err
		}
		all = append(all, s)
	}
	return show(all)
}

func objectStatus(ctx context.Context, client *criclient.Client, o criclient.Object) (output.Status, error) {
	if o.Pod != nil {
		answer, err := client.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: o.ID(), Verbose: true})
		if err != nil {
			return output.Status{}, client.Error("inspect "+o.String(), err)
		}
		return output.Status{Parts: map[string]proto.Message{"status": answer.GetStatus()}, Info: answer.GetInfo()}, nil
	}
	answer, err := client.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: o.ID(), Verbose: true})
	if err != nil {
		return output.Status{}, client.Error("inspect "+o.String(), err)
	}
	return output.Status{Parts: map[string]proto.Message{"status": answer.GetStatus()}, Info: answer.GetInfo()}, nil
}

func imageStatus(ctx context.Context, client *criclient.Client, word string) (output.Status, error) {
	im, err := client.Image(ctx, word)
	if err != nil {
		return output.Status{}, err
	}
	answer, err := client.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: im.GetId()}, Verbose: true})
	if err != nil {
		return output.Status{}, client.Error("inspect image "+word, err)
	}
	if answer.GetImage() == nil {
		return output.Status{}, fmt.Errorf("image %q: %w", word, criclient.ErrNotFound)
	}
	return output.Status{Parts: map[string]proto.Message{"status": answer.GetImage()}, Info: answer.GetInfo()}, nil
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
)

// completeTime bounds a completion: a shell that waits for Tab is worse than one without an answer.
const completeTime = time.Second

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// complete offers the names, and the IDs once one was begun, of pods and containers.
func (c *CLI) complete(k criclient.Kinds) completion {
	return func(cmd *cobra.Command, before []string, word string) ([]string, cobra.ShellCompDirective) {
		return c.objects(cmd, k, before, word), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFirst completes the first word only: the others are a command's.
func (c *CLI) completeFirst(k criclient.Kinds) completion {
	return func(cmd *cobra.Command, before []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(before) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return c.objects(cmd, k, before, word), cobra.ShellCompDirectiveNoFileComp
	}
}

func (c *CLI) completeFlag(k criclient.Kinds) completion {
	return func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return c.objects(cmd, k, nil, word), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeClient is nil where there is no daemon to ask: then there is nothing to offer.
func (c *CLI) completeClient(cmd *cobra.Command) (*criclient.Client, context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	client, err := c.client(ctx)
	if err != nil {
		cancel()
		return nil, nil, nil
	}
	return client, ctx, cancel
}

func (c *CLI) objects(cmd *cobra.Command, k criclient.Kinds, before []string, word string) []string {
	client, ctx, cancel := c.completeClient(cmd)
	if client == nil {
		return nil
	}
	defer cancel()
	lists, err := client.Lists(ctx, k)
	if err != nil {
		return nil
	}
	offer := newOffer(before, word)
	if k.Pods {
		for _, p := range lists.Pods {
			offer.add(p.GetMetadata().GetName(), p.GetId(), "pod")
		}
	}
	for _, k := range lists.Containers {
		offer.add(k.GetMetadata().GetName(), k.GetId(), "container of "+lists.Pod(k.GetPodSandboxId()).GetMetadata().GetName())
	}
	return offer.words
}

func (c *CLI) completeImages(cmd *cobra.Command, before []string, word string) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	client, ctx, cancel := c.completeClient(cmd)
	if client == nil {
		return nil, none
	}
	defer cancel()
	list, err := client.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, none
	}
	offer := newOffer(before, word)
	for _, im := range list.GetImages() {
		for _, tag := range im.GetRepoTags() {
			offer.add(tag, im.GetId(), "")
		}
	}
	return offer.words, none
}

// offer collects what may follow, each once, without what was said already.
type offer struct {
	word  string
	seen  map[string]bool
	words []string
}

func newOffer(before []string, word string) *offer {
	o := &offer{word: word, seen: map[string]bool{}}
	for _, b := range before {
		o.seen[b] = true
	}
	return o
}

func (o *offer) add(name, id, what string) {
	id = criclient.Short(id)
	offered := name
	if !strings.HasPrefix(name, o.word) {
		if o.word == "" || !strings.HasPrefix(id, o.word) {
			return
		}
		offered = id
	}
	if o.seen[offered] {
		return
	}
	o.seen[offered] = true
	if what != "" {
		offered += "\t" + what
	}
	o.words = append(o.words, offered)
}

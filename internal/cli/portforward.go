// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
)

func (c *CLI) portForwardCommand() *cobra.Command {
	var addresses []string
	var stream streamFlags
	cmd := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]PORT…",
		Short: "Forward local ports to a pod",
		Long: "Listen on local ports and pass connections on to ports of the pod's localhost, until interrupted. LOCAL is the port here: the\n" +
			"pod's if it is left out, any free one if it is 0.",
		Example:           "  berth port-forward front 8080:80",
		Args:              args(2, -1, "a pod and its ports"),
		ValidArgsFunction: c.completeFirst(criclient.Kinds{Pods: true}),
		RunE: func(cmd *cobra.Command, words []string) error {
			if err := stream.check(); err != nil {
				return err
			}
			ports, err := podPorts(words[1:])
			if err != nil {
				return err
			}
			return c.portForward(cmd, words[0], addresses, words[1:], ports, &stream)
		},
	}
	cmd.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "local addresses to listen on")
	stream.flags(cmd)
	return cmd
}

// podPorts are the pod's ports in words of the form [LOCAL:]PORT.
func podPorts(words []string) ([]int32, error) {
	var ports []int32
	for _, w := range words {
		local, remote, both := strings.Cut(w, ":")
		if !both {
			remote = local
		}
		port, err := strconv.ParseUint(remote, 10, 16)
		if err != nil || port == 0 {
			return nil, fmt.Errorf("port %q: is not in 1 to 65535", remote)
		}
		if _, err := strconv.ParseUint(local, 10, 16); err != nil && local != "" {
			return nil, fmt.Errorf("local port %q: is not in 0 to 65535", local)
		}
		ports = append(ports, int32(port))
	}
	return ports, nil
}

func (c *CLI) portForward(cmd *cobra.Command, word string, addresses, words []string, ports []int32, stream *streamFlags) error {
	client, _, found, err := c.find(cmd.Context(), []string{word}, kindFlags{pod: true})
	if err != nil {
		return err
	}
	what := "port-forward to " + found[0].String()
	ctx, cancel := client.Unbounded(cmd.Context())
	defer cancel()
	answer, err := client.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: found[0].ID(), Port: ports})
	if err != nil {
		return client.Error(what, err)
	}
	stop := make(chan struct{})
	forwarder, err := stream.forwarder(answer.GetUrl(), addresses, words, stop, make(chan struct{}), cmd.OutOrStdout(), cmd.ErrOrStderr())
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	listenToAsides(func(text string, err error) { c.warn("%s: %v", strings.ToLower(text[:1])+text[1:], err) })
	end := context.AfterFunc(ctx, func() { close(stop) })
	defer end()
	if err := forwarder.ForwardPorts(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

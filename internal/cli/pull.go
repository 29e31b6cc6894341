// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
	"github.com/berth-run/berth/internal/imageapi/imagepb"
)

// credentials are the flags that say who pulls.
type credentials struct {
	creds, auth string
	stdin       bool
}

func (c *CLI) pullCommand() *cobra.Command {
	var who credentials
	var quiet bool
	cmd := &cobra.Command{
		Use:               "pull IMAGE…",
		Short:             "Pull images",
		Args:              args(1, -1, "image"),
		ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, refs []string) error {
			auth, err := c.auth(who)
			if err != nil {
				return err
			}
			return each(refs, func(ref string) error { return c.pull(cmd.Context(), ref, auth, quiet) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&who.creds, "creds", "", "USER[:PASSWORD]; everybody on the machine can see it, --creds-stdin is better")
	f.BoolVar(&who.stdin, "creds-stdin", false, "read USER:PASSWORD from standard input")
	f.StringVar(&who.auth, "auth", "", "base64 of USER:PASSWORD, as in a Docker configuration")
	f.BoolVarP(&quiet, "quiet", "q", false, "print only the image's ID")
	cmd.MarkFlagsMutuallyExclusive("creds", "creds-stdin", "auth")
	return cmd
}

// maxCreds bounds a line of credentials: tokens of cloud registries take some KiB.
const maxCreds = 64 << 10

func (c *CLI) auth(who credentials) (*runtimeapi.AuthConfig, error) {
	line := who.creds
	switch {
	case who.auth != "":
		return &runtimeapi.AuthConfig{Auth: who.auth}, nil
	case who.stdin:
		var err error
		line, err = bufio.NewReader(io.LimitReader(c.o.In, maxCreds)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("--creds-stdin: %w", err)
		}
		line = strings.TrimRight(line, "\r\n")
	case who.creds == "":
		return nil, nil
	}
	user, password, ok := strings.Cut(line, ":")
	if user == "" || !ok && who.stdin {
		return nil, errors.New("credentials must be USER:PASSWORD")
	}
	if !who.stdin && ok {
		c.warn("a password on the command line can be seen by everybody on this machine: use --creds-stdin")
	}
	if !ok { // as crictl: no password was meant to be typed in public
		var err error
		if password, err = c.askPassword(); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.AuthConfig{Username: user, Password: password}, nil
}

func (c *CLI) askPassword() (string, error) {
	in, ok := c.o.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", errors.New("--creds has no password, and there is no terminal to ask for it: use --creds-stdin")
	}
	fmt.Fprint(c.o.Err, "password: ")
	password, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(c.o.Err)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return string(password), nil
}

// pull fetches one image.
func (c *CLI) pull(ctx context.Context, ref string, auth *runtimeapi.AuthConfig, quiet bool) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	show := io.Discard
	if !quiet {
		show = c.o.Err
	}
	meter := newMeter(show, "pulling "+ref)
	begin := time.Now()
	id, ours, err := pullWithProgress(ctx, client, ref, auth, meter)
	took := time.Since(begin)
	meter.stop()
	if ours && ctx.Err() != nil && status.Code(err) == codes.Canceled {
		c.warn("the daemon goes on with the pull of %s, and whoever asks for it again joins it", ref)
	}
	if err != nil {
		return client.Error("pull "+ref, err)
	}
	if quiet {
		_, err = fmt.Fprintln(c.o.Out, id)
		return err
	}
	size := "size unknown"
	if im, err := client.Image(ctx, id); err == nil {
		size = output.Size(im.GetSize())
	}
	_, err = fmt.Fprintf(c.o.Out, "pulled %s: %s, %s in %s\n", ref, criclient.Short(afterDigest(id)), size, output.Took(took))
	return err
}

// pullWithProgress pulls by berth.v1.Images, which tells how far it is; ours then. The CRI does not: other runtimes show only that it goes on.
func pullWithProgress(ctx context.Context, client *criclient.Client, ref string, auth *runtimeapi.AuthConfig, meter *meter) (id string, ours bool, err error) {
	ctx, cancel := client.Unbounded(ctx)
	defer cancel()
	spec := &runtimeapi.ImageSpec{Image: ref}
	answers, err := client.Operator.Pull(ctx, &imagepb.PullRequest{Image: spec, Auth: auth})
	if err != nil {
		return "", true, err
	}
	for {
		m, err := answers.Recv()
		switch {
		case errors.Is(err, io.EOF) && id != "":
			return id, true, nil
		case status.Code(err) == codes.Unimplemented:
			answer, err := client.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec, Auth: auth})
			return answer.GetImageRef(), false, err
		case err != nil:
			return "", true, err
		}
		id = m.GetImageId()
		meter.set(progressText(m))
	}
}

// progressText is a pull's progress in words: "fetch 12.3MB of 45.6MB, 3/8 layers, 10MB/s".
func progressText(m *imagepb.PullResponse) string {
	parts := []string{m.GetPhase()}
	if m.GetTotal() > 0 {
		parts[0] += fmt.Sprintf(" %s of %s", output.Size(uint64(m.GetBytes())), output.Size(uint64(m.GetTotal())))
	}
	if m.GetLayers() > 0 {
		parts = append(parts, fmt.Sprintf("%d/%d layers", m.GetUnpacked(), m.GetLayers()))
	}
	if m.GetBytesPerSecond() > 0 {
		parts = append(parts, output.Size(uint64(m.GetBytesPerSecond()))+"/s")
	}
	return strings.Join(parts, ", ")
}

// afterDigest takes the repository off NAME@DIGEST, which some runtimes answer.
func afterDigest(ref string) string {
	if _, digest, ok := strings.Cut(ref, "@"); ok {
		return digest
	}
	return ref
}

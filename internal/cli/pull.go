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
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/cli/output"
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

// pull fetches one image. The CRI tells nothing of a pull's progress, so what is shown is that it goes on, and how long.
func (c *CLI) pull(ctx context.Context, ref string, auth *runtimeapi.AuthConfig, quiet bool) error {
	client, err := c.client(ctx)
	if err != nil {
		return err
	}
	show := io.Discard
	if !quiet {
		show = c.o.Err
	}
	stop := spin(show, "pulling "+ref)
	begin := time.Now()
	rpc, cancel := client.Unbounded(ctx)
	defer cancel()
	answer, err := client.Images.PullImage(rpc, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
	took := time.Since(begin)
	stop()
	if err != nil {
		return client.Error("pull "+ref, err)
	}
	if quiet {
		_, err = fmt.Fprintln(c.o.Out, answer.GetImageRef())
		return err
	}
	size := "size unknown"
	if im, err := client.Image(ctx, answer.GetImageRef()); err == nil {
		size = output.Size(im.GetSize())
	}
	_, err = fmt.Fprintf(c.o.Out, "pulled %s: %s, %s in %s\n", ref, criclient.Short(afterDigest(answer.GetImageRef())), size, output.Took(took))
	return err
}

// afterDigest takes the repository off NAME@DIGEST, which some runtimes answer.
func afterDigest(ref string) string {
	if _, digest, ok := strings.Cut(ref, "@"); ok {
		return digest
	}
	return ref
}

// spin shows that something goes on until stop is called: on a terminal a line that moves, else one plain line.
func spin(w io.Writer, what string) (stop func()) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		fmt.Fprintln(w, what)
		return func() {}
	}
	frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	if !utf8Locale() {
		frames = []rune(`|/-\`)
	}
	done, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		begin := time.Now()
		for i := 0; ; i++ {
			fmt.Fprintf(f, "\r\x1b[K%c %s  %s", frames[i%len(frames)], what, time.Since(begin).Truncate(100*time.Millisecond))
			select {
			case <-done:
				fmt.Fprint(f, "\r\x1b[K")
				return
			case <-tick.C:
			}
		}
	}()
	return func() { close(done); <-gone }
}

// utf8Locale tells whether the terminal is said to show more than ASCII.
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line. It is a CRI client like any other: it speaks to the daemon over the socket, and knows it only as a
// function that was handed to it: Main alone links the daemon, for `berth serve`. Only cmd/berth uses it.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-run/berth/internal/cli/criclient"
	"github.com/berth-run/berth/internal/config"
)

// ServeFlags are the flags of `berth serve`; an empty one leaves the configuration as it is.
type ServeFlags struct {
	Config string
	Root   string
	State  string
	Socket string
}

// Options are what the command line is given by the program that it is in. Version and the streams may be left out.
type Options struct {
	Version string
	// Serve is the daemon; without it there is no `berth serve`.
	Serve func(context.Context, ServeFlags) error

	In       io.Reader
	Out, Err io.Writer
}

// CLI is one command line.
type CLI struct {
	o       Options
	root    *cobra.Command
	config  string
	socket  string
	timeout time.Duration

	connected *criclient.Client
}

// New builds the command line.
func New(o Options) *CLI {
	if o.Version == "" {
		o.Version = "dev"
	}
	if o.In == nil {
		o.In = os.Stdin
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Err == nil {
		o.Err = os.Stderr
	}
	c := &CLI{o: o}
	c.root = c.newRoot()
	return c
}

func (c *CLI) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Berth, a container runtime for Kubernetes nodes",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       c.o.Version,
		Args:          c.noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(c.o.In)
	root.SetOut(c.o.Out)
	root.SetErr(c.o.Err)
	root.SetVersionTemplate("berth {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	flags := root.PersistentFlags()
	flags.StringVar(&c.socket, "socket", "", "unix socket of the daemon (default $BERTH_SOCKET, else that of the configuration, else /run/berth/berth.sock)")
	flags.StringVar(&c.config, "config", "", "configuration file (default "+config.File+")")
	flags.Var(seconds{&c.timeout}, "timeout", "how long one request may take, as 30s, 2m or a number of seconds (default 30s to ask, 4m to change something, no limit to pull)")
	root.AddGroup(&cobra.Group{ID: "see", Title: "See what there is:"}, &cobra.Group{ID: "do", Title: "Run and stop:"},
		&cobra.Group{ID: "daemon", Title: "The daemon:"})
	group := func(id string, commands ...*cobra.Command) {
		for _, cmd := range commands {
			cmd.GroupID = id
		}
		root.AddCommand(commands...)
	}
	group("see", c.podsCommand(), c.psCommand(), c.imagesCommand(), c.inspectCommand(), c.logsCommand(), c.eventsCommand(), c.statsCommand(), c.topCommand())
	group("do", c.pullCommand(), c.runCommand(), c.execCommand(), c.attachCommand(), c.portForwardCommand(), c.checkpointCommand(), c.restoreCommand(), c.stopCommand(), c.rmCommand(), c.rmiCommand("rmi"))
	group("daemon", c.infoCommand(), c.doctorCommand(), c.debugCommand(), c.versionCommand(), c.configCommand(), c.demoCommand())
	if c.o.Serve != nil {
		group("daemon", c.serveCommand())
	}
	root.SetHelpCommand(c.helpCommand())
	suggest(root)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args, cmd.RunE = c.noCommand, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	return root
}

// suggest tells commands by which words of other runtimes' command lines they are looked for.
func suggest(root *cobra.Command) {
	words := map[string][]string{"ps": {"container", "containers", "list", "ls"}, "pods": {"sandboxes"}, "rm": {"delete", "del", "remove"},
		"stop": {"kill"}, "info": {"status"}, "run": {"create", "start", "runp"}, "doctor": {"check", "diagnose"}, "serve": {"daemon"}}
	for _, cmd := range root.Commands() {
		cmd.SuggestFor = words[cmd.Name()]
	}
}

// noCommand refuses words that are no command, with those that may have been meant, or else with those that there are.
func (c *CLI) noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	if near := meant(cmd, args[0]); len(near) > 0 {
		return errors.New(text + ": did you mean " + strings.Join(near, " or ") + "?")
	}
	if !cmd.HasParent() {
		return fmt.Errorf("%s: see `%s --help`", text, cmd.CommandPath())
	}
	var all []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			all = append(all, sub.Name())
		}
	}
	return fmt.Errorf("%s: %s has %s", text, cmd.CommandPath(), strings.Join(all, ", "))
}

// meant are the commands that word may stand for, the nearest. In a short word two edits make any other.
func meant(cmd *cobra.Command, word string) (near []string) {
	was := cmd.SuggestionsMinimumDistance
	defer func() { cmd.SuggestionsMinimumDistance = was }()
	for edits := 1; edits <= 2 && len(near) == 0 && len(word) >= 2*edits; edits++ {
		cmd.SuggestionsMinimumDistance = edits
		near = cmd.SuggestionsFor(word)
	}
	return near
}

// number finds how the library words a number that is none.
var number = regexp.MustCompile(`strconv\.Parse(Int|Uint): parsing "[^"]*": (invalid syntax|value out of range)`)

// flagError words what is wrong with a flag.
func flagError(cmd *cobra.Command, err error) error {
	text := number.ReplaceAllString(err.Error(), "is no whole number")
	return fmt.Errorf("%s: see `%s --help`", text, cmd.CommandPath())
}

// exitCode ends the program with a code; what there was to say was said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// interrupted is why the context of an interrupted command has ended.
type interrupted struct{ syscall.Signal }

func (i interrupted) Error() string { return "interrupted by signal: " + i.String() }

// Run runs one command and returns the program's exit code. The first SIGINT or SIGTERM ends the command's context, the second
// the program.
func (c *CLI) Run(ctx context.Context, args []string) int {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	go func() {
		select {
		case s := <-signals:
			if sig, ok := s.(syscall.Signal); ok {
				cancel(interrupted{sig})
			}
			// Terminals and supervisors signal the group and its leader: the echo of the first signal is not a second one.
			time.Sleep(time.Second)
			signal.Stop(signals)
		case <-ctx.Done():
		}
	}()
	c.root.SetArgs(args)
	err := c.root.ExecuteContext(ctx)
	if c.connected != nil {
		err = errors.Join(err, c.connected.Close())
		c.connected = nil
	}
	return c.report(err, context.Cause(ctx))
}

// report says what went wrong, in one line where that is possible.
func (c *CLI) report(err, cause error) int {
	if err == nil {
		return 0
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	var sig interrupted
	if errors.As(cause, &sig) {
		fmt.Fprintln(c.o.Err, "berth: interrupted")
		return 128 + int(sig.Signal)
	}
	text := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "\n       ")
	fmt.Fprintln(c.o.Err, "berth: "+text)
	return 1
}

// warn says what the user should know, and goes on.
func (c *CLI) warn(format string, args ...any) {
	fmt.Fprintf(c.o.Err, "berth: warning: "+format+"\n", args...)
}

// client connects, once.
func (c *CLI) client(ctx context.Context) (*criclient.Client, error) {
	if c.connected != nil {
		return c.connected, nil
	}
	endpoint, err := c.endpoint()
	if err != nil {
		return nil, err
	}
	client, err := criclient.Dial(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	client.Timeout = c.timeout
	c.connected = client
	return client, nil
}

// endpoint is where the daemon is: the flag, else the environment, else the configuration.
func (c *CLI) endpoint() (string, error) {
	if c.socket != "" {
		return c.socket, nil
	}
	if env := os.Getenv("BERTH_SOCKET"); env != "" {
		return env, nil
	}
	cfg, _, err := config.Load(config.Options{File: c.config})
	switch {
	case err == nil:
		return cfg.Socket, nil
	case c.config != "":
		return "", err
	}
	// The daemon may run with the configuration as it was before the mistake.
	c.warn("the configuration cannot be used, see `berth config check`; looking at the usual socket")
	return config.Defaults().Socket, nil
}

// args checks the number of words behind a command; max < 0 is any. what names one of them.
func args(min, max int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < min && min == 1:
			return fmt.Errorf("%s: no %s given: see `%s --help`", cmd.Name(), strings.TrimPrefix(what, "one "), cmd.CommandPath())
		case len(args) < min:
			return fmt.Errorf("%s takes %s: see `%s --help`", cmd.Name(), what, cmd.CommandPath())
		case max == 0 && len(args) > 0:
			return fmt.Errorf("%s takes no argument, got %q", cmd.Name(), args[0])
		case max >= 0 && len(args) > max:
			return fmt.Errorf("%s takes %s, got also %q", cmd.Name(), what, args[max])
		}
		return nil
	}
}

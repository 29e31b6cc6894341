// SPDX-License-Identifier: Apache-2.0

// Bench compares container runtimes over their CRI sockets: the life of pods, starts side by side, exec, many
// pods at rest, and pulls. It starts Berth and containerd in turn (A B A B), each in folders, a network and
// cgroups of its own, with the same runc, CNI plugins and network configuration, and prints a table in Markdown.
//
//	go run ./test/bench                      # all parts, two rounds, about 15 minutes
//	go run ./test/bench -quick -parts life   # a first look
//	go run ./test/bench -parts pull,cold -huge
//	go run ./test/bench -parts pull -shapes blobs
//	go run ./test/bench -parts density -pods 300 -rounds 1
//	go run ./test/bench -socket /run/x.sock  # any other runtime, without CPU and memory
//	go run ./test/bench -runtimes berth:/usr/bin/crun,containerd  # with another OCI runtime than bin/runc
//
// A run that is cut off by SIGINT or SIGTERM takes away all that it made; what one leaves that was killed, the next takes away.
// It needs root and the programs in bin/ (make). containerd is built from the Go module proxy when it is missing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/test/daemon"
)

// plan is what to measure.
type plan struct {
	parts  []string
	kinds  []daemon.Kind
	rounds int
	// pods run one after another, side by side, and at rest; execs and pulls.
	sequential, parallel, dense, execs, pulls int
	// shrink divides the size of the images to pull.
	shrink int
	// shapes are those of the images to pull.
	shapes []string
	// oci are the OCI runtimes of the kinds whose name has one: "berth:crun".
	oci    map[daemon.Kind]string
	bin    string
	socket string
}

var partNames = []string{"life", "parallel", "exec", "density", "pull", "cold"}

func main() {
	p := plan{rounds: 2, sequential: 30, parallel: 100, dense: 100, execs: 50, pulls: 3, shrink: 1}
	parts := flag.String("parts", strings.Join(partNames, ","), "what to measure")
	kinds := flag.String("runtimes", "berth,containerd", "which runtimes, each with \":\" and the path of an OCI runtime behind it where that is not to be bin/runc; the last one is what the others are compared with")
	quick := flag.Bool("quick", false, "fewer pods and smaller images")
	out := flag.String("out", "", "write the table to this file, too")
	flag.IntVar(&p.rounds, "rounds", p.rounds, "how often each runtime has its turn")
	flag.IntVar(&p.sequential, "n", p.sequential, "pods one after another")
	flag.IntVar(&p.parallel, "pods", p.parallel, "pods side by side, and at rest")
	flag.IntVar(&p.pulls, "pulls", p.pulls, "pulls of each shape of image, and cold starts, in a turn, each of a new image")
	shapes := flag.String("shapes", "files,blobs,many", "which images the part pull has: many small files, large ones, many layers")
	huge := flag.Bool("huge", false, "pull one layer of 2 GB, too: wants 12 GB of memory and 10 GB of disk")
	flag.StringVar(&p.socket, "socket", "", "measure the runtime that serves this socket instead of starting any")
	flag.Parse()
	p.dense = p.parallel
	if *quick {
		p.rounds, p.sequential, p.parallel, p.dense, p.execs, p.pulls, p.shrink = 1, 8, 12, 12, 10, 1, 10
	}
	p.parts, p.shapes = strings.Split(*parts, ","), strings.Split(*shapes, ",")
	if *huge {
		p.shapes = append(p.shapes, "huge")
	}
	p.oci = map[daemon.Kind]string{}
	for k := range strings.SplitSeq(*kinds, ",") {
		if name, path, ok := strings.Cut(k, ":"); ok {
			k = name + ":" + filepath.Base(path)
			p.oci[daemon.Kind(k)] = path
		}
		p.kinds = append(p.kinds, daemon.Kind(k))
	}
	if p.socket != "" {
		p.kinds = []daemon.Kind{"socket"}
		p.parts = slices.DeleteFunc(p.parts, func(s string) bool { return s == "density" })
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cut := context.WithCancelCause(ctx)
	go endWithParent(ctx, cut)
	if err := run(ctx, p, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// endWithParent cuts the run off when who started it has ended: `go run` does not pass SIGTERM on.
func endWithParent(ctx context.Context, cut context.CancelCauseFunc) {
	parent := os.Getppid()
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent)); err != nil || string(name) != "go\n" {
		return
	}
	for os.Getppid() == parent {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
	cut(errors.New("cut off: the process that started this one has ended"))
}

func run(ctx context.Context, p plan, out string) error {
	swept, err := daemon.SweepCut()
	if err != nil {
		return err
	}
	for _, dir := range swept {
		fmt.Fprintf(os.Stderr, "took away what a run that was killed has left of %s\n", dir)
	}
	for _, part := range p.parts {
		if !slices.Contains(partNames, part) {
			return fmt.Errorf("unknown part %q, want some of %s", part, strings.Join(partNames, ", "))
		}
	}
	bin, err := daemon.BinDir()
	if err != nil {
		return err
	}
	p.bin = bin
	if slices.ContainsFunc(p.kinds, func(k daemon.Kind) bool { return program(k) == daemon.Containerd }) {
		if err := buildContainerd(bin); err != nil {
			return err
		}
	}
	images, err := prepareImages(p)
	if err != nil {
		return err
	}
	defer images.Close()
	t := newTable(p.kinds)
	for round := range p.rounds {
		for _, kind := range p.kinds {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, p.rounds, kind)
			if err := measure(ctx, p, kind, images, t); err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
		}
	}
	var w io.Writer = os.Stdout
	if out != "" {
		f, err := os.Create(out)
		if err != nil {
			return fmt.Errorf("write table: %w", err)
		}
		defer f.Close()
		w = io.MultiWriter(os.Stdout, f)
	}
	return t.print(w, p)
}

// program is a kind without its OCI runtime.
func program(kind daemon.Kind) daemon.Kind {
	name, _, _ := strings.Cut(string(kind), ":")
	return daemon.Kind(name)
}

// measure gives one runtime one turn.
func measure(ctx context.Context, p plan, kind daemon.Kind, images *imageSet, t *table) (err error) {
	r, err := newRig(ctx, p, kind, images, t)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && ctx.Err() == nil { // else the run was cut off
			err = fmt.Errorf("%w\n%s", err, r.d.LogTail(20))
		}
		err = errors.Join(err, r.close())
	}()
	for _, part := range p.parts {
		fmt.Fprintf(os.Stderr, "  %s\n", part)
		do := map[string]func(context.Context) error{
			"life": r.life, "parallel": r.parallel, "exec": r.exec, "density": r.density, "pull": r.pull, "cold": r.cold,
		}[part]
		if err := do(ctx); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return nil
}

// buildContainerd builds the peer at the version that its own go.mod pins.
func buildContainerd(bin string) error {
	to := filepath.Join(bin, "containerd")
	if _, err := os.Stat(filepath.Join(to, "containerd-shim-runc-v2")); err == nil {
		return nil
	}
	repo, err := daemon.RepoDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return fmt.Errorf("build containerd: %w", err)
	}
	fmt.Fprintln(os.Stderr, "building containerd")
	const module = "github.com/containerd/containerd/v2/cmd/"
	build := exec.Command("go", "build", "-C", filepath.Join(repo, "test/bench/containerd"), "-trimpath", "-ldflags", "-s -w",
		"-o", to+"/", module+"containerd", module+"containerd-shim-runc-v2")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build containerd: %w", err)
	}
	return nil
}

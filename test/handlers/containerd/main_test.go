// SPDX-License-Identifier: Apache-2.0

// Package containerd tests our shim as a runtime of containerd's: the shim speaks the protocol that the world speaks. A real containerd, built as
// for the benchmarks, starts it; its own client asks for everything. After each test nothing may be left on the machine. `make test-handlers` builds
// what it needs.
package containerd

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/registry"
	"github.com/berth-run/berth/test/transcript"
)

const namespace = "berth-test"

// patience is how long anything may take before it counts as a hang.
const patience = 30 * time.Second

var (
	images     *registry.Server
	busyboxRef string
	binDir     string
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("tests with containerd are left out with -short")
		return
	}
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "tests with containerd:", err)
		os.Exit(1)
	}
	code := m.Run()
	images.Close()
	os.Exit(code)
}

func setUp() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("need root (or -short)")
	}
	var err error
	if binDir, err = daemon.BinDir(); err != nil {
		return err
	}
	images, busyboxRef, err = registry.NewWithBusybox()
	return err
}

// node is a containerd with an image.
type node struct {
	*testing.T
	d      *daemon.Daemon
	client *client.Client
	image  client.Image
	ctx    context.Context
	shim   string // the runtime's program
}

func start(t *testing.T) *node {
	t.Helper()
	d := daemon.Start(t, daemon.Spec{Kind: daemon.Containerd, PauseImage: busyboxRef})
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), namespace), 4*patience)
	t.Cleanup(cancel)
	n := &node{T: t, d: d, ctx: ctx, shim: filepath.Join(binDir, "containerd-shim-berth-v1")}
	before := n.sockets()
	var err error
	if n.client, err = client.New(d.Socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.client.Close() })
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost))})
	if n.image, err = n.client.Pull(ctx, busyboxRef, client.WithPullUnpack, client.WithResolver(resolver)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.checkState(before) })
	return n
}

// sockets are those of all shims.
func (n *node) sockets() []string {
	all, err := filepath.Glob("/run/containerd/s/*")
	if err != nil {
		n.Fatal(err)
	}
	return all
}

// checkState looks at what the leak check does not know: bundles of our namespace, and shims' sockets.
func (n *node) checkState(before []string) {
	n.until("bundles are gone", func() bool {
		left, err := filepath.Glob(n.d.State + "/io.containerd.runtime.v2.task/" + namespace + "/*")
		return err == nil && len(left) == 0
	})
	n.until("sockets are gone", func() bool { return len(n.sockets()) <= len(before) })
}

// until waits for something that is to come true.
func (n *node) until(what string, is func() bool) {
	n.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			n.Fatalf("not after %v: %s", patience, what)
		}
	}
}

// container is one with its task.
type container struct {
	*node
	client.Container
	task   client.Task
	wait   <-chan client.ExitStatus
	stdout *transcript.Text
	stderr *transcript.Text
}

// create makes a container, not started, with our shim as its runtime.
func (n *node) create(id string, in *os.File, io []cio.Opt, opts ...oci.SpecOpts) *container {
	n.Helper()
	cgroup, systemd := "/"+strings.Trim(n.d.CgroupParent, "/")+"/"+id, os.Getenv("BERTH_TEST_CGROUP_DRIVER") == "systemd"
	if systemd {
		cgroup = filepath.Base(n.d.CgroupParent) + ":berth-t:" + id
	}
	opts = append([]oci.SpecOpts{oci.WithImageConfig(n.image), oci.WithCgroup(cgroup), withoutRaisedScore}, opts...)
	made, err := n.client.NewContainer(n.ctx, id, client.WithNewSnapshot(id, n.image), client.WithNewSpec(opts...),
		client.WithRuntime(n.shim, &options.Options{BinaryName: filepath.Join(binDir, "runc"), Root: filepath.Join(n.d.State, "runc"), SystemdCgroup: systemd}))
	if err != nil {
		n.Fatal(err)
	}
	c := &container{node: n, Container: made, stdout: &transcript.Text{}, stderr: &transcript.Text{}}
	n.Cleanup(func() {
		if err := made.Delete(n.ctx, client.WithSnapshotCleanup); err != nil {
			n.Errorf("delete container %s: %v", id, err)
		}
	})
	streams := cio.WithStreams(nil, c.stdout, c.stderr)
	if in != nil {
		streams = cio.WithStreams(in, c.stdout, c.stderr)
	}
	c.task, err = made.NewTask(n.ctx, cio.NewCreator(append([]cio.Opt{streams}, io...)...))
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { c.task.Delete(n.ctx, client.WithProcessKill) }) // most tests have done so
	if c.wait, err = c.task.Wait(n.ctx); err != nil {
		n.Fatal(err)
	}
	return c
}

// withoutRaisedScore leaves oom_score_adj as it is.
func withoutRaisedScore(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
	s.Process.OOMScoreAdj = nil
	return nil
}

func (c *container) start() *container {
	c.Helper()
	if err := c.task.Start(c.ctx); err != nil {
		c.Fatal(err)
	}
	return c
}

// ended waits for the task's end and returns its exit code.
func (c *container) ended() uint32 {
	c.Helper()
	select {
	case status := <-c.wait:
		if status.Error() != nil {
			c.Fatal(status.Error())
		}
		return status.ExitCode()
	case <-time.After(patience):
		c.Fatal("the container does not end")
		return 0
	}
}

// delete forgets the task, which has ended, and returns its exit code.
func (c *container) delete() uint32 {
	c.Helper()
	status, err := c.task.Delete(c.ctx)
	if err != nil {
		c.Fatal(err)
	}
	return status.ExitCode()
}

func (c *container) kill(signal syscall.Signal, opts ...client.KillOpts) {
	c.Helper()
	if err := c.task.Kill(c.ctx, signal, opts...); err != nil {
		c.Fatal(err)
	}
}

func sh(script string) oci.SpecOpts { return oci.WithProcessArgs("sh", "-c", script) }

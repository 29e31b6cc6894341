// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/network"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/shimapi"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
	"github.com/berth-run/berth/internal/spec"
)

// world is a node made of maps. It outlives the managers that work on it: a crash starts a new life, and whatever
// a dead life still tries to do never returns.
type world struct {
	mu    sync.Mutex
	held  map[string]bool // "kind id" → held
	shims map[string]*fakeShim
	exits map[string]runtime.Exit // container ID → exit facts on disk
	life  int
	calls int
	trace []string
	known map[int]bool // calls, from 0, that another matrix has faults in
	skip  bool
	fault fault
	crash chan struct{}
	ready error // of the network
	// patience is that of the next daemon with silent shims.
	patience time.Duration
	// limits of the pods' cgroups by sandbox ID, and the last OOM score that was set.
	limits   map[string]*runtimeapi.LinuxContainerResources
	oomScore int64
	// noLabels: the node has no SELinux.
	noLabels bool
	// gate, if set, is a call that waits.
	gate *gate
}

// gate lets a call wait: reached is closed when it has come, and it goes on when open is closed.
type gate struct {
	what          string
	reached, open chan struct{}
}

// waitIn makes the next call of this name wait.
func (w *world) waitIn(what string) *gate {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate = &gate{what, make(chan struct{}), make(chan struct{})}
	return w.gate
}

// pass waits if this is the call that shall.
func (w *world) pass(what string) {
	w.mu.Lock()
	g := w.gate
	if g == nil || g.what != what {
		w.mu.Unlock()
		return
	}
	w.gate = nil
	w.mu.Unlock()
	close(g.reached)
	<-g.open
}

// oomFloor is the lowest OOM score that the fake node may set.
const oomFloor = -500

// fault strikes one call into the world.
type fault struct {
	at    int
	what  string // strikes at the next call of this name, once; "": at the n-th
	every string // strikes at each call of this name
	kind  string // "error before", "error after", "crash before", "crash after"; "": none
}

// mark tells whether the calls from now on are another matrix's.
func (w *world) mark(known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.skip = known
}

// failNext makes the next call of this name an error.
func (w *world) failNext(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = fault{what: what, kind: "error before"}
}

var errFault = errors.New("injected fault")

func newWorld() *world {
	return &world{known: map[int]bool{}, held: map[string]bool{}, shims: map[string]*fakeShim{}, exits: map[string]runtime.Exit{}, limits: map[string]*runtimeapi.LinuxContainerResources{}, crash: make(chan struct{}, 1)}
}

// life is the world as one daemon sees it.
type life struct {
	*world
	n int
}

func (w *world) start() *life {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &life{w, w.life}
}

// call does one thing to the world, with the fault if it is its turn.
func (l *life) call(what string, f func() error) error {
	l.pass(what)
	l.mu.Lock()
	if l.n != l.world.life {
		l.mu.Unlock()
		select {}
	}
	l.calls++
	l.trace = append(l.trace, what)
	l.known[len(l.trace)-1] = l.skip
	kind := ""
	if l.calls == l.fault.at || l.fault.what == what || l.fault.every == what {
		kind = l.fault.kind
		l.fault.what = ""
	}
	switch kind {
	case "error before":
		l.mu.Unlock()
		return fmt.Errorf("%s: %w", what, errFault)
	case "crash before":
		l.die()
	}
	err := f()
	switch kind {
	case "error after":
		err = fmt.Errorf("%s: %w", what, errFault)
	case "crash after":
		l.die()
	}
	l.mu.Unlock()
	return err
}

// die ends this life. Preconditions: l.mu is held.
func (l *life) die() {
	l.world.life++
	l.crash <- struct{}{}
	l.mu.Unlock()
	select {}
}

func (l *life) hold(what, id string) error {
	return l.call("acquire "+what, func() error { l.held[what+" "+id] = true; return nil })
}

func (l *life) drop(what, id string) error {
	return l.call("release "+what, func() error { delete(l.held, what+" "+id); return nil })
}

// Network.

type fakeNetwork struct{ *life }

func (f fakeNetwork) Ready() error { return f.ready }
func (f fakeNetwork) Attach(_ context.Context, a network.Attachment) (network.Result, error) {
	return network.Result{}, f.hold("network", a.ID)
}
func (f fakeNetwork) Detach(_ context.Context, a network.Attachment) error {
	return f.drop("network", a.ID)
}
func (f fakeNetwork) GC(context.Context, []string) error { return nil }
func (f fakeNetwork) Cached(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for k := range f.held {
		if id, ok := strings.CutPrefix(k, "network "); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Images.

type fakeImages struct{ *life }

func (f fakeImages) Status(ref string) (image.Image, error) {
	switch ref {
	case "busybox", "sha256:1":
		return image.Image{ID: "sha256:1", RepoDigests: []string{"busybox@sha256:2"}}, nil
	case "data", "other data":
		return image.Image{ID: "sha256:" + ref, Volumes: []string{"/data"}}, nil
	}
	return image.Image{}, image.ErrNotFound
}
func (f fakeImages) PrepareRootfs(_ context.Context, r image.RootfsRequest) (image.Rootfs, error) {
	return image.Rootfs{}, f.hold("rootfs", r.ID)
}
func (f fakeImages) FillVolumes(_ context.Context, r image.FillRequest) error {
	if len(r.Places) == 0 {
		return nil
	}
	return f.call("fill volumes", func() error { return nil })
}
func (f fakeImages) DiffRootfs(_ context.Context, id string, _ *image.Owner, w io.Writer) error {
	return f.call("diff rootfs", func() error {
		if !f.held["pause "+id] {
			return errors.New("difference of a root file system that changes")
		}
		_, err := w.Write([]byte("layer"))
		return err
	})
}
func (f fakeImages) ApplyRootfs(_ context.Context, id string, _ *image.Owner, r io.Reader) error {
	return f.call("apply to rootfs", func() error {
		if data, err := io.ReadAll(r); err != nil || string(data) != "layer" || !f.held["rootfs "+id] {
			return fmt.Errorf("changes %q to a root file system that is there: %v, %w", data, f.held["rootfs "+id], err)
		}
		return nil
	})
}
func (f fakeImages) VolumeFolder(id string, n int) string            { return fmt.Sprintf("/rootfs/%s/%d", id, n) }
func (f fakeImages) RemoveRootfs(_ context.Context, id string) error { return f.drop("rootfs", id) }
func (f fakeImages) Rootfses() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for k := range f.held {
		if id, ok := strings.CutPrefix(k, "rootfs "); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Host. Paths end in IDs or lie in folders named by them.

type fakeHost struct{ *life }

func idOf(path string) string {
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '-' }) {
		if isID(part) {
			return part
		}
	}
	return path
}

func (fakeHost) Dial(ctx context.Context, _ string, address netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address.String())
}

func (f fakeHost) CreateNamespaces(r NamespaceRequest) error {
	return f.hold("namespaces", idOf(r.Pins.Net))
}
func (f fakeHost) RemoveNamespaces(p NamespacePins) error { return f.drop("namespaces", idOf(p.Net)) }
func (f fakeHost) ResetNamespaces(NamespaceRequest) error {
	return f.call("reset namespaces", func() error { return nil })
}
func (f fakeHost) SetInterfaceSysctls(string, map[string]string) error { return nil }
func (f fakeHost) PinPID(pid int, _, path string) error {
	if filepath.Base(path) == "target-pid" {
		return f.hold("target", filepath.Base(filepath.Dir(path)))
	}
	return f.hold("pidns", idOf(path))
}
func (f fakeHost) Unpin(path string) error {
	if filepath.Base(path) == "target-pid" {
		return f.drop("target", filepath.Base(filepath.Dir(path)))
	}
	return f.drop("pidns", idOf(path))
}
func (f fakeHost) CgroupExists(p string) (bool, error) {
	f.pass("cgroup exists")
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held["cgroup "+idOf(p)], nil
}
func (f fakeHost) CreateCgroup(_ context.Context, p string) error {
	return f.hold("cgroup", idOf(p))
}
func (f fakeHost) RemoveCgroup(_ context.Context, p string) error { return f.drop("cgroup", idOf(p)) }
func (f fakeHost) SetPodLimits(_ context.Context, parent string, r *runtimeapi.LinuxContainerResources) error {
	return f.call("limit cgroup", func() error { f.limits[idOf(parent)] = r; return nil })
}
func (f fakeHost) SetOOMScore(_ string, score int64) error {
	return f.call("set oom score", func() error { f.oomScore = max(score, oomFloor); return nil })
}

// InForce is a kernel that rounds memory down to whole pages.
func (f fakeHost) InForce(_ string, want *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	got := proto.Clone(want).(*runtimeapi.LinuxContainerResources)
	err := f.call("read limits", func() error { got.OomScoreAdj = max(got.OomScoreAdj, oomFloor); return nil })
	got.MemoryLimitInBytes = got.MemoryLimitInBytes / 4096 * 4096
	return got, err
}
func (f fakeHost) MountShm(target string, _ int64, _, _ int, _ string) error {
	return f.hold("shm", idOf(target))
}
func (f fakeHost) MountOverlay(target string, _ mount.Overlay) error {
	return f.hold(overlayAt(target))
}
func (f fakeHost) Unmount(target string) error {
	if filepath.Base(target) == "shm" {
		return f.drop("shm", idOf(target))
	}
	return f.drop(overlayAt(target))
}

// overlayAt tells a container's root file system from its image volumes.
func overlayAt(target string) (kind, id string) {
	if dir := filepath.Dir(target); filepath.Base(dir) == "volumes" {
		return "volume " + filepath.Base(target), filepath.Base(filepath.Dir(dir))
	}
	return "mount", filepath.Base(filepath.Dir(target))
}

func (f fakeHost) UnmountBelow(dir string) error {
	return f.call("release mounts", func() error {
		for _, what := range []string{"shm", "pidns", "target", "mount", "volume 0", "volume 1"} {
			delete(f.held, what+" "+filepath.Base(dir))
			bundles, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			for _, b := range bundles {
				delete(f.held, what+" "+b.Name())
			}
		}
		return nil
	})
}

// Specs.

type fakeSpecs struct{}

func (fakeSpecs) ImageVolumes(im image.Image, _ *runtimeapi.ContainerConfig) ([]string, error) {
	return im.Volumes, nil
}
func (fakeSpecs) ValidateSandbox(c *runtimeapi.PodSandboxConfig, _ string) error {
	if c.GetMetadata() == nil {
		return fmt.Errorf("metadata is empty: %w", ErrInvalid)
	}
	return nil
}
func (fakeSpecs) ValidateContainer(*runtimeapi.ContainerConfig, *runtimeapi.PodSandboxConfig) error {
	return nil
}
func (fakeSpecs) Container(r SpecRequest) (ContainerSpec, error) {
	if len(r.Container.GetCommand()) > 0 && r.Container.GetCommand()[0] == "bad spec" {
		return ContainerSpec{}, ErrInvalid
	}
	raw, err := json.Marshal(r.Container.GetLinux().GetResources())
	return ContainerSpec{JSON: raw, StopSignal: 15}, err
}
func (fakeSpecs) Pause(SpecRequest) ([]byte, error) { return []byte("{}"), nil }
func (fakeSpecs) Exec(_ []byte, e spec.Exec) ([]byte, error) {
	return json.Marshal(e.Cmd)
}
func (fakeSpecs) Update(_, new *runtimeapi.LinuxContainerResources) ([]byte, *runtimeapi.LinuxContainerResources, error) {
	return []byte("{}"), new, nil
}
func (fakeSpecs) SetResources(config []byte, _ *runtimeapi.LinuxContainerResources) ([]byte, error) {
	return config, nil
}

func (fakeSpecs) PodResources(containers, overhead *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	if containers.GetCpuShares() < 0 {
		return nil, ErrInvalid
	}
	return &runtimeapi.LinuxContainerResources{CpuShares: containers.GetCpuShares() + overhead.GetCpuShares()}, nil
}

// Runtime and shims.

type fakeRuntime struct{ *life }

type fakeShim struct {
	gone  chan struct{}
	tasks map[string]*fakeTask
	// silent, where set, is closed when the shim answers again.
	silent chan struct{}
	// exec, if set, is what an exec comes to.
	exec func() error
}

type fakeTask struct {
	status shimpb.Status
	exit   runtime.Exit
	done   chan struct{}
	deaf   bool   // SIGTERM does nothing
	state  string // what it was restored from
}

func (f fakeRuntime) HasHandler(name string) bool { return name == "runc" || name == "vm" }
func (f fakeRuntime) CanCheckpoint(name string) error {
	if name == "vm" {
		return runtime.ErrUnsupported
	}
	return nil
}
func (f fakeRuntime) SandboxContainer(name string) bool { return name == "vm" }
func (f fakeRuntime) TaskPID(_, _ string, pid int) int  { return pid }
func (f fakeRuntime) DialSandbox(context.Context, string, string, uint16) (net.Conn, error) {
	return nil, runtime.ErrUnsupported
}

func (f fakeRuntime) Handlers() []string { return []string{"runc"} }
func (f fakeRuntime) StartShim(_ context.Context, id string) (Shim, error) {
	s := &fakeShim{gone: make(chan struct{}), tasks: map[string]*fakeTask{}}
	err := f.call("acquire shim", func() error {
		f.shims[id] = s
		f.held["shim "+id] = true
		return nil
	})
	return shimView{f.life, s}, err
}
func (f fakeRuntime) ConnectShim(_ context.Context, id string) (Shim, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shims[id] == nil {
		return nil, runtime.ErrShimGone
	}
	return shimView{f.life, f.shims[id]}, nil
}
func (f fakeRuntime) KillShim(_ context.Context, id string) error {
	return f.call("kill shim", func() error {
		if s := f.shims[id]; s != nil {
			close(s.gone)
			delete(f.shims, id)
		}
		delete(f.held, "shim "+id)
		return nil
	})
}
func (f fakeRuntime) KillLeftOver(_ context.Context, _, id, _ string) error {
	return f.drop("task", id)
}
func (f fakeRuntime) ReadExit(bundle string) (runtime.Exit, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.exits[filepath.Base(bundle)]
	return e, ok, nil
}

// shimView is a life's connection to a shim.
type shimView struct {
	*life
	s *fakeShim
}

func (v shimView) Create(_ context.Context, t runtime.CreateTask) error {
	return v.call("create task", func() error {
		var state []byte
		if t.Checkpoint != "" {
			var err error
			if state, err = os.ReadFile(filepath.Join(t.Checkpoint, shimapi.CheckpointImages, "inventory.img")); err != nil {
				return err
			}
		}
		v.s.tasks[t.ID] = &fakeTask{status: shimpb.Status_CREATED, done: make(chan struct{}), state: string(state)}
		v.held["task "+t.ID] = true
		delete(v.exits, t.ID)
		return nil
	})
}

func (v shimView) Start(_ context.Context, id string) (int, error) {
	return 42, v.call("start task", func() error { v.s.tasks[id].status = shimpb.Status_RUNNING; return nil })
}

func (v shimView) Pause(_ context.Context, id string) error {
	return v.call("pause task", func() error { v.held["pause "+id] = true; return nil })
}

func (v shimView) Resume(_ context.Context, id string) error {
	return v.call("resume task", func() error { delete(v.held, "pause "+id); return nil })
}

func (v shimView) Checkpoint(_ context.Context, id, folder string, _ bool) error {
	return v.call("checkpoint task", func() error {
		if !v.held["pause "+id] {
			return errors.New("checkpoint of a container that goes on")
		}
		images := filepath.Join(folder, shimapi.CheckpointImages)
		return errors.Join(os.Mkdir(images, 0o700), os.WriteFile(filepath.Join(images, "inventory.img"), []byte("state of "+id), 0o600))
	})
}

func (v shimView) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	v.mu.Lock()
	t := v.s.tasks[id]
	v.mu.Unlock()
	if t == nil {
		return runtime.Exit{}, runtime.ErrNotFound
	}
	select {
	case <-t.done:
		return t.exit, nil
	case <-v.s.gone:
		return runtime.Exit{}, runtime.ErrShimGone
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

// end is the task's process ending. Preconditions: the world is locked.
func (w *world) end(s *fakeShim, id string, code int) {
	t := s.tasks[id]
	if t.status == shimpb.Status_STOPPED {
		return
	}
	t.status, t.exit = shimpb.Status_STOPPED, runtime.Exit{Code: code, ExitedAt: time.Unix(1000, 0)}
	w.exits[id] = t.exit
	close(t.done)
}

func (v shimView) Kill(_ context.Context, id string, signal int, _ bool) error {
	return v.call("kill task", func() error {
		t := v.s.tasks[id]
		if t == nil {
			return runtime.ErrNotFound
		}
		if signal == sigkill || !t.deaf {
			v.end(v.s, id, 128+signal)
		}
		return nil
	})
}

func (v shimView) Delete(_ context.Context, id string) error {
	return v.call("delete task", func() error {
		delete(v.s.tasks, id)
		delete(v.held, "task "+id)
		return nil
	})
}

func (v shimView) Update(context.Context, string, []byte) error { return nil }
func (v shimView) ReopenLog(context.Context, string) error      { return nil }
func (v shimView) Close() error                                 { return nil }
func (v shimView) ExecSync(context.Context, string, runtime.ExecRequest) (runtime.ExecResult, error) {
	if v.s.exec != nil {
		return runtime.ExecResult{}, v.s.exec()
	}
	return runtime.ExecResult{ExitCode: 3}, nil
}

func (v shimView) Exec(_ context.Context, _ string, _ []byte, s runtime.Session) (int, error) {
	if v.s.exec != nil {
		return 0, v.s.exec()
	}
	_, err := io.Copy(s.Stdout, s.Stdin)
	return 3, err
}

func (v shimView) Attach(_ context.Context, _ string, s runtime.Session, _ bool) error {
	_, err := io.Copy(s.Stdout, s.Stdin)
	return err
}

func (v shimView) Info(ctx context.Context) (runtime.Info, error) {
	v.mu.Lock()
	if silent := v.s.silent; silent != nil {
		v.mu.Unlock()
		select {
		case <-silent:
		case <-ctx.Done():
			return runtime.Info{}, ctx.Err()
		}
		v.mu.Lock()
	}
	defer v.mu.Unlock()
	var info runtime.Info
	for id, t := range v.s.tasks {
		info.Tasks = append(info.Tasks, &shimpb.TaskInfo{Id: id, Status: t.status, Pid: 42, ExitStatus: uint32(t.exit.Code),
			ExitedAt: timestamppb.New(t.exit.ExitedAt)})
	}
	return info, nil
}

func (v shimView) Shutdown(context.Context, bool) error {
	return v.call("shut shim down", func() error { return nil }) // KillShim, which follows, takes it away
}

// node is a world with a daemon on it.
type node struct {
	*Manager
	w   *world
	dir string
	// labels are those of this life.
	labels *fakeLabels
}

func newNode(t *testing.T, w *world, dir string) *node {
	t.Helper()
	l := w.start()
	hooks := &fakeHooks{life: l}
	labels := newFakeLabels(l)
	m := New(Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), NetnsDir: filepath.Join(dir, "netns"),
		CgroupDriver: "cgroupfs", CgroupParent: "berth", DefaultHandler: "runc", Boot: "boot-1", ShimTimeout: 200 * time.Millisecond, ShimPatience: cmp.Or(w.patience, time.Minute)},
		Parts{Runtime: fakeRuntime{l}, Network: fakeNetwork{l}, Images: fakeImages{l}, Host: fakeHost{l}, Specs: fakeSpecs{}, Labels: labels, Hooks: hooks}, slog.New(slog.DiscardHandler))
	if w.noLabels {
		m.parts.Labels = nil
	}
	if _, err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	hooks.connect(m)
	t.Cleanup(func() { // its background work must not outlive the test's folders
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = m.Close(ctx) // a life that was killed never ends its operations
	})
	return &node{m, w, dir, labels}
}

// restart is a kill -9 and a new start: the new life works on a copy of the folders of that instant, so that the dead one's
// goroutines, which a test cannot kill, write where nobody looks.
func (n *node) restart(t *testing.T) *node {
	t.Helper()
	n.w.mu.Lock()
	n.w.life++
	n.w.mu.Unlock()
	for range 50 { // the dead life's goroutines may still move files while they are copied
		dir := t.TempDir()
		err := os.CopyFS(dir, os.DirFS(n.dir))
		if err == nil {
			return newNode(t, n.w, dir)
		}
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	t.Fatal("the folders do not come to rest")
	return nil
}

func (n *node) mustBeEmpty(t *testing.T) {
	t.Helper()
	if held := n.labels.held(); len(held) > 0 && len(n.Sandboxes()) == 0 {
		t.Errorf("levels are still held: %v", held)
	}
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	if len(n.w.held) > 0 {
		t.Errorf("leaked: %v\ntrace: %s", slices.Sorted(maps.Keys(n.w.held)), strings.Join(n.w.trace, "; "))
	}
	for _, sub := range []string{"root/pods", "root/restores", "root/checkpoints", "state/pods"} {
		entries, err := os.ReadDir(filepath.Join(n.dir, sub))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left in %s: %s", sub, e.Name())
		}
	}
	if len(n.sandboxes)+len(n.containers)+len(n.names) > 0 {
		t.Errorf("index has %d sandboxes, %d containers, %d names", len(n.sandboxes), len(n.containers), len(n.names))
	}
}

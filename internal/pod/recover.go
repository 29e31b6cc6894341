// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/record"
	"github.com/berth-run/berth/internal/runtime"
	"github.com/berth-run/berth/internal/shimapi/shimpb"
)

// Recovery tells what a start-up found.
type Recovery struct {
	Sandboxes, Containers int
	// Adopted containers run on; Exited ones ended while no daemon watched; Swept are orphans that were released.
	Adopted, Exited, Swept int
	// SetAside are unreadable records and the errors of single objects: reported, never fatal.
	SetAside []error
	Took     time.Duration
}

// recoveryWorkers bounds how many sandboxes are recovered side by side; each waits mostly for its shim.
const recoveryWorkers = 64

// Recover finds the sandboxes of earlier lives, before the first request is served. It fails only where the
// folders themselves cannot be read; trouble with one object is reported and never keeps the others from being served.
func (m *Manager) Recover(ctx context.Context) (Recovery, error) {
	begin := time.Now()
	var rep report
	// A shim may still be writing there for a checkpoint of an earlier life, in vain.
	if err := os.RemoveAll(m.checkpointsDir()); err != nil {
		m.log.WarnContext(ctx, "what checkpoints of an earlier life have left", "error", err)
	}
	for _, dir := range []string{m.podsDir(), m.statesDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return rep.Recovery, fmt.Errorf("recover: %w", err)
		}
	}
	loaded, err := m.load(&rep)
	if err != nil {
		return rep.Recovery, err
	}
	var g errgroup.Group
	g.SetLimit(recoveryWorkers)
	for _, l := range loaded {
		g.Go(func() error { m.recoverSandbox(ctx, l, &rep); return nil })
	}
	_ = g.Wait() // each one's trouble is in the report
	m.sweep(ctx, &rep)
	m.collectNetwork()
	rep.Took = time.Since(begin)
	return rep.Recovery, nil
}

// report gathers from many goroutines.
type report struct {
	mu sync.Mutex
	Recovery
}

func (r *report) trouble(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.SetAside = append(r.SetAside, err)
}

func (r *report) count(n *int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n++
}

// loadedSandbox is a sandbox read from disk, with its containers, in the index already.
type loadedSandbox struct {
	*Sandbox
	sameBoot   bool
	containers []*Container
}

func (m *Manager) load(rep *report) ([]loadedSandbox, error) {
	dirs, err := os.ReadDir(m.podsDir())
	if err != nil {
		return nil, fmt.Errorf("recover: read records: %w", err)
	}
	var all []loadedSandbox
	for _, d := range dirs {
		s, header, err := m.loadSandbox(d.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // a folder without a record: nothing was begun, or all was released; the sweep removes it
		} else if err != nil {
			rep.trouble(m.setAside(filepath.Join(m.podsDir(), d.Name(), "sandbox.json"), err))
			continue
		}
		m.sandboxes[s.ID], m.names[sandboxName(s.Config)] = s, s.ID
		if err := m.holdLabels(s.rec.SELinux); err != nil {
			rep.trouble(fmt.Errorf("recover %s: %w", s, err))
		}
		rep.Sandboxes++
		l := loadedSandbox{Sandbox: s, sameBoot: header.Boot == m.cfg.Boot}
		files, err := os.ReadDir(s.paths.containerRecord)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			rep.trouble(fmt.Errorf("recover %s: %w", s, err))
		}
		for _, f := range files {
			id, isRecord := strings.CutSuffix(f.Name(), ".json")
			if !isRecord {
				continue
			}
			c, err := s.loadContainer(id)
			if err != nil {
				rep.trouble(m.setAside(filepath.Join(s.paths.containerRecord, f.Name()), err))
				continue
			}
			m.containers[c.ID], m.names[containerName(s.ID, c.Config)] = c, c.ID
			if err := m.holdLabels(c.rec.SELinux); err != nil {
				rep.trouble(fmt.Errorf("recover %s: %w", c, err))
			}
			rep.Containers++
			l.containers = append(l.containers, c)
		}
		all = append(all, l)
	}
	return all, nil
}

func (m *Manager) setAside(path string, cause error) error {
	to, err := record.SetAside(path, filepath.Join(m.cfg.Root, "quarantine"))
	if err != nil {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("%w; it is set aside as %s and what it held is released", cause, to)
}

var lenient = protojson.UnmarshalOptions{DiscardUnknown: true}

func (m *Manager) loadSandbox(id string) (*Sandbox, record.Header, error) {
	var rec sandboxRecord
	h, err := record.Read(filepath.Join(m.podsDir(), id, "sandbox.json"), sandboxKind, sandboxVersion, &rec)
	if err != nil {
		return nil, h, err
	}
	var config runtimeapi.PodSandboxConfig
	if err := lenient.Unmarshal(rec.Config, &config); err != nil || rec.ID != id {
		return nil, h, fmt.Errorf("record of sandbox %s: %w (%w)", id, record.ErrCorrupt, err)
	}
	return m.newSandbox(rec, &config), h, nil
}

func (s *Sandbox) loadContainer(id string) (*Container, error) {
	var rec containerRecord
	if _, err := record.Read(filepath.Join(s.paths.containerRecord, id+".json"), containerKind, containerVersion, &rec); err != nil {
		return nil, err
	}
	var config runtimeapi.ContainerConfig
	if err := lenient.Unmarshal(rec.Config, &config); err != nil || rec.ID != id || rec.SandboxID != s.ID {
		return nil, fmt.Errorf("record of container %s: %w (%w)", id, record.ErrCorrupt, err)
	}
	return s.newContainer(rec, &config)
}

// recoverSandbox brings one sandbox and its containers from the record to what is true now. A shim that does not answer in time
// is waited for in the background, so that it neither keeps the node from serving nor loses its pod to a busy moment.
func (m *Manager) recoverSandbox(ctx context.Context, l loadedSandbox, rep *report) {
	if !l.sameBoot || !l.plan.Held(stepShim) {
		m.settleSandbox(ctx, l, observed{SameBoot: l.sameBoot}, nil, rep)()
		return
	}
	tasks, err := l.reconnect(ctx, m.cfg.ShimTimeout)
	switch {
	case err == nil:
		m.settleSandbox(ctx, l, observed{SameBoot: true, ShimAlive: true}, tasks, rep)()
	case errors.Is(err, runtime.ErrShimGone):
		if err := m.parts.Runtime.KillShim(ctx, l.ID); err != nil { // a process may be left that lost its socket
			rep.trouble(fmt.Errorf("recover %s: %w", l.Sandbox, err))
		}
		m.settleSandbox(ctx, l, observed{SameBoot: true}, nil, rep)()
	default:
		rep.trouble(fmt.Errorf("recover %s: its shim does not answer and is waited for: %w", l.Sandbox, err))
		m.awaitShim(l)
	}
}

// awaitShim waits for a shim that is alive and silent, and ends it with its pod when its time is over. Meanwhile lists and statuses show
// what the records say, and requests about the pod and its containers wait, because this is one of their operations.
func (m *Manager) awaitShim(l loadedSandbox) {
	done := make(chan struct{})
	l.ops.hold("recovery", done)
	for _, c := range l.containers {
		c.ops.hold("recovery", done)
	}
	if !m.work.begin() {
		close(done)
		return
	}
	go func() {
		defer m.work.finish()
		tasks, err := l.reconnect(m.life, m.cfg.ShimPatience)
		if err != nil && m.life.Err() == nil {
			l.log.Error("the pod's shim does not answer and is killed with its pod", "waited", m.cfg.ShimPatience, "error", err)
			if err := m.parts.Runtime.KillShim(m.life, l.ID); err != nil {
				l.log.Error("kill the pod's shim", "error", err)
			}
		}
		if m.life.Err() != nil {
			close(done)
			return // the next life looks again
		}
		var rep report
		rest := m.settleSandbox(m.life, l, observed{SameBoot: true, ShimAlive: err == nil}, tasks, &rep)
		close(done)
		rest()
		for _, err := range rep.SetAside {
			l.log.Error("recover", "error", err)
		}
		l.log.Info("sandbox is recovered late", "shim_alive", err == nil)
	}()
}

// settleSandbox applies what was observed, while no operation runs on the sandbox and its containers; the rest, which it returns, are operations itself.
func (m *Manager) settleSandbox(ctx context.Context, l loadedSandbox, o observed, tasks map[string]*shimpb.TaskInfo, rep *report) (rest func()) {
	s := l.Sandbox
	v := decideSandbox(s.facts(), o)
	switch v {
	case lose:
		s.lost(lossReason(o))
	case adopt:
		if s.hasPause() {
			s.watchPause(s.theShim())
		}
	}
	s.endCheckpoint(ctx, o.ShimAlive, l.containers)
	var ends []func()
	for _, c := range l.containers {
		if v == rollBack || v == finishRemoval {
			c.watchIfRunning() // the sandbox takes its containers along, and waits for their exits
			continue
		}
		end, err := c.recover(ctx, o.ShimAlive, tasks[c.ID], rep)
		if err != nil {
			rep.trouble(fmt.Errorf("recover %s: %w", c, err))
		}
		if end != nil {
			ends = append(ends, end)
		}
	}
	if v == rollBack || v == finishRemoval || v == finishStop || !l.sameBoot {
		m.later(func(ctx context.Context) error { return s.settleVerdict(ctx, v) }, s.log)
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}
}

// later finishes in the background what an earlier life left half-done: network plugins take their time, and nobody shall wait for
// them to be served. A request about the object waits, because the work is one of its operations.
func (m *Manager) later(work func(context.Context) error, log *slog.Logger) {
	go func() {
		select {
		case m.laterSlots <- struct{}{}:
			defer func() { <-m.laterSlots }()
		case <-m.life.Done():
			return
		}
		if err := work(m.life); err != nil && m.life.Err() == nil {
			log.Error("what an earlier life left is not released; a retry of its removal will try again", "error", err)
		}
	}()
}

func lossReason(o observed) string {
	if !o.SameBoot {
		return "the node was rebooted"
	}
	return "the pod's shim ended while the daemon was down"
}

func (s *Sandbox) settleVerdict(ctx context.Context, v verdict) error {
	switch v {
	case rollBack:
		return s.ops.do(ctx, "roll-back", s.rollBack)
	case finishRemoval:
		return s.ops.do(ctx, "RemovePodSandbox", s.remove)
	case finishStop:
		return s.ops.do(ctx, "StopPodSandbox", s.stop)
	}
	// A reboot took the namespaces; plugins still hold addresses. The kubelet would release them with
	// its StopPodSandbox, but pods of a drained node may never be asked for again.
	return s.ops.do(ctx, "release", func(ctx context.Context) error { return s.plan.DownTo(ctx, s.allBut(stepState)...) })
}

func (s *Sandbox) rollBack(ctx context.Context) error {
	// There cannot be containers, but nothing is left behind if there are.
	if err := s.eachContainer(func(c *Container) error { return c.forceRemove(ctx) }); err != nil {
		return err
	}
	if err := s.plan.Down(ctx); err != nil {
		return errors.Join(err, s.abandon())
	}
	return s.erase()
}

// reconnectPause is between two tries to reach a shim.
const reconnectPause = 100 * time.Millisecond

// reconnect finds the sandbox's shim and asks what it knows, for as long as patience lasts. runtime.ErrShimGone ends it at once.
func (s *Sandbox) reconnect(ctx context.Context, patience time.Duration) (map[string]*shimpb.TaskInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		tasks, err := s.askShim(ctx)
		if err == nil || errors.Is(err, runtime.ErrShimGone) {
			return tasks, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(reconnectPause):
		}
	}
}

func (s *Sandbox) askShim(ctx context.Context) (map[string]*shimpb.TaskInfo, error) {
	shim, err := s.m.parts.Runtime.ConnectShim(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	info, err := shim.Info(ctx)
	if err != nil {
		shim.Close()
		return nil, err
	}
	s.swapShim(shim)
	tasks := make(map[string]*shimpb.TaskInfo, len(info.Tasks))
	for _, t := range info.Tasks {
		tasks[t.GetId()] = t
	}
	return tasks, nil
}

// recover brings a container of a sandbox that stays to what is true now, but for the end of one that is over, which it returns: that is an operation.
func (c *Container) recover(ctx context.Context, alive bool, info *shimpb.TaskInfo, rep *report) (end func(), err error) {
	exit, exitFacts, err := c.m.parts.Runtime.ReadExit(c.paths.bundle)
	if err != nil {
		c.log.Warn("read exit facts", "error", err)
	}
	c.endCheckpoint(ctx, alive)
	switch decideContainer(c.facts(), alive, exitFacts, c.plan.Held(stepTask), task{info != nil, info.GetStatus()}) {
	case finishRemoval:
		c.watchIfRunning()
		c.m.later(c.forceRemove, c.log)
	case rollBack:
		return nil, c.abandon(ctx)
	case unstart:
		return nil, c.plan.DownTo(ctx, stepTask)
	case adoptStarted:
		c.learn(func(r *containerRecord) { r.StartedAt, r.PID = now(), int(info.GetPid()) })
		fallthrough
	case adopt:
		rep.count(&rep.Adopted)
		c.restored(ctx)
		c.watch()
	case lose:
		rep.count(&rep.Exited)
		return func() { c.orphaned(ctx, "the node was rebooted or the pod's shim ended while the daemon was down") }, nil
	case settleExit:
		if c.facts().FinishedAt != 0 {
			return func() { c.settleLogged(ctx) }, nil
		}
		rep.count(&rep.Exited)
		if !exitFacts {
			exit = runtime.Exit{Code: int(info.GetExitStatus()), ExitedAt: info.GetExitedAt().AsTime(), OOMKilled: info.GetOomKilled()}
		}
		return func() { c.finish(exit) }, nil
	}
	return nil, nil
}

// watchIfRunning lets whoever waits for the container's exit, as its removal does, see it.
func (c *Container) watchIfRunning() {
	if c.facts().state() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.watch()
	}
}

// recordedIDs are all sandboxes and containers that a record owns.
func (m *Manager) recordedIDs() (sandboxes, containers []string) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for id := range m.sandboxes {
		sandboxes = append(sandboxes, id)
	}
	for id := range m.containers {
		containers = append(containers, id)
	}
	slices.Sort(sandboxes)
	slices.Sort(containers)
	return sandboxes, containers
}

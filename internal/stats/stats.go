// SPDX-License-Identifier: Apache-2.0

// Package stats tells what pods and containers use, read at the moment of the question from cgroups, network namespaces and the
// writable layers. It keeps no history but one sample for rates, and does nothing while nobody asks. cri asks.
package stats

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/linux/cgroup"
	"github.com/berth-run/berth/internal/linux/cgroup/usage"
	"github.com/berth-run/berth/internal/linux/host"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/linux/proc"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// minWindow is the shortest time that a rate is computed over: two callers a millisecond apart would see noise.
	minWindow = time.Second
	// restTime is after how long without a question files are closed.
	restTime = 2 * time.Minute
	// maxHeld bounds the cgroups whose files are kept open: some ten files each, and thirty where metrics are asked for. Further ones are opened
	// for each answer.
	maxHeld = 1024
)

// Config says where to look.
type Config struct {
	Cgroups *cgroup.Hierarchies
	// Driver is "cgroupfs" or "systemd".
	Driver string
	// Ask asks a runtime what one container uses; nil: there is none to be asked.
	Ask func(ctx context.Context, handler, id string) (shimapi.TaskUsage, error)
	Log *slog.Logger
}

// Collector reads. Its methods may be called from any goroutine.
type Collector struct {
	cfg     Config
	layers  *layers
	reports *reports

	mu      sync.Mutex // guards the maps and rest; held for look-ups only
	objects map[string]*object
	nets    map[string]*netns.Counters
	rest    *time.Timer
	asked   time.Time
}

// object is what is kept of a pod or container between two questions.
type object struct {
	files *usage.Files

	mu   sync.Mutex
	rate rate
}

// New makes a Collector; Close ends it.
func New(c Config) *Collector {
	return &Collector{cfg: c, layers: newLayers(c.Log), reports: newReports(c.Ask, c.Log), objects: map[string]*object{}, nets: map[string]*netns.Counters{}}
}

// Close closes all files and ends what runs in the background.
func (c *Collector) Close() {
	c.layers.close()
	c.reports.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rest != nil {
		c.rest.Stop()
	}
	c.closeFiles()
}

// Preconditions: c.mu is held.
func (c *Collector) closeFiles() {
	for _, o := range c.objects {
		o.files.Close()
	}
	for _, n := range c.nets {
		n.Close()
	}
}

// Keep forgets all objects but those with the given IDs.
func (c *Collector) Keep(ids map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.objects {
		if !ids[id] {
			c.drop(id)
		}
	}
	for id := range c.nets {
		if !ids[id] {
			c.drop(id)
		}
	}
	c.layers.keep(ids)
	c.reports.keep(ids)
}

// Forget forgets one object, whose cgroup and network namespace are about to be removed.
func (c *Collector) Forget(id string) {
	c.reports.forget(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
}

// Preconditions: c.mu is held.
func (c *Collector) drop(id string) {
	if o := c.objects[id]; o != nil {
		o.files.Drop()
		delete(c.objects, id)
	}
	if n := c.nets[id]; n != nil {
		n.Drop()
		delete(c.nets, id)
	}
}

// Usage is what a pod or a container uses at one instant.
type Usage struct {
	usage.Usage
	// NanoCores is the CPU time per second since the sample before, in nanoseconds (CRI: usage_nano_cores). The first question has none.
	NanoCores usage.Counter
	// Tasks are the threads of a pod; of a container they are not asked for.
	Tasks usage.Counter
}

// Container reads a container's cgroup, named as in the OCI spec. usage.ErrGone: it has none (any more).
func (c *Collector) Container(id, cgroupsPath string) (Usage, error) {
	o, err := c.object(id, func() (string, error) { return cgroup.ResolveOCI(cgroupsPath) })
	if err != nil {
		return Usage{}, err
	}
	return c.read(o)
}

// Pod reads a pod's cgroup, named as in CRI's cgroup_parent. usage.ErrGone: it has none (any more).
func (c *Collector) Pod(id, parent string) (Usage, error) {
	o, err := c.object(id, func() (string, error) { return cgroup.ParentPath(c.cfg.Driver, parent) })
	if err != nil {
		return Usage{}, err
	}
	u, err := c.read(o)
	if err == nil {
		u.Tasks, err = o.files.Tasks()
	}
	return u, err
}

func (c *Collector) read(o *object) (Usage, error) {
	u, err := o.files.Read()
	return o.usage(u, err)
}

// usage completes what was read.
func (o *object) usage(u usage.Usage, err error) (Usage, error) {
	if err != nil {
		o.files.Close() // a cgroup of the same name that comes later has other files
		return Usage{}, err
	}
	out := Usage{Usage: u}
	if u.CPU.Known {
		o.mu.Lock()
		out.NanoCores = o.rate.next(u.CPUAt, u.CPU.Value)
		o.mu.Unlock()
	}
	return out, nil
}

// Detail is what metrics show of a cgroup.
type Detail struct {
	Usage
	usage.Detail
	// Path is the cgroup's, below the mount points.
	Path string
	// Devices are the paths of the block devices in IO, in the same order; "major:minor" where there is no path.
	Devices []string
}

// Processes is what a container's processes hold.
type Processes struct {
	Count, Files, Sockets int
	// MaxFiles is the first process's soft limit of open files.
	MaxFiles usage.Counter
}

const (
	// maxProcesses and maxFiles bound what is looked at to count open files: beyond them the counts are too low.
	maxProcesses = 1024
	maxFiles     = 65536
)

// Processes looks at a container's processes, of which main is the first.
func (c *Collector) Processes(cgroupsPath string, main int) (Processes, error) {
	path, err := cgroup.ResolveOCI(cgroupsPath)
	if err != nil {
		return Processes{}, fmt.Errorf("statistics: %w", err)
	}
	pids, err := c.cfg.Cgroups.Processes(path)
	if err != nil {
		return Processes{}, err
	}
	p := Processes{Count: len(pids)}
	for _, pid := range pids[:min(len(pids), maxProcesses)] {
		files, sockets, err := proc.Descriptors(pid, maxFiles-p.Files)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return p, err
		}
		p.Files, p.Sockets = p.Files+files, p.Sockets+sockets
	}
	if limit, err := proc.MaxOpenFiles(main); err == nil { // else it has just ended
		p.MaxFiles = usage.Counter{Value: limit, Known: true}
	}
	return p, nil
}

// ContainerDetail reads all of a container's figures. usage.ErrGone.
func (c *Collector) ContainerDetail(id, cgroupsPath string) (Detail, error) {
	return c.detail(id, func() (string, error) { return cgroup.ResolveOCI(cgroupsPath) })
}

// PodDetail reads all of a pod's figures. usage.ErrGone.
func (c *Collector) PodDetail(id, parent string) (Detail, error) {
	return c.detail(id, func() (string, error) { return cgroup.ParentPath(c.cfg.Driver, parent) })
}

func (c *Collector) detail(id string, path func() (string, error)) (Detail, error) {
	o, err := c.object(id, path)
	if err != nil {
		return Detail{}, err
	}
	all, d, err := o.files.ReadAll()
	u, err := o.usage(all, err)
	if err != nil {
		return Detail{}, err
	}
	out := Detail{Usage: u, Detail: d, Path: o.files.Path()}
	for _, device := range d.IO {
		name, ok := host.BlockDevice(device.Major, device.Minor)
		if !ok {
			name = fmt.Sprintf("%d:%d", device.Major, device.Minor)
		}
		out.Devices = append(out.Devices, name)
	}
	return out, nil
}

// Network reads the counters of all interfaces of a pod but lo, by its pinned network namespace. Until Forget or Keep, or until nobody has asked for
// a while, that cannot end.
func (c *Collector) Network(id, pin string) ([]netns.Interface, error) {
	all, err := c.counters(id, pin).Read()
	if err != nil {
		return nil, err
	}
	out := all[:0]
	for _, i := range all {
		if i.Name != "lo" {
			out = append(out, i)
		}
	}
	return out, nil
}

func (c *Collector) counters(id, pin string) *netns.Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteQuestion()
	n := c.nets[id]
	if n == nil {
		n = netns.CountersOf(pin)
		if len(c.nets) >= maxHeld {
			n.Drop()
			return n
		}
		c.nets[id] = n
	}
	return n
}

// noteQuestion has the files closed some time after the last one. Preconditions: c.mu is held.
func (c *Collector) noteQuestion() {
	c.asked = time.Now()
	if c.rest == nil {
		c.rest = time.AfterFunc(restTime, c.relax)
	}
}

// object finds what is known of id, and notes that somebody asks.
func (c *Collector) object(id string, path func() (string, error)) (*object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteQuestion()
	if o := c.objects[id]; o != nil {
		return o, nil
	}
	p, err := path()
	if err != nil {
		return nil, fmt.Errorf("statistics of %s: %w", id, err)
	}
	o := &object{files: usage.Of(c.cfg.Cgroups, p)}
	if len(c.objects) >= maxHeld {
		for other := range c.objects { // any: the rate of one is lost
			c.drop(other)
			break
		}
	}
	c.objects[id] = o
	return o, nil
}

// relax closes the files when nobody has asked for a while; until then it comes again.
func (c *Collector) relax() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if left := restTime - time.Since(c.asked); left > 0 {
		c.rest.Reset(left)
		return
	}
	c.rest = nil
	c.closeFiles()
}

// rate turns a counter into what it grows by each second.
type rate struct {
	at      time.Time
	counter uint64
	last    usage.Counter
}

// next takes a sample. Samples that come sooner than minWindow after the one before get the rate of that.
func (r *rate) next(at time.Time, counter uint64) usage.Counter {
	window := at.Sub(r.at)
	switch {
	case r.at.IsZero(), counter < r.counter: // a new cgroup under an old name
		*r = rate{at: at, counter: counter}
	case window >= minWindow:
		perSecond := float64(counter-r.counter) / window.Seconds()
		*r = rate{at: at, counter: counter, last: usage.Counter{Value: uint64(perSecond), Known: true}}
	}
	return r.last
}

// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// kernelPod is a pod's cgroup on v2 as files: what is killed below it is counted in it, too.
type kernelPod struct {
	t      *testing.T
	dir    string
	counts map[string]int
	total  int
}

func newKernelPod(t *testing.T, before int) *kernelPod {
	p := &kernelPod{t: t, dir: t.TempDir(), counts: make(map[string]int), total: before}
	p.write(p.dir, before)
	return p
}

func (p *kernelPod) write(dir string, kills int) {
	p.t.Helper()
	text := fmt.Sprintf("low 0\nhigh 0\nmax 9\noom 1\noom_kill %d\noom_group_kill 0\n", kills)
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *kernelPod) start(l *oomLedger, name string) cgroup {
	p.t.Helper()
	if err := l.open(p.dir); err != nil {
		p.t.Fatal(err)
	}
	dir := filepath.Join(p.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	p.write(dir, 0)
	group := cgroup{procs: dir, memory: dir}
	l.begin(name, group)
	return group
}

func (p *kernelPod) kill(name string, n int) {
	p.counts[name] += n
	p.total += n
	p.write(filepath.Join(p.dir, name), p.counts[name])
	p.write(p.dir, p.total)
}

// remove is what systemd does to a scope whose last process has exited.
func (p *kernelPod) remove(name string) {
	if err := os.RemoveAll(filepath.Join(p.dir, name)); err != nil {
		p.t.Fatal(err)
	}
}

func ended(t *testing.T, l *oomLedger, name string, group cgroup, want uint64) {
	t.Helper()
	if got, err := l.end(name, group); got != want || err != nil {
		t.Errorf("%s: %d kills, %v; want %d", name, got, err, want)
	}
}

func TestOOMKillsAreKnownThoughTheCgroupIsGone(t *testing.T) {
	p, l := newKernelPod(t, 5), &oomLedger{}
	a, b, c := p.start(l, "a"), p.start(l, "b"), p.start(l, "c")
	p.kill("b", 2) // and it goes on
	p.kill("a", 1)
	p.remove("a")
	ended(t, l, "a", a, 1)
	p.remove("c") // nothing was killed there
	ended(t, l, "c", c, 0)
	ended(t, l, "b", b, 2)
	d := p.start(l, "d")
	p.kill("d", 1)
	p.remove("d")
	ended(t, l, "d", d, 1)
	e := p.start(l, "e")
	p.remove("e")
	ended(t, l, "e", e, 0)
}

func TestAContainerThatEndsBeforeItsCgroupIsFound(t *testing.T) {
	p, l := newKernelPod(t, 0), &oomLedger{}
	p.start(l, "a")
	p.kill("a", 1)
	p.remove("a")
	ended(t, l, "a", cgroup{}, 1)
	p.remove("") // the pod's, too
	ended(t, l, "b", cgroup{}, 0)
}

func TestOnV1OnlyTheContainersOwnCountIsAsked(t *testing.T) {
	l, dir := &oomLedger{}, t.TempDir()
	if err := l.open(""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/memory.oom_control", []byte("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ended(t, l, "a", cgroup{memory: dir}, 1)
	if _, err := l.end("b", cgroup{memory: dir + "/gone"}); err == nil {
		t.Error("a lost count is not told")
	}
}

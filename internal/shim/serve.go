// SPDX-License-Identifier: Apache-2.0

// Package shim is berth-shim: the parent of a pod's containers. It drives the OCI runtime, owns the containers'
// stdio, writes their logs and keeps their exits, and it outlives the daemon that it serves. Only cmd/berth-shim
// uses it. Every pod pays for each page that it touches: see TestIdleMemory before adding anything.
package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/linux/reaper"
	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shimapi"
)

const (
	// callGarbage is what a call with its consequences leaves on the heap, about.
	callGarbage = 8 << 10
	// trimAfter is how much garbage is worth a collection when the shim is idle. Less is left to the runtime, which
	// collects when the heap has a megabyte (see shimapi.Environment).
	trimAfter = 4 << 20
	// idleAfter is how long the shim must have been quiet before it gives memory back.
	idleAfter = 2 * time.Second
	// maxStacks bounds what SIGUSR1 writes to the log.
	maxStacks = 256 << 10
	// endLimit bounds the wait for calls in flight when the shim ends.
	endLimit = 500 * time.Millisecond
)

// Config is what berth-shim serve needs.
type Config struct {
	Dir     string // the pod's state folder
	Version string // of the build
	Log     *slog.Logger
}

// Serve serves on the sockets that the daemon has handed over, until Shutdown. The daemon's end is no reason to
// stop, and neither is SIGTERM while containers run.
func Serve(config Config) error {
	if info, err := os.Stat(config.Dir); err != nil || !info.IsDir() {
		return fmt.Errorf("state folder %q: %w", config.Dir, errors.Join(err, errNoDir(info)))
	}
	if err := reaper.CloseInherited(shimapi.StdioFD + 1); err != nil {
		return err
	}
	calls, err := inheritedListener(shimapi.ServiceFD)
	if err != nil {
		return err
	}
	defer calls.Close()
	stdio, err := inheritedListener(shimapi.StdioFD)
	if err != nil {
		return err
	}
	defer stdio.Close()
	s, err := newService(config.Version, config.Log)
	if err != nil {
		return err
	}
	defer s.runtime.null.Close()
	s.streams = newStreams(config.Log)
	s.streams.attach = s.attach
	s.run(calls, stdio, s.methods())
	return nil
}

// newService makes this process the parent of containers.
func newService(version string, log *slog.Logger) (*service, error) {
	syscall.Umask(0o022) // modes of logs and facts do not depend on the daemon's
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	reaper, err := reaper.New()
	if err != nil {
		null.Close()
		return nil, err
	}
	return &service{
		version: version, log: log, runtime: newOCIRuntime(reaper, null), ending: make(chan struct{}), tasks: make(map[string]*task),
	}, nil
}

func errNoDir(info os.FileInfo) error {
	if info != nil && !info.IsDir() {
		return syscall.ENOTDIR
	}
	return nil
}

// inheritedListener takes over a socket from the daemon.
func inheritedListener(fd int) (*net.UnixListener, error) {
	file := os.NewFile(uintptr(fd), fmt.Sprintf("socket %d", fd))
	if file == nil {
		return nil, fmt.Errorf("descriptor %d is not open", fd)
	}
	defer file.Close() // the listener has its own copy, which no child inherits
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not a listening socket: %w", fd, err)
	}
	unix, ok := listener.(*net.UnixListener)
	if !ok {
		listener.Close()
		return nil, fmt.Errorf("descriptor %d is not a unix socket", fd)
	}
	return unix, nil
}

// run serves until the end is called for. stdio is nil where there are no streams.
func (s *service) run(calls, stdio *net.UnixListener, methods map[string]rpc.Method) {
	idle := newIdle()
	server := rpc.NewServer(rpc.Config{Methods: methods, Admit: samePeer, Log: s.log, Called: idle.called})
	// Before anything is served: from then on no signal may end the shim by itself.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1)
	go server.Serve(calls)
	if stdio != nil {
		go s.streams.serve(stdio)
	}
	for done := false; !done; {
		select {
		case sig := <-signals:
			s.signal(sig)
		case <-s.ending:
			done = true
		}
	}
	calls.Close()
	if stdio != nil {
		stdio.Close()
		s.streams.close()
	}
	server.Shutdown(endLimit)
}

// signal does what a signal asks for: SIGTERM and SIGINT end a shim when nothing runs in it any more, if that is soon, SIGUSR1 has it say what it is doing.
func (s *service) signal(sig os.Signal) {
	switch sig {
	case syscall.SIGUSR1:
		stacks := make([]byte, maxStacks)
		s.log.Info("goroutines", "stacks", string(stacks[:runtime.Stack(stacks, true)]))
	case syscall.SIGTERM, syscall.SIGINT:
		// When the machine goes down, systemd waits for each process that has got a SIGTERM, containers or not.
		if !s.endIdle() {
			s.log.Info("a signal waits for containers to end", "signal", sig.String())
			go s.endSoon()
		}
	}
}

// idle gives memory back to the kernel when the shim has been quiet for a while after many calls. A first garbage
// collection costs half a megabyte of tables, more than the garbage of a pod's start, so none is forced before it
// pays; and a shim that has never collected does not do it every two minutes either, as other Go programs do.
type idle struct {
	timer   *time.Timer
	garbage atomic.Int64 // a guess, in bytes
}

func newIdle() *idle {
	i := &idle{}
	i.timer = time.AfterFunc(time.Hour, func() {
		i.garbage.Store(0)
		debug.FreeOSMemory()
	})
	i.timer.Stop()
	return i
}

// called notes a call with so many bytes of payload.
func (i *idle) called(payload int) {
	if i.garbage.Add(callGarbage+4*int64(payload)) > trimAfter {
		i.timer.Reset(idleAfter)
	}
}

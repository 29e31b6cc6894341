// SPDX-License-Identifier: Apache-2.0

// Package slice starts and stops systemd slices, which under the systemd cgroup driver are what a pod's cgroup
// parent is. It is apart from package cgroup so that programs without that need do not link a D-Bus library.
// Only the daemon uses it.
package slice

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

// ErrNoSystemd means that systemd cannot be reached over D-Bus.
var ErrNoSystemd = errors.New("systemd cannot be reached; the systemd cgroup driver needs it")

// jobTimeout bounds the wait for a job of systemd's, which takes milliseconds unless systemd is stuck.
const jobTimeout = 30 * time.Second

// conn is the part of a connection to systemd that slices need.
type conn interface {
	StartTransientUnitContext(ctx context.Context, name, mode string, properties []systemd.Property, done chan<- string) (int, error)
	StopUnitContext(ctx context.Context, name, mode string, done chan<- string) (int, error)
	ResetFailedUnitContext(ctx context.Context, name string) error
	SetUnitPropertiesContext(ctx context.Context, name string, runtime bool, properties ...systemd.Property) error
	Connected() bool
	Close()
}

// Manager speaks to systemd. It connects when first needed and again after systemd or the bus was restarted.
type Manager struct {
	dial func(context.Context) (conn, error)

	mu     sync.Mutex
	conn   conn
	closed bool
}

// New returns a Manager of the system's systemd; it does not connect yet.
func New() *Manager {
	return &Manager{dial: dial}
}

// dial connects within ctx, though the connection is not to end with it: the library ties the two together.
func dial(ctx context.Context) (conn, error) {
	life, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, cancel)
	// The private socket first, as systemctl does as root: it needs no D-Bus daemon.
	c, err := systemd.NewSystemdConnectionContext(life)
	if err != nil {
		var busErr error
		if c, busErr = systemd.NewSystemConnectionContext(life); busErr != nil {
			cancel()
			return nil, errors.Join(err, busErr, ctx.Err())
		}
	}
	if !stop() { // ctx ended just now and took the connection with it
		c.Close()
		return nil, ctx.Err()
	}
	return owned{c, cancel}, nil
}

// owned is a connection with the context that it lives in.
type owned struct {
	*systemd.Conn
	cancel context.CancelFunc
}

func (c owned) Close() {
	c.Conn.Close()
	c.cancel()
}

// Connect makes the connection that the first call would make. ErrNoSystemd if there is no systemd.
func (m *Manager) Connect(ctx context.Context) error {
	_, err := m.connection(ctx)
	return err
}

// Close drops the connection. Slices stay.
func (m *Manager) Close() {
	m.mu.Lock()
	c := m.conn
	m.conn, m.closed = nil, true
	m.mu.Unlock()
	if c != nil {
		c.Close()
	}
}

// Start makes the slice with all resource accounting on. A slice that is there already is success: the kubelet has
// usually made it.
func (m *Manager) Start(ctx context.Context, name string) error {
	expanded, err := cgroup.ExpandSlice(name)
	if err != nil {
		return fmt.Errorf("start slice: %w", err)
	}
	c, err := m.connection(ctx)
	if err != nil {
		return fmt.Errorf("start slice %s: %w", name, err)
	}
	err = job(ctx, func(ctx context.Context, done chan<- string) error {
		_, err := c.StartTransientUnitContext(ctx, name, "replace", properties(expanded), done)
		return err
	})
	if err != nil && !dbusError(err, "org.freedesktop.systemd1.UnitExists") {
		return fmt.Errorf("start slice %s: %w", name, err)
	}
	return nil
}

// Stop stops the slice, and with it whatever still runs in it. An unknown slice is success.
func (m *Manager) Stop(ctx context.Context, name string) error {
	if _, err := cgroup.ExpandSlice(name); err != nil {
		return fmt.Errorf("stop slice: %w", err)
	}
	c, err := m.connection(ctx)
	if err != nil {
		return fmt.Errorf("stop slice %s: %w", name, err)
	}
	err = job(ctx, func(ctx context.Context, done chan<- string) error {
		_, err := c.StopUnitContext(ctx, name, "replace", done)
		return err
	})
	if err != nil && !dbusError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return fmt.Errorf("stop slice %s: %w", name, err)
	}
	// A unit that failed stays loaded for ever otherwise. There is nothing to reset for most, which is an error.
	err = c.ResetFailedUnitContext(ctx, name)
	if err != nil && !dbusError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return fmt.Errorf("stop slice %s: %w", name, err)
	}
	return nil
}

// properties ties the slice to its parent, so that stopping the parent stops it, and turns on the controllers.
func properties(expanded string) []systemd.Property {
	name := path.Base(expanded)
	list := []systemd.Property{
		systemd.PropDescription("berth pod slice " + strings.TrimSuffix(name, ".slice")),
		{Name: "DefaultDependencies", Value: dbus.MakeVariant(false)},
	}
	if parent := path.Base(path.Dir(expanded)); parent != "/" {
		list = append(list, systemd.PropWants(parent))
	}
	for _, accounting := range []string{"CPUAccounting", "MemoryAccounting", "IOAccounting", "TasksAccounting"} {
		list = append(list, systemd.Property{Name: accounting, Value: dbus.MakeVariant(true)})
	}
	return list
}

// job starts one of systemd's jobs and waits for its end.
func job(ctx context.Context, start func(context.Context, chan<- string) error) error {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	done := make(chan string, 1)
	if err := start(ctx, done); err != nil {
		return err
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("systemd's job ended with %q", result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for systemd's job: %w", ctx.Err())
	}
}

// connection returns a live connection. Dialling is done without the lock; of two at once the second is dropped.
func (m *Manager) connection(ctx context.Context) (conn, error) {
	m.mu.Lock()
	c, closed := m.conn, m.closed
	m.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("%w: closed", ErrNoSystemd)
	}
	if c != nil && c.Connected() {
		return c, nil
	}
	fresh, err := m.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSystemd, err)
	}
	m.mu.Lock()
	if m.closed || m.conn != c {
		// Closed, or somebody else was quicker.
		other, closed := m.conn, m.closed
		m.mu.Unlock()
		fresh.Close()
		if closed {
			return nil, fmt.Errorf("%w: closed", ErrNoSystemd)
		}
		return other, nil
	}
	m.conn = fresh
	m.mu.Unlock()
	if c != nil {
		c.Close()
	}
	return fresh, nil
}

func dbusError(err error, name string) bool {
	var value dbus.Error
	var pointer *dbus.Error
	return errors.As(err, &value) && value.Name == name || errors.As(err, &pointer) && pointer.Name == name
}

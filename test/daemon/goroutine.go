// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Go programs dump all goroutines on SIGQUIT: this needs no debug endpoint.

var creator = regexp.MustCompile(`(?m)^created by (\S+)`)

// goroutines ends the daemon and counts its goroutines by the function that started them.
func (d *Daemon) goroutines() (map[string]int, error) {
	before := len(d.Log())
	d.conn.Close() // a connection's goroutines would differ by chance
	time.Sleep(50 * time.Millisecond)
	if _, err := d.Signal(syscall.SIGQUIT, Slow(5*time.Second)); err != nil {
		return nil, err
	}
	dump := d.Log()[before:]
	if !strings.Contains(dump, "goroutine ") {
		return nil, fmt.Errorf("no goroutines in the dump of %s", d.Spec.Kind)
	}
	count := map[string]int{}
	for _, m := range creator.FindAllStringSubmatch(dump, -1) {
		count[m[1]]++
	}
	return count, nil
}

// idleGoroutines is what a daemon has that never ran a pod.
var idleGoroutines = sync.OnceValues(func() (map[string]int, error) {
	d, err := New(context.Background(), Spec{})
	if err != nil {
		return nil, err
	}
	if _, err := d.warm(); err != nil {
		return nil, err
	}
	count, err := d.goroutines()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return count, err
})

// spare is how many goroutines of one origin may be more than in an idle daemon: a handler of a request
// that just ended, a timer.
const spare = 2

// A daemon that sends traces has one gRPC client, and one more for each remote snapshotter.
const (
	clientOrigin     = "google.golang.org/grpc/internal/grpcsync.NewCallbackSerializer"
	clientGoroutines = 3
)

func (d *Daemon) clients() int {
	return strings.Count(d.Spec.Config, "[tracing]") + strings.Count(d.Spec.Config, "[snapshotters.")
}

// checkGoroutines ends the daemon and fails the test when it has goroutines that its pods must have left behind.
func (d *Daemon) checkGoroutines(tb testing.TB) {
	tb.Helper()
	if d.Spec.Kind != Berth || d.PID() == 0 {
		return
	}
	idle, err := idleGoroutines()
	if err != nil {
		tb.Errorf("count goroutines of an idle daemon: %v", err)
		return
	}
	now, err := d.goroutines()
	if err != nil {
		tb.Errorf("count goroutines: %v", err)
		return
	}
	for from, n := range now {
		if from == clientOrigin && n <= d.clients()*clientGoroutines {
			continue
		}
		if strings.HasPrefix(from, "runtime.") || strings.HasPrefix(from, "net/http.") || n <= idle[from]+spare {
			continue
		}
		tb.Errorf("leaked goroutines: %d created by %s, %d when idle", n, from, idle[from])
	}
}

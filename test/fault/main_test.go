// SPDX-License-Identifier: Apache-2.0

// Package fault kills the real daemon with SIGKILL at each durable write of each call that changes state,
// and in the middle of pulls. After a restart the state must be consistent, a retry must succeed and
// nothing may be left in the end. It needs root and the programs in bin/ (make); the daemon that can be
// told where to die is built here, with the tag faultpoint.
package fault

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

var (
	images     *registry.Server
	busyboxRef string
	// program is the daemon that can be told where to die.
	program string
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("fault tests are left out with -short")
		return
	}
	dir, err := os.MkdirTemp("", "berth-fault-")
	if err == nil {
		err = setUp(dir)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "fault tests:", err)
	} else {
		code = m.Run()
		images.Close()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

func setUp(dir string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("need root (or -short)")
	}
	repo, err := daemon.RepoDir()
	if err != nil {
		return err
	}
	program = filepath.Join(dir, "berth")
	build := exec.Command("go", "build", "-tags", "faultpoint", "-o", program, "./cmd/berth")
	build.Dir = repo
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the daemon: %w: %s", err, out)
	}
	images, busyboxRef, err = registry.NewWithBusybox()
	return err
}

// rig is a daemon that is killed and started again and again.
type rig struct {
	*kubelet.Kubelet
	// points is where the daemon writes a line for each write.
	points string
}

func newRig(t *testing.T, spec daemon.Spec) *rig {
	t.Helper()
	spec.Program = program
	d := daemon.Start(t, spec)
	return &rig{&kubelet.Kubelet{T: t, D: d}, d.Dir + "/points"}
}

// restart kills the daemon and starts it with a fault plan, or healthy when the plan is empty. It reports
// whether the daemon came up: a plan may kill it while it recovers.
func (r *rig) restart(plan string) bool {
	r.T.Helper()
	if err := r.D.Kill(); err != nil {
		r.T.Fatal(err)
	}
	if err := os.Remove(r.points); err != nil && !os.IsNotExist(err) {
		r.T.Fatal(err)
	}
	r.D.Spec.Env = []string{"BERTH_FAULTPOINT_LOG=" + r.points, "BERTH_FAULTPOINT=" + plan}
	err := r.D.Launch(context.Background())
	if err != nil && (plan == "" || r.D.PID() != 0) {
		r.T.Fatal(err)
	}
	return err == nil
}

// passed counts the writes since the last restart, once they have come to rest.
func (r *rig) passed() int {
	r.T.Helper()
	for last := -1; ; time.Sleep(50 * time.Millisecond) {
		data, err := os.ReadFile(r.points)
		if err != nil && !os.IsNotExist(err) {
			r.T.Fatal(err)
		}
		if n := strings.Count(string(data), "\n"); n == last {
			return n
		} else {
			last = n
		}
	}
}

// died waits a little for the daemon to be killed by its plan.
func (r *rig) died() bool {
	select {
	case <-r.D.Done():
		return true
	case <-time.After(200 * time.Millisecond):
		return false
	}
}

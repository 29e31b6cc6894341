// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

func TestExecSyncReturnsCodeAndBothOutputs(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("exec")).Start(k.Forever("main"))
	for name, e := range map[string]struct {
		command     []string
		code        int32
		out, errOut string
	}{
		"success":     {[]string{"echo", "a  b"}, 0, "a  b\n", ""},
		"code":        {[]string{"sh", "-c", "echo out; echo err >&2; exit 42"}, 42, "out\n", "err\n"},
		"signal":      {[]string{"sh", "-c", "kill -TERM $$"}, 143, "", ""},
		"no newline":  {[]string{"printf", "x"}, 0, "x", ""},
		"binary":      {[]string{"printf", `\001\000\377`}, 0, "\x01\x00\xff", ""},
		"environment": {[]string{"sh", "-c", "echo $HOSTNAME"}, 0, "exec\n", ""},
	} {
		r, err := c.ExecSync(10, e.command...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		equal(t, name+": code", r.ExitCode, e.code)
		equal(t, name+": stdout", string(r.Stdout), e.out)
		equal(t, name+": stderr", string(r.Stderr), e.errOut)
	}
}

func TestExecSyncCapsTheOutput(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("flood")).Start(k.Forever("main"))
	const limit = 16 << 20 // of the whole answer: a kubelet receives no larger message
	r, err := c.ExecSync(50, "sh", "-c", "head -c 20000000 /dev/zero; echo end >&2; exit 5")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(r.Stdout); n > limit || n < limit/2 {
		t.Errorf("%d bytes of output came back, want about %d and not more", n, limit)
	}
	equal(t, "code", r.ExitCode, 5)
	equal(t, "stderr", string(r.Stderr), "end\n")
	r, err = c.ExecSync(50, "head", "-c", "1000000", "/dev/zero")
	if err != nil || !bytes.Equal(r.Stdout, make([]byte, 1000000)) {
		t.Errorf("a megabyte came back as %d bytes, %v", len(r.GetStdout()), err)
	}
}

func TestExecSyncTimeoutKillsTheWholeTree(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("slow")).Start(k.Forever("main"))
	for name, script := range map[string]string{
		"a child":           "sleep 4321",
		"a background tree": "(trap '' TERM HUP; sleep 4321 & sleep 4321) & sleep 4321",
		"deaf to signals":   "trap '' TERM INT HUP; while :; do sleep 4321; done",
	} {
		begin := time.Now()
		_, err := c.ExecSync(1, "sh", "-c", script)
		wantError(t, err, []codes.Code{codes.DeadlineExceeded}, "1s")
		if took := time.Since(begin); took < 900*time.Millisecond || took > 4*time.Second {
			t.Errorf("%s: the timeout of 1 s took %s", name, took)
		}
		if left := c.Exec("ps -o args | grep '[s]leep 4321' || true"); left != "" {
			t.Errorf("%s: still running:\n%s", name, left)
		}
	}
	equal(t, "state of the container", c.Status().State, cri.ContainerState_CONTAINER_RUNNING)
}

func TestExecSyncDoesNotWaitForABackgroundChildsPipe(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("pipe")).Start(k.Forever("main"))
	begin := time.Now()
	r, err := c.ExecSync(20, "sh", "-c", "sleep 30 & echo started")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "stdout", string(r.Stdout), "started\n")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("exec took %s, want at most a second after its process ended", took)
	}
	contains(t, "processes", c.Exec("ps"), "sleep 30")
}

func TestExecSyncErrorsNameTheCause(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("bad-exec"))
	c, created := p.Start(k.Forever("main")), p.Create(k.Forever("created"))
	stopped := p.Start(k.Shell("stopped", "exit 0"))
	stopped.WaitExit()
	_, err := c.ExecSync(5, "/no/such/program")
	wantError(t, err, failures, "/no/such/program")
	_, err = c.ExecSync(5)
	wantError(t, err, append(invalid, failures...), "cmd")
	for _, other := range []*kubelet.Container{created, stopped} {
		_, err = other.ExecSync(5, "true")
		wantError(t, err, failures, other.ID, "running")
	}
	_, err = k.D.Runtime.ExecSync(k.Ctx(), &cri.ExecSyncRequest{ContainerId: strings.Repeat("ab", 32), Cmd: []string{"true"}})
	wantError(t, err, notFound, strings.Repeat("ab", 32))
	equal(t, "the next exec", c.Exec("echo fine"), "fine")
}

// TestExecSyncMeetsTheEndOfItsContainer ends and removes containers while commands are started in them.
func TestExecSyncMeetsTheEndOfItsContainer(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("ending"))
	for round := range 8 {
		c := p.Start(k.Forever(fmt.Sprintf("c%d", round)))
		var execs sync.WaitGroup
		for i := range 4 {
			execs.Go(func() {
				time.Sleep(time.Duration(i) * 5 * time.Millisecond)
				if _, err := c.ExecSync(10, "true"); err != nil {
					wantError(t, err, []codes.Code{codes.FailedPrecondition, codes.NotFound}, c.ID)
				}
			})
		}
		time.Sleep(time.Duration(round) * 3 * time.Millisecond)
		if round%2 == 0 {
			c.Stop(0)
		}
		c.Remove()
		execs.Wait()
	}
}

func TestManyExecsAtOnceDoNotMix(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("many")).Start(k.Forever("main"))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			want := strings.Repeat(fmt.Sprintf("%02d", i), 5000)
			r, err := c.ExecSync(30, "sh", "-c", "printf "+want+"; exit "+fmt.Sprint(i))
			if err != nil || r.ExitCode != int32(i) || string(r.Stdout) != want {
				t.Errorf("exec %d: code %d, %d bytes, %v", i, r.GetExitCode(), len(r.GetStdout()), err)
			}
		})
	}
	wg.Wait()
}

func TestLogsAreInCRIFormat(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("logs"))
	begin := time.Now()
	c := p.Start(k.Shell("main", `echo out; echo err >&2; echo; printf '%16384s\n' x; printf '%16385s\n' y; printf '%40000s\n' z; sleep 0.2; printf unterminated`))
	c.WaitExit()
	var out []string
	for _, l := range c.Log() {
		if l.Time.Before(begin.Add(-time.Second)) || l.Time.After(time.Now()) {
			t.Errorf("time of a line is %s", l.Time)
		}
		if l.Stream == "stderr" {
			equal(t, "stderr", l.Tag+l.Content, "Ferr")
			continue
		}
		out = append(out, fmt.Sprintf("%s%d", l.Tag, len(l.Content)))
	}
	// A line of exactly 16 KiB may come as F16384 or as P16384 and an empty F.
	got := strings.ReplaceAll(strings.Join(out, " "), "P16384 F0 P16384 F1", "F16384 P16384 F1")
	equal(t, "lines of stdout", got, "F3 F0 F16384 P16384 F1 P16384 P16384 F7232 P12")
	info, err := os.Stat(c.LogPath())
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode of the log is %v, %v, want 0640", info.Mode(), err)
	}
	// What a killed daemon's successor appends stays readable: the log is appended to, never cut.
	if again, err := os.ReadFile(c.LogPath()); err != nil || !bytes.Contains(again, []byte(" stdout F out\n")) {
		t.Errorf("first line is gone: %.200q %v", again, err)
	}
}

func TestALogIsRotatedWithoutLosingALine(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("rotate")).Start(k.Shell("main", `i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; sleep 1000`))
	for i := range 3 {
		time.Sleep(50 * time.Millisecond)
		if err := os.Rename(c.LogPath(), fmt.Sprintf("%s.%d", c.LogPath(), i)); err != nil {
			t.Fatal(err)
		}
		if _, err := k.D.Runtime.ReopenContainerLog(k.Ctx(), &cri.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(c.LogPath()); err != nil {
			t.Fatalf("the new log is not there when the call returns: %v", err)
		}
	}
	next := 0
	kubelet.Eventually(t, 20*time.Second, func() string {
		var all []kubelet.Line
		for _, suffix := range []string{".0", ".1", ".2", ""} {
			lines, err := kubelet.ReadLog(c.LogPath() + suffix)
			if err != nil {
				return err.Error()
			}
			all = append(all, lines...)
		}
		for next = 0; next < len(all); next++ {
			if want := fmt.Sprintf("line %d", next); all[next].Content != want {
				t.Fatalf("got %q, want %q", all[next].Content, want)
			}
		}
		if next != 3000 {
			return fmt.Sprintf("%d lines", next)
		}
		return ""
	})
	c.Stop(0)
	_, err := k.D.Runtime.ReopenContainerLog(k.Ctx(), &cri.ReopenContainerLogRequest{ContainerId: c.ID})
	wantError(t, err, failures, "running")
}

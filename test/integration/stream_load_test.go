// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// size is a number from the environment, so that the same test runs small in CI and in full by hand (make test-streams).
func size(t *testing.T, name string, usual int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// slowWriter takes its time, now and then.
type slowWriter struct {
	hash.Hash
	total int
	every int // bytes between two pauses; 0: none
}

func (w *slowWriter) Write(p []byte) (int, error) {
	if before := w.total; w.every > 0 && before/w.every != (before+len(p))/w.every {
		time.Sleep(100 * time.Millisecond)
	}
	w.total += len(p)
	return w.Hash.Write(p)
}

// resident is the memory of a process, in MiB.
func resident(t *testing.T, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	t.Fatalf("no VmRSS of %d", pid)
	return 0
}

// shimPID finds the shim of a pod.
func shimPID(t *testing.T, p *kubelet.Pod) int {
	t.Helper()
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		data, _ := os.ReadFile(name)
		if bytes.Contains(data, []byte("berth-shim\x00serve")) && bytes.Contains(data, []byte(p.ID)) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no shim")
	return 0
}

// TestMuchThroughAnExec sends random bytes through stdin, cat and stdout, BERTH_TEST_STREAM_MIB of them.
func TestMuchThroughAnExec(t *testing.T) {
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("much"))
	c := p.Start(k.Forever("main"))
	mib := size(t, "BERTH_TEST_STREAM_MIB", 64)
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		c := withT(c, k)
		for name, every := range map[string]int{"fast": 0, "slow reader": 8 << 20} {
			sent, got := sha256.New(), &slowWriter{Hash: sha256.New(), every: every}
			in := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), int64(mib)<<20), sent)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			daemonBefore, begin := resident(t, k.D.PID()), time.Now()
			code, err := c.StreamExec(ctx, tr, remotecommand.StreamOptions{Stdin: in, Stdout: got}, "cat")
			cancel()
			took := time.Since(begin)
			if code != 0 || err != nil || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Errorf("%s: code %d, %v, %d of %d MiB came back", name, code, err, got.total>>20, mib)
			}
			daemonAfter, shim := resident(t, k.D.PID()), 0.0
			if !onContainerd() {
				shim = resident(t, shimPID(t, p))
			}
			t.Logf("%s: %d MiB in %s; daemon %.1f MiB, then %.1f; shim %.1f", name, mib, took.Round(time.Millisecond), daemonBefore, daemonAfter, shim)
			if grown := daemonAfter - daemonBefore; grown > 40 {
				t.Errorf("%s: the daemon has grown by %.1f MiB", name, grown)
			}
			if shim > 12 {
				t.Errorf("%s: the shim has %.1f MiB", name, shim)
			}
		}
	})
}

// TestManySessionsAtOnce has BERTH_TEST_SESSIONS execs open at the same time.
func TestManySessionsAtOnce(t *testing.T) {
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("sessions")).Start(k.Forever("main"))
	const limit = 5 * time.Minute
	n := size(t, "BERTH_TEST_SESSIONS", 200)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var wg, ready sync.WaitGroup
	ready.Add(n)
	begin := time.Now()
	for i := range n {
		tr := kubelet.Transports[i%2]
		wg.Go(func() {
			in, feed := io.Pipe()
			var out buffer
			session := make(chan error, 1)
			go func() {
				code, err := c.StreamExec(ctx, tr, remotecommand.StreamOptions{Stdin: in, Stdout: &out}, "sh", "-c", fmt.Sprintf("echo up; cat; exit %d", i%100))
				if err == nil && code != i%100 {
					err = fmt.Errorf("code %d", code)
				}
				session <- err
			}()
			for !strings.Contains(out.String(), "up\n") && ctx.Err() == nil && len(session) == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			ready.Done()
			ready.Wait() // all are open
			fmt.Fprintf(feed, "session %d\n", i)
			feed.Close()
			if err := <-session; err != nil {
				t.Errorf("session %d: %v", i, err)
			} else if want := fmt.Sprintf("up\nsession %d\n", i); out.String() != want {
				t.Errorf("session %d: %q", i, out.String())
			}
		})
	}
	wg.Wait()
	t.Logf("%d sessions in %s", n, time.Since(begin).Round(time.Millisecond))
}

// TestManyExecsLeaveNothing runs BERTH_TEST_EXECS ExecSyncs one after the other.
func TestManyExecsLeaveNothing(t *testing.T) {
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("execs"))
	c := p.Start(k.Forever("main"))
	shim := shimPID(t, p)
	n := size(t, "BERTH_TEST_EXECS", 200)
	run := func(n int) {
		for range n {
			if r, err := c.ExecSync(30, "true"); err != nil || r.ExitCode != 0 {
				t.Fatalf("code %d, %v", r.GetExitCode(), err)
			}
		}
	}
	run(50) // what is kept for good is there by then
	descriptors := func(pid int) int {
		all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	daemonBefore, shimBefore, daemonFDs, shimFDs := resident(t, k.D.PID()), resident(t, shim), descriptors(k.D.PID()), descriptors(shim)
	begin := time.Now()
	run(n)
	took := time.Since(begin)
	t.Logf("%d execs, %s each; daemon %.1f MiB, then %.1f; shim %.1f, then %.1f", n, (took / time.Duration(n)).Round(10*time.Microsecond),
		daemonBefore, resident(t, k.D.PID()), shimBefore, resident(t, shim))
	if now := descriptors(k.D.PID()); now > daemonFDs+3 {
		t.Errorf("the daemon has %d descriptors, %d before", now, daemonFDs)
	}
	// The shim forgets an exec behind its caller's back, when the lease ends.
	for deadline := time.Now().Add(20 * time.Second); descriptors(shim) > shimFDs; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the shim has %d descriptors, %d before", descriptors(shim), shimFDs)
		}
	}
	if grown := resident(t, shim) - shimBefore; grown > 3 {
		t.Errorf("the shim has grown by %.1f MiB", grown)
	}
	if grown := resident(t, k.D.PID()) - daemonBefore; grown > 30 {
		t.Errorf("the daemon has grown by %.1f MiB", grown)
	}
}

func TestWhoeverDiesInMidStreamLeavesNothing(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("death"))
	c := p.Start(k.Forever("main"))
	const script = "trap '' HUP; echo up; sleep 7654 & while :; do sleep 7654; done"
	left := func() string { return c.Exec("ps -o args | grep '[s]leep 7654' || true") }
	gone := func() {
		t.Helper()
		kubelet.Eventually(t, 20*time.Second, left)
	}
	eachTransport(t, k, func(t *testing.T, k *kubelet.Kubelet, tr kubelet.Transport) {
		for _, tty := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			var out buffer
			done := make(chan error, 1)
			in, feed := io.Pipe()
			go func() {
				_, err := c.StreamExec(ctx, tr, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: tty}, "sh", "-c", script)
				done <- err
			}()
			out.await(t, "up")
			cancel()
			feed.Close()
			<-done
			gone()
		}
	})
	// The container.
	short := p.Start(k.Forever("short"))
	var out buffer
	done := make(chan int, 1)
	go func() {
		code, err := short.StreamExec(limit(t), kubelet.SPDY, remotecommand.StreamOptions{Stdout: &out}, "sh", "-c", script)
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	out.await(t, "up")
	short.Stop(0)
	equal(t, "code of an exec whose container was killed", <-done, 137)
	// The daemon, killed and asked to end.
	for name, end := range map[string]func() error{
		"killed": k.D.Kill,
		"ended":  func() error { _, err := k.D.Signal(15, 10*time.Second); return err },
	} {
		var out buffer
		failed := make(chan error, 2)
		go func() {
			_, err := c.StreamExec(limit(t), kubelet.WebSocket, remotecommand.StreamOptions{Stdout: &out}, "sh", "-c", script)
			failed <- err
		}()
		go func() {
			_, err := c.ExecSync(60, "sh", "-c", script)
			failed <- err
		}()
		out.await(t, "up")
		kubelet.Eventually(t, 10*time.Second, func() string {
			if n := strings.Count(left(), "sleep"); n < 4 {
				return fmt.Sprintf("%d processes", n)
			}
			return ""
		})
		if err := end(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-failed; err == nil {
				t.Errorf("%s: a client believes that all went well", name)
			}
		}
		if err := k.D.Launch(k.Ctx()); err != nil {
			t.Fatal(err)
		}
		gone()
	}
}

func TestAttachAfterARestart(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	config := k.Shell("main", `trap 'exit 0' TERM; echo up; while read line; do echo got $line; done`)
	config.Stdin = true
	c := k.RunPod(k.PodConfig("again")).Start(config)
	c.WaitOutput("up")
	var first buffer
	cut := make(chan error, 1)
	go func() { cut <- c.Attach(limit(t), kubelet.WebSocket, remotecommand.StreamOptions{Stdout: &first}) }()
	time.Sleep(200 * time.Millisecond)
	if err := k.D.Restart(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	if err := <-cut; err == nil {
		t.Error("a client that was cut off believes that the container has ended")
	}
	for i := range 2 {
		in, feed := io.Pipe()
		var out buffer
		done := make(chan error, 1)
		go func() {
			done <- c.Attach(limit(t), kubelet.SPDY, remotecommand.StreamOptions{Stdin: in, Stdout: &out})
		}()
		fmt.Fprintf(feed, "line %d\n", i)
		out.await(t, fmt.Sprintf("got line %d\n", i))
		feed.Close() // which detaches, as stdin is to stay open
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	equal(t, "log", c.Output("stdout"), "up\ngot line 0\ngot line 1\n")
}

func TestBadStreamRequests(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("bad"))
	c, ended := p.Start(k.Forever("main")), p.Start(k.Shell("ended", "exit 0"))
	ended.WaitExit()
	out := remotecommand.StreamOptions{Stdout: io.Discard}
	_, err := ended.ExecURL(out, "true")
	wantError(t, err, failures, ended.ID, "exited")
	_, err = ended.AttachURL(out)
	wantError(t, err, failures, ended.ID, "exited")
	_, err = c.ExecURL(out)
	wantError(t, err, invalid, "cmd")
	_, err = c.ExecURL(remotecommand.StreamOptions{}, "true")
	wantError(t, err, invalid, "stdout")
	_, err = c.AttachURL(remotecommand.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard})
	wantError(t, err, failures, "without stdin")
	nobody := &kubelet.Container{Pod: p, ID: strings.Repeat("ab", 32), Spec: c.Spec}
	_, err = nobody.ExecURL(out, "true")
	wantError(t, err, notFound, nobody.ID)
	at, err := c.ExecURL(out, "true")
	if err != nil {
		t.Fatal(err)
	}
	c.Stop(0)
	if _, err := kubelet.SPDY.Stream(limit(t), at, out); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("the container ended before the client came: %v", err)
	}
	if _, err := kubelet.SPDY.Stream(limit(t), at, out); err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "one use") {
		t.Errorf("a token's second use: %v", err)
	}
}

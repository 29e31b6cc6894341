// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// alive tells whether the process whose number a fake wrote still runs; a zombie does not.
func (n *node) alive(file string) bool {
	n.t.Helper()
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(n.read(file)) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func (n *node) wantDead(file string) {
	n.t.Helper()
	for range 100 {
		if !n.alive(file) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	n.t.Errorf("the process of %s still runs", file)
}

func TestHangingAddIsKilledWithItsChildren(t *testing.T) {
	n := newNode(t)
	n.cfg.AddTimeout = 2 * time.Second // enough for a shell to come so far
	n.plugin("first", `[ $CNI_COMMAND != ADD ] || { echo waiting for the agent >&2; sleep 60 & echo $! > `+n.dir+`/child; wait; }`)
	n.write("1.conf", `{"name":"pods","type":"first"}`)
	net := n.start()
	started := time.Now()
	_, err := net.Attach(ctx, sandbox("aa11"))
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	wantError(t, err, "plugin first ADD", "no answer within ", "waiting for the agent")
	var failed *PluginError
	if !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &failed) || failed.Took < n.cfg.AddTimeout*4/5 {
		t.Errorf("error %#v", err)
	}
	n.wantDead("child")
	if err := net.Detach(ctx, sandbox("aa11")); err != nil {
		t.Error(err)
	}
	n.wantNothingCached(net)
}

func TestCallerWhoGoesAwayEndsThePlugin(t *testing.T) {
	n := newNode(t)
	n.plugin("first", `echo $$ > `+n.dir+`/child; sleep 60`)
	n.write("1.conf", `{"name":"pods","type":"first"}`)
	short, cancel := context.WithCancel(ctx)
	defer cancel()
	net, ended := n.start(), make(chan error, 1)
	go func() { _, err := net.Attach(short, sandbox("aa11")); ended <- err }()
	n.said("child", "\n")
	cancel()
	err := <-ended
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "no answer within") {
		t.Errorf("error %v", err)
	}
	n.wantDead("child")
}

func TestHangingDelDoesNotTakeTheTimeOfTheOthers(t *testing.T) {
	n := newNode(t)
	n.cfg.DelTimeout = 4 * time.Second // of which each has half
	n.plugin("first", answering("10.1.0.5/16"))
	n.plugin("second", passing+"\n[ $CNI_COMMAND != DEL ] || sleep 60")
	n.write("10-pods.conflist", twoPlugins("1.0.0"))
	net := n.start()
	if _, err := net.Attach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	n.calls()
	started := time.Now()
	err := net.Detach(ctx, sandbox("aa11"))
	wantError(t, err, "second DEL", "no answer within ")
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	n.wantCalls("second DEL", "first DEL")
	n.plugin("second", "")
	if err := net.Detach(ctx, sandbox("aa11")); err != nil {
		t.Error(err)
	}
	n.wantNothingCached(net)
}

func TestWaysToFail(t *testing.T) {
	for _, c := range []struct{ what, script, want string }{
		{"silent", `exit 3`, "exit status 3"},
		{"only stderr", `echo "no such device" >&2; exit 1`, "no such device"},
		{"not JSON", `echo Segmentation fault; exit 1`, "no CNI error: Segmentation fault"},
		{"killed", `kill -9 $$`, "signal: killed"},
		{"endless answer", `head -c 9000000 /dev/zero; exec sleep 0.1`, "answered more than 4194304 bytes"},
		{"endless stderr", `head -c 9000000 /dev/zero | tr '\0' x >&2; exit 1`, "exit status 1"},
	} {
		t.Run(c.what, func(t *testing.T) {
			n := newNode(t)
			n.plugin("first", c.script)
			n.write("1.conf", `{"name":"pods","type":"first"}`)
			_, err := n.start().Attach(ctx, sandbox("aa11"))
			wantError(t, err, "CNI plugin first ADD", c.want)
			if len(err.Error()) > 2*maxErrText {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestProcessLeftBehindDoesNotHoldUpTheAnswer(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16")+"\nsleep 5 &\necho $! > "+n.dir+"/child")
	n.write("1.conf", `{"name":"pods","type":"first","cniVersion":"1.0.0"}`)
	started := time.Now()
	if _, err := n.start().Attach(ctx, sandbox("aa11")); err != nil {
		t.Error(err)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if !n.alive("child") {
		t.Error("a plugin's own daemon was killed")
	}
	if err := exec.Command("kill", strings.TrimSpace(n.read("child"))).Run(); err != nil {
		t.Error(err)
	}
}

func TestPluginThatIsNoProgramIsNamed(t *testing.T) {
	n := newNode(t)
	n.write(filepath.Join(n.bin, "first"), "data")
	n.write("1.conf", `{"name":"pods","type":"first"}`)
	_, err := n.start().Attach(ctx, sandbox("aa11"))
	wantError(t, err, "CNI plugin first ADD", "permission denied")
}

// leftBy puts what a daemon that was killed during ADD leaves: an entry and a plugin that still runs.
func (n *node) leftBy(daemon, script string) *exec.Cmd {
	n.t.Helper()
	cache, err := openCache(n.cfg.CacheDir)
	if err != nil {
		n.t.Fatal(err)
	}
	e := entry{Kind: libcni.CNICacheV1, ContainerID: "aa11", Config: []byte(`{"name":"pods","plugins":[{"type":"first"}]}`), IfName: ifName,
		NetworkName: "pods", Berth: progress{Running: "ADD", Daemon: daemon}}
	if err := cache.write(e); err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env = []string{"A=1", "CNI_CONTAINERID=aa11", "PATH=/bin:/usr/bin"}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = cmd.Wait() })
	return cmd
}

func TestDetachWaitsForThePluginsOfAKilledDaemon(t *testing.T) {
	n := newNode(t)
	n.plugin("first", "")
	n.leftBy("earlier", `sleep 0.5; echo "left-over done" >> `+n.dir+`/calls`)
	if err := n.start().Detach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	n.wantCalls("left-over done", "first DEL")
}

func TestDetachKillsThePluginsOfAKilledDaemonThatHang(t *testing.T) {
	n := newNode(t)
	n.plugin("first", "")
	cmd := n.leftBy("earlier", `trap '' TERM; sleep 600`)
	other := exec.Command("sleep", "600")
	other.Env = []string{"CNI_CONTAINERID=aa112"} // another sandbox, whose ID begins alike
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	started := time.Now()
	if err := n.start().Detach(ctx, sandbox("aa11")); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took < patience || took > patience+time.Second {
		t.Errorf("it took %s", took)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the left-over ended with %v", err)
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Error("another sandbox's plugin was killed")
	}
	n.wantCalls("first DEL")
}

func TestPluginsAreStartedWhileTheyAreReplaced(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.write("1.conf", `{"name":"pods","type":"first","cniVersion":"1.0.0"}`)
	net := n.start()
	f, err := os.OpenFile(filepath.Join(n.bin, "first"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { _ = f.Close() })
	if _, err := net.Attach(ctx, sandbox("aa11")); err != nil {
		t.Error(err)
	}
}

func TestNoPluginIsAskedForItsVersion(t *testing.T) {
	n := newNode(t)
	n.plugin("first", answering("10.1.0.5/16"))
	n.write("1.conf", `{"name":"pods","type":"first","cniVersion":"1.0.0"}`)
	net := n.start()
	for i := range 3 {
		id := "a" + strconv.Itoa(i)
		if _, err := net.Attach(ctx, sandbox(id)); err != nil {
			t.Fatal(err)
		}
		if err := net.Detach(ctx, sandbox(id)); err != nil {
			t.Fatal(err)
		}
	}
	n.wantCalls("first ADD", "first DEL", "first ADD", "first DEL", "first ADD", "first DEL")
}

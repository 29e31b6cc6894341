// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadyNamesThePluginThatIsMissing(t *testing.T) {
	n := newNode(t)
	n.plugin("first", "")
	n.write("1.conflist", `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"first","ipam":{"type":"addresses"}},{"type":"second"}]}`)
	net := n.start()
	for _, name := range []string{"second", "addresses"} {
		err := net.Ready()
		wantError(t, err, name, n.bin, "1.conflist")
		if !errors.Is(err, ErrNotReady) || !errors.Is(err, ErrPluginNotFound) {
			t.Errorf("error %v", err)
		}
		n.plugin(name, "")
	}
	if err := net.Ready(); err != nil {
		t.Error(err)
	}
	n.wantCalls() // 1.0.0 has no STATUS
	if err := os.Remove(filepath.Join(n.bin, "first")); err != nil {
		t.Fatal(err)
	}
	wantError(t, net.Ready(), "first")
}

func TestReadyAsksPluginsThatHaveAStatus(t *testing.T) {
	n := newNode(t)
	n.plugin("first", `echo '{"code":4,"msg":"unknown CNI_COMMAND: STATUS"}'; exit 1`)
	n.plugin("second", `echo '{"code":50,"msg":"agent is down"}'; exit 1`)
	n.write("1.conflist", twoPlugins("1.1.0"))
	net := n.start()
	var err error
	for range 20 { // this machine may be slow
		if err = net.Ready(); err != nil && strings.Contains(err.Error(), "agent is down") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	wantError(t, err, "network pods", "second STATUS", "agent is down")
	if !errors.Is(err, ErrNotReady) {
		t.Errorf("%v is not ErrNotReady", err)
	}
	n.wantCalls("first STATUS", "second STATUS")
	for range 50 {
		if net.Ready() == nil {
			t.Error("ready all of a sudden")
		}
	}
	n.wantCalls() // the answer holds for a while
	n.plugin("second", "")
	time.Sleep(badFor)
	for range 100 {
		if err = net.Ready(); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("the agent is up, but %v", err)
	}
}

func TestReadyDoesNotWaitForAPluginThatHangs(t *testing.T) {
	n := newNode(t)
	n.cfg.CheckTimeout = 2 * time.Second
	n.plugin("first", "sleep 60")
	n.plugin("second", "")
	n.write("1.conflist", twoPlugins("1.1.0"))
	net := n.start()
	for range 3 {
		started := time.Now()
		err := net.Ready()
		if took := time.Since(started); took > n.cfg.CheckTimeout*9/10 {
			t.Errorf("it took %s", took)
		}
		wantError(t, err, "STATUS")
	}
	n.wantCalls("first STATUS") // once, not three times
	within(t, "told that it hangs", func() bool {
		err := net.Ready()
		return err != nil && strings.Contains(err.Error(), "first STATUS") && strings.Contains(err.Error(), "no answer within")
	})
}

func TestReadyForgetsTheAnswerOfAnotherConfiguration(t *testing.T) {
	n := newNode(t)
	n.plugin("first", `case "$conf" in *'"bad"'*) echo '{"code":50,"msg":"down"}'; exit 1;; esac`)
	n.plugin("second", "")
	n.write("1.conflist", strings.Replace(twoPlugins("1.1.0"), "pods", "bad", 1))
	net := n.start()
	within(t, "not ready", func() bool { err := net.Ready(); return err != nil && strings.Contains(err.Error(), "down") })
	n.write("1.conflist", twoPlugins("1.1.0"))
	within(t, "ready with another file", func() bool { return net.Ready() == nil })
}

func TestCloseEndsAStatusThatHangs(t *testing.T) {
	n := newNode(t)
	n.plugin("first", "echo $$ > "+n.dir+"/child; exec sleep 60")
	n.plugin("second", "")
	n.write("1.conflist", twoPlugins("1.1.0"))
	net, err := New(n.cfg, discard)
	if err != nil {
		t.Fatal(err)
	}
	within(t, "asked", func() bool { _ = net.Ready(); _, err := os.Stat(n.dir + "/child"); return err == nil })
	started := time.Now()
	if err := net.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	n.wantDead("child")
}

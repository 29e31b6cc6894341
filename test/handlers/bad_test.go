// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// badNode is a daemon with a shim made of shell. What $last, the action, is, tells the shell.
func badNode(t *testing.T, text string) (k *kubelet.Kubelet, program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "containerd-shim-bad-v1")
	if err := os.WriteFile(program, []byte("#!/bin/sh\nfor a; do last=$a; done\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	k = node(t, handler{name: "bad", config: fmt.Sprintf("type = \"shim\"\npath = %q\n", program)})
	return k, program
}

// good starts a container of the default handler, which nothing may affect.
func good(k *kubelet.Kubelet) *kubelet.Container {
	other := *k
	other.Handler = ""
	return other.RunPod(other.PodConfig("good")).Start(other.Forever("main"))
}

func TestShimsThatDoNotStart(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a later version":  {`[ $last = start ] && echo '{"version":9,"address":"unix:///x","protocol":"ttrpc"}'; exit 0`, "version 9 of the shim protocol; 2 and 3"},
		"an earlier one":   {`[ $last = start ] && echo '{"version":1,"address":"unix:///x"}'; exit 0`, "version 1 of the shim protocol; 2 and 3"},
		"no version":       {`[ $last = start ] && echo '{"address":"unix:///x"}'; exit 0`, "version 0 of the shim protocol; 2 and 3"},
		"gRPC":             {`[ $last = start ] && echo '{"version":3,"address":"unix:///x","protocol":"grpc"}'; exit 0`, "it speaks grpc; only ttrpc"},
		"a virtual socket": {`[ $last = start ] && echo '{"version":3,"address":"vsock://3:1024","protocol":"ttrpc"}'; exit 0`, "is not a unix socket's"},
		"half an object":   {`[ $last = start ] && echo '{"version":3,'; exit 0`, "is no address"},
		"garbage":          {`[ $last = start ] && echo hello; exit 0`, `"hello" is no address`},
		"nobody listens":   {`[ $last = start ] && echo unix:///no/such/socket; exit 0`, "/no/such/socket"},
		"words":            {`echo no hardware >&2; exit 3`, "no hardware"},
		"killed":           {`kill -9 $$`, "signal: killed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, _ := badNode(t, c.text)
			g := good(k)
			_, err := k.TryRunPod(k.PodConfig("bad"))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			g.Exec("true")
		})
	}
}

func TestAShimsProgramThatIsGone(t *testing.T) {
	k, program := badNode(t, "exit 1")
	g := good(k)
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	if _, err := k.TryRunPod(k.PodConfig("bad")); err == nil || !strings.Contains(err.Error(), program) {
		t.Errorf("got %v", err)
	}
	g.Exec("true")
	d, err := daemon.New(k.Ctx(), daemon.Spec{Config: fmt.Sprintf("\n[runtimes.bad]\ntype = \"shim\"\npath = %q\n", program)})
	if err == nil {
		t.Error("a daemon with a handler whose program is missing serves")
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestAShimThatHangs is about a daemon that is killed meanwhile: the next one must serve at once, and clear up.
func TestAShimThatHangs(t *testing.T) {
	marker := filepath.Join(t.TempDir(), "started")
	k, _ := badNode(t, fmt.Sprintf("[ $last = start ] || exit 0\ntouch %s; exec sleep 1000", marker))
	g := good(k)
	done := make(chan error, 1)
	go func() {
		_, err := k.TryRunPod(k.PodConfig("bad"))
		done <- err
	}()
	kubelet.Eventually(t, 20*time.Second, func() string {
		if _, err := os.Stat(marker); err != nil {
			return err.Error()
		}
		return ""
	})
	g.Exec("true")
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the request of a daemon that was killed succeeded")
	}
	begin := time.Now()
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	t.Logf("the next daemon serves after %s", time.Since(begin))
	g.Exec("true")
}

// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/kubelet"
)

func limit(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestTheKernelIsTheHandlers(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		c := k.RunPod(k.PodConfig("pod")).Start(k.Forever("main"))
		version := c.Exec("uname -v; cat /proc/version")
		if got := strings.Contains(c.Exec("dmesg 2>&1 || true"), "gVisor"); got != h.gvisor {
			t.Errorf("dmesg tells of gVisor: %t; uname and /proc/version: %s", got, version)
		}
	})
}

func TestStreams(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		p := k.RunPod(k.PodConfig("pod"))
		config := k.Shell("main", `while read line; do echo "got $line"; echo "err $line" >&2; done; echo end; exit 6`)
		config.Stdin, config.StdinOnce = true, true
		c := p.Start(config)
		for _, tr := range kubelet.Transports {
			var out, errOut bytes.Buffer
			big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
			code, err := c.StreamExec(limit(t), tr, remotecommand.StreamOptions{Stdin: strings.NewReader(big), Stdout: &out, Stderr: &errOut},
				"sh", "-c", "cat; echo done >&2; exit 4")
			if err != nil || code != 4 || out.String() != big || errOut.String() != "done\n" {
				t.Errorf("%s: exec: code %d, %v, %d bytes, %q", tr, code, err, out.Len(), errOut.String())
			}
		}
		t.Run("attach", func(t *testing.T) { attach(t, c) })
		if st := c.WaitExit(); st.ExitCode != 6 {
			t.Errorf("exit code after the end of stdin: %d", st.ExitCode)
		}
		if got := c.Output("stdout"); got != "got one\ngot two\nend\n" {
			t.Errorf("log: %q", got)
		}
	})
}

// attach ends the container's standard input with its session.
func attach(t *testing.T, c *kubelet.Container) {
	var out, errOut bytes.Buffer
	in, feed := io.Pipe()
	go func() {
		for _, line := range []string{"one\n", "two\n"} {
			if _, err := feed.Write([]byte(line)); err != nil {
				return
			}
		}
		feed.Close()
	}()
	if err := c.Attach(limit(t), kubelet.WebSocket, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: &errOut}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "got one\ngot two\nend\n" || errOut.String() != "err one\nerr two\n" {
		t.Errorf("attached: %q, %q", out.String(), errOut.String())
	}
}

func TestPortForward(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		p := k.RunPod(k.PodConfig("pod"))
		p.Start(k.Shell("main", "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 8080 -h /www"))
		page := func(at string) string {
			body, err := get(at)
			if err != nil || body != "hello\n" {
				return fmt.Sprintf("at %s: %q, %v", at, body, err)
			}
			return ""
		}
		// First the server must listen: client-go ends a session whose first connection is refused.
		kubelet.Eventually(t, 20*time.Second, func() string { return page(net.JoinHostPort(p.IP(), "8080")) })
		f, err := p.Forward(kubelet.SPDY, 8080)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Stop()
		if problem := page(f.Local); problem != "" {
			t.Error(problem)
		}
	})
}

func containerStats(t *testing.T, k *kubelet.Kubelet) []*cri.ContainerStats {
	t.Helper()
	r, err := k.D.Runtime.ListContainerStats(k.Ctx(), &cri.ListContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetStats()
}

// TestPortForwardToLocalhost: the server listens on 127.0.0.1 only.
func TestPortForwardToLocalhost(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		p := k.RunPod(k.PodConfig("pod"))
		c := p.Start(k.Shell("main", "mkdir /www; echo hello >/www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"))
		kubelet.Eventually(t, 20*time.Second, func() string {
			if c.Exec("wget -q -O - http://127.0.0.1:8080/index.html || true") != "hello" {
				return "the server does not answer in its container"
			}
			return ""
		})
		for _, port := range []int{8080, 8081} {
			f, err := p.Forward(kubelet.SPDY, port)
			if err != nil {
				t.Fatal(err)
			}
			page, err := get(f.Local)
			f.Stop()
			reached := port == 8080 && !slices.Contains(h.no, "localhost")
			if reached && (err != nil || page != "hello\n") {
				t.Errorf("port %d: %q, %v", port, page, err)
			}
			if !reached && err == nil {
				t.Errorf("port %d: %q, where nothing listens", port, page)
			}
		}
	})
}

// get asks for the page of the servers in these tests.
func get(at string) (string, error) {
	r, err := (&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + at + "/index.html")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<10))
	return string(body), err
}

func TestStats(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		p := k.RunPod(k.PodConfig("pod"))
		c := p.Start(k.Shell("main", `i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo ready; trap "exit 0" TERM; while :; do sleep 1000 & wait; done`))
		c.WaitOutput("ready\n")
		r, err := k.D.Runtime.PodSandboxStats(k.Ctx(), &cri.PodSandboxStatsRequest{PodSandboxId: p.ID})
		if err != nil {
			t.Fatal(err)
		}
		linux := r.Stats.GetLinux()
		if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || linux.GetMemory().GetUsageBytes().GetValue() == 0 {
			t.Errorf("the pod's figures: %v", linux)
		}
		s, err := k.D.Runtime.ContainerStats(k.Ctx(), &cri.ContainerStatsRequest{ContainerId: c.ID})
		if err != nil {
			t.Fatal(err)
		}
		if s.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
			t.Errorf("the container's figures: %v", s.Stats)
		}
		for _, list := range [][]*cri.ContainerStats{linux.GetContainers(), containerStats(t, k)} {
			if len(list) != 1 || list[0].GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || list[0].GetMemory().GetWorkingSetBytes().GetValue() == 0 {
				t.Errorf("in a list: %v", list)
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

// Package monitoring has a real Prometheus scrape a real daemon, with the rules of contrib/monitoring, and asks it what the
// dashboards there ask. It needs root, the programs in bin/ (make), and Debian's package prometheus.
package monitoring

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

const contrib = "../../contrib/monitoring"

// quietPanels have nothing to show on a node on which all is well, or that has no kernel log to read.
var quietPanels = map[string]bool{"Errors of the runtime": true, "Errors by operation and code": true, "Stages that fail": true, "Seccomp denials": true,
	"Image garbage collection": true}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// prometheus runs one until the test ends.
type prometheus struct {
	t   *testing.T
	url string
}

func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	dir, address := t.TempDir(), freePort(t)
	rules, err := filepath.Abs(contrib + "/berth.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [%s]\nscrape_configs: [{job_name: berth, static_configs: [{targets: [%q]}]}]\n",
		rules, target)
	if err := os.WriteFile(dir+"/prometheus.yml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("prometheus", "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+dir+"/data", "--web.listen-address="+address,
		"--enable-feature=exemplar-storage")
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = out, out, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err, ": install Debian's package prometheus")
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
		out.Close()
		if log, err := os.ReadFile(dir + "/log"); t.Failed() && err == nil {
			t.Logf("%.4000s", log)
		}
	})
	return &prometheus{t, "http://" + address}
}

// get asks the API and decodes the answer's data; it tells what went wrong.
func (p *prometheus) get(path string, query url.Values, data any) error {
	r, err := http.Get(p.url + path + "?" + query.Encode())
	if err != nil {
		return err
	}
	defer r.Body.Close()
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.Unmarshal(raw, &answer); err != nil || answer.Status != "success" {
		return fmt.Errorf("%s: %s %w", r.Status, answer.Error, err)
	}
	return nil
}

func (p *prometheus) query(expr string) (results int, err error) {
	var data struct{ Result []any }
	err = p.get("/api/v1/query", url.Values{"query": {expr}}, &data)
	return len(data.Result), err
}

func TestARealPrometheusUnderstandsTheDaemon(t *testing.T) {
	address := freePort(t)
	k := busyNode(t, address)
	p := startPrometheus(t, address)
	kubelet.Eventually(t, time.Minute, func() string {
		if n, err := p.query(`count_over_time(berth_build_info[1m]) > 4`); err != nil || n != 1 {
			return fmt.Sprintf("not scraped five times: %v", err)
		}
		return ""
	})
	work(k, 2) // rates need something to have happened between two scrapes
	kubelet.Eventually(t, time.Minute, func() string {
		if n, err := p.query(`increase(berth_stage_duration_seconds_count{stage="task",action="setup"}[30s]) > 0`); err != nil || n != 1 {
			return fmt.Sprintf("no work seen: %v", err)
		}
		return ""
	})
	p.targetsAreUp()
	p.rulesAreHealthy()
	boards, err := filepath.Glob(contrib + "/grafana/dashboards/*.json")
	if err != nil || len(boards) == 0 {
		t.Fatal(boards, err)
	}
	for _, file := range boards {
		p.answers(file)
	}
}

func busyNode(t *testing.T, address string) *kubelet.Kubelet {
	t.Helper()
	images, ref, err := registry.NewWithBusybox()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(images.Close)
	k := &kubelet.Kubelet{T: t, D: daemon.Start(t, daemon.Spec{Config: fmt.Sprintf("[metrics]\naddress = %q\n", address)})}
	if err := k.D.WaitNetwork(k.Ctx(), true); err != nil {
		t.Fatal(err)
	}
	k.Image = k.Pull(ref)
	work(k, 1)
	return k
}

// work is a bit of everything that is measured.
func work(k *kubelet.Kubelet, n int) {
	k.T.Helper()
	p := k.RunPod(k.PodConfig(fmt.Sprintf("busy%d", n)))
	c := p.Start(k.Forever("main"))
	c.Exec("true")
	r, err := k.D.Images.ListImages(k.Ctx(), &cri.ListImagesRequest{})
	images := kubelet.Must(k, r, err).GetImages()
	k.Pull(images[0].GetRepoTags()[0])
	var out strings.Builder
	if code, err := c.StreamExec(k.Ctx(), kubelet.WebSocket, remotecommand.StreamOptions{Stdout: &out}, "echo", "x"); err != nil || code != 0 {
		k.T.Error(code, err)
	}
}

func (p *prometheus) targetsAreUp() {
	p.t.Helper()
	var targets struct {
		ActiveTargets []struct{ Health, LastError string }
	}
	if err := p.get("/api/v1/targets", nil, &targets); err != nil || len(targets.ActiveTargets) != 1 {
		p.t.Fatal(targets, err)
	}
	if target := targets.ActiveTargets[0]; target.Health != "up" {
		p.t.Errorf("target: %+v", target)
	}
}

func (p *prometheus) rulesAreHealthy() {
	p.t.Helper()
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Health, State, LastError string }
		}
	}
	if err := p.get("/api/v1/rules", nil, &rules); err != nil {
		p.t.Fatal(err)
	}
	n := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if n++; r.Health != "ok" || r.State == "firing" {
				p.t.Errorf("rule: %+v", r)
			}
		}
	}
	if n == 0 {
		p.t.Error("no rules")
	}
}

// answers asks what a dashboard asks.
func (p *prometheus) answers(file string) {
	p.t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &board); err != nil {
		p.t.Fatal(err)
	}
	values := strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m")
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			n, err := p.query(values.Replace(target.Expr))
			if err != nil || n == 0 && !quietPanels[panel.Title] {
				p.t.Errorf("%s, %s: %d results, %v: %s", filepath.Base(file), panel.Title, n, err, target.Expr)
			}
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/berth-run/berth/internal/image"
)

const monitoring = "../../contrib/monitoring"

// everything is one sample of each metric, as the text format has them.
func everything(t *testing.T) string {
	t.Helper()
	m, do, _ := served(t, false)
	m.Observe(t.Context(), "RunPodSandbox", codes.Internal, time.Second)
	m.Stage(t.Context(), "sandbox", "network", false, time.Second, nil)
	m.PluginRan(t.Context(), "bridge", "ADD", time.Second, nil)
	m.StreamOpened("exec", time.Second)
	m.Pulled(image.PullReport{Context: t.Context(), Err: errors.New("no")})
	m.Collected(time.Second, nil)
	_, text := do("GET", "/metrics", "")
	return text
}

func expressions(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	boards, err := filepath.Glob(monitoring + "/grafana/dashboards/*.json")
	if err != nil || len(boards) != 3 {
		t.Fatalf("dashboards %q, %v", boards, err)
	}
	for _, file := range boards {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var board struct {
			UID    string
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(raw, &board); err != nil || board.UID == "" || len(board.Panels) == 0 {
			t.Errorf("%s: %v", file, err)
		}
		for _, p := range board.Panels {
			for _, target := range p.Targets {
				out[board.UID+": "+p.Title] += target.Expr + "\n"
			}
		}
	}
	raw, err := os.ReadFile(monitoring + "/berth.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	out["rules"] = string(raw)
	return out
}

// TestDashboardsAndRulesNameMetricsThatThereAre keeps a renamed metric from leaving an empty panel or an alert that never fires.
func TestDashboardsAndRulesNameMetricsThatThereAre(t *testing.T) {
	text, all := everything(t), expressions(t)
	recorded := regexp.MustCompile(`record: (\S+)`).FindAllStringSubmatch(all["rules"], -1)
	known := map[string]bool{}
	for _, r := range recorded {
		known[r[1]] = true
	}
	for _, line := range strings.Split(text, "\n") {
		name, _, _ := strings.Cut(line, " ")
		name, _, _ = strings.Cut(name, "{")
		known[name] = true
	}
	names := regexp.MustCompile(`\b(?:container_runtime|berth|process|go)[_:][a-z0-9_:]*[a-z0-9]\b`)
	for where, expr := range all {
		used := names.FindAllString(expr, -1)
		if len(used) == 0 && !strings.Contains(expr, "ALERTS") {
			t.Errorf("%s names no metric: %s", where, expr)
		}
		for _, name := range used {
			if !known[name] && name != "go_version" {
				t.Errorf("%s names %s, which the daemon does not have", where, name)
			}
		}
	}
}

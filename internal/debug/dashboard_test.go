// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// board is a dashboard as Grafana stores it: https://grafana.com/docs/grafana/latest/visualizations/dashboards/build-dashboards/view-dashboard-json-model/
type board struct {
	UID, Title    string
	SchemaVersion int
	Time          struct{ From, To string }
	Templating    struct {
		List []struct {
			Name, Type string
			Datasource *source
		}
	}
	Panels []panel
}

type source struct{ Type, UID string }

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               source
	GridPos                  struct{ H, W, X, Y int }
	Targets                  []struct {
		RefID, Expr string
		Datasource  *source
	}
	FieldConfig struct {
		Defaults struct {
			Unit       string
			Thresholds *struct {
				Mode  string
				Steps []struct {
					Color string
					Value *float64
				}
			}
		}
	}
}

// panelTypes are those of Grafana itself that the dashboards use: no plugin is to be installed.
var panelTypes = map[string]bool{"stat": true, "timeseries": true, "table": true, "row": true, "text": true}

// units are names of Grafana's (packages/grafana-data, valueFormats/categories.ts); another one would be shown behind the figure as it is.
var units = map[string]bool{"": true, "none": true, "short": true, "s": true, "ms": true, "bytes": true, "Bps": true, "binBps": true, "percentunit": true, "percent": true,
	"ops": true, "reqps": true, "cps": true, "dateTimeAsIso": true, "dateTimeFromNow": true}

const columns = 24

// TestDashboardsAreWhatGrafanaReads checks what Grafana would refuse or show wrongly without a word: it cannot be run here.
func TestDashboardsAreWhatGrafanaReads(t *testing.T) {
	files, err := filepath.Glob(monitoring + "/grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	seen := map[string]string{}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var b board
			if err := json.Unmarshal(raw, &b); err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile(`^[a-zA-Z0-9_-]{1,40}$`).MatchString(b.UID) || b.Title == "" || seen[b.UID]+seen[b.Title] != "" {
				t.Errorf("uid %q and title %q: wrong or taken", b.UID, b.Title)
			}
			seen[b.UID], seen[b.Title] = file, file
			if b.SchemaVersion < 36 || b.Time.From == "" || b.Time.To == "" { // 36: data sources are objects
				t.Errorf("schema %d, time %+v", b.SchemaVersion, b.Time)
			}
			b.checkVariables(t, string(raw))
			for i, p := range b.Panels {
				p.check(t)
				for _, other := range b.Panels[:i] {
					if p.ID == other.ID || p.overlaps(other) {
						t.Errorf("panels %q and %q have one ID or place", p.Title, other.Title)
					}
				}
			}
		})
	}
}

// checkVariables finds variables that are used and not declared: Grafana would send their names to Prometheus.
func (b *board) checkVariables(t *testing.T, raw string) {
	t.Helper()
	declared := map[string]bool{}
	for _, v := range b.Templating.List {
		declared[v.Name] = true
		if v.Type != "datasource" && v.Type != "query" {
			t.Errorf("variable %s is of type %q", v.Name, v.Type)
		}
	}
	for _, m := range regexp.MustCompile(`\$\{?([A-Za-z_]\w*)`).FindAllStringSubmatch(raw, -1) {
		if !declared[m[1]] && !strings.HasPrefix(m[1], "__") {
			t.Errorf("variable %s is not declared", m[1])
		}
	}
}

func (p *panel) check(t *testing.T) {
	t.Helper()
	if p.ID <= 0 || p.Title == "" || !panelTypes[p.Type] {
		t.Errorf("panel %d %q of type %q", p.ID, p.Title, p.Type)
	}
	if g := p.GridPos; g.W <= 0 || g.H <= 0 || g.X < 0 || g.Y < 0 || g.X+g.W > columns {
		t.Errorf("%s: place %+v", p.Title, g)
	}
	if p.Type == "row" || p.Type == "text" {
		return
	}
	if p.Datasource.Type != "prometheus" || !strings.HasPrefix(p.Datasource.UID, "$") { // else it shows on one Grafana only
		t.Errorf("%s: data source %+v", p.Title, p.Datasource)
	}
	if !units[p.FieldConfig.Defaults.Unit] {
		t.Errorf("%s: unit %q", p.Title, p.FieldConfig.Defaults.Unit)
	}
	refs := map[string]bool{}
	for _, target := range p.Targets {
		if target.RefID == "" || refs[target.RefID] || strings.TrimSpace(target.Expr) == "" {
			t.Errorf("%s: query %q: %q", p.Title, target.RefID, target.Expr)
		}
		refs[target.RefID] = true
	}
	if len(refs) == 0 {
		t.Errorf("%s has no query", p.Title)
	}
	if th := p.FieldConfig.Defaults.Thresholds; th != nil {
		for i, step := range th.Steps {
			if step.Color == "" || (step.Value == nil) != (i == 0) || i > 1 && *step.Value <= *th.Steps[i-1].Value {
				t.Errorf("%s: threshold %d", p.Title, i)
			}
		}
	}
}

func (p *panel) overlaps(o panel) bool {
	a, b := p.GridPos, o.GridPos
	return a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H
}

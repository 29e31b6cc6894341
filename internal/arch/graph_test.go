// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// graph is who imports whom, tests left out.
type graph map[string][]string

// ours are the project's own packages in g, without the module's path.
func (g graph) ours() []string {
	var names []string
	for path := range g {
		if name, ok := strings.CutPrefix(path, module); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// loadGraph asks the go command about every package of the module that holds dir, and all that they reach.
func loadGraph(dir string) (graph, error) {
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Imports,Error,DepOnly,Standard", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, &stderr)
	}
	g := graph{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
			Error      *struct{ Err string }
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return g, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if p.Error != nil && !strings.Contains(p.Error.Err, "build constraints exclude all Go files") {
			return nil, fmt.Errorf("go list: %s: %s", p.ImportPath, p.Error.Err)
		}
		g[p.ImportPath] = p.Imports
	}
}

// violation is one broken rule.
type violation struct{ subject, does, rule, why string }

func (v violation) String() string {
	return fmt.Sprintf("%s %s\n\trule: %s\n\twhy:  %s", v.subject, v.does, v.rule, v.why)
}

// below tells whether path is root or a package under it.
func below(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

// floorOf is the longest entry that path stands under.
func floorOf(path string) *floor {
	var best *floor
	for i := range floors {
		if f := &floors[i]; below(path, f.path) && (best == nil || len(f.path) > len(best.path)) {
			best = f
		}
	}
	return best
}

// checkFloors holds the project's packages to the floors.
func checkFloors(g graph) []violation {
	var found []violation
	for _, name := range g.ours() {
		f := floorOf(name)
		if f == nil {
			found = append(found, violation{name, "has no floor", "every package stands on a floor",
				"without one nothing holds its imports: add it to floors in internal/arch/rules_test.go"})
			continue
		}
		for _, path := range g[module+name] {
			if imported, ok := strings.CutPrefix(path, module); ok {
				found = append(found, checkImport(name, f, imported)...)
			}
		}
	}
	return found
}

func checkImport(name string, f *floor, imported string) []violation {
	to := floorOf(imported)
	switch {
	case to == nil || to == f:
		return nil // the first is told about itself
	case f.only != nil && !slices.ContainsFunc(f.only, func(o string) bool { return below(imported, o) }):
		return []violation{{name, "imports " + imported,
			fmt.Sprintf("of the project's packages it may import only %s", listOr(f.only, "none")), f.why}}
	case f.only == nil && to.level == f.level:
		return []violation{{name, "imports " + imported, fmt.Sprintf("packages of one floor (%d) do not know each other", f.level), f.why}}
	case to.level > f.level:
		return []violation{{name, "imports " + imported,
			fmt.Sprintf("floor %d imports only lower floors, and %s is on %d", f.level, to.path, to.level), f.why}}
	}
	return nil
}

// checkDoors holds the project's packages to the library boundaries.
func checkDoors(g graph, doors []door) []violation {
	var found []violation
	for _, name := range g.ours() {
		if below(name, "test") {
			continue
		}
		for _, path := range g[module+name] {
			var best *door
			for i := range doors {
				if d := &doors[i]; below(path, d.lib) && (best == nil || len(d.lib) > len(best.lib)) {
					best = d
				}
			}
			inside := best != nil && below(module+name, best.lib)
			if best == nil || inside || slices.ContainsFunc(best.by, func(by string) bool { return below(name, by) }) {
				continue
			}
			found = append(found, violation{name, "imports " + path, "only " + listOr(best.by, "nobody") + " may import " + best.lib, best.why})
		}
	}
	return found
}

// checkBans follows the imports as far as they go.
func checkBans(g graph, bans []ban) []violation {
	var found []violation
	for _, b := range bans {
		for _, start := range g.ours() {
			if b.from != "" && start != b.from || b.from == "" && below(start, "test") {
				continue
			}
			if chain := reach(g, module+start, b); chain != nil {
				found = append(found, violation{start, "reaches " + strings.Join(chain[1:], " → "), "it must not link " + b.lib, b.why})
			}
		}
	}
	return found
}

// reach is the shortest chain of imports from start to what b forbids, or nil.
func reach(g graph, start string, b ban) []string {
	from := map[string]string{start: ""}
	for queue := []string{start}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at != start && below(at, b.lib) && !slices.Contains(b.but, at) {
			var chain []string
			for ; at != ""; at = from[at] {
				chain = append(chain, at)
			}
			slices.Reverse(chain)
			return chain
		}
		for _, next := range g[at] {
			if _, seen := from[next]; !seen {
				from[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}

func listOr(list []string, none string) string {
	if len(list) == 0 {
		return none
	}
	return strings.Join(list, ", ")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

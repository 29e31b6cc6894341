// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The tests of this file hold the checkers themselves: each rule is broken once, and must be told.

// imports makes a graph; names without a dot in their first part are the project's own.
func imports(edges map[string][]string) graph {
	own := func(name string) string {
		if strings.HasPrefix(name, "internal/") || strings.HasPrefix(name, "cmd/") || strings.HasPrefix(name, "test/") {
			return module + name
		}
		return name
	}
	g := graph{}
	for from, tos := range edges {
		g[own(from)] = nil
		for _, to := range tos {
			g[own(from)] = append(g[own(from)], own(to))
		}
	}
	return g
}

// tells checks that one violation is found, with those words in it; no words: that none is found.
func tells(t *testing.T, found []violation, words ...string) {
	t.Helper()
	if len(words) == 0 {
		if len(found) > 0 {
			t.Errorf("found %v", found)
		}
		return
	}
	if len(found) != 1 {
		t.Fatalf("%d violations, want 1: %v", len(found), found)
	}
	for _, w := range words {
		if !strings.Contains(found[0].String(), w) {
			t.Errorf("%q is not in: %s", w, found[0])
		}
	}
}

func TestFloorsAreChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		from  string
		to    string
		words []string
	}{
		"down":                         {"internal/pod", "internal/step", nil},
		"own sub-package":              {"internal/linux/cgroup", "internal/linux/proc", nil},
		"up":                           {"internal/step", "internal/pod", []string{"internal/step imports internal/pod", "floor 1 imports only lower floors", "roll-back engine"}},
		"side":                         {"internal/image", "internal/network", []string{"packages of one floor (3) do not know each other", "pod combines them"}},
		"the kernel's door":            {"internal/linux/mount", "internal/step", []string{"floor 0 imports only lower floors"}},
		"no floor":                     {"internal/stuff", "internal/step", []string{"internal/stuff has no floor", "rules_test.go"}},
		"the shim's tower":             {"internal/shim", "internal/shimapi", nil},
		"the shim and the daemon":      {"internal/shim", "internal/telemetry", []string{"may import only internal/shimapi, internal/record, internal/linux", "once per pod"}},
		"config is data":               {"internal/config", "internal/step", []string{"may import only none"}},
		"command line is a client":     {"internal/cli", "internal/pod", []string{"a CRI client like any other"}},
		"command line serves":          {"internal/cli", "internal/daemon", nil},
		"nothing that ships has tests": {"internal/daemon", "test/leak", []string{"floor 7 imports only lower floors"}},
		"tests may use everything":     {"test/fault", "internal/shim", nil},
		"similar names are not below":  {"internal/podx", "internal/step", []string{"has no floor"}},
	} {
		t.Run(name, func(t *testing.T) {
			tells(t, checkFloors(imports(map[string][]string{tc.from: {tc.to}})), tc.words...)
		})
	}
}

func TestDoorsAreChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		from  string
		to    string
		words []string
	}{
		"the owner":                  {"internal/linux/mount", "golang.org/x/sys/unix", nil},
		"another":                    {"internal/pod", "golang.org/x/sys/unix", []string{"internal/pod imports golang.org/x/sys/unix", "only internal/linux may", "one door to the kernel"}},
		"a package below the lib":    {"internal/cri", "github.com/containerd/containerd/v2/core/content", []string{"only internal/image may"}},
		"the longest rule decides":   {"internal/image", "github.com/containerd/containerd/v2/client", []string{"only nobody may", "running containerd"}},
		"a library without a rule":   {"internal/pod", "golang.org/x/sync/errgroup", nil},
		"a similar name is no match": {"internal/pod", "golang.org/x/sys/unixx", nil},
		"test/ is free":              {"test/leak", "golang.org/x/sys/unix", nil},
	} {
		t.Run(name, func(t *testing.T) {
			tells(t, checkDoors(imports(map[string][]string{tc.from: {tc.to}}), doors), tc.words...)
		})
	}
	tells(t, checkDoors(imports(map[string][]string{"internal/cri": {"internal/daemon"}}), private), "only internal/cli, test may")
	tells(t, checkDoors(imports(map[string][]string{"internal/shim/x": {"internal/shim"}}), private))
}

func TestBansFollowTheImports(t *testing.T) {
	clean := map[string][]string{
		"cmd/berth-shim":               {"internal/shim"},
		"internal/shim":                {"github.com/containerd/ttrpc"},
		"github.com/containerd/ttrpc":  {"google.golang.org/grpc/codes", "net"},
		"google.golang.org/grpc/codes": {"fmt"},
		"internal/daemon":              {"google.golang.org/grpc", "net/http"},
	}
	tells(t, checkBans(imports(clean), bans))
	clean["github.com/containerd/ttrpc"] = []string{"a.io/x"}
	clean["a.io/x"] = []string{"net/http"}
	tells(t, checkBans(imports(clean), bans), "cmd/berth-shim reaches "+module+"internal/shim → github.com/containerd/ttrpc → a.io/x → net/http",
		"must not link net/http", "1.0 MB")
	clean["a.io/x"] = []string{"google.golang.org/grpc/credentials"}
	tells(t, checkBans(imports(clean), bans), "must not link google.golang.org/grpc")
	tells(t, checkBans(imports(map[string][]string{"internal/runtime": {"b.io/y"}, "b.io/y": {"github.com/containerd/containerd/api/runtime/task/v3"}}), bans),
		"internal/runtime reaches b.io/y", "dies at its start")
}

// text is a Go file of that many lines in one function.
func text(head string, lines int) string {
	return head + "package p\n\nfunc (t *T[K]) F() {\n" + strings.Repeat("\tx()\n", lines) + "}\n"
}

func parsed(t *testing.T, files map[string]string) []source {
	t.Helper()
	var all []source
	for _, name := range sortedKeys(files) {
		s, err := parseSource(name, []byte(files[name]))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func TestFilesAreChecked(t *testing.T) {
	head := spdx + "\n\n"
	long := map[string]string{"a/b.go:T.F": "a table"}
	for name, tc := range map[string]struct {
		file, text string
		functions  map[string]string
		words      []string
	}{
		"good":              {"a/b.go", text(head, maxFunctionLines), nil, nil},
		"no licence":        {"a/b.go", text("", 1), nil, []string{"a/b.go does not begin with the licence line"}},
		"licence too late":  {"a/b.go", text("\n"+head, 1), nil, []string{"licence line"}},
		"generated":         {"a/b.pb.go", text("// Code generated by x. DO NOT EDIT.\n", 600), nil, nil},
		"long function":     {"a/b.go", text(head, maxFunctionLines+1), nil, []string{"a/b.go:T.F has 61 lines", "at most 60 lines"}},
		"excepted":          {"a/b.go", text(head, maxFunctionLines+1), long, nil},
		"needless":          {"a/b.go", text(head, 1), long, []string{"excepted in longFunctions without need"}},
		"long file":         {"a/b.go", text(head, 1) + strings.Repeat("\n", 500), nil, []string{"a/b.go has 507 lines"}},
		"tests may be long": {"a/b_test.go", text(head, 600), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			tells(t, checkFiles(parsed(t, map[string]string{tc.file: tc.text}), nil, tc.functions), tc.words...)
		})
	}
}

func TestPackagesAreChecked(t *testing.T) {
	const comment, plain = "// Package p is.\npackage p\n", "package p\n"
	generated := "// Code generated by x. DO NOT EDIT.\n\n" + plain
	for name, tc := range map[string]struct {
		files map[string]string
		words []string
	}{
		"good":             {map[string]string{"p/a.go": comment, "p/b.go": plain, "p/a_test.go": plain}, nil},
		"none":             {map[string]string{"p/a.go": plain, "p/a_test.go": comment}, []string{"p has no package comment"}},
		"two":              {map[string]string{"p/a.go": comment, "p/b.go": comment}, []string{"p/a.go and p/b.go"}},
		"only tests":       {map[string]string{"p/a_test.go": comment}, nil},
		"only tests, none": {map[string]string{"p/a_test.go": plain}, []string{"no package comment"}},
		"generated":        {map[string]string{"p/a.pb.go": generated}, nil},
		"name":             {map[string]string{"x/util/a.go": "// Package util is.\npackage util\n"}, []string{"x/util is called util"}},
		"folder's name":    {map[string]string{"x/common/a.go": comment}, []string{"named for the thing it gives"}},
	} {
		t.Run(name, func(t *testing.T) { tells(t, checkPackages(parsed(t, tc.files)), tc.words...) })
	}
}

func TestSourcesOfOtherModulesAreNotOurs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a/x.go", "a/testdata/x.go", ".hidden/x.go", "tool/go.mod", "tool/x.go", "tool/sub/x.go"} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("package p\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sources, err := loadSources(dir)
	if err != nil || len(sources) != 1 || sources[0].path != "a/x.go" {
		t.Errorf("got %+v, %v", sources, err)
	}
	if _, err := parseSource("b.go", []byte("package")); err == nil || !strings.Contains(fmt.Sprint(err), "parse b.go") {
		t.Errorf("got %v", err)
	}
}

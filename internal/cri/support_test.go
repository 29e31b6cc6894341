// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// support is a row of docs/cri-support.md: an RPC or Message.field.
type support struct {
	name, how string
	tests     []string
}

var (
	supportRow = regexp.MustCompile("^\\| `([^`]+)` \\| ([a-z ]+) \\| (.*) \\| (.*) \\|$")
	testFunc   = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
)

func readSupport(t *testing.T) map[string]support {
	t.Helper()
	text, err := os.ReadFile("../../docs/cri-support.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]support{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		m := supportRow.FindStringSubmatch(line)
		if m == nil {
			if strings.HasPrefix(line, "| `") {
				t.Errorf("no row: %s", line)
			}
			continue
		}
		if _, twice := rows[m[1]]; twice {
			t.Errorf("%s is there twice", m[1])
		}
		row := support{name: m[1], how: m[2]}
		for name := range strings.SplitSeq(m[4], ", ") {
			if name != "" {
				row.tests = append(row.tests, strings.Trim(name, "`"))
			}
		}
		if row.how != "honoured" && m[3] == "" {
			t.Errorf("%s: %s, and nothing says why", row.name, row.how)
		}
		rows[m[1]] = row
	}
	return rows
}

// apiNames are all RPCs and Message.field of the API.
func apiNames() map[string]bool {
	file := (&runtimeapi.VersionRequest{}).ProtoReflect().Descriptor().ParentFile()
	names := map[string]bool{}
	for i := range file.Services().Len() {
		methods := file.Services().Get(i).Methods()
		for j := range methods.Len() {
			names[string(methods.Get(j).Name())] = true
		}
	}
	addFields(names, file.Messages())
	return names
}

func addFields(names map[string]bool, messages protoreflect.MessageDescriptors) {
	for i := range messages.Len() {
		m := messages.Get(i)
		if m.IsMapEntry() {
			continue
		}
		for j := range m.Fields().Len() {
			names[string(m.Name())+"."+string(m.Fields().Get(j).Name())] = true
		}
		addFields(names, m.Messages())
	}
}

// existingTests are the names of all tests of the repository.
func existingTests(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, dir := range []string{"../../internal", "../../test", "../../cmd"} {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			for _, m := range testFunc.FindAllSubmatch(text, -1) {
				found[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func TestTheTableOfSupportHasAllOfTheAPI(t *testing.T) {
	rows, api, tests := readSupport(t), apiNames(), existingTests(t)
	if len(api) < 400 || len(tests) < 300 {
		t.Fatalf("only %d names of the API and %d tests are found", len(api), len(tests))
	}
	for _, name := range slices.Sorted(maps.Keys(api)) {
		if _, ok := rows[name]; !ok {
			t.Errorf("docs/cri-support.md does not say what becomes of %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		row := rows[name]
		if !api[name] {
			t.Errorf("docs/cri-support.md has %s, which is not in the API", name)
		}
		if !slices.Contains([]string{"honoured", "rejected", "not applicable"}, row.how) {
			t.Errorf("%s: %q is neither honoured nor rejected nor not applicable", name, row.how)
		}
		if len(row.tests) == 0 && row.how != "not applicable" {
			t.Errorf("%s: no test shows that it is %s", name, row.how)
		}
		for _, test := range row.tests {
			if !tests[test] {
				t.Errorf("%s: there is no test %s", name, test)
			}
		}
	}
}

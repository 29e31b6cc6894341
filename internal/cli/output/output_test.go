// SPDX-License-Identifier: Apache-2.0

package output

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStatusIsMergedAsCrictlDoes(t *testing.T) {
	s := Status{Parts: map[string]proto.Message{"status": &runtimeapi.ContainerStatus{Id: "x", CreatedAt: 5}},
		Info: map[string]string{"config": `{"a":1}`, "text": "plain", "broken": "{"}}
	for f, want := range map[Format][]string{
		JSON: {`"config": {` + "\n    \"a\": 1\n  }", `"text": "plain"`, `"broken": "{"`, `"createdAt": "5"`, `"exitCode": 0`, `"state": "CONTAINER_CREATED"`},
		YAML: {"config:\n  a: 1\n", "text: plain\n", "  createdAt: \"5\"\n"},
	} {
		var b strings.Builder
		if err := Statuses(&b, f, "", []Status{s}); err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%s has no %s:\n%s", f, w, b.String())
			}
		}
	}
	var b strings.Builder
	if err := Statuses(&b, Template, "{{.status.id}} {{json .config}}", []Status{s}); err != nil || b.String() != "x {\"a\":1}\n" {
		t.Errorf("template: %q, %v", b.String(), err)
	}
}

func TestSeveralStatusesAreAList(t *testing.T) {
	var b strings.Builder
	one := Status{Info: map[string]string{"n": "1"}}
	if err := Statuses(&b, JSON, "", []Status{one, one}); err != nil || !strings.HasPrefix(b.String(), "[\n  {") {
		t.Errorf("%q, %v", b.String(), err)
	}
}

func TestTemplatesErrorsAreNamed(t *testing.T) {
	for tmpl, want := range map[string]string{"{{": "parse --template: ", "{{index .n 5}}": "execute --template: "} {
		err := Statuses(&strings.Builder{}, Template, tmpl, []Status{{Info: map[string]string{"n": "1"}}})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", tmpl, err)
		}
	}
}

func TestTableCannotBeSteeredByNames(t *testing.T) {
	rows := Head("NAME", "STATE")
	rows.Add("a\x1b[31m\tb\nc", "")
	var b strings.Builder
	if err := rows.Print(&b); err != nil {
		t.Fatal(err)
	}
	if want := "NAME         STATE\na?[31m?b?c   -\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

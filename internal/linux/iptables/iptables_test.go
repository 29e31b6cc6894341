// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	r := Parse(`-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \"my pods\" id: \"a\\b\"" -j CNI-1` + "\n")
	want := Rule{"-A", "POSTROUTING", "-s", "10.1.0.2/32", "-m", "comment", "--comment", `name: "my pods" id: "a\b"`, "-j", "CNI-1"}
	if !slices.Equal(r, want) || r.Target() != "CNI-1" {
		t.Errorf("got %q, target %q", r, r.Target())
	}
	if got := r.Deletion(); got[0] != "-D" || !slices.Equal(got[1:], want[1:]) || r[0] != "-A" {
		t.Errorf("deletion %q, rule %q", got, r)
	}
	for _, line := range []string{"", "-N CNI-1", "-A X -j", ":INPUT ACCEPT [0:0]", `"`, `\`} {
		if r := Parse(line); r.Target() != "" {
			t.Errorf("%q leads to %q", line, r.Target())
		}
	}
	if got := Parse("-N CNI-1").Deletion(); got != nil {
		t.Errorf("a chain's line is deleted with %q", got)
	}
}

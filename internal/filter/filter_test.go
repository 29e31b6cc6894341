// SPDX-License-Identifier: Apache-2.0

package filter

import "testing"

func TestLabelsMatchOnlyWhereEveryPairDoes(t *testing.T) {
	labels := map[string]string{"app": "web", "tier": ""}
	for _, c := range []struct {
		selector map[string]string
		want     bool
	}{
		{nil, true}, {map[string]string{"app": "web"}, true}, {map[string]string{"app": "db"}, false},
		{map[string]string{"tier": ""}, true}, {map[string]string{"none": ""}, false},
		{map[string]string{"app": "web", "none": "x"}, false},
	} {
		if got := Labels(labels, c.selector); got != c.want {
			t.Errorf("%v: %v", c.selector, got)
		}
	}
}

func TestIDsMatchByTheirBeginning(t *testing.T) {
	for want, pass := range map[string]bool{"": true, "ab": true, "abc": true, "b": false, "abcd": false} {
		if ID("abc", want) != pass {
			t.Errorf("%q: want %v", want, pass)
		}
	}
}

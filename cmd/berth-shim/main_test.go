// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestDirFlag(t *testing.T) {
	for _, args := range [][]string{{"--dir", "/d"}, {"--dir=/d"}} {
		if dir, ok := dirFlag(args); !ok || dir != "/d" {
			t.Errorf("%q: %q, %v", args, dir, ok)
		}
	}
	for _, args := range [][]string{nil, {"--dir"}, {"--dir="}, {"--dir", ""}, {"/d"}, {"--dir", "/d", "x"}, {"--other=/d"}} {
		if dir, ok := dirFlag(args); ok {
			t.Errorf("%q: %q", args, dir)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"--version"}, 0},
		{nil, 2},
		{[]string{"server"}, 2},
		{[]string{"serve"}, 2},
		{[]string{"pause", "more"}, 2},
		{[]string{"serve", "--dir", "/no/such/folder"}, 1},
	} {
		if got := run(test.args); got != test.want {
			t.Errorf("%q: %d, want %d", test.args, got, test.want)
		}
	}
}

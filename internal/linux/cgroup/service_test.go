// SPDX-License-Identifier: Apache-2.0

package cgroup

import "testing"

func TestServiceOfAProcess(t *testing.T) {
	for _, c := range []struct {
		paths map[string]string
		want  string
	}{
		{map[string]string{"": "/system.slice/berth.service"}, "berth.service"},
		{map[string]string{"": "/", "name=systemd": "/system.slice/berth.service", "memory": "/x.service"}, "berth.service"},
		{map[string]string{"": "/user.slice/user-0.slice/session-1.scope"}, ""},
		{map[string]string{"": "/system.slice/a.service/payload"}, ""},
		{map[string]string{"": `/system.slice/a\x2db.service`}, ""},
		{map[string]string{"": "/system.slice/a']['b.service"}, ""},
		{map[string]string{"": "/"}, ""},
		{nil, ""},
	} {
		if got := serviceOf(c.paths); got != c.want {
			t.Errorf("%v: %q, want %q", c.paths, got, c.want)
		}
	}
	if _, err := OwnService(); err != nil {
		t.Error(err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"testing"

	"github.com/berth-run/berth/internal/shimapi"
)

func TestFiguresOfAnOCIRuntimesEvent(t *testing.T) {
	got, err := parseEvent([]byte(`{"type":"stats","id":"c1","data":{"cpu":{"usage":{"total":5000,"percpu":[1]}},
		"memory":{"usage":{"limit":0,"usage":400,"failcnt":0},"raw":{"total_inactive_file":30}},"pids":{"current":3},"network_interfaces":null}}` + "\n"))
	if want := (shimapi.TaskUsage{CPU: 5000, Memory: 400, InactiveFile: 30, Tasks: 3}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "garbage", `{"type":"oom"}`, `{"type":"stats","data":{"cpu":{"usage":{"total":-1}}}}`} {
		if _, err := parseEvent([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte(`{"type":"stats"}`))
	f.Fuzz(func(_ *testing.T, out []byte) {
		_, _ = parseEvent(out) // whatever it is, it is no panic
	})
}

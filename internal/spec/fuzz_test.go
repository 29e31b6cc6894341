// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"testing"
)

// FuzzGenerate: whatever a client asks for, there is a spec that holds what must hold, or an error with a class.
func FuzzGenerate(f *testing.F) {
	for _, data := range cases(f) {
		f.Add(data, "A=b", "/work", "TERM")
	}
	f.Add([]byte("{}"), "A=\x00", "\x00", "RTMIN+")
	f.Fuzz(func(t *testing.T, data []byte, env, dir, signal string) {
		in := ordinaryInput()
		if fill(&in, data) != nil {
			return
		}
		in.Image.Env, in.Image.WorkingDir = append(in.Image.Env, env), dir
		if n, err := StopSignal(in.Container, signal); (err == nil) != (n > 0 && n <= 64) {
			t.Errorf("signal %q: %d, %v", signal, n, err)
		}
		s, err := Generate(in)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error without a class: %v", err)
			}
			return
		}
		holds(t, in, s)
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
		if _, _, err := UpdateResources(in.Container.GetLinux().GetResources(), in.Container.GetLinux().GetResources()); err != nil {
			t.Errorf("resources that Generate took are refused by an update: %v", err)
		}
	})
}

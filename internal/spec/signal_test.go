// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStopSignalsOfImages(t *testing.T) {
	for name, want := range map[string]int{
		"": 15, "SIGTERM": 15, "TERM": 15, "sigint": 2, " QUIT ": 3, "9": 9, "SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMIN+30": 64, "RTMAX": 64,
		"SIGRTMAX-1": 63, "SIGRTMAX-30": 34, "64": 64, "SIGPOLL": 29,
		"0": 0, "65": 0, "-1": 0, "TERMINATE": 0, "SIG": 0, "RTMIN3": 0, "RTMIN-1": 0, "RTMIN+31": 0, "RTMIN++1": 0, "RTMAX+1": 0, "RTMIN+": 0, "RTMINX": 0, "SIGSIGTERM": 0,
	} {
		got, err := StopSignal(&runtimeapi.ContainerConfig{}, name)
		if got != want || errors.Is(err, ErrInvalid) != (want == 0) {
			t.Errorf("%q: %d, %v; want %d", name, got, err, want)
		}
	}
}

func TestTheCRIsStopSignalsAllHaveANumber(t *testing.T) {
	seen, synonyms := map[int]string{}, map[int]bool{6: true, 17: true, 29: true} // ABRT and IOT, CHLD and CLD, IO and POLL
	for value, name := range runtimeapi.Signal_name {
		n, err := StopSignal(&runtimeapi.ContainerConfig{StopSignal: runtimeapi.Signal(value)}, "KILL")
		switch {
		case err != nil || n < 1 || n > 64:
			t.Errorf("%s: %d, %v", name, n, err)
		case value == 0 && n != 9:
			t.Errorf("without one the image's counts, not %d", n)
		case value != 0 && seen[n] != "" && !synonyms[n]:
			t.Errorf("%s and %s are both %d", name, seen[n], n)
		case value != 0:
			seen[n] = name
		}
	}
	if _, err := StopSignal(&runtimeapi.ContainerConfig{StopSignal: 4242}, ""); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

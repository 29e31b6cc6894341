// SPDX-License-Identifier: Apache-2.0

package qos

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "classes.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func spec() *specs.Spec {
	return &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
}

func TestClassesAreChosenByAnnotation(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	c, err := Open(Config{BlockIO: write(t, "Classes:\n  slow:\n  - Weight: 50\n  fast:\n  - Weight: 400\n")}, log)
	if err != nil {
		t.Fatal(err)
	}
	const container, pod, one = "io.kubernetes.cri.blockio-class", "blockio.resources.beta.kubernetes.io/pod", "blockio.resources.beta.kubernetes.io/container.app"
	for name, r := range map[string]struct {
		request Request
		weight  uint16
		err     error
	}{
		"nobody":                  {Request{Container: "app"}, 0, nil},
		"pod":                     {Request{Container: "app", PodAnnotations: map[string]string{pod: "slow"}}, 50, nil},
		"pod for this container":  {Request{Container: "app", PodAnnotations: map[string]string{pod: "slow", one: "fast"}}, 400, nil},
		"pod for another":         {Request{Container: "db", PodAnnotations: map[string]string{pod: "slow", one: "fast"}}, 50, nil},
		"container":               {Request{Container: "app", PodAnnotations: map[string]string{one: "slow"}, ContainerAnnotations: map[string]string{container: "fast"}}, 400, nil},
		"unknown":                 {Request{Container: "app", PodAnnotations: map[string]string{pod: "../slow"}}, 0, ErrUnknown},
		"of a kind that is off":   {Request{Container: "app", PodAnnotations: map[string]string{"rdt.resources.beta.kubernetes.io/pod": "gold"}}, 0, ErrOff},
		"a container's pod rules": {Request{Container: "app", ContainerAnnotations: map[string]string{pod: "slow"}}, 0, nil},
	} {
		s := spec()
		err := c.Apply(s, r.request)
		if !errors.Is(err, r.err) {
			t.Errorf("%s: %v", name, err)
		}
		if got := s.Linux.Resources.BlockIO; (got == nil) != (r.weight == 0) || got != nil && *got.Weight != r.weight {
			t.Errorf("%s: %+v, want weight %d", name, got, r.weight)
		}
		if errors.Is(err, ErrUnknown) && !strings.Contains(err.Error(), "fast, slow") {
			t.Errorf("%v does not say what there is", err)
		}
	}
}

func TestFilesThatCannotBeUsedAreErrors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, c := range map[string]Config{"missing": {BlockIO: "/no/such.yaml"}, "no YAML": {BlockIO: write(t, "{")}, "unknown device rate": {BlockIO: write(t, "Classes:\n  x:\n  - Devices: [/dev/null]\n    ThrottleReadBps: many\n")}} {
		if _, err := Open(c, log); err == nil || !strings.Contains(err.Error(), c.BlockIO) {
			t.Errorf("%s: %v", name, err)
		}
	}
	off, err := Open(Config{}, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := off.BlockIO("slow"); !errors.Is(err, ErrOff) {
		t.Error(err)
	}
	if _, err := off.RDT("gold"); !errors.Is(err, ErrOff) {
		t.Error(err)
	}
	if _, err := os.Stat("/sys/fs/resctrl/schemata"); errors.Is(err, os.ErrNotExist) {
		if _, err := Open(Config{RDT: write(t, "partitions: {}\n")}, log); err == nil {
			t.Error("RDT classes on a node without resctrl")
		}
	}
}

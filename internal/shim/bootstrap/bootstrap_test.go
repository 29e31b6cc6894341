// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berth-run/berth/internal/shimapi/task"
)

func TestTheCommandLineOfContainerd(t *testing.T) {
	inv, err := parse(strings.Fields("-namespace n --address=/a -publish-binary /p -id i -bundle /b -debug start"))
	want := map[string]string{"namespace": "n", "address": "/a", "publish-binary": "/p", "id": "i", "bundle": "/b"}
	if err != nil || inv.action != "start" || !maps.Equal(inv.values, want) {
		t.Errorf("%+v, %v", inv, err)
	}
	for _, flag := range []string{"-info", "-v"} {
		if inv, err := parse([]string{flag}); err != nil || inv.info != (flag == "-info") || inv.version != (flag == "-v") {
			t.Errorf("%s: %+v, %v", flag, inv, err)
		}
	}
	for line, want := range map[string]string{"-id": "wants a value", "-what x": "not known", "start now": "one too many"} {
		if _, err := parse(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}

func TestBadInvocations(t *testing.T) {
	for line, want := range map[string]string{
		"-id i start":                    "-namespace",
		"-namespace n start":             "-id",
		"-namespace n -id ../x start":    "-id",
		"-namespace .. -id i start":      "-namespace",
		"-namespace n -id i stop":        `action "stop" is not known`,
		"-namespace n -id i":             `action "" is not known`,
		"-namespace n -id i -bundle b d": `action "d"`,
	} {
		inv, err := parse(strings.Fields(line))
		if err == nil {
			err = inv.run()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}

func TestContainersOfAGroupHaveOneSocket(t *testing.T) {
	socket := func(id, namespace, config string) string {
		t.Helper()
		t.Chdir(t.TempDir())
		if err := os.WriteFile("config.json", []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		path, err := invocation{values: map[string]string{"id": id, "namespace": namespace, "address": "/a"}}.socketPath("/s")
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	pod := `{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}`
	one := socket("one", "n", pod)
	if len(one) > 107 || filepath.Dir(one) != "/s" {
		t.Errorf("%q is no socket's path", one)
	}
	for name, other := range map[string]struct {
		path string
		same bool
	}{
		"the same pod":          {socket("two", "n", pod), true},
		"the pod's own":         {socket("pod", "n", `{}`), true},
		"alone":                 {socket("one", "n", `{}`), false},
		"in another namespace":  {socket("one", "m", pod), false},
		"containerd's label":    {socket("x", "n", `{"annotations":{"io.containerd.runc.v2.group":"pod"}}`), true},
		"a label that is empty": {socket("one", "n", `{"annotations":{"io.containerd.runc.v2.group":""}}`), false},
	} {
		if (other.path == one) != other.same {
			t.Errorf("%s: same %v, want %v", name, !other.same, other.same)
		}
	}
}

func TestStartWithoutABundle(t *testing.T) {
	t.Chdir(t.TempDir())
	inv := invocation{values: map[string]string{"id": "i", "namespace": "n"}}
	if err := inv.start(strings.NewReader(""), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("no config.json: %v", err)
	}
	if err := os.WriteFile("config.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := inv.start(strings.NewReader(""), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "read spec") {
		t.Errorf("broken config.json: %v", err)
	}
	if err := inv.start(strings.NewReader(strings.Repeat("x", maxInput+1)), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("endless input: %v", err)
	}
}

// program is an OCI runtime made of shell.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runc")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func info(t *testing.T, runtime string) (*types.RuntimeInfo, error) {
	t.Helper()
	any, err := anypb.New(&options.Options{BinaryName: runtime})
	if err != nil {
		t.Fatal(err)
	}
	any.TypeUrl = "containerd.runc.v1.Options"
	in, err := proto.Marshal(any)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := (invocation{ourselves: "v9"}).tell(bytes.NewReader(in), &out); err != nil {
		return nil, err
	}
	told := &types.RuntimeInfo{}
	return told, proto.Unmarshal(out.Bytes(), told)
}

func TestInfoHasTheRuntimesOwnFeatures(t *testing.T) {
	told, err := info(t, program(t, `[ "$1" = features ] && echo '{"ociVersionMax":"1.3.0"}'`))
	if err != nil {
		t.Fatal(err)
	}
	var features struct{ OCIVersionMax string }
	if err := json.Unmarshal(told.Features.GetValue(), &features); err != nil || features.OCIVersionMax != "1.3.0" || told.Version.Version != "v9" ||
		told.Options.GetTypeUrl() != "containerd.runc.v1.Options" {
		t.Errorf("%v, %v", told, err)
	}
	if told, err = info(t, program(t, "exit 1")); err != nil || told.Features != nil {
		t.Errorf("without the command: %v, %v", told, err)
	}
	if _, err = info(t, "no-such-runtime"); err == nil || !strings.Contains(err.Error(), "no-such-runtime") {
		t.Errorf("no runtime: %v", err)
	}
}

func TestDeleteOfWhatWasNeverMadeAndOfWhatHasEnded(t *testing.T) {
	bundle := t.TempDir()
	remove := func() *task.DeleteResponse {
		t.Helper()
		var out bytes.Buffer
		if err := (invocation{values: map[string]string{"id": "i", "namespace": "n", "bundle": bundle}}).delete(&out); err != nil {
			t.Fatal(err)
		}
		answer := &task.DeleteResponse{}
		if err := proto.Unmarshal(out.Bytes(), answer); err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if got := remove(); got.ExitStatus != 137 || got.ExitedAt == nil {
		t.Errorf("never made: %v", got)
	}
	fact := `{"id":"i","pid":42,"exit_code":5,"signal":0,"exited_at":"2026-11-21T12:00:00Z"}`
	if err := os.WriteFile(filepath.Join(bundle, "exit.json"), []byte(fact), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := remove(); got.ExitStatus != 5 || got.Pid != 42 {
		t.Errorf("ended: %v", got)
	}
}

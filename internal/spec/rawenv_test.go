// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestBytesThatAreNotUTF8SurviveJSON(t *testing.T) {
	in := ordinaryInput()
	value := strings.Repeat("\xff\x80x", 50000)
	in.Container.Envs = []*runtimeapi.KeyValue{{Key: "BINARY", Value: []byte(value)}, {Key: "TEXT", Value: []byte("\u00e4")}}
	s := generate(t, in)
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	exec, err := ExecJSON(raw, Exec{Cmd: []string{"ls", "-l"}}, in.Host)
	if err != nil {
		t.Fatal(err)
	}
	var back specs.Spec
	var process specs.Process
	if err := errors.Join(json.Unmarshal(raw, &back), json.Unmarshal(exec, &process)); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*specs.Process{back.Process, &process} {
		var text strings.Builder
		for i, pair := range p.Env {
			name, part, _ := strings.Cut(pair, "=")
			if name != rawEnvPrefix+string(rune('0'+i)) || len(pair) > 128<<10 {
				t.Errorf("variable %d is %s, of %d bytes", i, name, len(pair))
			}
			text.WriteString(part)
		}
		decoded, err := base64.StdEncoding.DecodeString(text.String())
		pairs := strings.Split(string(decoded), "\x00")
		if err != nil || !slices.Contains(pairs, "BINARY="+value) || !slices.Contains(pairs, "TEXT=\u00e4") || !slices.Contains(pairs, "HOME=/home/app") {
			t.Errorf("%d pairs come back, %v", len(pairs), err)
		}
	}
	if want := []string{rawEnvProgram, "env", "/app", "--serve"}; !slices.Equal(back.Process.Args, want) {
		t.Errorf("command %q", back.Process.Args)
	}
	if want := []string{rawEnvProgram, "env", "ls", "-l"}; !slices.Equal(process.Args, want) {
		t.Errorf("exec's command %q", process.Args)
	}
	if m := back.Mounts[len(back.Mounts)-1]; m.Destination != rawEnvProgram || !slices.Contains(m.Options, "ro") {
		t.Errorf("%+v", m)
	}
	in.Container.Mounts = []*runtimeapi.Mount{{HostPath: "/dev", ContainerPath: "/dev"}}
	if _, err := Generate(in); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "/dev") {
		t.Errorf("with the host's /dev: %v", err)
	}
}

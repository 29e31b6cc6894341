// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Exec is what another process in a container differs in from the container's own.
type Exec struct {
	Cmd []string
	TTY bool
	// Width and Height, where they are not 0, are those that its terminal begins with: a program that asks at once, and never again, gets the right ones.
	Width, Height uint16
	// OOMScoreAdj is what an update has set since the container's start; nil: there was none.
	OOMScoreAdj *int64
}

// ExecJSON is ExecProcess from and to JSON, for a container's config.json.
func ExecJSON(configJSON []byte, e Exec, host Host) ([]byte, error) {
	process, err := readProcess(configJSON)
	if err != nil {
		return nil, err
	}
	p, err := ExecProcess(&specs.Spec{Process: process}, e, host)
	if err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

// SetResourcesJSON is SetResources from and to JSON, for a container's config.json.
func SetResourcesJSON(configJSON []byte, r *runtimeapi.LinuxContainerResources, host Host) ([]byte, error) {
	s, err := readJSON(configJSON)
	if err != nil {
		return nil, err
	}
	if s.Linux == nil {
		return nil, errors.New("read the container's spec: it has no linux section")
	}
	SetResources(s, r, host)
	return json.Marshal(s)
}

// readProcess reads no further than it must: what comes after the process, the seccomp profile for one, is most of a config.json.
func readProcess(configJSON []byte) (*specs.Process, error) {
	d := json.NewDecoder(bytes.NewReader(configJSON))
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') {
		return nil, errors.Join(errors.New("read the container's spec: it is no object"), err)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("read the container's spec: %w", err)
		}
		var process *specs.Process
		var into any = &process
		if key != "process" {
			into = new(json.RawMessage)
		}
		if err := d.Decode(into); err != nil {
			return nil, fmt.Errorf("read the container's spec: %w", err)
		}
		if process != nil {
			return process, nil
		}
	}
	return nil, errors.New("read the container's spec: it has no process")
}

func readJSON(configJSON []byte) (*specs.Spec, error) {
	var s specs.Spec
	if err := json.Unmarshal(configJSON, &s); err != nil {
		return nil, fmt.Errorf("read the container's spec: %w", err)
	}
	if s.Process == nil {
		return nil, errors.New("read the container's spec: it has no process")
	}
	return &s, nil
}

// ExecProcess is a process like the container's own, with another command.
func ExecProcess(s *specs.Spec, e Exec, host Host) (*specs.Process, error) {
	if len(e.Cmd) == 0 {
		return nil, invalid("cmd", "is empty")
	}
	if err := validArgs("cmd", e.Cmd); err != nil {
		return nil, err
	}
	p := *s.Process
	p.Args, p.Terminal, p.ConsoleSize = slices.Clone(e.Cmd), e.TTY, nil
	if carriesRaw(s.Process) {
		p.Args = append([]string{rawEnvProgram, "env"}, e.Cmd...)
	}
	if e.OOMScoreAdj != nil {
		p.OOMScoreAdj = oomScore(*e.OOMScoreAdj, host)
	}
	if e.TTY && e.Width != 0 && e.Height != 0 {
		p.ConsoleSize = &specs.Box{Width: uint(e.Width), Height: uint(e.Height)}
	}
	if e.TTY && !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		p.Env = append(slices.Clone(p.Env), "TERM=xterm")
	}
	return &p, nil
}

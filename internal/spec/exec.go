// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ExecJSON is ExecProcess from and to JSON, for a container's config.json.
func ExecJSON(configJSON []byte, cmd []string, tty bool, width, height uint16) ([]byte, error) {
	s, err := readJSON(configJSON)
	if err != nil {
		return nil, err
	}
	p, err := ExecProcess(s, cmd, tty, width, height)
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

// ExecProcess is a process like the container's own, with another command. Width and height, where they are not 0, are those that its
// terminal begins with: a program that asks at once, and never again, gets the right ones.
func ExecProcess(s *specs.Spec, cmd []string, tty bool, width, height uint16) (*specs.Process, error) {
	if len(cmd) == 0 {
		return nil, invalid("cmd", "is empty")
	}
	if err := validArgs("cmd", cmd); err != nil {
		return nil, err
	}
	p := *s.Process
	p.Args, p.Terminal, p.ConsoleSize = slices.Clone(cmd), tty, nil
	if carriesRaw(s.Process) {
		p.Args = append([]string{rawEnvProgram, "env"}, cmd...)
	}
	if tty && width != 0 && height != 0 {
		p.ConsoleSize = &specs.Box{Width: uint(width), Height: uint(height)}
	}
	if tty && !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		p.Env = append(slices.Clone(p.Env), "TERM=xterm")
	}
	return &p, nil
}

// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/base64"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Values of variables may be any bytes (CRI 1.37), and config.json is JSON, where others than UTF-8 arrive as replacement characters. So such an
// environment travels encoded, in variables of its own, and a program that is mounted into the container decodes it and
// becomes the container's: berth-shim env. It is in /dev, which is memory, so that nothing of it is left in the image's files.
const (
	rawEnvProgram = "/dev/.berth-env"
	rawEnvPrefix  = "_BERTH_ENV_"
	// rawEnvPart is how much of it goes into one variable, in bytes; the kernel takes 128 KiB.
	rawEnvPart = 96 << 10
)

// carryRaw changes the process and the mounts of a spec whose environment has other bytes than UTF-8.
func carryRaw(s *specs.Spec, p Paths) error {
	if !slices.ContainsFunc(s.Process.Env, func(pair string) bool { return !utf8.ValidString(pair) }) {
		return nil
	}
	for _, m := range s.Mounts {
		if m.Destination == "/dev" && m.Type != "tmpfs" {
			return invalid("envs", "a value is not UTF-8, which a container that mounts its own /dev cannot have")
		}
	}
	if p.PauseBinary == "" {
		return invalid("envs", "a value is not UTF-8, which this runtime handler cannot carry")
	}
	s.Process.Env = encodeEnv(s.Process.Env)
	s.Process.Args = append([]string{rawEnvProgram, "env"}, s.Process.Args...)
	s.Mounts = append(s.Mounts, specs.Mount{Destination: rawEnvProgram, Type: "bind", Source: p.PauseBinary, Options: []string{"bind", "ro", "nosuid", "nodev"}})
	return nil
}

func encodeEnv(pairs []string) []string {
	text := base64.StdEncoding.EncodeToString([]byte(strings.Join(pairs, "\x00")))
	var out []string
	for part := range slices.Chunk([]byte(text), rawEnvPart) {
		out = append(out, rawEnvPrefix+strconv.Itoa(len(out))+"="+string(part))
	}
	return out
}

// carriesRaw tells whether the process has its environment from carryRaw: then those of its execs have, too.
func carriesRaw(p *specs.Process) bool { return len(p.Args) > 0 && p.Args[0] == rawEnvProgram }

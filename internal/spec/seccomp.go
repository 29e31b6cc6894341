// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Profile is a seccomp profile: none (the zero value), the default one, or one in Docker's or the OCI's JSON format.
type Profile struct {
	Default bool
	// Path names the profile in errors; JSON is its content.
	Path string
	JSON []byte
}

// applySeccomp renders the profile for the spec's own capabilities: the default one allows more to who may more. Its rules also depend
// on the architecture and, for kernels before 4.8, the kernel: constants of any machine that Berth runs on.
func applySeccomp(s *specs.Spec, p Profile, h Host) error {
	if !p.Default && p.Path == "" && p.JSON == nil {
		return nil
	}
	var err error
	if p.Default {
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
		if err == nil && h.NoX32 {
			withoutX32(s.Linux.Seccomp)
		}
	} else {
		s.Linux.Seccomp, err = seccomp.LoadProfile(string(p.JSON), s)
	}
	if err != nil {
		return fmt.Errorf("linux.security_context.seccomp: profile %s: %w: %w", p.Path, ErrInvalid, err)
	}
	// The library takes {} for a wish to be unconfined; here somebody has asked to be confined.
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction == "" {
		return invalid("linux.security_context.seccomp", "profile %s has no defaultAction", p.Path)
	}
	return knownSeccomp(p.Path, s.Linux.Seccomp)
}

// withoutX32 takes the x32 ABI from the architectures of a filter for a kernel that does not have it. libseccomp, which compiles the filter at every
// start and exec, takes time that grows with the square of its length: with x32, 18 ms of CPU rather than 10. What a process gets for such a call's
// number on such a kernel becomes SIGSYS; it was ENOSYS.
func withoutX32(s *specs.LinuxSeccomp) {
	s.Architectures = slices.DeleteFunc(slices.Clone(s.Architectures), func(a specs.Arch) bool { return a == specs.ArchX32 })
}

var seccompActions = []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace,
	specs.ActAllow, specs.ActLog, specs.ActNotify}

var seccompOperators = []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual,
	specs.OpGreaterThan, specs.OpMaskedEqual}

// knownSeccomp finds misspelt words here, where the error can name them and the profile: OCI runtimes fail at the start of the container.
// A system call that nobody knows is no error: profiles name those of other kernels.
func knownSeccomp(path string, s *specs.LinuxSeccomp) error {
	const field = "linux.security_context.seccomp"
	if !slices.Contains(seccompActions, s.DefaultAction) {
		return invalid(field, "profile %s: defaultAction %q is unknown", path, s.DefaultAction)
	}
	for i, c := range s.Syscalls {
		if !slices.Contains(seccompActions, c.Action) {
			return invalid(field, "profile %s: syscalls[%d]: action %q is unknown", path, i, c.Action)
		}
		if len(c.Names) == 0 {
			return invalid(field, "profile %s: syscalls[%d] names none", path, i)
		}
		for _, a := range c.Args {
			if !slices.Contains(seccompOperators, a.Op) || a.Index > 5 {
				return invalid(field, "profile %s: syscalls[%d]: argument %d with operator %q is unknown", path, i, a.Index, a.Op)
			}
		}
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func process(in Input) (*specs.Process, error) {
	args, err := command(in.Container, in.Image)
	if err != nil {
		return nil, err
	}
	cwd, err := workingDir(in.Container, in.Image)
	if err != nil {
		return nil, err
	}
	env, err := environment(in)
	if err != nil {
		return nil, err
	}
	sc := in.Container.GetLinux().GetSecurityContext()
	caps, err := capabilities(sc, in.Host)
	if err != nil {
		return nil, err
	}
	profile, err := appArmorProfile(sc, in.Host)
	if err != nil {
		return nil, err
	}
	return &specs.Process{
		Terminal: in.Container.GetTty(), Args: args, Env: env, Cwd: cwd,
		User:         specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: slices.Clone(in.User.Groups)},
		Capabilities: caps, NoNewPrivileges: sc.GetNoNewPrivs(), Rlimits: withRlimits(rlimits(in.Host), in.Rlimits), ApparmorProfile: profile,
		OOMScoreAdj: oomScore(in.Container.GetLinux().GetResources().GetOomScoreAdj(), in.Host),
	}, nil
}

// command puts the process's arguments together as the CRI says: command replaces the entrypoint and, without args, also the image's Cmd.
func command(c *runtimeapi.ContainerConfig, im ImageConfig) ([]string, error) {
	entry, args := c.GetCommand(), c.GetArgs()
	if len(entry) == 0 {
		entry = im.Entrypoint
		if len(args) == 0 {
			args = im.Cmd
		}
	}
	all := slices.Concat(entry, args)
	if len(all) == 0 {
		return nil, invalid("command", "neither the container nor its image says what to run")
	}
	return all, validArgs("command", all)
}

func validArgs(field string, args []string) error {
	if i := slices.IndexFunc(args, func(a string) bool { return strings.ContainsRune(a, 0) }); i >= 0 {
		return invalid(field, "argument %d has a NUL", i)
	}
	return nil
}

// workingDir is the container's, else the image's. Images with a relative one are common and mean it from the root.
func workingDir(c *runtimeapi.ContainerConfig, im ImageConfig) (string, error) {
	dir, field := c.GetWorkingDir(), "working_dir"
	if dir == "" {
		dir, field = path.Join("/", im.WorkingDir), "working directory of the image"
	}
	if strings.ContainsRune(dir, 0) {
		return "", invalid(field, "has a NUL")
	}
	return dir, nil
}

// oomScore clamps to what this node can set: without CAP_SYS_RESOURCE nothing below the daemon's own score.
func oomScore(want int64, host Host) *int {
	n := int(min(max(want, int64(host.OOMScoreFloor)), maxOOMScore))
	return &n
}

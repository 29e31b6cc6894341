// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Rlimit is a limit of a runtime handler's containers.
type Rlimit struct {
	// Name is the OCI's, as RLIMIT_NOFILE.
	Name       string
	Soft, Hard uint64
}

var rlimitNames = []string{"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
	"rttime", "sigpending", "stack"}

// ParseRlimit reads NAME=SOFT:HARD or NAME=BOTH; a number may be "unlimited".
func ParseRlimit(text string) (Rlimit, error) {
	name, values, ok := strings.Cut(text, "=")
	if err := oneOf(rlimitNames...)(name); !ok || err != nil {
		return Rlimit{}, fmt.Errorf("%q is not NAME=SOFT:HARD, with a NAME of %s", text, strings.Join(rlimitNames, ", "))
	}
	soft, hard, two := strings.Cut(values, ":")
	if !two {
		hard = soft
	}
	r := Rlimit{Name: "RLIMIT_" + strings.ToUpper(name)}
	var errs [2]error
	r.Soft, errs[0] = rlimitValue(soft)
	r.Hard, errs[1] = rlimitValue(hard)
	if err := errors.Join(errs[:]...); err != nil {
		return r, fmt.Errorf("%q: a limit is a number or unlimited", text)
	}
	if r.Soft > r.Hard {
		return r, fmt.Errorf("%q: the soft limit is above the hard one", text)
	}
	return r, nil
}

func rlimitValue(s string) (uint64, error) {
	if s == "unlimited" {
		return 1<<64 - 1, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

func rlimits(v any) error {
	seen := map[string]bool{}
	for _, s := range v.([]string) {
		r, err := ParseRlimit(s)
		if err != nil {
			return err
		}
		if seen[r.Name] {
			return fmt.Errorf("%q: the limit is given twice", s)
		}
		seen[r.Name] = true
	}
	return nil
}

// shimNames are io.containerd.NAME.vN and its kin, as containerd has them: all but the last two parts are ignored.
var shimNames = regexp.MustCompile(`^([a-z0-9-]+\.)+([a-z0-9_-]+)\.(v[0-9]+)$`)

func shimName(v any) error {
	if _, err := ShimProgram(v.(string)); err != nil {
		return err
	}
	return nil
}

// ShimProgram is the program that a shim's runtime name stands for (containerd's rule): io.containerd.kata.v2 is containerd-shim-kata-v2.
func ShimProgram(name string) (string, error) {
	m := shimNames.FindStringSubmatch(name)
	if m == nil {
		return "", fmt.Errorf("%q is not a runtime's name such as io.containerd.kata.v2", name)
	}
	return "containerd-shim-" + m[2] + "-" + m[3], nil
}

const noSlices = `"systemd" needs cgroup.driver = "systemd", too: only then does the kubelet name slices as the pods' cgroups`

// SystemdCgroup tells whether systemd makes the cgroups of the handler's containers, where driver makes the pods'. An error says what cannot be.
func (r *Runtime) SystemdCgroup(driver string) (bool, error) {
	if r.CgroupDriver == "systemd" && driver != "systemd" {
		return false, errors.New("cgroup_driver: " + noSlices)
	}
	return driver == "systemd" && r.CgroupDriver != "cgroupfs", nil
}

// validateHandlers checks what no key of a runtime can tell alone.
func validateHandlers(c *Config) Problems {
	var found Problems
	for name, r := range c.Runtimes {
		problem := func(key, text string) {
			found = append(found, Problem{Key: "runtimes." + name + "." + key, Text: text})
		}
		if r.CgroupDriver == "systemd" && c.Cgroup.Driver == "cgroupfs" {
			problem("cgroup_driver", noSlices)
		}
		switch {
		case r.Type == "shim" && r.Path == "" && r.Shim == "":
			problem("shim", `must be set, or path, for type "shim"`)
		case r.Type == "shim" && len(r.Options) > 0:
			problem("options", `are for type "oci"; a shim is configured with shim_config`)
		case r.Type != "shim" && (r.Shim != "" || r.ShimConfig != "" || r.ShimBinary != ""):
			problem("type", `must be "shim" for shim, shim_config and shim_binary`)
		}
	}
	return found
}

// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"path"
	"strings"

	"github.com/berth-run/berth/internal/linux/proc"
)

const serviceSuffix = ".service"

// OwnService is the unit of systemd's that this process belongs to, such as "berth.service"; empty: to none, or not to a service.
func OwnService() (string, error) {
	paths, err := proc.CgroupPaths(os.Getpid())
	if err != nil {
		return "", err
	}
	return serviceOf(paths), nil
}

// serviceOf takes the paths of a process's cgroups. A name that would have to be quoted is none that anybody gives.
func serviceOf(paths map[string]string) string {
	for _, key := range []string{"name=systemd", ""} {
		name := path.Base(paths[key])
		if strings.HasSuffix(name, serviceSuffix) && !strings.ContainsAny(name, "'\"\\,[] \t\n") {
			return name
		}
	}
	return ""
}

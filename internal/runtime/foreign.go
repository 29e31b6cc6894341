// SPDX-License-Identifier: Apache-2.0

package runtime

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berth-run/berth/internal/shimapi"
)

// TaskPID is the process ID of a container's init as its own shim tells it: of a foreign shim's container, our shim knows only the process
// that stands for it. Where nothing better is known it is pid.
func (r *Runtime) TaskPID(handler, id string, pid int) int {
	h, err := r.Handler(handler)
	if err != nil || !h.Foreign || validID(id) != nil {
		return pid
	}
	data, err := os.ReadFile(filepath.Join(h.Root, id, shimapi.TaskPIDName))
	if err != nil {
		return pid
	}
	if own, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && own > 0 {
		return own
	}
	return pid
}

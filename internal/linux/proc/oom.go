// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// OOMScore reads a process' oom_score_adj, from -1000 to 1000. fs.ErrNotExist: it has ended.
func OOMScore(pid int) (int, error) {
	var buffer [16]byte
	n, err := readSmall("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", buffer[:])
	if err != nil {
		return 0, fmt.Errorf("read OOM score of process %d: %w", pid, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(buffer[:n])))
}

// SetOOMScore sets a process' oom_score_adj if it is still the one that check knows, which is asked with the process held: its number cannot be
// another's by then. One that has ended is success. fs.ErrPermission: lower than this process may set.
func SetOOMScore(pid, score int, check func() bool) error {
	dir, err := os.OpenRoot("/proc/" + strconv.Itoa(pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("set OOM score of process %d: %w", pid, err)
	}
	defer dir.Close()
	if !check() {
		return nil
	}
	f, err := dir.OpenFile("oom_score_adj", os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(strconv.Itoa(score))
		err = errors.Join(err, f.Close())
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil
	} else if err != nil {
		return fmt.Errorf("set OOM score of process %d: %w", pid, err)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

//go:build faultpoint

package record

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// The crash tests build the daemon with the tag faultpoint and set BERTH_FAULTPOINT=<glob>:<n>:before|after: the
// process then kills itself with SIGKILL at the n-th write or Pass (counted from 1) of a record whose path contains
// the text (or any, for *). BERTH_FAULTPOINT_LOG names a file that gets one line for each point passed.
var fault = parseFault(os.Getenv("BERTH_FAULTPOINT"))

type faultPlan struct {
	text, when string
	at         int64
	seen       atomic.Int64
}

func parseFault(s string) *faultPlan {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return nil
	}
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return nil
	}
	return &faultPlan{text: parts[0], at: n, when: parts[2]}
}

func passed(when, path string) {
	if log := os.Getenv("BERTH_FAULTPOINT_LOG"); log != "" && when == "before" {
		if f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
			fmt.Fprintln(f, path)
			f.Close()
		}
	}
	if fault == nil || fault.when != when || (fault.text != "*" && !strings.Contains(path, fault.text)) {
		return
	}
	if fault.seen.Add(1) == fault.at {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// Pass counts like a write of the record at path, without one.
func Pass(path string) {
	passed("before", path)
	passed("after", path)
}

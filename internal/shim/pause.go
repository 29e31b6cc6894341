// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// Pause is PID 1 of a pod's shared PID namespace: it reaps what others leave behind and returns when it is
// asked to end.
func Pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	for {
		reapAll() // first: children may have ended before the signal was asked for
		if sig := <-signals; sig != syscall.SIGCHLD {
			return
		}
	}
}

func reapAll() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"strconv"
	"strings"
	"syscall"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	rtMin, rtMax  = 34, 64
	defaultSignal = int(syscall.SIGTERM)
)

var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "BUS": syscall.SIGBUS, "CHLD": syscall.SIGCHLD, "CLD": syscall.SIGCHLD,
	"CONT": syscall.SIGCONT, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP, "ILL": syscall.SIGILL, "INT": syscall.SIGINT,
	"IO": syscall.SIGIO, "IOT": syscall.SIGIOT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE, "POLL": syscall.SIGIO,
	"PROF": syscall.SIGPROF, "PWR": syscall.SIGPWR, "QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV, "STKFLT": syscall.SIGSTKFLT,
	"STOP": syscall.SIGSTOP, "SYS": syscall.SIGSYS, "TERM": syscall.SIGTERM, "TRAP": syscall.SIGTRAP, "TSTP": syscall.SIGTSTP,
	"TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU, "URG": syscall.SIGURG, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2,
	"VTALRM": syscall.SIGVTALRM, "WINCH": syscall.SIGWINCH, "XCPU": syscall.SIGXCPU, "XFSZ": syscall.SIGXFSZ,
}

// StopSignal is the number of the signal that asks the container to end: the CRI's, else the image's, else SIGTERM. An image's
// signal that nobody knows is an error of the request: the container could not be stopped as its author meant.
func StopSignal(c *runtimeapi.ContainerConfig, image string) (int, error) {
	field, name := "stop_signal", strings.TrimPrefix(c.GetStopSignal().String(), "SIGNAL_")
	if c.GetStopSignal() == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		field, name = "stop signal of the image", strings.TrimSpace(image)
	}
	if name == "" {
		return defaultSignal, nil
	}
	if n, ok := signalNumber(strings.ToUpper(name)); ok {
		return n, nil
	}
	return 0, invalid(field, "%q is no signal", name)
}

// signalNumber reads 15, TERM, SIGTERM, RTMIN, SIGRTMIN+3, RTMAX-1, and the CRI's SIGRTMINPLUS3.
func signalNumber(name string) (int, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, n > 0 && n <= rtMax
	}
	name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(strings.TrimPrefix(name, "SIG"))
	if s, ok := signals[name]; ok {
		return int(s), true
	}
	for _, base := range []struct {
		name   string
		number int
		sign   byte
	}{{"RTMIN", rtMin, '+'}, {"RTMAX", rtMax, '-'}} {
		offset, ok := strings.CutPrefix(name, base.name)
		if ok && offset == "" {
			return base.number, true
		}
		if !ok || offset[0] != base.sign {
			continue
		}
		if n, err := strconv.ParseUint(offset[1:], 10, 8); err == nil && n <= rtMax-rtMin {
			if base.sign == '-' {
				return base.number - int(n), true
			}
			return base.number + int(n), true
		}
	}
	return 0, false
}

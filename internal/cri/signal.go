// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"syscall"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var signals = map[syscall.Signal]runtimeapi.Signal{
	syscall.SIGABRT: runtimeapi.Signal_SIGNAL_SIGABRT, syscall.SIGALRM: runtimeapi.Signal_SIGNAL_SIGALRM,
	syscall.SIGBUS: runtimeapi.Signal_SIGNAL_SIGBUS, syscall.SIGCHLD: runtimeapi.Signal_SIGNAL_SIGCHLD,
	syscall.SIGCONT: runtimeapi.Signal_SIGNAL_SIGCONT, syscall.SIGFPE: runtimeapi.Signal_SIGNAL_SIGFPE,
	syscall.SIGHUP: runtimeapi.Signal_SIGNAL_SIGHUP, syscall.SIGILL: runtimeapi.Signal_SIGNAL_SIGILL,
	syscall.SIGINT: runtimeapi.Signal_SIGNAL_SIGINT, syscall.SIGIO: runtimeapi.Signal_SIGNAL_SIGIO,
	syscall.SIGKILL: runtimeapi.Signal_SIGNAL_SIGKILL, syscall.SIGPIPE: runtimeapi.Signal_SIGNAL_SIGPIPE,
	syscall.SIGPROF: runtimeapi.Signal_SIGNAL_SIGPROF, syscall.SIGPWR: runtimeapi.Signal_SIGNAL_SIGPWR,
	syscall.SIGQUIT: runtimeapi.Signal_SIGNAL_SIGQUIT, syscall.SIGSEGV: runtimeapi.Signal_SIGNAL_SIGSEGV,
	syscall.SIGSTKFLT: runtimeapi.Signal_SIGNAL_SIGSTKFLT, syscall.SIGSTOP: runtimeapi.Signal_SIGNAL_SIGSTOP,
	syscall.SIGSYS: runtimeapi.Signal_SIGNAL_SIGSYS, syscall.SIGTERM: runtimeapi.Signal_SIGNAL_SIGTERM,
	syscall.SIGTRAP: runtimeapi.Signal_SIGNAL_SIGTRAP, syscall.SIGTSTP: runtimeapi.Signal_SIGNAL_SIGTSTP,
	syscall.SIGTTIN: runtimeapi.Signal_SIGNAL_SIGTTIN, syscall.SIGTTOU: runtimeapi.Signal_SIGNAL_SIGTTOU,
	syscall.SIGURG: runtimeapi.Signal_SIGNAL_SIGURG, syscall.SIGUSR1: runtimeapi.Signal_SIGNAL_SIGUSR1,
	syscall.SIGUSR2: runtimeapi.Signal_SIGNAL_SIGUSR2, syscall.SIGVTALRM: runtimeapi.Signal_SIGNAL_SIGVTALRM,
	syscall.SIGWINCH: runtimeapi.Signal_SIGNAL_SIGWINCH, syscall.SIGXCPU: runtimeapi.Signal_SIGNAL_SIGXCPU,
	syscall.SIGXFSZ: runtimeapi.Signal_SIGNAL_SIGXFSZ,
}

// The kernel's real-time signals as a C library shows them; the CRI lists them in the same order.
const rtMin, rtMax = 34, 64

// stopSignal is the CRI's name of a Linux signal number.
func stopSignal(n int) runtimeapi.Signal {
	if n >= rtMin && n <= rtMax {
		return runtimeapi.Signal_SIGNAL_SIGRTMIN + runtimeapi.Signal(n-rtMin)
	}
	return signals[syscall.Signal(n)] // the zero value is SIGNAL_RUNTIME_DEFAULT
}

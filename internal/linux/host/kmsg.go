// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxRecord is more than the kernel gives in one read (CONSOLE_EXT_LOG_MAX); maxRecords bounds one look.
	maxRecord  = 8192
	maxRecords = 100_000
)

// Denials counts what seccomp filters refused loudly since it was opened, as the kernel's log tells. The log has what kills, traps, or is to be logged; that a filter answers
// with an error number, as those of containers do, only where kernel.seccomp.actions_logged and the filter ask for it. It is of the whole node,
// and where an audit daemon runs, the lines go there.
type Denials struct {
	mu    sync.Mutex
	fd    int
	count uint64
}

// OpenDenials begins to count. The error wraps why the kernel's log cannot be read: often EPERM.
func OpenDenials() (*Denials, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/kmsg: %w", err)
	}
	if _, err := unix.Seek(fd, 0, io.SeekEnd); err != nil {
		return nil, errors.Join(fmt.Errorf("seek in /dev/kmsg: %w", err), unix.Close(fd))
	}
	return &Denials{fd: fd}, nil
}

// Count reads what is new in the log and tells the count. Nobody reads between two calls: records that the kernel has overwritten by then are
// not counted.
func (d *Denials) Count() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	buffer := make([]byte, maxRecord)
	for range maxRecords {
		n, err := unix.Read(d.fd, buffer)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return d.count, nil
		case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.EINTR): // overwritten: the next read has the oldest that is there
			continue
		case err != nil:
			return d.count, fmt.Errorf("read /dev/kmsg: %w", err)
		}
		if isDenial(string(buffer[:n])) {
			d.count++
		}
	}
	return d.count, nil
}

// Close ends the counting.
func (d *Denials) Close() error { return unix.Close(d.fd) }

// isDenial tells an audit record of seccomp (AUDIT_SECCOMP, 1326) that refused something. Its code is the filter's verdict: SECCOMP_RET_USER_NOTIF and above do not refuse.
// A process can write to the log only with a syslog prefix of its own: such a record's facility is not the kernel's, 0.
func isDenial(record string) bool {
	head, text, ok := strings.Cut(record, ";")
	priority, _, _ := strings.Cut(head, ",")
	p, err := strconv.Atoi(priority)
	if !ok || err != nil || p>>3 != 0 || !strings.HasPrefix(text, "audit: type=1326 ") {
		return false
	}
	_, code, ok := strings.Cut(text, " code=0x")
	if !ok {
		return false
	}
	code, _, _ = strings.Cut(strings.TrimRight(code, "\n"), " ")
	verdict, err := strconv.ParseUint(code, 16, 32)
	const action, harmless = 0xffff0000, 0x7fc00000
	// SECCOMP_RET_KILL_PROCESS is the one with the sign bit.
	return err == nil && (verdict&action < harmless || verdict&action == 0x80000000)
}

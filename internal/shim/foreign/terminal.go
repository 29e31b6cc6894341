// SPDX-License-Identifier: Apache-2.0

package foreign

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/berth-run/berth/internal/linux/pty"
	"github.com/berth-run/berth/internal/shim/wire"
)

// terminal stands for the one that the foreign shim makes for a process. Our shim gets the master of a raw pair, as from any OCI runtime; this
// process carries bytes between the other end and the shim's FIFOs. The pair controls this process, the leader of its session: so the kernel
// tells it of each size that our shim sets, and it passes that on as ResizePty.
type terminal struct {
	slave   *os.File
	resized chan os.Signal
}

// openTerminal sends the master to the socket that our shim listens at.
func openTerminal(socket string) (*terminal, error) {
	master, slave, err := pty.OpenRaw()
	if err != nil {
		return nil, err
	}
	defer master.Close() // our shim's is the last: when that goes, reading ends here
	t := &terminal{slave: slave, resized: make(chan os.Signal, 1)}
	signal.Notify(t.resized, syscall.SIGWINCH)
	if err := pty.Control(slave); err != nil {
		t.close()
		return nil, err
	}
	if err := sendTerminal(socket, master); err != nil {
		t.close()
		return nil, fmt.Errorf("send terminal: %w", err)
	}
	return t, nil
}

func (t *terminal) close() {
	signal.Stop(t.resized)
	t.slave.Close()
}

// sendTerminal passes the descriptor on as runc does: with its name.
func sendTerminal(socket string, master *os.File) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		_, _, sendErr = conn.WriteMsgUnix([]byte(master.Name()), syscall.UnixRights(int(fd)), nil)
	})
	if err == nil {
		err = sendErr
	}
	return err
}

// follow passes on the size that is set, and those that come. What is set before the process has started counts, too.
func (p *standIn) follow() {
	var last pty.Size
	for {
		if size, err := pty.GetSize(p.terminal.slave); err == nil && size != last && p.resize(size) == nil {
			last = size
		}
		<-p.terminal.resized
	}
}

// resize has a connection of its own: the other one waits.
func (p *standIn) resize(size pty.Size) error {
	shim, err := dial(p.state.Address, p.state.Version)
	if err != nil {
		return err
	}
	defer shim.close()
	return shim.call(callLimit, "ResizePty", &wire.ResizePtyRequest{ID: p.id, ExecID: p.execID, Width: uint32(size.Width), Height: uint32(size.Height)}, &wire.Empty{})
}

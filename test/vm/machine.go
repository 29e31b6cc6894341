// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// port is the name of the virtio serial port that results come over: the console has the kernel's messages in between.
const port = "berth.results"

// machine is one run of the guest. Its disks are not changed: what it writes goes to a file that vanishes with qemu.
type machine struct {
	base    baseFiles
	payload string
	accel   string
	// logs is a folder for the console and for all that came over the port.
	logs    string
	results io.Writer
	// reachesHost lets the guest connect to this host, as 10.0.2.2, and to what lies behind it.
	reachesHost bool
}

// run returns when the guest has switched itself off, or has been ended at the limit.
func (m machine) run(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the machine still ran after %s", limit))
	defer cancel()
	if err := os.MkdirAll(m.logs, 0o755); err != nil {
		return fmt.Errorf("make log folder: %w", err)
	}
	output, err := os.OpenFile(filepath.Join(m.logs, "output.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer output.Close()
	var said strings.Builder
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.arguments()...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(output, m.results), &said
	cmd.WaitDelay = 5 * time.Second
	// The machine ends with this program, however that ends.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	err = cmd.Run()
	if s := cmd.ProcessState; s != nil { // what it takes on a host that does nothing else
		fmt.Printf("the machine ran for %s and took %s of processor time\n", time.Since(begin).Round(time.Second), (s.UserTime() + s.SystemTime()).Round(time.Second))
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%w; its console is in %s", context.Cause(ctx), m.console())
	} else if err != nil {
		err = fmt.Errorf("qemu: %w: %s", err, said.String())
	}
	return err
}

// emulatorFailed tells whether the kernel has panicked at least n times, always at a breakpoint that it had put into its own code and taken out again: with several
// processors, qemu before 8.1 may go on with code that it has translated while another one changed it.
func (m machine) emulatorFailed(n int) bool {
	text, err := os.ReadFile(m.console())
	if err != nil {
		return false
	}
	panics := strings.Count(string(text), "Kernel panic - ")
	return panics >= n && strings.Count(string(text), "Oops: int3: 0000 [#1]") >= panics
}

func (m machine) console() string { return filepath.Join(m.logs, "console.log") }

// arguments are qemu's. Without la57 page tables have four levels: emulated, the fifth costs time. Without cx16 the kernel
// does without CMPXCHG16B, which qemu 7.2's emulation gets wrong with several processors (the guest's stack pointer is lost).
func (m machine) arguments() []string {
	restrict := "on"
	if m.reachesHost {
		restrict = "off"
	}
	return []string{
		"-accel", m.accel, "-cpu", "max,la57=off,cx16=off", "-smp", "2", "-m", "4096",
		"-nodefaults", "-no-user-config", "-display", "none",
		"-kernel", m.base.kernel, "-initrd", m.base.initrd,
		"-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off panic=-1 systemd.show_status=1 loglevel=5",
		"-drive", "if=virtio,format=raw,snapshot=on,cache=unsafe,file=" + m.base.disk,
		"-drive", "if=virtio,format=raw,snapshot=on,cache=unsafe,file=" + m.payload,
		"-serial", "file:" + m.console(),
		"-netdev", "user,id=net,restrict=" + restrict, "-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci", "-chardev", "file,id=results,path=/dev/stdout", "-device", "virtserialport,chardev=results,name=" + port,
	}
}

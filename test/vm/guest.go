// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	mountPoint = "/berth"
	// progressFile outlives a reboot.
	progressFile = "/var/lib/berth-vm.json"
)

// progress is how far the plan is carried out.
type progress struct {
	// Next is the first step that has not begun.
	Next int
	// Begun is set while step Next-1 runs: after a reboot that nobody asked for it tells which step was under way.
	Begun bool
	// Downs counts how often the machine went down in that step.
	Downs int
}

// maxDowns ends attempts at a step.
const maxDowns = 3

// guest carries out the plan inside the machine, then switches it off. It is started again after each reboot.
func guest() int {
	err := carryOut()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm guest:", err)
	}
	// The disks are thrown away at the end: no unit needs to stop for that.
	args := []string{"poweroff", "--force", "--force"}
	switch {
	case errors.Is(err, errReboot):
		args = []string{"reboot"}
	case errors.Is(err, errPowerCut):
		args[0] = "reboot"
	}
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "vm guest: systemctl %v: %v: %s\n", args, err, out)
		return 1
	}
	return 0
}

var (
	errReboot   = errors.New("reboot")
	errPowerCut = errors.New("power cut")
)

func carryOut() error {
	results, err := openPort(30 * time.Second)
	if err != nil {
		return err
	}
	defer results.Close()
	var steps []step
	if err := readJSON(filepath.Join(mountPoint, planFile), &steps); err != nil {
		return err
	}
	var p progress
	if err := readJSON(progressFile, &p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if p.Begun {
		reportDown(results, steps[p.Next-1])
		if p.Downs++; p.Downs < maxDowns { // the host knows whether it was the emulator
			p.Next--
		} else {
			reportEnd(results, steps[p.Next-1], 0, fmt.Errorf("the machine went down %d times", p.Downs))
			p.Downs = 0
		}
	}
	if err := bringUp(); err != nil {
		return err
	}
	for p.Next < len(steps) {
		s := steps[p.Next]
		p.Next, p.Begun = p.Next+1, s.Reboot == ""
		if err := p.save(); err != nil {
			return err
		}
		switch s.Reboot {
		case orderly:
			return errReboot
		case powerCut:
			return errPowerCut
		}
		reportBegin(results, s)
		begin := time.Now()
		err := s.execute(results)
		reportEnd(results, s, time.Since(begin), err)
		p.Downs = 0
	}
	return nil
}

// execute runs the step's tests with their output to the port.
func (s step) execute(results *os.File) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), s.Limit, fmt.Errorf("it still ran after %s", s.Limit))
	defer cancel()
	args := []string{"-test.v=test2json", "-test.timeout=" + s.Limit.String()}
	if s.Run != "" {
		args = append(args, "-test.run="+s.Run)
	}
	if s.Skip != "" {
		args = append(args, "-test.skip="+s.Skip)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(mountPoint, s.binary()), args...)
	cmd.Dir = homeOf(mountPoint, s)
	cmd.Env = append(append(os.Environ(), "HOME=/root"), s.Env...)
	cmd.Stdout, cmd.Stderr = results, results
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// bringUp gives the machine an address and the way out that tests of port mappings look for. Nothing answers there.
func bringUp() error {
	for _, args := range [][]string{
		{"link", "set", "eth0", "up"}, {"address", "replace", "10.0.2.15/24", "dev", "eth0"}, {"route", "replace", "default", "via", "10.0.2.2"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	return nil
}

// openPort waits for udev to make the port's device.
func openPort(limit time.Duration) (*os.File, error) {
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		f, err := os.OpenFile("/dev/virtio-ports/"+port, os.O_WRONLY, 0)
		if err == nil || time.Now().After(end) {
			return f, err
		}
	}
}

func (p progress) save() error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(progressFile, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

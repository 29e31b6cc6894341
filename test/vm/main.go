// SPDX-License-Identifier: Apache-2.0

// Command vm runs Berth's tests in a virtual machine with what the machines of developers and CI may lack: cgroup v2 with all
// controllers, systemd, AppArmor, every capability, a reboot. `make test-vm` starts it, as root, on Debian or Ubuntu.
//
// The guest is a Debian made by debootstrap, cached under its recipe's hash; qemu emulates its processor (TCG), so /dev/kvm is not needed.
// The test binaries are compiled here and travel on a second disk, with a plan that this same program carries out inside (`vm guest`). Each
// result comes back over a virtio serial port; the last line on standard output is "N passed, N failed".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

type options struct {
	cache   string
	run     *regexp.Regexp
	tests   string
	timeout time.Duration
	// patience multiplies the steps' limits.
	patience int
	accel    string
	// suite is critest's path, if it is to run; fixtures is where this host serves the images that it wants.
	suite, fixtures string
	verbose         bool
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "guest" {
		os.Exit(guest())
	}
	if err := host(); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

func parse() (options, error) {
	var o options
	cache, err := os.UserCacheDir()
	if err != nil {
		return o, fmt.Errorf("find cache folder: %w", err)
	}
	flag.StringVar(&o.cache, "cache", filepath.Join(cache, "berth", "vm"), "folder of the machine's image and the last run's logs")
	flag.DurationVar(&o.timeout, "timeout", 45*time.Minute, "limit on the machine's life")
	flag.IntVar(&o.patience, "patience", 1, "multiplies the limits of the single steps, for hosts that have other things to do")
	flag.StringVar(&o.accel, "accel", "tcg,thread=multi,tb-size=1024", "qemu's -accel")
	flag.BoolVar(&o.verbose, "v", false, "print all that the tests print")
	flag.StringVar(&o.suite, "critest", os.Getenv("CRITEST"), "path of the CRI validation suite, to be run too")
	flag.StringVar(&o.fixtures, "fixtures", os.Getenv("FIXTURES"), "host:port of a registry with the suite's images")
	run := flag.String("run", "", "run only the steps whose name matches this regular expression")
	flag.StringVar(&o.tests, "tests", "", "of each step, run only the tests that match this, as go test's -run")
	flag.Parse()
	if o.run, err = regexp.Compile(*run); err != nil {
		return o, fmt.Errorf("-run: %w", err)
	}
	return o, nil
}

// host prepares and runs the machine. The last line of its output counts the tests.
func host() error {
	o, err := parse()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("need root, for debootstrap")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	unlock, err := lock(o.cache)
	if err != nil {
		return err
	}
	defer unlock()
	base, err := baseImage(ctx, o.cache)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "berth-vm-")
	if err != nil {
		return fmt.Errorf("make working folder: %w", err)
	}
	defer os.RemoveAll(work)
	steps := chosen(o.plan(), o.run)
	for i := range steps {
		steps[i].Limit *= time.Duration(o.patience)
		if o.tests != "" && steps[i].Run == "" {
			steps[i].Run = o.tests
		}
	}
	if len(steps) == 0 {
		return fmt.Errorf("no step matches -run %q", o.run)
	}
	payload, err := makePayload(ctx, work, steps, o.suite)
	if err != nil {
		return err
	}
	report := newReport(os.Stdout, o.verbose)
	m := machine{base: base, payload: payload, accel: o.accel, logs: filepath.Join(o.cache, "last"), results: report, reachesHost: o.fixtures != ""}
	report.emulator = m.emulatorFailed
	err = m.run(ctx, o.timeout)
	report.finish(steps)
	fmt.Printf("%d passed, %d failed\n", report.passed, report.failed)
	if err == nil && report.failed > 0 {
		err = fmt.Errorf("tests failed; all output is in %s", m.logs)
	}
	return err
}

// chosen are the steps whose name matches. Reboots stay only between steps that stay.
func chosen(all []step, run *regexp.Regexp) []step {
	var steps []step
	for _, s := range all {
		if run.MatchString(s.Name) {
			steps = append(steps, s)
		}
	}
	return steps
}

// lock keeps two runs apart that share a cache.
func lock(cache string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make cache folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock cache: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock cache %s: another run uses it (-cache names another folder): %w", cache, err)
	}
	return func() { f.Close() }, nil
}

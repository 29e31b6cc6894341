// SPDX-License-Identifier: Apache-2.0

// Package doctor looks for what keeps pods from running on a node and says what to do about it: the checks that a
// troubleshooting guide would have people make by hand. For `berth doctor`, its only caller.
//
// It asks the daemon over its socket, as any CRI client does, and looks at the machine itself: it must be of use where the daemon does not
// start. It changes nothing but what Fix is called for, and what NetworkTest connects it disconnects.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/config"
)

// Level says how bad a finding is.
type Level string

// OK: checked and right. Warn: pods run, and something will be in their way. Fail: pods cannot run, or not all of them.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is what one check found about one thing.
type Finding struct {
	// Check is the check's name, a stable word for scripts.
	Check string `json:"check"`
	Level Level  `json:"level"`
	// Text says what is, Do what to do about it; Do is empty where all is well.
	Text string `json:"text"`
	Do   string `json:"do,omitempty"`
	// Fixed tells that Fix has put it right.
	Fixed bool `json:"fixed,omitempty"`

	fix func() error
}

// Fixable tells whether Fix would do something about it.
func (f Finding) Fixable() bool { return f.fix != nil && !f.Fixed }

// checkTime bounds each check: one that hangs is a finding, too.
const checkTime = 20 * time.Second

// maxFile bounds what is read of any file.
const maxFile = 4 << 20

// Doctor is what the checks work with.
type Doctor struct {
	// Config is the daemon's configuration, ConfigError why it cannot be read; then Config is the defaults.
	Config      *config.Config
	ConfigError error
	// Origins says where Config's values come from.
	Origins config.Origins
	// ConfigDir is the folder of the configuration; a daemon whose files are elsewhere is not compared with it.
	ConfigDir string
	// Version is this program's; empty: the daemon's is not compared with it.
	Version string
	// Connect makes a client of the daemon's socket.
	Connect func(context.Context) (runtimeapi.RuntimeServiceClient, error)
	// Root is put before the paths of the machine's own files (/proc, /etc, /var/lib/kubelet …): tests have a machine of files.
	Root string
	// KubeletConfig is the kubelet's configuration file; empty: where the kubelet's command line or kubeadm says.
	KubeletConfig string
	// NetworkTest connects a scratch network namespace with the pods' network and disconnects it again.
	NetworkTest bool
	// Registries are asked for an answer, each with its mirrors.
	Registries []string

	client  runtimeapi.RuntimeServiceClient
	running string            // the daemon's version
	info    map[string]string // of the daemon's verbose status
	found   []Finding

	// What is no file of the machine's; nil: the kernel is asked.
	fakeStatfs func(dir string, st *syscall.Statfs_t) error
	fakeClock  func() (synced bool, err error)
}

// check is one of the checks; it reports through the Doctor.
type check struct {
	name string
	run  func(*Doctor, context.Context, report)
}

// checks in the order in which they help: what is wrong first explains what is wrong after it.
var checks = []check{
	{"config", (*Doctor).checkConfig},
	{"socket", (*Doctor).checkSocket},
	{"status", (*Doctor).checkStatus},
	{"restart", (*Doctor).checkRestart},
	{"operations", (*Doctor).checkOperations},
	{"kubelet", (*Doctor).checkKubelet},
	{"cgroups", (*Doctor).checkCgroups},
	{"kernel", (*Doctor).checkKernel},
	{"security", (*Doctor).checkSecurity},
	{"sysctl", (*Doctor).checkSysctls},
	{"network", (*Doctor).checkNetwork},
	{"runtime", (*Doctor).checkRuntimes},
	{"checkpoint", (*Doctor).checkCheckpoints},
	{"storage", (*Doctor).checkStorage},
	{"images", (*Doctor).checkImages},
	{"registry", (*Doctor).checkRegistries},
	{"clock", (*Doctor).checkClock},
	{"leftover", (*Doctor).checkLeftOver},
}

// report takes the findings of one check.
type report struct {
	d    *Doctor
	name string
}

func (r report) add(level Level, do, format string, args ...any) *Finding {
	r.d.found = append(r.d.found, Finding{Check: r.name, Level: level, Do: do, Text: fmt.Sprintf(format, args...)})
	return &r.d.found[len(r.d.found)-1]
}

func (r report) ok(format string, args ...any)       { r.add(OK, "", format, args...) }
func (r report) warn(do, format string, args ...any) { r.add(Warn, do, format, args...) }
func (r report) fail(do, format string, args ...any) { r.add(Fail, do, format, args...) }

// Run makes all checks and returns what they found, in their order. A check that cannot be made is a finding, never an error.
func (d *Doctor) Run(ctx context.Context) []Finding {
	d.found = nil
	for _, c := range checks {
		if ctx.Err() != nil {
			break
		}
		limited, cancel := context.WithTimeout(ctx, checkTime)
		c.run(d, limited, report{d, c.name})
		cancel()
	}
	return d.found
}

// Fix does what is safe about the findings of the last Run: settings that pods need, and folders' modes. It returns the findings with
// Fixed set where it did.
func (d *Doctor) Fix() ([]Finding, error) {
	var errs []error
	for i := range d.found {
		f := &d.found[i]
		if !f.Fixable() {
			continue
		}
		if err := f.fix(); err != nil {
			errs = append(errs, fmt.Errorf("fix %s: %w", f.Check, err))
			continue
		}
		f.Fixed = true
	}
	return d.found, errors.Join(errs...)
}

// Worst is the worst level among what is not fixed.
func Worst(all []Finding) Level {
	worst := OK
	for _, f := range all {
		switch {
		case f.Fixed:
		case f.Level == Fail:
			return Fail
		case f.Level == Warn:
			worst = Warn
		}
	}
	return worst
}

func (d *Doctor) path(p string) string { return filepath.Join(d.Root, p) }

// read is the text of one of the machine's files, "" where there is none.
func (d *Doctor) read(p string) (string, error) {
	f, err := os.Open(d.path(p))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	return strings.TrimSpace(string(data)), err
}

func (d *Doctor) exists(p string) bool {
	_, err := os.Stat(d.path(p))
	return err == nil
}

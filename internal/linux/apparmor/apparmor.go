// SPDX-License-Identifier: Apache-2.0

// Package apparmor knows which AppArmor profiles the kernel has loaded, and loads the one that confines containers whose owners ask for no other.
// For daemon; only where host.AppArmor says that the kernel confines by profiles.
package apparmor

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/moby/profiles/apparmor"
)

// DefaultName is the name of the default profile.
const DefaultName = "berth-default"

// loadedList is where the kernel lists its profiles, one a line: name (mode).
const loadedList = "/sys/kernel/security/apparmor/profiles"

// ErrNoParser: the program that compiles profiles is not installed.
var ErrNoParser = errors.New("apparmor_parser is not installed; install the apparmor package")

// Profiles is the kernel's set of profiles. It is safe for concurrent use.
type Profiles struct {
	list string
	load func(name string) error

	mu sync.Mutex // one load at a time; held while the parser runs, for some tens of milliseconds
}

// New returns the kernel's profiles.
func New() *Profiles { return &Profiles{list: loadedList, load: install} }

// Loaded tells whether the kernel has a profile of that name, enforcing or not.
func (p *Profiles) Loaded(name string) (bool, error) {
	f, err := os.Open(p.list)
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if i := strings.LastIndex(lines.Text(), " ("); i >= 0 && lines.Text()[:i] == name { // names may have spaces in them
			return true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	return false, nil
}

// EnsureDefault loads the default profile where it is not loaded: at the first call, and when somebody has torn AppArmor down since.
// ErrNoParser.
func (p *Profiles) EnsureDefault() error {
	if loaded, err := p.Loaded(DefaultName); loaded || err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if loaded, err := p.Loaded(DefaultName); loaded || err != nil { // another call was faster
		return err
	}
	if err := p.load(DefaultName); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w", DefaultName, err)
	}
	switch loaded, err := p.Loaded(DefaultName); {
	case err != nil:
		return err
	case !loaded:
		return fmt.Errorf("load AppArmor profile %s: the kernel does not list it (is this an AppArmor namespace of its own?)", DefaultName)
	}
	return nil
}

// Reload replaces the default profile by this program's, which may be newer than the one that is loaded.
func (p *Profiles) Reload() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.load(DefaultName); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w", DefaultName, err)
	}
	return nil
}

func install(name string) error {
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		return fmt.Errorf("%w: %w", ErrNoParser, err)
	}
	return apparmor.InstallDefault(name)
}

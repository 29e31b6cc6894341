// SPDX-License-Identifier: Apache-2.0

package leak

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/berth-run/berth/internal/linux/iptables"
)

// Sweep removes by force all that is the scope's own, whether it leaked or not: so a test that fails leaves
// the machine as it was. The daemon must have ended. It goes on after errors and returns them all.
func (s Scope) Sweep() error {
	errs := []error{s.killAll(), s.unmountAll(), s.DropRules(), s.dropLinks(), s.dropCgroups()}
	if s.Dir != "" {
		errs = append(errs, os.RemoveAll(s.Dir))
	}
	return errors.Join(errs...)
}

func (s Scope) unmountAll() error {
	points, err := s.mountPoints()
	errs := []error{err}
	for _, p := range slices.Backward(points) {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

func (s Scope) dropLinks() error {
	if s.Bridge == "" {
		return nil
	}
	ports, _ := filepath.Glob("/sys/class/net/" + s.Bridge + "/brif/*")
	var errs []error
	for _, p := range append(ports, s.Bridge) {
		if _, err := os.Stat("/sys/class/net/" + filepath.Base(p)); err != nil {
			continue
		}
		if out, err := exec.Command("ip", "link", "delete", filepath.Base(p)).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("delete link %s: %w: %s", p, err, out))
		}
	}
	return errors.Join(errs...)
}

// DropRules deletes the rules that name the network, then the chains that they led to: all at once, for hundreds of pods have thousands of rules;
// one by one where that fails, since somebody else has changed one meanwhile.
func (s Scope) DropRules() error {
	if s.Network == "" {
		return nil
	}
	var errs []error
	for _, tool := range []string{"iptables", "ip6tables"} {
		out, err := output(tool+"-save", "-t", "nat")
		errs = append(errs, err)
		rules, chains := s.rulesIn(out)
		if len(rules) == 0 {
			continue
		}
		if restoreWithout(tool, rules, chains) == nil {
			continue
		}
		for _, rule := range rules {
			_, err := output(tool, append([]string{"-w", "-t", "nat"}, iptables.Parse(rule).Deletion()...)...)
			errs = append(errs, err)
		}
		for _, c := range chains {
			_, err1 := output(tool, "-w", "-t", "nat", "-F", c)
			_, err2 := output(tool, "-w", "-t", "nat", "-X", c)
			errs = append(errs, err1, err2)
		}
	}
	return errors.Join(errs...)
}

// rulesIn picks the rules that name the network from what iptables-save prints, and the containers' chains that they lead to.
func (s Scope) rulesIn(saved string) (rules, chains []string) {
	for line := range strings.Lines(saved) {
		rule := iptables.Parse(line)
		if !strings.Contains(line, s.Network) || rule.Deletion() == nil {
			continue
		}
		rules = append(rules, strings.TrimSpace(line))
		if to := rule.Target(); cniChain.MatchString(":" + to + " ") {
			chains = append(chains, to)
		}
	}
	return rules, chains
}

// restoreWithout deletes rules and chains in one transaction.
func restoreWithout(tool string, rules, chains []string) error {
	var batch strings.Builder
	batch.WriteString("*nat\n")
	for _, r := range rules {
		batch.WriteString("-D" + strings.TrimPrefix(r, "-A") + "\n")
	}
	for _, c := range chains {
		batch.WriteString("-F " + c + "\n-X " + c + "\n")
	}
	batch.WriteString("COMMIT\n")
	cmd := exec.Command(tool+"-restore", "--noflush", "-w")
	cmd.Stdin = strings.NewReader(batch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, out)
	}
	return nil
}

func (s Scope) dropCgroups() error {
	var errs []error
	for try := range 20 {
		folders, err := s.cgroupFolders()
		errs = []error{err}
		for _, f := range slices.Backward(folders) {
			if err := syscall.Rmdir(f); err != nil && !errors.Is(err, syscall.ENOENT) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", f, err))
			}
		}
		if errors.Join(errs...) == nil || try == 19 {
			break
		}
		settleBriefly()
	}
	return errors.Join(errs...)
}

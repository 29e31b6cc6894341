// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/linux/mount"
	"github.com/berth-run/berth/internal/network"
)

const (
	// sweepTimeout bounds what is done for one orphan while the node waits to be served.
	sweepTimeout = 20 * time.Second
	// collectTimeout bounds the network plugins' own garbage collection, which nobody waits for.
	collectTimeout = 2 * time.Minute
)

// collectNetwork lets the network's plugins free what belongs to no sandbox, in the background.
func (m *Manager) collectNetwork() {
	if !m.work.begin() {
		return
	}
	keep, _ := m.recordedIDs()
	go func() {
		defer m.work.finish()
		ctx, cancel := context.WithTimeout(m.life, collectTimeout)
		defer cancel()
		if err := m.parts.Network.GC(ctx, keep); err != nil && m.life.Err() == nil {
			m.log.Warn("collect network leftovers", "error", err)
		}
	}()
}

// sweep releases what no record owns: the remains of records that were lost or set aside. Everything a
// sandbox holds can be found from its ID alone.
func (m *Manager) sweep(ctx context.Context, rep *report) {
	sandboxes, containers := m.recordedIDs()
	for _, id := range m.orphans(ctx, rep, sandboxes) {
		if err := m.sweepSandbox(ctx, id); err != nil {
			rep.trouble(fmt.Errorf("sweep orphan sandbox %s: %w", id, err))
			continue
		}
		rep.count(&rep.Swept)
	}
	m.sweepRestores(rep, containers)
	rootfses, err := m.parts.Images.Rootfses()
	if err != nil {
		rep.trouble(fmt.Errorf("sweep: list root file systems: %w", err))
	}
	for _, id := range rootfses {
		if slices.Contains(containers, id) {
			continue
		}
		if err := m.sweepContainer(ctx, id); err != nil {
			rep.trouble(fmt.Errorf("sweep orphan container %s: %w", id, err))
			continue
		}
		rep.count(&rep.Swept)
	}
}

// orphans gathers the IDs of sandboxes that something is left of and that no record owns.
func (m *Manager) orphans(ctx context.Context, rep *report, owned []string) []string {
	var ids []string
	note := func(id string) {
		if isID(id) && !slices.Contains(owned, id) && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, dir := range []string{m.podsDir(), m.statesDir(), m.cfg.NetnsDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			rep.trouble(fmt.Errorf("sweep: %w", err))
		}
		for _, e := range entries {
			name := e.Name()
			if dir == m.cfg.NetnsDir {
				id, ours := strings.CutPrefix(name, "berth-")
				if !ours || !m.oursByNetwork(id) {
					continue
				}
				name = id
			}
			note(name)
		}
	}
	cached, err := m.parts.Network.Cached(ctx)
	if err != nil {
		rep.trouble(fmt.Errorf("sweep: list network attachments: %w", err))
	}
	for _, id := range cached {
		note(id)
	}
	return ids
}

// oursByNetwork tells whether a pinned network namespace belongs to this daemon: another Berth on the node, with its own root,
// pins in the same folder.
func (m *Manager) oursByNetwork(id string) bool {
	for _, dir := range []string{filepath.Join(m.podsDir(), id), filepath.Join(m.statesDir(), id)} {
		if _, err := os.Lstat(dir); err == nil {
			return true
		}
	}
	return false
}

func isID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func (m *Manager) sweepSandbox(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	state := filepath.Join(m.statesDir(), id)
	err := m.parts.Runtime.KillShim(ctx, id)
	entries, rerr := os.ReadDir(state)
	if rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	for _, e := range entries {
		if isID(e.Name()) {
			err = errors.Join(err, m.parts.Runtime.KillLeftOver(ctx, m.cfg.DefaultHandler, e.Name(), filepath.Join(state, e.Name())))
		}
	}
	netns := m.netnsPath(id)
	attachment := network.Attachment{ID: id, NetnsPath: netns}
	pins := NamespacePins{Net: netns, IPC: filepath.Join(state, "ns", "ipc"), UTS: filepath.Join(state, "ns", "uts"),
		User: filepath.Join(state, "ns", "user")}
	err = errors.Join(err, m.parts.Network.Detach(ctx, attachment), m.parts.Host.RemoveNamespaces(pins),
		m.parts.Host.RemoveCgroup(ctx, m.cgroupParent(nil, id)), m.parts.Host.UnmountBelow(state))
	if err != nil {
		return err // the folders stay, so that the next start finds it again
	}
	return errors.Join(mount.RemoveAll(state), mount.RemoveAll(filepath.Join(m.podsDir(), id)))
}

// sweepRestores removes what no container is restored from any more.
func (m *Manager) sweepRestores(rep *report, containers []string) {
	entries, err := os.ReadDir(m.restoresDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		rep.trouble(fmt.Errorf("sweep: %w", err))
	}
	for _, e := range entries {
		if slices.Contains(containers, e.Name()) {
			continue
		}
		if err := os.RemoveAll(m.restoreDir(e.Name())); err != nil {
			rep.trouble(fmt.Errorf("sweep: %w", err))
			continue
		}
		rep.count(&rep.Swept)
	}
}

// sweepContainer removes a writable layer that no record owns, and what is left of its container.
func (m *Manager) sweepContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	bundles, err := filepath.Glob(filepath.Join(m.statesDir(), "*", id))
	if err != nil {
		return err
	}
	for _, bundle := range bundles {
		err = errors.Join(err, m.parts.Runtime.KillLeftOver(ctx, m.cfg.DefaultHandler, id, bundle), m.parts.Host.UnmountBelow(bundle))
		if err == nil {
			err = mount.RemoveAll(bundle)
		}
	}
	if err != nil {
		return err
	}
	return m.parts.Images.RemoveRootfs(ctx, id)
}

// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/berth-run/berth/internal/linux/fsys"
	"github.com/berth-run/berth/internal/record"
)

// maxEntry bounds a cache file: a configuration, a result and a pod's annotations (at most 256 KiB).
const maxEntry = 8 << 20

// entry is one attachment, written before its first plugin runs. The form is libcni's (kind cniCacheV1), so that
// people find what they know; "berth" is ours.
//
//	absent --Attach--> running ADD --all plugins done--> attached --Detach--> running DEL --all done--> absent
//	                        \___________________________Detach__________________/   \--one failed--> (again)
type entry struct {
	Kind         string                     `json:"kind"`
	ContainerID  string                     `json:"containerId"`
	Config       []byte                     `json:"config"`
	IfName       string                     `json:"ifName"`
	NetworkName  string                     `json:"networkName"`
	NetNS        string                     `json:"netns,omitempty"`
	CNIArgs      [][2]string                `json:"cniArgs,omitempty"`
	Capabilities map[string]json.RawMessage `json:"capabilityArgs,omitempty"`
	// Result is that of the last plugin that is through, even when the chain is not.
	Result json.RawMessage `json:"result,omitempty"`
	Berth  progress        `json:"berth"`
}

// progress tells a later daemon what this one may have left running.
type progress struct {
	// Running is the verb whose plugins run, Daemon the process that began it.
	Running string `json:"running,omitempty"`
	Daemon  string `json:"daemon,omitempty"`
	// FailedSince is when a DEL failed first.
	FailedSince time.Time `json:"failedSince,omitzero"`
}

// cache is a folder of entries. Like records they are written by appending a line and not synced: a power cut ends what
// they describe, except addresses reserved by an IPAM plugin that syncs and knows no GC.
type cache struct{ dir string }

func openCache(root string) (cache, error) {
	dir := filepath.Join(root, "results")
	for _, d := range []string{root, dir} {
		if err := makePrivate(d); err != nil {
			return cache{}, fmt.Errorf("CNI cache: %w", err)
		}
	}
	leftover, err := filepath.Glob(filepath.Join(dir, "*"+unfinished))
	if err != nil {
		return cache{}, fmt.Errorf("CNI cache: %w", err)
	}
	for _, path := range leftover {
		if err := os.Remove(path); err != nil {
			return cache{}, fmt.Errorf("CNI cache: %w", err)
		}
	}
	return cache{dir: dir}, nil
}

// unfinished ends the name of a file that was not renamed yet.
const unfinished = ".new"

func (c cache) path(e entry) string {
	return filepath.Join(c.dir, e.NetworkName+"-"+e.ContainerID+"-"+e.IfName)
}

func (c cache) write(e entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("remember attachment of %s: %w", e.ContainerID, err)
	}
	if err := record.WriteLine(c.path(e), data); err != nil {
		return fmt.Errorf("remember attachment: %w", err)
	}
	return nil
}

func (c cache) remove(e entry) error {
	if err := os.Remove(c.path(e)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget attachment: %w", err)
	}
	return nil
}

// names splits the files' names into network and sandbox. Sandbox IDs of ours have no dash.
func (c cache) names() (map[string]string, error) {
	files, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, fmt.Errorf("read CNI cache: %w", err)
	}
	ids := make(map[string]string, len(files))
	for _, f := range files {
		stem, ok := strings.CutSuffix(f.Name(), "-"+ifName)
		if i := strings.LastIndexByte(stem, '-'); ok && i > 0 {
			ids[f.Name()] = stem[i+1:]
		}
	}
	return ids, nil
}

// find returns what is held for a sandbox, or for all with an empty ID: usually one entry each, more when the
// network was changed between two tries. An entry that cannot be read comes with an empty Kind.
func (c cache) find(id string) ([]entry, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	var entries []entry
	for name, owner := range names {
		if id != "" && owner != id {
			continue
		}
		e, err := c.read(name)
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			continue
		}
		if err != nil || e.Kind != libcni.CNICacheV1 || filepath.Base(c.path(e)) != name {
			network := strings.TrimSuffix(name, "-"+owner+"-"+ifName)
			e = entry{ContainerID: owner, NetworkName: network, IfName: ifName}
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(c.path(a), c.path(b)) })
	return entries, nil
}

func (c cache) read(name string) (entry, error) {
	data, err := fsys.ReadFile(filepath.Join(c.dir, name), maxEntry)
	if err != nil {
		return entry{}, err
	}
	var e entry
	return e, json.Unmarshal(record.LastLine(data), &e)
}

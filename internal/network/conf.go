// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
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
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berth-run/berth/internal/linux/fsys"
)

// maxConf bounds a configuration file; real ones have a few kilobytes.
const maxConf = 1 << 20

// snapshot is the configuration folder as it was read once. It does not change.
type snapshot struct {
	list       *libcni.NetworkConfigList // nil: there is none
	file       string
	invalid    []error // files before it in name order
	err        error   // the folder itself could not be read
	read       time.Time
	generation int // counts the changes
}

func (s *snapshot) same(o *snapshot) bool {
	if (s.list == nil) != (o.list == nil) || s.file != o.file || fmt.Sprint(s.err, s.invalid) != fmt.Sprint(o.err, o.invalid) {
		return false
	}
	return s.list == nil || bytes.Equal(s.list.Bytes, o.list.Bytes)
}

// notReady says why there is no configuration, nil when there is one.
func (s *snapshot) notReady(dir string) error {
	switch {
	case s.list != nil:
		return nil
	case s.err != nil:
		return fmt.Errorf("%w: %w", ErrNotReady, s.err)
	case len(s.invalid) > 0:
		return fmt.Errorf("%w: no valid CNI configuration in %s: %w", ErrNotReady, dir, errors.Join(s.invalid...))
	}
	return fmt.Errorf("%w: no CNI configuration in %s", ErrNotReady, dir)
}

// readConfDir takes the first valid file in name order, as other runtimes do.
func readConfDir(dir string) *snapshot {
	s := &snapshot{read: time.Now()}
	entries, err := os.ReadDir(dir) // sorted
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.err = fmt.Errorf("read CNI configuration: %w", err)
		return s
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if e.IsDir() || (ext != ".conflist" && ext != ".conf" && ext != ".json") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		list, err := readConf(path)
		if err != nil {
			s.invalid = append(s.invalid, fmt.Errorf("%s: %w", path, err))
			continue
		}
		s.list, s.file = list, path
		return s
	}
	return s
}

func readConf(path string) (*libcni.NetworkConfigList, error) {
	data, err := fsys.ReadFile(path, maxConf)
	if err != nil {
		return nil, err
	}
	var form struct {
		Plugins json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &form); err != nil {
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	var list *libcni.NetworkConfigList
	if filepath.Ext(path) == ".conflist" || form.Plugins != nil {
		list, err = parseList(data, filepath.Dir(path))
	} else { // a single plugin, as it was written before lists came
		list, err = parseSingle(data)
	}
	if err != nil {
		return nil, err
	}
	return list, checkList(list)
}

func parseSingle(data []byte) (*libcni.NetworkConfigList, error) {
	var plugin map[string]any
	if err := json.Unmarshal(data, &plugin); err != nil {
		return nil, err
	}
	if t, ok := plugin["type"].(string); !ok || t == "" {
		return nil, errors.New("it has neither plugins nor a type")
	}
	whole, err := json.Marshal(map[string]any{"name": plugin["name"], "cniVersion": plugin["cniVersion"], "plugins": []any{plugin}})
	if err != nil {
		return nil, err
	}
	if plugin["cniVersion"] == nil {
		whole = bytes.Replace(whole, []byte(`"cniVersion":null,`), nil, 1)
	}
	return parseList(whole, "")
}

// parseList also puts plugins that lie in files of their own (the folder named like the network, spec 1.1) into the
// list's bytes: what is remembered of an attachment must not depend on files that may change.
func parseList(data []byte, dir string) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if list.CNIVersion == "" {
		list.CNIVersion = "0.1.0" // what the specification says of its absence
	}
	if list.LoadOnlyInlinedPlugins || dir == "" {
		return list, nil
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil { // before it becomes part of a path
		return nil, err
	}
	more, err := libcni.NetworkPluginConfsFromFiles(dir, list.Name)
	if err != nil || len(more) == 0 {
		return list, err
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	list.Plugins = append(list.Plugins, more...)
	var inlined []json.RawMessage
	for _, p := range list.Plugins {
		inlined = append(inlined, p.Bytes)
	}
	if raw["plugins"], err = json.Marshal(inlined); err != nil {
		return nil, err
	}
	raw["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	list.LoadOnlyInlinedPlugins = true
	list.Bytes, err = json.Marshal(raw)
	return list, err
}

func checkList(list *libcni.NetworkConfigList) error {
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return err
	}
	if len(list.Name) > 100 { // it becomes part of a file name
		return fmt.Errorf("the network's name has %d bytes", len(list.Name))
	}
	if len(list.Plugins) == 0 {
		return errors.New("it lists no plugin")
	}
	if newer, err := version.GreaterThan(list.CNIVersion, version.Current()); err != nil {
		return fmt.Errorf("cniVersion: %w", err)
	} else if newer {
		return fmt.Errorf("cniVersion %s is newer than %s, which is the newest known here", list.CNIVersion, version.Current())
	}
	for _, p := range list.Plugins {
		if strings.ContainsAny(p.Network.Type, "/\x00") || p.Network.Type == "." || p.Network.Type == ".." {
			return fmt.Errorf("plugin type %q is not a file name", p.Network.Type)
		}
	}
	return nil
}

func atLeast(list *libcni.NetworkConfigList, v string) bool {
	ok, err := version.GreaterThanOrEqualTo(list.CNIVersion, v)
	return err == nil && ok
}

func pluginTypes(list *libcni.NetworkConfigList) []string {
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Network.Type)
	}
	return types
}

// binaries also names the IPAM plugins, which the others start.
func binaries(list *libcni.NetworkConfigList) []string {
	names := pluginTypes(list)
	for _, p := range list.Plugins {
		if t := p.Network.IPAM.Type; t != "" && !slices.Contains(names, t) {
			names = append(names, t)
		}
	}
	return names
}

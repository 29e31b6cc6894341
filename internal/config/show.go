// SPDX-License-Identifier: Apache-2.0

package config

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Entry is one key's effective value and where it came from.
type Entry struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}

// Entries are all keys of c in the default file's order. Durations are given as text.
func Entries(c *Config, o Origins) []Entry {
	fields := c.fields()
	entries := make([]Entry, 0, len(fields))
	for _, f := range fields {
		v := value(f.ptr)
		if d, ok := v.(time.Duration); ok {
			v = shortDuration(d)
		}
		entries = append(entries, Entry{Key: f.name, Value: v, Origin: o[f.name]})
	}
	return entries
}

// Show renders the effective configuration: "text" is a file that could be used, with each value's origin behind it; "json" is a
// list of entries.
func Show(c *Config, o Origins, format string) (string, error) {
	switch format {
	case "text", "":
		return showText(c, o), nil
	case "json":
		out, err := json.MarshalIndent(Entries(c, o), "", "  ")
		if err != nil {
			return "", fmt.Errorf("show configuration: %w", err)
		}
		return string(out) + "\n", nil
	}
	return "", fmt.Errorf("show configuration: format %q is not one of text, json", format)
}

func showText(c *Config, o Origins) string {
	type row struct{ table, line, origin string }
	var rows []row
	width := 0
	for _, f := range c.fields() {
		r := row{f.table(), f.leaf() + " = " + toml(value(f.ptr)), o[f.name]}
		width = max(width, len(r.line))
		rows = append(rows, r)
	}
	var b strings.Builder
	table := ""
	for _, r := range rows {
		if r.table != table {
			table = r.table
			fmt.Fprintf(&b, "\n[%s]\n", table)
		}
		fmt.Fprintf(&b, "%-*s  # %s\n", min(width, 60), r.line, r.origin)
	}
	return b.String()
}

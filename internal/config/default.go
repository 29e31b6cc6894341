// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"strings"
)

const defaultHead = `# Berth's configuration: /etc/berth/config.toml.
# Every key is shown with its default; remove the # in front of a line to change it.
# Further files in /etc/berth/config.d/*.toml are read in the order of their names and win over this one: tables merge, lists replace.
# "berth config check" tries a change; SIGHUP makes the daemon take it where the comment says "reloadable", a restart everywhere else.
# Pods keep running through both.

`

// Default is the default file: every key with its meaning, its unit and its default.
func Default() string {
	var b strings.Builder
	b.WriteString(defaultHead)
	table := ""
	for _, f := range Defaults().fields() {
		if f.table() != table {
			table = f.table()
			fmt.Fprintf(&b, "\n[%s]\n", table)
		}
		doc := f.doc
		if f.reload {
			doc += " (reloadable)"
		}
		comment := "#"
		if f.name == "version" {
			comment = ""
		}
		fmt.Fprintf(&b, "# %s\n%s%s = %s\n", doc, comment, f.leaf(), toml(value(f.ptr)))
	}
	return b.String()
}

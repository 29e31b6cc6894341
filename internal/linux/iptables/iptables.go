// SPDX-License-Identifier: Apache-2.0

// Package iptables reads the rules that network plugins leave in the packet filter, as `iptables -S` and iptables-save print them.
package iptables

import (
	"slices"
	"strings"
)

// Rule is a line such as `-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \"pods\"" -j CNI-1`, as arguments.
type Rule []string

// Parse splits a line into arguments; a quoted one may have spaces. It takes any text and never fails.
func Parse(line string) Rule {
	var rule Rule
	var arg strings.Builder
	quoted, escaped := false, false
	for _, r := range strings.TrimSpace(line) {
		switch {
		case escaped:
			arg.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == '"':
			quoted = !quoted
		case r == ' ' && !quoted:
			rule = append(rule, arg.String())
			arg.Reset()
		default:
			arg.WriteRune(r)
		}
	}
	return append(rule, arg.String())
}

// Target is the chain that the rule leads to, "" if it leads nowhere.
func (r Rule) Target() string {
	if i := slices.Index(r, "-j"); i > 0 && i+1 < len(r) {
		return r[i+1]
	}
	return ""
}

// Deletion is the rule as arguments that delete it. Of a chain's own line (-N, :CHAIN) it is nil.
func (r Rule) Deletion() []string {
	if len(r) == 0 || r[0] != "-A" {
		return nil
	}
	return append([]string{"-D"}, r[1:]...)
}

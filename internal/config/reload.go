// SPDX-License-Identifier: Apache-2.0

package config

import "reflect"

// Reloadable compares two configurations: the changed keys that a running daemon can take over, and those that want a restart.
func Reloadable(old, new *Config) (reloadable, needRestart []string) {
	before := map[string]any{}
	for _, f := range old.fields() {
		before[f.name] = value(f.ptr)
	}
	for _, f := range new.fields() {
		was, had := before[f.name]
		delete(before, f.name)
		switch {
		case had && reflect.DeepEqual(was, value(f.ptr)):
		case f.reload:
			reloadable = append(reloadable, f.name)
		default:
			needRestart = append(needRestart, f.name)
		}
	}
	for _, f := range old.fields() { // what is left was a runtime that is gone
		if _, gone := before[f.name]; gone {
			needRestart = append(needRestart, f.name)
		}
	}
	return reloadable, needRestart
}

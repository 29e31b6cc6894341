// SPDX-License-Identifier: Apache-2.0

// Package filter says whether an object passes the filters of CRI's list calls. Pure; for cri.
package filter

import "strings"

// Labels tells whether labels has every key of the selector with the same value; an empty selector passes all.
func Labels(labels, selector map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// ID tells whether id is the wanted one or begins with it, as crictl shortens IDs; empty passes all.
func ID(id, want string) bool { return strings.HasPrefix(id, want) }

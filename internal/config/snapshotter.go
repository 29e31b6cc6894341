// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"maps"
	"slices"
)

// ownForms are the values of images.snapshotter that name no table.
var ownForms = []string{"auto", "erofs", "overlayfs"}

// validateSnapshotters checks what no key of a snapshotter can tell alone.
func validateSnapshotters(c *Config) Problems {
	var found Problems
	for name := range c.Snapshotters {
		key := "snapshotters." + name
		if err := handler(name); err != nil {
			found = append(found, Problem{Key: key, Text: err.Error()})
		}
		if slices.Contains(ownForms, name) {
			found = append(found, Problem{Key: key, Text: fmt.Sprintf("%q is one of the forms that Berth has of its own: choose another name", name)})
		}
	}
	if name := c.Images.Snapshotter; !slices.Contains(ownForms, name) && c.Snapshotters[name] == nil {
		known := slices.AppendSeq(slices.Clone(ownForms), maps.Keys(c.Snapshotters))
		found = append(found, Problem{Key: "images.snapshotter",
			Text: fmt.Sprintf("%q is none of auto, erofs, overlayfs, and there is no [snapshotters.%[1]s]%s", name, didYouMean(name, known))})
	}
	return found
}

// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

const (
	xattrHeader = 12
	maxXattrs   = xattrHeader + (math.MaxUint16-1)*4
)

// namespaces of attributes, by the numbers that stand for them.
var namespaces = []struct {
	prefix string
	number byte
	whole  bool
}{
	{"user.", 1, false}, {"system.posix_acl_access", 2, true}, {"system.posix_acl_default", 3, true}, {"trusted.", 4, false}, {"security.", 6, false},
}

func splitXattr(name string) (number byte, rest string, ok bool) {
	for _, ns := range namespaces {
		rest, ok := strings.CutPrefix(name, ns.prefix)
		if ok && ns.whole == (rest == "") {
			return ns.number, rest, true
		}
	}
	return 0, "", false
}

// encodeXattrs makes what stands behind the inode for its attributes.
func (i *Inode) encodeXattrs() error {
	i.xattrs = nil
	for _, name := range slices.Sorted(maps.Keys(i.Xattrs)) {
		number, rest, known := splitXattr(name)
		if !known {
			continue
		}
		value := i.Xattrs[name]
		if len(rest) > math.MaxUint8 || len(value) > math.MaxUint16 {
			return fmt.Errorf("extended attribute with a name of %d and a value of %d bytes: %w", len(rest), len(value), ErrLimit)
		}
		if i.xattrs == nil {
			i.xattrs = make([]byte, xattrHeader)
		}
		i.xattrs = append(i.xattrs, byte(len(rest)), number)
		i.xattrs = binary.LittleEndian.AppendUint16(i.xattrs, uint16(len(value)))
		i.xattrs = append(append(i.xattrs, rest...), value...)
		i.xattrs = append(i.xattrs, zeros[:-len(i.xattrs)&3]...)
	}
	if len(i.xattrs) > maxXattrs {
		return fmt.Errorf("extended attributes of %d bytes: %w", len(i.xattrs), ErrLimit)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"time"
)

const (
	tarBlock   = 512
	tarTrailer = 2 * tarBlock
	filePerm   = 0o644
)

// File is a layer, for Convert and Extract, with one regular file of root's: what r has in size bytes. The folders of name are implied. The name
// must be relative and without "..".
func File(name string, size int64, r io.Reader) (io.Reader, error) {
	var head bytes.Buffer
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: filePerm, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if err := tar.NewWriter(&head).WriteHeader(h); err != nil {
		return nil, fmt.Errorf("file %q: %w", name, err)
	}
	padding := (tarBlock - size%tarBlock) % tarBlock
	return io.MultiReader(&head, io.LimitReader(r, size), bytes.NewReader(make([]byte, padding+tarTrailer))), nil
}

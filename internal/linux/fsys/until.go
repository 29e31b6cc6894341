// SPDX-License-Identifier: Apache-2.0

package fsys

import (
	"context"
	"io"
)

// Until is a reader that ends with a context: a file can be as large as the disk.
type Until struct {
	Ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (u Until) Read(p []byte) (int, error) {
	if err := u.Ctx.Err(); err != nil {
		return 0, err
	}
	return u.Reader.Read(p)
}

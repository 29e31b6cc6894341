// SPDX-License-Identifier: Apache-2.0

package syncfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSyncTakesAFolderAndTellsAMissingOne(t *testing.T) {
	dir := t.TempDir()
	if err := Sync(dir); err != nil {
		t.Error(err)
	}
	if err := Sync(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

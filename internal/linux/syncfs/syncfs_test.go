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

func TestWritingBegunChangesNoContent(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("content"); err != nil {
		t.Fatal(err)
	}
	if err := Begin(f, 0, 7); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "content" {
		t.Errorf("got %q, %v", got, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/linux/fsys"
)

const keySize = 32

// Key is a node's secret, with which it seals its checkpoints of pods: what CRIU restores has the credentials and file descriptors that its images say,
// so a node takes none but its own.
type Key struct{ secret []byte }

// LoadKey reads the key at path, and makes it where there is none yet. It is idempotent, also when several do it at once.
func LoadKey(path string) (Key, error) {
	secret, err := fsys.ReadFile(path, keySize)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(path); err == nil {
			secret, err = fsys.ReadFile(path, keySize)
		}
	}
	if err == nil && len(secret) != keySize {
		err = fmt.Errorf("has %d bytes, want %d: remove it, and no older checkpoint can be restored", len(secret), keySize)
	}
	if err != nil {
		return Key{}, fmt.Errorf("key of checkpoints %s: %w", path, err)
	}
	return Key{secret}, nil
}

// makeKey leaves the key of who was faster in its place.
func makeKey(path string) error {
	secret := make([]byte, keySize)
	rand.Read(secret) // never fails, since Go 1.24
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text())
	if err := (fsys.Write{Path: temp, Data: secret, Perm: 0o600, Sync: true}).Atomic(); err != nil {
		return err
	}
	err := os.Link(temp, path)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return errors.Join(err, os.Remove(temp), fsys.SyncFolder(filepath.Dir(path)))
}

func (k Key) seal(data []byte) []byte {
	mac := hmac.New(sha256.New, k.secret)
	mac.Write(data)
	return mac.Sum(nil)
}

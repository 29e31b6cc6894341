// SPDX-License-Identifier: Apache-2.0

// Package record keeps small durable facts: one versioned, checksummed JSON file per object, replaced by
// atomic rename, so that a kill -9 at any instant leaves the old record or the new one and never a mixture.
// pod and runtime state goes through it; nothing else in Berth decides what survives a crash.
//
// Records are not synced to disk. They describe processes, namespaces and mounts, which a power cut ends
// anyway; what a lost record leaves on disk (a writable layer, an IPAM entry) is found and released by the
// sweep at start-up. A record torn by a power cut fails its checksum and is set aside.
package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// MaxSize bounds a record file in bytes: a kubelet's largest pod specs are below 1 MiB.
const MaxSize = 8 << 20

var (
	// ErrCorrupt marks a record that cannot be trusted: torn, truncated, wrong checksum.
	ErrCorrupt = errors.New("corrupt record")
	// ErrVersion marks a record of a schema that this build does not know.
	ErrVersion = errors.New("unknown record version")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header is what each record says of itself.
type Header struct {
	Kind    string `json:"kind"`
	Version int    `json:"version"`
	// Boot is the kernel's boot ID at the time of the write: it tells records of a previous boot.
	Boot string `json:"boot"`
}

type envelope struct {
	Header
	Sum  uint32          `json:"crc32c"`
	Body json.RawMessage `json:"body"`
}

// Write replaces the record at path. It is atomic; parent folders must exist.
func Write(path string, h Header, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	data, err := json.Marshal(envelope{Header: h, Sum: crc32.Checksum(raw, castagnoli), Body: raw})
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	if len(data) > MaxSize {
		return fmt.Errorf("write record %s: %d bytes, more than the limit of %d", path, len(data), MaxSize)
	}
	passed("before", path)
	if err := replace(path, data); err != nil {
		return fmt.Errorf("write record %s: %w", path, err)
	}
	passed("after", path)
	return nil
}

func replace(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// Read decodes the record at path into body and returns its header. The kind and version must be those
// asked for. Errors: fs.ErrNotExist, ErrCorrupt, ErrVersion.
func Read(path, kind string, version int, body any) (Header, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return Header{}, fmt.Errorf("read record: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return Header{}, fmt.Errorf("read record %s: %w", path, err)
	}
	return decode(data, path, kind, version, body)
}

func decode(data []byte, path, kind string, version int, body any) (Header, error) {
	if len(data) > MaxSize {
		return Header{}, fmt.Errorf("read record %s: larger than %d bytes: %w", path, MaxSize, ErrCorrupt)
	}
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return Header{}, fmt.Errorf("read record %s: %w: %w", path, ErrCorrupt, err)
	}
	switch {
	case e.Kind != kind:
		return e.Header, fmt.Errorf("read record %s: is a %q, want a %q: %w", path, e.Kind, kind, ErrCorrupt)
	case e.Version != version:
		return e.Header, fmt.Errorf("read record %s: version %d, this build knows %d: %w", path, e.Version, version, ErrVersion)
	case crc32.Checksum(e.Body, castagnoli) != e.Sum:
		return e.Header, fmt.Errorf("read record %s: checksum differs: %w", path, ErrCorrupt)
	}
	d := json.NewDecoder(bytes.NewReader(e.Body))
	if err := d.Decode(body); err != nil {
		return e.Header, fmt.Errorf("read record %s: %w: %w", path, ErrCorrupt, err)
	}
	return e.Header, nil
}

// Remove deletes the record at path; absent is success.
func Remove(path string) error {
	passed("before", path)
	for _, p := range []string{path + ".new", path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove record: %w", err)
		}
	}
	passed("after", path)
	return nil
}

// SetAside moves what cannot be read into the folder quarantine, under a name that no earlier one has, and
// returns the new path. The object it described is then swept as an orphan.
func SetAside(path, quarantine string) (string, error) {
	if err := os.MkdirAll(quarantine, 0o700); err != nil {
		return "", fmt.Errorf("set record %s aside: %w", path, err)
	}
	base := filepath.Base(filepath.Dir(path)) + "-" + filepath.Base(path)
	for i := 0; ; i++ {
		to := filepath.Join(quarantine, fmt.Sprintf("%s.%d", base, i))
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		if err := os.Rename(path, to); err != nil {
			return "", fmt.Errorf("set record aside: %w", err)
		}
		return to, nil
	}
}

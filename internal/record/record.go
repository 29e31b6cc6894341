// SPDX-License-Identifier: Apache-2.0

// Package record keeps small durable facts: one file per object, in which each line is a versioned, checksummed JSON record
// and the last whole line counts. A write appends a line, so that a kill -9 at any instant leaves the old record or the new
// one and never a mixture; a file that has grown long is replaced by its last line, with an atomic rename.
// pod and runtime state goes through it; nothing else in Berth decides what survives a crash.
//
// Appending costs a tenth of replacing the file each time: no inode is made or freed, and ext4 starts no I/O, which it does
// for a rename over an existing file.
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

// MaxSize bounds a record in bytes: a kubelet's largest pod specs are below 1 MiB.
const MaxSize = 8 << 20

// maxFile is how long a file may grow, in bytes, before it is replaced by its last line.
const maxFile = 256 << 10

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

// Write makes body the record at path. It is atomic; parent folders must exist. One writer at a time.
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
	if err := WriteLine(path, data); err != nil {
		return fmt.Errorf("write record %s: %w", path, err)
	}
	passed("after", path)
	return nil
}

// WriteLine makes data, which has no line end, the last line of the file at path, for facts that have a form of their own. It is
// as atomic as Write; parent folders must exist. One writer at a time.
func WriteLine(path string, data []byte) error {
	line := append(data, '\n')
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return replace(path, line)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if size == 0 || size+int64(len(line)) > maxFile {
		return replace(path, line)
	}
	var end [1]byte
	if _, err := f.ReadAt(end[:], size-1); err != nil {
		return err
	}
	if end[0] != '\n' { // a write that was cut off
		return replace(path, line)
	}
	if _, err := f.Write(line); err != nil {
		// A part of a line does not count, but it would be in the way of the next one.
		return errors.Join(err, f.Truncate(size))
	}
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
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+2))
	if err != nil {
		return Header{}, fmt.Errorf("read record %s: %w", path, err)
	}
	return decode(LastLine(data), path, kind, version, body)
}

// LastLine is the last whole line of a file. One without any line end is one record, as an earlier Berth wrote it.
func LastLine(data []byte) []byte {
	end := bytes.LastIndexByte(data, '\n')
	if end < 0 {
		return data
	}
	return data[bytes.LastIndexByte(data[:end], '\n')+1 : end]
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

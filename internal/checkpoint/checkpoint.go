// SPDX-License-Identifier: Apache-2.0

// Package checkpoint writes the archives of checkpointed containers, in the form that containerd, CRI-O and checkpointctl read: a tar with CRIU's images,
// the changes of the root file system, and what the container was, as JSON.
package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"

	"github.com/berth-run/berth/internal/linux/fsys"
)

// RootfsDiff is the file, in a checkpoint's folder, with the changes of the root file system: an OCI layer, not compressed.
const RootfsDiff = metadata.RootFsDiffTar

const (
	statsName = "stats-dump" // CRIU's
	logName   = "container.log"
)

// Content is what goes into the archive of one container.
type Content struct {
	// Folder has what CRIU has written, and RootfsDiff.
	Folder string
	// ID and Name are the container's; Image is what it was asked for by, ImageRef a reference with a digest.
	ID, Name, Image, ImageRef string
	// Runtime is the name of its runtime handler.
	Runtime                 string
	Created, CheckpointedAt time.Time
	// Spec is its config.json, Status its CRI ContainerStatus as JSON.
	Spec, Status []byte
	// Log is the path of its log; empty: it has none.
	Log string
}

// Save writes the archive, for nobody but root to read, to location: at once and as a whole, in place of what is there. Until then it is in part, a
// path in the same folder, which is free again afterwards.
func (c Content) Save(ctx context.Context, part, location string) error {
	whole := fsys.Write{Path: location, Temp: part, Perm: 0o600, Sync: true, Fill: func(w io.Writer) error { return c.write(ctx, w) }}
	if err := whole.Atomic(); err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	return nil
}

// Discard removes what Save has left of an archive that it has not finished, if anything; it is idempotent.
func Discard(part string) error {
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard checkpoint: %w", err)
	}
	return nil
}

func (c Content) write(ctx context.Context, to io.Writer) error {
	config, err := json.Marshal(metadata.ContainerConfig{ID: c.ID, Name: c.Name, RootfsImage: c.Image, RootfsImageName: c.Image, RootfsImageRef: c.ImageRef,
		OCIRuntime: c.Runtime, CreatedTime: c.Created, CheckpointedAt: c.CheckpointedAt})
	if err != nil {
		return err
	}
	w := writer{ctx: ctx, tar: tar.NewWriter(to), at: c.CheckpointedAt}
	w.bytes(metadata.ConfigDumpFile, config)
	w.bytes(metadata.SpecDumpFile, c.Spec)
	w.bytes(metadata.StatusDumpFile, c.Status)
	for _, name := range []string{metadata.DumpLogFile, statsName} {
		w.file(name, filepath.Join(c.Folder, name), true)
	}
	if c.Log != "" {
		w.file(logName, c.Log, true) // the kubelet may have moved it away
	}
	w.folder(metadata.CheckpointDirectory, filepath.Join(c.Folder, metadata.CheckpointDirectory))
	w.file(RootfsDiff, filepath.Join(c.Folder, RootfsDiff), false)
	return w.end()
}

// writer keeps the first error.
type writer struct {
	ctx context.Context
	tar *tar.Writer
	at  time.Time
	err error
}

func (w *writer) header(name string, kind byte, mode, size int64) {
	if w.err == nil {
		w.err = w.ctx.Err()
	}
	if w.err == nil {
		w.err = w.tar.WriteHeader(&tar.Header{Typeflag: kind, Name: name, Mode: mode, Size: size, ModTime: w.at, Format: tar.FormatPAX})
	}
}

func (w *writer) bytes(name string, content []byte) {
	w.header(name, tar.TypeReg, 0o600, int64(len(content)))
	if w.err == nil {
		_, w.err = w.tar.Write(content)
	}
}

// file writes as much as the file has now: a log may grow.
func (w *writer) file(name, path string, optional bool) {
	if w.err != nil {
		return
	}
	f, info, err := openFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return
	} else if err != nil {
		w.err = err
		return
	}
	defer f.Close()
	w.header(name, tar.TypeReg, 0o600, info.Size())
	if w.err == nil {
		_, w.err = io.CopyN(w.tar, f, info.Size())
	}
}

// folder writes CRIU's images.
func (w *writer) folder(name, path string) {
	if w.err != nil {
		return
	}
	images, err := imagesIn(path)
	if err != nil {
		w.err = err
		return
	}
	w.header(name+"/", tar.TypeDir, 0o700, 0)
	for _, image := range images {
		w.file(name+"/"+image, filepath.Join(path, image), false)
	}
}

func (w *writer) end() error {
	if w.err != nil {
		return w.err
	}
	return w.tar.Close()
}

// openFile opens a regular file, which a link is not.
func openFile(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// imagesIn are the names of CRIU's images in a folder. Beside them there may be a link to the images before these.
func imagesIn(folder string) (names []string, err error) {
	entries, err := os.ReadDir(folder)
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// again never ends: what little has become by compression.
type again struct {
	what []byte
	at   int
}

func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.what[a.at:])
	a.at = (a.at + n) % len(a.what)
	return n, nil
}

// endless are layers that make a node busy, with little to fetch.
func endless(t *testing.T) map[string]io.Reader {
	t.Helper()
	var long bytes.Buffer
	w := tar.NewWriter(&long)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, PAXRecords: map[string]string{"A.b": strings.Repeat("v", 900<<10)}}); err != nil {
		t.Fatal(err)
	}
	return map[string]io.Reader{
		"zeros behind the end": io.MultiReader(bytes.NewReader(layerOf(t, reg("f", "x"))), &again{what: make([]byte, 1<<20)}),
		"headers of no file":   &again{what: long.Bytes()[:long.Len()-512]}, // without the file's own
	}
}

// bothForms are Extract and Convert.
func bothForms(t *testing.T) map[string]func(context.Context, io.Reader) error {
	t.Helper()
	return map[string]func(context.Context, io.Reader) error{
		"folder": func(ctx context.Context, r io.Reader) error {
			_, err := Extract(ctx, t.TempDir(), r)
			return err
		},
		"blob": func(ctx context.Context, r io.Reader) error {
			f, err := os.Create(filepath.Join(t.TempDir(), "b"))
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = Convert(ctx, f, r)
			return err
		},
	}
}

func TestWhatNoFileHasIsBounded(t *testing.T) {
	for form, unpack := range bothForms(t) {
		for kind, layer := range endless(t) {
			t.Run(form+", "+kind, func(t *testing.T) {
				if err := unpack(t.Context(), layer); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "explained by") {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

func TestWhatNoFileHasEndsWithTheContext(t *testing.T) {
	for form, unpack := range bothForms(t) {
		for kind, layer := range endless(t) {
			t.Run(form+", "+kind, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				gone := errors.New("gone")
				stop := &stopping{Reader: layer, after: 8 << 20, stop: func() { cancel(gone) }}
				if err := unpack(ctx, stop); !errors.Is(err, gone) {
					t.Errorf("got %v", err)
				}
				if stop.read > 16<<20 {
					t.Errorf("%d bytes were read after the end", stop.read-stop.after)
				}
			})
		}
	}
}

// stopping calls stop after so many bytes.
type stopping struct {
	io.Reader
	after, read int
	stop        func()
}

func (s *stopping) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if s.read += n; s.read >= s.after {
		s.stop()
	}
	return n, err
}

func TestTheMemoryForALayersFilesIsBounded(t *testing.T) {
	names := func(i int) string { return fmt.Sprintf("%0200d", i) }
	attributes := map[string]string{}
	for i := range 10 {
		attributes[fmt.Sprintf("%suser.%d", xattrPrefix, i)] = strings.Repeat("v", 60<<10)
	}
	for kind, header := range map[string]func(i int) *tar.Header{
		"many files":   func(i int) *tar.Header { return &tar.Header{Typeflag: tar.TypeReg, Name: names(i)} },
		"many folders": func(i int) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: names(i) + "/"} },
		"large attribute": func(i int) *tar.Header {
			return &tar.Header{Typeflag: tar.TypeDir, Name: names(i) + "/", PAXRecords: attributes}
		},
		"long targets": func(i int) *tar.Header {
			return &tar.Header{Typeflag: tar.TypeSymlink, Name: names(i), Linkname: strings.Repeat("t", 4000)}
		},
	} {
		t.Run(kind, func(t *testing.T) {
			const budget = 16 << 20
			tree := newTree()
			tree.memory = budget
			before := inUse()
			var err error
			n := 0
			for ; err == nil && n < 1<<20; n++ {
				err = tree.add(header(n), nil, nil)
			}
			if !errors.Is(err, ErrTooManyFiles) {
				t.Errorf("%d files: %v", n, err)
			}
			if used := inUse() - before; used > 3*budget/2 {
				t.Errorf("%d files take %d bytes, of %d that they may", n, used, budget)
			}
			runtime.KeepAlive(tree)
			books := &entries{named: map[string]struct{}{}, entered: map[string]struct{}{}, free: 1 << 40, inodes: maxEntries, memory: budget}
			for n, err = 0, nil; err == nil && n < 1<<20; n++ {
				_, err = books.see(header(n))
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d entries: %v", n, err)
			}
		})
	}
}

// inUse is the memory that is in use, in bytes.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

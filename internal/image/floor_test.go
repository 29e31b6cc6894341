// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/image/layer"
	"github.com/berth-run/berth/test/registry"
)

// BenchmarkPullFloor is what a pull of 8 layers of 32 MB, the benchmarks' own, takes by itself of a processor's time: each thing that must happen to
// every byte, with nothing around it.
func BenchmarkPullFloor(b *testing.B) {
	im, err := registry.Build(registry.Spec{Layers: []registry.Tree{registry.Files("l", 32, 1<<20, 1)}})
	if err != nil {
		b.Fatal(err)
	}
	layers, err := im.Layers()
	if err != nil {
		b.Fatal(err)
	}
	read := func(r io.ReadCloser, err error) []byte {
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		all, err := io.ReadAll(r)
		if err != nil {
			b.Fatal(err)
		}
		return all
	}
	packed, plain := read(layers[0].Compressed()), read(layers[0].Uncompressed())
	const times = 8
	written := func(all []byte, piece int) func() error {
		at := filepath.Join(b.TempDir(), "f")
		return func() (err error) {
			f, err := os.Create(at)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
			zeros := make([]byte, piece)
			for at := 0; at < len(all) && err == nil; at += piece {
				if p := all[at:min(at+piece, len(all))]; !bytes.Equal(p, zeros[:len(p)]) { // what is zero becomes a hole
					_, err = f.WriteAt(p, int64(at))
				}
			}
			return err
		}
	}
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"receive", func() error { return received(packed) }},
		{"digest of what came", func() error { sha256.Sum256(packed); return nil }},
		{"write what came", written(packed, 512<<10)},
		{"inflate", func() error {
			z, end, err := layer.Decompress(bytes.NewReader(packed))
			if err != nil {
				return err
			}
			defer end()
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{z}, make([]byte, 256<<10))
			return err
		}},
		{"digest of the content", func() error { sha256.Sum256(plain); return nil }},
		{"checksum of the content", func() error { crc32.Checksum(plain, crc32.MakeTable(crc32.Castagnoli)); return nil }},
		{"write the content", written(plain, 64<<10)},
	} {
		b.Run(c.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := threadTime(b)
			for b.Loop() {
				for range times {
					if err := c.do(); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64((threadTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// received has all come over a socket.
func received(all []byte) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write(all)
			c.Close()
		}
		sent <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 512<<10)); err != nil {
		return err
	}
	return <-sent
}

// threadTime is the processor's time that this thread has had.
func threadTime(b *testing.B) time.Duration {
	b.Helper()
	const thread = 1 // RUSAGE_THREAD
	var r syscall.Rusage
	if err := syscall.Getrusage(thread, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

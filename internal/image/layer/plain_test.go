// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
)

func gzipOf(t *testing.T, raw []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAPlainStreamIsWhatWasCompressed(t *testing.T) {
	for _, size := range []int{0, 1, plainBuffer - 1, plainBuffer, 3*plainBuffer*plainBuffers + 7} {
		want := bytes.Repeat([]byte("layer of an image "), size/18+1)[:size]
		for name, raw := range map[string][]byte{"gzip": gzipOf(t, want), "none": want} {
			p := newPlain(iotest.HalfReader(bytes.NewReader(raw)))
			got, err := io.ReadAll(p)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %d bytes: got %d, %v", name, size, len(got), err)
			}
			if sum, err := p.Digest(); err != nil || sum != digest.FromBytes(want) {
				t.Errorf("%s, %d bytes: digest %s, %v", name, size, sum, err)
			}
			p.Close()
		}
	}
}

func TestAPlainStreamThatBreaksSaysSoAndHasNoDigest(t *testing.T) {
	broken := errors.New("broken disk")
	raw := gzipOf(t, bytes.Repeat([]byte("x"), 4*plainBuffer))
	for name, r := range map[string]io.Reader{
		"error":   io.MultiReader(bytes.NewReader(raw[:len(raw)/2]), iotest.ErrReader(broken)),
		"too few": bytes.NewReader(raw[:len(raw)/2]),
		"panic":   io.MultiReader(bytes.NewReader(raw[:len(raw)/2]), panics{}),
	} {
		p := newPlain(r)
		_, err := io.Copy(io.Discard, p)
		if err == nil || name == "error" && !errors.Is(err, broken) || name == "panic" && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", name, err)
		}
		if sum, err := p.Digest(); err == nil {
			t.Errorf("%s: has the digest %s", name, sum)
		}
		p.Close()
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic("a parser's") }

// A reader that gives up in the middle leaves nobody behind, and the stream is not read on for long.
func TestAPlainStreamEndsWithItsReader(t *testing.T) {
	endless := &counted{r: &again{what: make([]byte, 1<<20)}}
	p := newPlain(endless)
	if _, err := io.ReadFull(p, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		p.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it reads on")
	}
	if most := int64(plainBuffers*plainBuffer + plainBuffer + readAhead); endless.n > most {
		t.Errorf("%d bytes were read for 100, want at most %d", endless.n, most)
	}
	p.Close()
}

type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

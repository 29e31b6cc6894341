// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"testing"
)

// repeated is a text again and again, without an end.
type repeated struct {
	text string
	at   int
}

func (r *repeated) Read(p []byte) (n int, err error) {
	for n < len(p) {
		c := copy(p[n:], r.text[r.at:])
		n, r.at = n+c, (r.at+c)%len(r.text)
	}
	return n, nil
}

// member adds a file of these parts: begin, many times the middle, end.
func member(w *tar.Writer, name, begin, middle string, times int64, end string) error {
	many := times * int64(len(middle))
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(begin)+len(end)) + many})
	if err == nil {
		_, err = io.WriteString(w, begin)
	}
	if err == nil && many > 0 {
		_, err = io.CopyN(w, &repeated{text: middle}, many)
	}
	if err == nil {
		_, err = io.WriteString(w, end)
	}
	return err
}

// CVE-2023-25153: an archive's documents were read whole, however large.
func TestArchivesOfNoHonestAuthorCostLittle(t *testing.T) {
	for kind, c := range map[string]struct {
		write func(*tar.Writer) error
		want  error
	}{
		"an index of 9 MB": {func(w *tar.Writer) error {
			return errors.Join(member(w, "oci-layout", `{"imageLayoutVersion":"1.0.0"}`, "", 0, ""),
				member(w, "index.json", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`, " ", 9<<20, `]}`))
		}, ErrUnsupported},
		"a layout of 9 MB": {func(w *tar.Writer) error { return member(w, "oci-layout", `{"x":"`, "x", 9<<20, `"}`) }, ErrCorrupt},
		"millions of layers": {func(w *tar.Writer) error {
			return member(w, "manifest.json", `[{"Config":"c","Layers":[`, `"",`, 6<<20, `""]}]`)
		}, ErrCorrupt},
		"millions of manifests":   {func(w *tar.Writer) error { return member(w, "./manifest.json", `[`, `{},`, 6<<20, `{}]`) }, ErrCorrupt},
		"as many as there may be": {func(w *tar.Writer) error { return member(w, "manifest.json", `[`, `{},`, 2<<20/3-2, `{}]`) }, ErrCorrupt},
		"links without an end": {func(w *tar.Writer) error {
			for i := 0; ; i++ {
				if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Linkname: "x", Typeflag: tar.TypeSymlink}); err != nil {
					return err
				}
			}
		}, ErrCorrupt},
	} {
		t.Run(kind, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			r, w := io.Pipe()
			go func() {
				tw := tar.NewWriter(w)
				err := c.write(tw)
				if err == nil {
					err = tw.Close()
				}
				w.CloseWithError(err)
			}()
			var err error
			peak := peakOf(func() { _, err = s.Import(t.Context(), r, "") })
			r.Close()
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if peak > memory {
				t.Errorf("%d MB of memory were in use", peak>>20)
			}
			if len(s.List()) > 0 {
				t.Error("something is listed")
			}
		})
	}
}

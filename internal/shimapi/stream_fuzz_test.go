// SPDX-License-Identifier: Apache-2.0

package shimapi

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// FuzzStreamHeader reads what a stranger could send to a stdio socket, and what a shim could answer.
func FuzzStreamHeader(f *testing.F) {
	for _, h := range []StreamHeader{{ID: "c", Stream: Stdin}, {ID: "c", ExecID: "e", Stream: Lease}, {ID: "é\x00", Stream: Stderr}, {ID: "c", ExecID: "e", Stream: Lease, Pipes: true}} {
		var b bytes.Buffer
		if err := WriteStreamHeader(&b, h); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{', '}'})
	f.Add([]byte{1, 0, 3, 'n', 'o', '!'})
	f.Add([]byte{0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		if header, err := ReadStreamHeader(r); err == nil {
			var b bytes.Buffer
			if err := WriteStreamHeader(&b, header); err != nil && !errors.Is(err, ErrStreamHeader) { // escaped, it can be longer
				t.Fatal(err)
			} else if err == nil {
				if again, err := ReadStreamHeader(&b); err != nil || again != header {
					t.Fatalf("%+v became %+v, %v", header, again, err)
				}
			}
		}
		var refused *RefusedError
		if err := ReadStreamAnswer(bytes.NewReader(data)); errors.As(err, &refused) && len(refused.Reason) > maxRefusal {
			t.Fatalf("a reason of %d bytes", len(refused.Reason))
		}
		n, err := ReadAttachFrame(bytes.NewReader(data))
		if err == nil && (n <= 0 || n > MaxAttachFrame) || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("a frame of %d bytes, %v", n, err)
		}
	})
}

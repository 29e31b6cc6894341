// SPDX-License-Identifier: Apache-2.0

package crilog

import (
	"bytes"
	"errors"
	"io"
)

// tailOffset is where the container's last n lines begin in a file of that size. It reads backwards, so that the last line of a
// huge file is found at once. A line of the container in several pieces counts once; so does one without an end.
func tailOffset(f io.ReaderAt, size, n int64) (int64, error) {
	if n == 0 {
		return size, nil
	}
	start := size   // where the lines that are wanted begin
	var count int64 // how many of them there are
	err := backwards(f, size, func(offset int64, head []byte) bool {
		full := true
		if h, ok := parseHead(firstWords(head)); ok {
			full = h.full
		}
		if full || count == 0 { // the end of a line of the container
			if count == n {
				return false
			}
			count++
		}
		start = offset
		return true
	})
	return start, err
}

// firstWords is the head of a line of the file: all before its third space, or its end.
func firstWords(line []byte) []byte {
	if i := bytes.IndexByte(line, '\n'); i >= 0 {
		line = line[:i]
	}
	at := 0
	for range 3 {
		i := bytes.IndexByte(line[at:], ' ')
		if i < 0 {
			return line
		}
		at += i + 1
	}
	return line[:at-1]
}

// backwards calls visit for each line of the file from the last to the first, with its offset and its first bytes, until visit
// says no more.
func backwards(f io.ReaderAt, size int64, visit func(offset int64, head []byte) bool) error {
	buf := make([]byte, block+maxHead)
	end := size // everything from here on is known
	last := true
	for end > 0 {
		from := max(0, end-block)
		n, err := f.ReadAt(buf[:min(end-from+maxHead, size-from)], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		known := buf[:min(int64(n), end-from)]
		for i := len(known) - 1; i >= 0; i-- {
			if known[i] != '\n' {
				continue
			}
			if last && from+int64(i) == size-1 { // the newline that ends the file begins no line
				last = false
				continue
			}
			if !visit(from+int64(i)+1, buf[i+1:min(n, i+1+maxHead)]) {
				return nil
			}
		}
		end = from
		if from == 0 {
			visit(0, buf[:min(n, maxHead)])
		}
	}
	return nil
}

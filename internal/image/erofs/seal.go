// SPDX-License-Identifier: Apache-2.0

package erofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
)

// ErrDamaged: a blob is not as it was written.
var ErrDamaged = errors.New("damaged EROFS blob")

// EROFS leaves the first 1024 bytes to whoever wants them. A seal there tells what the rest must be:
//
//	0   "berth layer 1\n"
//	16  size of the blob, 8 bytes
//	24  CRC-32C of all after the first block
//	28  CRC-32C of the first block, with zeros here
const (
	sealMark                     = "berth layer 1\n"
	sealSize, sealRest, sealSelf = 16, 24, 28
	sealEnd                      = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func seal(first []byte, sum uint32, size int64) {
	copy(first, sealMark)
	binary.LittleEndian.PutUint64(first[sealSize:], uint64(size))
	binary.LittleEndian.PutUint32(first[sealRest:], sum)
	binary.LittleEndian.PutUint32(first[sealSelf:], crc32.Checksum(first, castagnoli))
}

// VerifyHead reads the first block of a blob only, and compares it and the file's length with the seal: ErrDamaged. It is for each mount,
// where it finds what power cuts leave: files that are empty, cut or full of zeros.
func VerifyHead(f *os.File) error {
	_, err := verifyHead(f)
	return err
}

// verifyHead returns the checksum that the rest must have.
func verifyHead(f *os.File) (sum uint32, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	first := make([]byte, blockSize)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, blockSize), first); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = ErrDamaged
		}
		return 0, fmt.Errorf("%s: %w", f.Name(), err)
	}
	le, self := binary.LittleEndian, binary.LittleEndian.Uint32(first[sealSelf:])
	clear(first[sealSelf:sealEnd])
	if !bytes.HasPrefix(first, []byte(sealMark)) || self != crc32.Checksum(first, castagnoli) {
		return 0, fmt.Errorf("%s: first block: %w", f.Name(), ErrDamaged)
	}
	if size := int64(le.Uint64(first[sealSize:])); size != info.Size() {
		return 0, fmt.Errorf("%s: %d bytes, want %d: %w", f.Name(), info.Size(), size, ErrDamaged)
	}
	return le.Uint32(first[sealRest:]), nil
}

// Verify reads a whole blob and compares it with its seal: ErrDamaged. A disk that cannot be read is another error.
func Verify(ctx context.Context, f *os.File) error {
	want, err := verifyHead(f)
	if err != nil {
		return err
	}
	sum, buf := uint32(0), make([]byte, bufferSize)
	for rest := io.NewSectionReader(f, blockSize, math.MaxInt64-blockSize); ; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := rest.Read(buf)
		sum = crc32.Update(sum, castagnoli, buf[:n])
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	if sum != want {
		return fmt.Errorf("%s: content: %w", f.Name(), ErrDamaged)
	}
	return nil
}

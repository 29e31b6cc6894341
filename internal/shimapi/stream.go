// SPDX-License-Identifier: Apache-2.0

package shimapi

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/berth-run/berth/internal/linux/sock"
)

// MaxStreamHeader bounds the JSON of a stream header.
const MaxStreamHeader = 4096

// maxRefusal bounds the text of a refused stream.
const maxRefusal = 1024

// Stream names one of a process's three streams, or a lease.
type Stream string

// The streams of a process.
const (
	Stdin  Stream = "stdin"
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
	// Lease says that an exec's client is there: when it ends before the exec is deleted, the shim ends the exec, and forgets it in
	// any case. A killed daemon thus leaves no exec behind. It carries the exit: see ReadExecExit.
	Lease Stream = "lease"
)

// ErrStreamHeader is returned by ReadStreamHeader for a header that breaks the protocol.
var ErrStreamHeader = errors.New("malformed stream header")

// StreamHeader is the first thing that a client sends on a connection to the stdio socket: four bytes of
// big-endian length, then this as JSON. The shim answers with one byte 0 once the stream is registered,
// or with 1, a two-byte length and a text. Then follow raw bytes. For an exec the client connects its
// streams before it calls Shim.Exec, which names the ones to expect: so no byte is lost.
//
// Without an ExecID the stream is attached to the running container at once. Its output comes in frames, so that
// an end can be told from a loss: see ReadAttachFrame.
type StreamHeader struct {
	ID     string `json:"id"`
	ExecID string `json:"exec_id"`
	Stream Stream `json:"stream"`
	// Pipes: with the header of a lease come two descriptors, of the pipes that the exec's stdout and stderr are to be. So nobody needs to copy
	// what a client only wants to have once the exec has ended.
	Pipes bool `json:"pipes,omitempty"`
	// Exit, of a lease: the client is going to read the exit from it. A shim that does tell it there, and takes pipes, says so with WriteLeaseAnswer. Pods live
	// longer than daemons: shims from before there was either, which know neither field, give the plain answer.
	Exit bool `json:"exit,omitempty"`
}

// PipesOfLease is how many descriptors come with the header of a lease with pipes.
const PipesOfLease = 2

// WriteStreamHeader sends the header in one write.
func WriteStreamHeader(w io.Writer, header StreamHeader) error {
	frame, err := streamHeader(header)
	if err != nil {
		return err
	}
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write stream header: %w", err)
	}
	return nil
}

// WritePipesHeader sends the header of a lease with the descriptors of its pipes, of which the caller keeps its own.
func WritePipesHeader(conn *net.UnixConn, id, execID string, stdout, stderr int) error {
	frame, err := streamHeader(StreamHeader{ID: id, ExecID: execID, Stream: Lease, Pipes: true, Exit: true})
	if err != nil {
		return err
	}
	if err := sock.WriteRights(conn, frame, stdout, stderr); err != nil {
		return fmt.Errorf("write stream header: %w", err)
	}
	return nil
}

func streamHeader(header StreamHeader) ([]byte, error) {
	data, err := json.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("encode stream header: %w", err)
	}
	if len(data) > MaxStreamHeader {
		return nil, fmt.Errorf("encode stream header: %w: %d bytes", ErrStreamHeader, len(data))
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(data)), uint32(len(data))), data...), nil
}

// ReadStreamHeader receives a header and checks it. It reads not one byte more than the header.
func ReadStreamHeader(r io.Reader) (StreamHeader, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return StreamHeader{}, fmt.Errorf("read stream header: %w", err)
	}
	length := binary.BigEndian.Uint32(size[:])
	if length == 0 || length > MaxStreamHeader {
		return StreamHeader{}, fmt.Errorf("%w: length %d is not in 1..%d", ErrStreamHeader, length, MaxStreamHeader)
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(r, data); err != nil {
		return StreamHeader{}, fmt.Errorf("read stream header: %w", err)
	}
	var header StreamHeader
	if err := json.Unmarshal(data, &header); err != nil {
		return StreamHeader{}, fmt.Errorf("%w: %w", ErrStreamHeader, err)
	}
	switch {
	case header.ID == "":
		return StreamHeader{}, fmt.Errorf("%w: no container id", ErrStreamHeader)
	case header.Stream != Stdin && header.Stream != Stdout && header.Stream != Stderr && (header.Stream != Lease || header.ExecID == ""):
		return StreamHeader{}, fmt.Errorf("%w: unknown stream %q", ErrStreamHeader, header.Stream)
	case header.Pipes && header.Stream != Lease:
		return StreamHeader{}, fmt.Errorf("%w: pipes for %s: they come with a lease", ErrStreamHeader, header.Stream)
	case header.Exit && header.Stream != Lease:
		return StreamHeader{}, fmt.Errorf("%w: exit on %s: it is told to a lease", ErrStreamHeader, header.Stream)
	}
	return header, nil
}

// Answers to a header, by their first byte.
const (
	streamTaken   = 0
	streamRefused = 1 // the reason follows
	leaseTaken    = 2 // and the exit will come over it
)

// WriteLeaseAnswer tells a client that has asked for it that the exit will come over its lease, which is registered.
func WriteLeaseAnswer(w io.Writer) error {
	if _, err := w.Write([]byte{leaseTaken}); err != nil {
		return fmt.Errorf("write stream answer: %w", err)
	}
	return nil
}

// WriteStreamAnswer tells the client that its stream is registered (refusal nil) or why it is not.
func WriteStreamAnswer(w io.Writer, refusal error) error {
	frame := []byte{streamTaken}
	if refusal != nil {
		text := refusal.Error()
		text = text[:min(len(text), maxRefusal)]
		frame = binary.BigEndian.AppendUint16([]byte{streamRefused}, uint16(len(text)))
		frame = append(frame, text...)
	}
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("write stream answer: %w", err)
	}
	return nil
}

// A RefusedError is the shim's reason not to take a stream.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "stream refused: " + e.Reason }

// ReadStreamAnswer waits for the shim's answer: nil, a *RefusedError, or what broke the connection.
func ReadStreamAnswer(r io.Reader) error {
	_, err := ReadLeaseAnswer(r)
	return err
}

// ReadLeaseAnswer is ReadStreamAnswer for a lease whose client has asked for the exit: tells is whether ReadExecExit will have it. If not, and for the output of an exec
// whose pipes the lease has brought, it is a shim from before: there are Task v3's Wait and the connections of stdout and stderr.
func ReadLeaseAnswer(r io.Reader) (tells bool, err error) {
	var answer [3]byte
	if _, err := io.ReadFull(r, answer[:1]); err != nil {
		return false, fmt.Errorf("read stream answer: %w", err)
	}
	if answer[0] == streamTaken || answer[0] == leaseTaken {
		return answer[0] == leaseTaken, nil
	}
	if _, err := io.ReadFull(r, answer[1:]); err != nil {
		return false, fmt.Errorf("read stream answer: %w", err)
	}
	text := make([]byte, min(int(binary.BigEndian.Uint16(answer[1:])), maxRefusal))
	if _, err := io.ReadFull(r, text); err != nil {
		return false, fmt.Errorf("read stream answer: %w", err)
	}
	return false, &RefusedError{Reason: string(text)}
}

// WriteExecExit tells the client over its lease that the exec has ended.
func WriteExecExit(w io.Writer, code uint32) error {
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, code)); err != nil {
		return fmt.Errorf("write exit of exec: %w", err)
	}
	return nil
}

// ReadExecExit waits for the exit code, by the shell's rule. All that the process has written is in the client's pipes by then, which its children may
// hold for longer, or has been passed on to its connections: without it, what they have brought may not be all.
func ReadExecExit(r io.Reader) (uint32, error) {
	var code [4]byte
	if _, err := io.ReadFull(r, code[:]); err != nil {
		return 0, fmt.Errorf("read exit of exec: %w", err)
	}
	return binary.BigEndian.Uint32(code[:]), nil
}

// MaxAttachFrame bounds the content of one frame of attached output.
const MaxAttachFrame = 64 << 10

// AttachFrameHeader is what precedes size bytes of an attached container's output. Size 0 is the orderly end.
func AttachFrameHeader(size int) [4]byte {
	var header [4]byte
	binary.BigEndian.PutUint32(header[:], uint32(size))
	return header
}

// ErrOutputLost is returned by ReadAttachFrame when the stream ends without its end having been told: the shim gave up
// a client that took nothing for too long, or is gone.
var ErrOutputLost = errors.New("output was cut off")

// ReadAttachFrame reads the length of the next frame of attached output; so many bytes follow. io.EOF is the orderly end.
func ReadAttachFrame(r io.Reader) (int, error) {
	var header [4]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, fmt.Errorf("%w: %s", ErrOutputLost, err.Error()) // no io.EOF in it: that is the orderly end
	}
	size := binary.BigEndian.Uint32(header[:])
	switch {
	case size == 0:
		return 0, io.EOF
	case size > MaxAttachFrame:
		return 0, fmt.Errorf("%w: frame of %d bytes", ErrStreamHeader, size)
	}
	return int(size), nil
}

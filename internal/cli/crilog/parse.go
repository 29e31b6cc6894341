// SPDX-License-Identifier: Apache-2.0

// Package crilog reads the log files that a CRI runtime writes: `TIME stdout|stderr P|F CONTENT`, one line of the container in
// one or more lines of the file. It follows a file through rotation and needs the same little memory for any line length. It is
// for internal/cli and its sub-packages.
package crilog

import (
	"bytes"
	"time"
)

// Chunk is a piece of a container's line.
type Chunk struct {
	// Time is the time in the file of the piece that the chunk is part of, in its own words.
	Time string
	// Stream is "stdout" or "stderr".
	Stream string
	// Data has no newline; it is valid until the callback returns.
	Data []byte
	// Begin and End tell that the container's line begins with this chunk, or ends after it.
	Begin, End bool
}

// maxHead bounds what stands before the content: a time, a stream and tags take about 50 bytes.
const maxHead = 128

// parser turns the bytes of a log file into chunks, whatever the pieces in which they come.
type parser struct {
	since time.Time
	emit  func(Chunk) error

	state   state
	head    []byte
	current Chunk
	full    bool            // the file's line is tagged F
	open    map[string]bool // streams whose line was begun and not ended
	skipped int64           // lines that are not in the format
}

type state int

const (
	inHead state = iota
	inBody
	inWaste // the rest of a line that is not wanted
)

func newParser(since time.Time, emit func(Chunk) error) *parser {
	return &parser{since: since, emit: emit, open: map[string]bool{}}
}

// feed takes the next bytes of the file.
func (p *parser) feed(data []byte) error {
	for len(data) > 0 {
		var used int
		var err error
		switch p.state {
		case inHead:
			used, err = p.feedHead(data)
		case inBody:
			used, err = p.feedBody(data)
		case inWaste:
			used = bytes.IndexByte(data, '\n') + 1
			if used > 0 {
				p.state = inHead
			} else {
				used = len(data)
			}
		}
		if err != nil {
			return err
		}
		data = data[used:]
	}
	return nil
}

// feedHead collects bytes until the head is whole, its line ends, or it is too long to be one.
func (p *parser) feedHead(data []byte) (used int, err error) {
	for used < len(data) {
		b := data[used]
		used++
		switch {
		case b == '\n':
			return used, p.endHead(true)
		case b == ' ' && bytes.Count(p.head, []byte{' '}) == 2:
			return used, p.endHead(false)
		case len(p.head) == maxHead:
			p.skipped++
			p.head, p.state = p.head[:0], inWaste
			return used, nil
		}
		p.head = append(p.head, b)
	}
	return used, nil
}

// endHead looks at a whole head; bare tells that its line has ended with it, so that nothing follows.
func (p *parser) endHead(bare bool) error {
	h, ok := parseHead(p.head)
	if !ok && (!bare || len(p.head) > 0) {
		p.skipped++
	}
	p.head = p.head[:0]
	if !ok || h.at.Before(p.since) {
		delete(p.open, h.stream)
		if !bare {
			p.state = inWaste
		}
		return nil
	}
	p.full = h.full
	p.current = Chunk{Time: h.time, Stream: h.stream, Begin: !p.open[h.stream]}
	p.state = inBody
	if bare { // some writers leave out the space before an empty content
		return p.piece(nil, true)
	}
	return nil
}

// feedBody hands on content until its line ends.
func (p *parser) feedBody(data []byte) (used int, err error) {
	end := bytes.IndexByte(data, '\n')
	if end < 0 {
		return len(data), p.piece(data, false)
	}
	return end + 1, p.piece(data[:end], true)
}

// piece hands on a piece of content; last tells that the file's line ends with it.
func (p *parser) piece(data []byte, last bool) error {
	c := p.current
	c.Data, c.End = data, last && p.full
	p.open[c.Stream] = !c.End
	p.current.Begin = false
	if last {
		p.state = inHead
	}
	if len(data) == 0 && !c.Begin && !c.End {
		return nil
	}
	return p.emit(c)
}

// cut forgets the line that is under way: another file follows.
func (p *parser) cut() {
	if p.state == inHead && len(p.head) > 0 {
		p.skipped++
	}
	p.state, p.head = inHead, p.head[:0]
}

type head struct {
	time   string
	at     time.Time
	stream string
	full   bool
}

// parseHead reads `TIME STREAM TAGS`; further tags may follow the first after a colon.
func parseHead(text []byte) (head, bool) {
	parts := bytes.SplitN(text, []byte{' '}, 4)
	if len(parts) != 3 || len(parts[2]) == 0 {
		return head{}, false
	}
	tag, _, _ := bytes.Cut(parts[2], []byte{':'})
	stream := string(parts[1])
	if stream != "stdout" && stream != "stderr" || len(tag) != 1 || tag[0] != 'P' && tag[0] != 'F' {
		return head{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(parts[0]))
	if err != nil {
		return head{}, false
	}
	return head{time: string(parts[0]), at: at, stream: stream, full: tag[0] == 'F'}, true
}

// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// The shim looks up two or three fields in documents that the OCI runtime reads in full right afterwards. Decoding
// them with encoding/json's tables costs every pod memory that it never uses again.

// maxJSONDepth is encoding/json's own limit.
const maxJSONDepth = 10000

var errJSON = errors.New("malformed JSON")

// jsonField returns the raw value at the path of object keys, nil if there is none. The last of equal keys counts, as
// in encoding/json.
func jsonField(data []byte, path ...string) ([]byte, error) {
	s := &jsonScanner{data: data}
	found, err := s.find(path)
	if err != nil {
		return nil, err
	}
	if s.space(); s.at < len(data) {
		return nil, fmt.Errorf("%w: something follows the document", errJSON)
	}
	return found, nil
}

// jsonString returns the string at the path, empty if there is none.
func jsonString(data []byte, path ...string) (string, error) {
	raw, err := jsonField(data, path...)
	if err != nil || raw == nil || string(raw) == "null" {
		return "", err
	}
	if len(raw) >= 2 && raw[0] == '"' && bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), nil
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil { // has escapes, or is no string
		return "", fmt.Errorf("%s: %w", path[len(path)-1], err)
	}
	return text, nil
}

// jsonScanner walks over a document without keeping anything of it.
type jsonScanner struct {
	data  []byte
	at    int
	depth int
}

func (s *jsonScanner) space() {
	for s.at < len(s.data) && bytes.IndexByte([]byte(" \t\r\n"), s.data[s.at]) >= 0 {
		s.at++
	}
}

// take moves over the character if it is the next one after white space.
func (s *jsonScanner) take(c byte) bool {
	s.space()
	if s.at < len(s.data) && s.data[s.at] == c {
		s.at++
		return true
	}
	return false
}

func (s *jsonScanner) wrong() error {
	return fmt.Errorf("%w at byte %d of %d", errJSON, s.at, len(s.data))
}

// find walks over one value and returns what is in it at the path.
func (s *jsonScanner) find(path []string) ([]byte, error) {
	s.space()
	start := s.at
	var found []byte
	var err error
	switch {
	case s.at >= len(s.data):
		err = s.wrong()
	case s.data[s.at] == '{':
		found, err = s.object(path)
	case s.data[s.at] == '[':
		err = s.array()
	case s.data[s.at] == '"':
		err = s.text()
	default:
		err = s.scalar()
	}
	if err == nil && len(path) == 0 {
		found = s.data[start:s.at]
	}
	return found, err
}

func (s *jsonScanner) enter() error {
	s.at++
	if s.depth++; s.depth > maxJSONDepth {
		return fmt.Errorf("%w: nested too deep", errJSON)
	}
	return nil
}

func (s *jsonScanner) object(path []string) ([]byte, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer func() { s.depth-- }()
	if s.take('}') {
		return nil, nil
	}
	var found []byte
	for {
		s.space()
		start := s.at
		if err := s.text(); err != nil {
			return nil, err
		}
		key := s.data[start+1 : s.at-1]
		if !s.take(':') {
			return nil, s.wrong()
		}
		match := len(path) > 0 && string(key) == path[0]
		below := []string{""} // nothing is looked for
		if match {
			below = path[1:]
		}
		value, err := s.find(below)
		if err != nil {
			return nil, err
		}
		if match {
			found = value
		}
		if s.take('}') {
			return found, nil
		}
		if !s.take(',') {
			return nil, s.wrong()
		}
	}
}

func (s *jsonScanner) array() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer func() { s.depth-- }()
	if s.take(']') {
		return nil
	}
	for {
		if _, err := s.find([]string{""}); err != nil {
			return err
		}
		if s.take(']') {
			return nil
		}
		if !s.take(',') {
			return s.wrong()
		}
	}
}

// text moves over a string; escapes are the runtime's to check.
func (s *jsonScanner) text() error {
	if s.at >= len(s.data) || s.data[s.at] != '"' {
		return s.wrong()
	}
	for s.at++; s.at < len(s.data); s.at++ {
		switch c := s.data[s.at]; {
		case c == '\\':
			s.at++
		case c == '"':
			s.at++
			return nil
		case c < ' ':
			return s.wrong()
		}
	}
	s.at = min(s.at, len(s.data))
	return s.wrong()
}

// scalar moves over a number, true, false or null.
func (s *jsonScanner) scalar() error {
	start := s.at
	for s.at < len(s.data) && bytes.IndexByte([]byte(",]} \t\r\n\"{[:"), s.data[s.at]) < 0 {
		s.at++
	}
	word := s.data[start:s.at]
	switch string(word) {
	case "true", "false", "null":
		return nil
	}
	if len(word) == 0 || !(word[0] == '-' || word[0] >= '0' && word[0] <= '9') {
		s.at = start
		return s.wrong()
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"strings"

	tomllib "github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxNesting bounds the depth of a value: no key of ours is nested, and the walks below are recursive.
const maxNesting = 32

// document is one decoded file: its values and the line of every key in it.
type document struct {
	values map[string]any
	// lines holds the line where a key, or a table, is first named; the key's parts are joined by NULs.
	lines map[string]int
}

// line is where path stands, or where the nearest table around it does.
func (d document) line(path []string) int {
	for n := len(path); n > 0; n-- {
		if line, ok := d.lines[strings.Join(path[:n], "\x00")]; ok {
			return line
		}
	}
	return 1
}

// parse decodes one file. Its error is a syntax error, with its place.
func parse(file string, data []byte) (document, error) {
	d := document{values: map[string]any{}, lines: map[string]int{}}
	if err := tomllib.Unmarshal(data, &d.values); err != nil {
		return document{}, syntaxProblem(file, err)
	}
	p := &unstable.Parser{}
	p.Reset(data)
	var table []string
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = d.note(p, nil, e.Key())
		case unstable.KeyValue:
			d.noteValue(p, d.note(p, table, e.Key()), e.Value(), 0)
		}
	}
	if err := p.Error(); err != nil {
		return document{}, syntaxProblem(file, err)
	}
	return d, nil
}

// note records the lines of a dotted key below prefix, and returns the key's whole path.
func (d document) note(p *unstable.Parser, prefix []string, parts unstable.Iterator) []string {
	path := append([]string(nil), prefix...)
	for parts.Next() {
		path = append(path, string(parts.Node().Data))
		name := strings.Join(path, "\x00")
		if _, seen := d.lines[name]; !seen {
			d.lines[name] = p.Shape(parts.Node().Raw).Start.Line
		}
	}
	return path
}

// noteValue records the lines of the keys inside an inline table.
func (d document) noteValue(p *unstable.Parser, path []string, v *unstable.Node, depth int) {
	if v.Kind != unstable.InlineTable || depth > maxNesting {
		return
	}
	for entries := v.Children(); entries.Next(); {
		e := entries.Node()
		d.noteValue(p, d.note(p, path, e.Key()), e.Value(), depth+1)
	}
}

func syntaxProblem(file string, err error) Problem {
	var at *tomllib.DecodeError
	if !errors.As(err, &at) {
		return Problem{File: file, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	line, column := at.Position()
	text := strings.TrimPrefix(at.Error(), "toml: ")
	if k := at.Key(); len(k) > 0 {
		text = fmt.Sprintf("%s (at %s)", text, strings.Join(k, "."))
	}
	if strings.Contains(text, "at start of value") { // what people take over from YAML
		text += `: a text stands in quotes, as "debug"; true and false have small letters`
	}
	return Problem{File: file, Line: line, Column: column, Text: text}
}

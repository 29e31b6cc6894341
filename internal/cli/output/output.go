// SPDX-License-Identifier: Apache-2.0

// Package output prints what the runtime says: aligned tables for people, and for programs JSON, YAML or a Go template with the
// field names and default values that crictl prints. It is for internal/cli.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// Format is the value of -o.
type Format string

// The formats. Wide is a table with more columns.
const (
	Table    Format = "table"
	Wide     Format = "wide"
	JSON     Format = "json"
	YAML     Format = "yaml"
	Template Format = "go-template"
)

// Check tells whether the format is one of those that a command offers.
func (f Format) Check(offered ...Format) error {
	if slices.Contains(offered, f) {
		return nil
	}
	names := make([]string, len(offered))
	for i, o := range offered {
		names[i] = string(o)
	}
	return fmt.Errorf("output %q is not one of %s", f, strings.Join(names, ", "))
}

// Message prints a CRI message as JSON or YAML.
func Message(w io.Writer, f Format, m proto.Message) error {
	raw, err := encode(m)
	if err != nil {
		return err
	}
	return write(w, f, "", raw)
}

// encode is a message as crictl's JSON has it: default values too, and 64-bit numbers as strings.
func encode(m proto.Message) (json.RawMessage, error) {
	raw, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return raw, nil
}

// Status is one answer of a status request: the parts of the answer under their JSON names, and the verbose information.
type Status struct {
	Parts map[string]proto.Message
	// Lists are parts that are lists.
	Lists map[string][]proto.Message
	Info  map[string]string
}

// value merges parts and information into one object, as crictl does. What the runtime says in info is JSON as often as not.
func (s Status) value() (map[string]json.RawMessage, error) {
	merged := map[string]json.RawMessage{}
	for name, m := range s.Parts {
		raw, err := encode(m)
		if err != nil {
			return nil, err
		}
		merged[name] = raw
	}
	for name, list := range s.Lists {
		all := make([]json.RawMessage, len(list))
		for i, m := range list {
			raw, err := encode(m)
			if err != nil {
				return nil, err
			}
			all[i] = raw
		}
		raw, err := json.Marshal(all)
		if err != nil {
			return nil, fmt.Errorf("encode answer: %w", err)
		}
		merged[name] = raw
	}
	for name, text := range s.Info {
		if raw := json.RawMessage(text); strings.HasPrefix(text, "{") && json.Valid(raw) {
			merged[name] = raw
			continue
		}
		raw, err := json.Marshal(strings.Trim(text, `"`))
		if err != nil {
			return nil, fmt.Errorf("encode answer: %w", err)
		}
		merged[name] = raw
	}
	return merged, nil
}

// Statuses prints one object, or a list of several.
func Statuses(w io.Writer, f Format, tmpl string, all []Status) error {
	values := make([]any, len(all))
	for i, s := range all {
		v, err := s.value()
		if err != nil {
			return err
		}
		values[i] = v
	}
	var whole any = values
	if len(values) == 1 {
		whole = values[0]
	}
	raw, err := json.Marshal(whole)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return write(w, f, tmpl, raw)
}

func write(w io.Writer, f Format, tmpl string, raw json.RawMessage) error {
	switch f {
	case JSON:
		var b bytes.Buffer
		if err := json.Indent(&b, raw, "", "  "); err != nil {
			return fmt.Errorf("indent answer: %w", err)
		}
		b.WriteByte('\n')
		_, err := w.Write(b.Bytes())
		return err
	case YAML:
		text, err := yaml.JSONToYAML(raw)
		if err != nil {
			return fmt.Errorf("answer as yaml: %w", err)
		}
		_, err = w.Write(text)
		return err
	case Template:
		return execute(w, tmpl, raw)
	}
	return f.Check(JSON, YAML, Template)
}

func execute(w io.Writer, tmpl string, raw json.RawMessage) error {
	funcs := template.FuncMap{"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	}}
	t, err := template.New("template").Funcs(funcs).Parse(tmpl)
	if err != nil {
		return fmt.Errorf("parse --template: %w", err)
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if err := t.Execute(w, v); err != nil {
		return fmt.Errorf("execute --template: %w", err)
	}
	_, err = fmt.Fprintln(w)
	return err
}

// Rows collects a table.
type Rows struct{ rows [][]string }

// Head starts a table with its column names.
func Head(columns ...string) *Rows { return &Rows{rows: [][]string{columns}} }

// Add adds a row.
func (r *Rows) Add(cells ...string) { r.rows = append(r.rows, cells) }

// Print aligns the columns.
func (r *Rows) Print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range r.rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-" // an empty cell would make the next one look like it
			}
			row[i] = Printable(row[i])
		}
		if _, err := fmt.Fprintln(t, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// Printable keeps names that a stranger chose from steering the terminal or the table.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

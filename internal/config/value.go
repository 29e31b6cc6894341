// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// value is what a field's address holds.
func value(ptr any) any {
	switch p := ptr.(type) {
	case *string:
		return *p
	case *int:
		return *p
	case *bool:
		return *p
	case *[]string:
		return *p
	case *time.Duration:
		return *p
	}
	panic(fmt.Sprintf("config: a field of type %T", ptr))
}

// assign puts what the TOML decoder gave, or a flag's text, at a field's address.
func assign(ptr, v any) error {
	switch p := ptr.(type) {
	case *string:
		s, ok := v.(string)
		if !ok {
			return wrongType(v, "a string")
		}
		*p = s
	case *int:
		n, ok := v.(int64)
		if !ok {
			return wrongType(v, "an integer")
		}
		*p = int(n)
	case *bool:
		b, ok := v.(bool)
		if !ok {
			return wrongType(v, "true or false")
		}
		*p = b
	case *[]string:
		return assignList(p, v)
	case *time.Duration:
		return assignDuration(p, v)
	default:
		panic(fmt.Sprintf("config: a field of type %T", ptr))
	}
	return nil
}

func assignList(p *[]string, v any) error {
	list, ok := v.([]any)
	if !ok {
		return wrongType(v, "a list of strings")
	}
	strs := make([]string, 0, len(list))
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			return fmt.Errorf("each element must be a string, not %s", kindOf(e))
		}
		strs = append(strs, s)
	}
	*p = strs
	return nil
}

func assignDuration(p *time.Duration, v any) error {
	s, ok := v.(string)
	if !ok {
		return wrongType(v, `a duration in quotes such as "60s"`)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf(`%q is not a duration: write a number with its unit, such as "500ms", "60s" or "2m"`, s)
	}
	*p = d
	return nil
}

func wrongType(v any, want string) error {
	if _, ok := v.(map[string]any); ok {
		return errors.New("must be " + want + ", not a table")
	}
	return fmt.Errorf("must be %s, not %s", want, kindOf(v))
}

func kindOf(v any) string {
	switch v := v.(type) {
	case string:
		return "the string " + quote(v)
	case int64:
		return "the integer " + strconv.FormatInt(v, 10)
	case float64:
		return "the number " + strconv.FormatFloat(v, 'g', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// toml renders a field's value as the file would have it.
func toml(v any) string {
	switch v := v.(type) {
	case string:
		return quote(v)
	case int:
		return strconv.Itoa(v)
	case bool:
		return strconv.FormatBool(v)
	case time.Duration:
		return quote(shortDuration(v))
	case []string:
		quoted := make([]string, len(v))
		for i, s := range v {
			quoted[i] = quote(s)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	}
	panic(fmt.Sprintf("config: a value of type %T", v))
}

// quote is a TOML basic string; Go's own quoting knows escapes that TOML does not.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// shortDuration is d without the zero units that time.Duration's own text ends in: "1h", not "1h0m0s".
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

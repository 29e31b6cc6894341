// SPDX-License-Identifier: Apache-2.0

package hooksd

import (
	"errors"
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// oldVersion is the schema from before 1.0.0; files without a version are of it, too.
const oldVersion = "0.1.0"

// oldFile is one hook in schema 0.1.0. It matches by any of its conditions. Some fields have two names.
type oldFile struct {
	Version       string   `json:"version"`
	Hook          string   `json:"hook"`
	Arguments     []string `json:"arguments"`
	Stages        []string `json:"stages"`
	Stage         []string `json:"stage"`
	Cmds          []string `json:"cmds"`
	Cmd           []string `json:"cmd"`
	Annotations   []string `json:"annotations"`
	Annotation    []string `json:"annotation"`
	HasBindMounts *bool    `json:"hasbindmounts"`
}

// current is the hook in the words of schema 1.0.0.
func (o *oldFile) current() (*file, error) {
	f := &file{Version: version, Hook: specs.Hook{Path: o.Hook}, When: when{HasBindMounts: o.HasBindMounts, any: true}}
	var annotations []string
	for _, field := range []struct {
		into      *[]string
		name      string
		new, past []string
	}{{&f.Stages, "stage", o.Stages, o.Stage}, {&f.When.Commands, "cmd", o.Cmds, o.Cmd}, {&annotations, "annotation", o.Annotations, o.Annotation}} {
		if field.new != nil && field.past != nil {
			return nil, fmt.Errorf("both %s and %ss are set", field.name, field.name)
		}
		*field.into = append(field.new, field.past...)
	}
	if o.Hook == "" {
		return nil, errors.New("hook is missing")
	}
	if o.Arguments != nil {
		f.Hook.Args = append([]string{o.Hook}, o.Arguments...) // there, the first one is not the program's name
	}
	if len(annotations) > 0 {
		f.When.Annotations = map[string]string{".*": strings.Join(annotations, "|")}
	}
	return f, f.validate()
}

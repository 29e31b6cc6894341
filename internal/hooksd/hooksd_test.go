// SPDX-License-Identifier: Apache-2.0

package hooksd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func hook(arg, when, stages string) string {
	return `{"version":"1.0.0","hook":{"path":"/bin/sh","args":["` + arg + `"]},"when":{` + when + `},"stages":[` + stages + `]}`
}

func TestHooksThatMatchAreAdded(t *testing.T) {
	for name, c := range map[string]struct {
		when      string
		container Container
		want      bool
	}{
		"always":                               {`"always":true`, Container{}, true},
		"never":                                {`"always":false`, Container{}, false},
		"annotation":                           {`"annotations":{"^a\\.b$":"^y"}`, Container{Annotations: map[string]string{"a.b": "yes"}}, true},
		"annotation of another value":          {`"annotations":{"^a\\.b$":"^y"}`, Container{Annotations: map[string]string{"a.b": "no", "c": "y"}}, false},
		"one annotation of two":                {`"annotations":{"^a$":".","^b$":"."}`, Container{Annotations: map[string]string{"a": "1"}}, false},
		"command":                              {`"commands":["^/no$",".*/tool$"]`, Container{}, true},
		"another command":                      {`"commands":["^tool$"]`, Container{}, false},
		"bind mounts":                          {`"hasBindMounts":true`, Container{HasBindMounts: true}, true},
		"no bind mounts":                       {`"hasBindMounts":true`, Container{}, false},
		"one condition of two":                 {`"always":true,"hasBindMounts":true`, Container{}, false},
		"all conditions":                       {`"always":true,"commands":["tool"],"hasBindMounts":true`, Container{HasBindMounts: true}, true},
		"bind mounts that are not wanted":      {`"hasBindMounts":false`, Container{HasBindMounts: true}, false},
		"no bind mounts, which are not wanted": {`"hasBindMounts":false`, Container{}, false}, // CRI-O and podman have no such condition
		"always, and no bind mounts":           {`"always":true,"hasBindMounts":false`, Container{}, false},
		"a value by its beginning":             {`"annotations":{"a":"^y"}`, Container{Annotations: map[string]string{"xay": "yes"}}, true},
		"a key of one annotation and the value of another": {`"annotations":{"^a$":"^1$"}`, Container{Annotations: map[string]string{"a": "2", "b": "1"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "h.json", hook("x", c.when, `"createRuntime","poststop"`))
			s := &specs.Spec{Process: &specs.Process{Args: []string{"/usr/bin/tool", "arg"}}}
			if err := Inject([]string{dir, filepath.Join(dir, "none")}, s, c.container); err != nil {
				t.Fatal(err)
			}
			if got := s.Hooks != nil && len(s.Hooks.CreateRuntime) == 1 && len(s.Hooks.Poststop) == 1 && s.Hooks.Poststop[0].Args[0] == "x"; got != c.want {
				t.Errorf("added %t: %+v", got, s.Hooks)
			}
		})
	}
}

// TestOldHooksThatMatchAreAdded is about schema 0.1.0: any condition is enough.
func TestOldHooksThatMatchAreAdded(t *testing.T) {
	for name, c := range map[string]struct {
		conditions string
		container  Container
		want       bool
	}{
		"command":                   {`"cmds":["tool$"]`, Container{}, true},
		"command by its other name": {`"cmd":["^/no","tool$"]`, Container{}, true},
		"another command":           {`"cmds":["^tool$"]`, Container{}, false},
		"annotation":                {`"annotations":["^no$","^y"]`, Container{Annotations: map[string]string{"any": "yes"}}, true},
		"annotation of its other name, another value": {`"annotation":["^y"]`, Container{Annotations: map[string]string{"y": "no"}}, false},
		"bind mounts":           {`"hasbindmounts":true`, Container{HasBindMounts: true}, true},
		"no bind mounts":        {`"hasbindmounts":true`, Container{}, false},
		"one condition of two":  {`"cmds":["tool"],"hasbindmounts":true`, Container{}, true},
		"no condition of three": {`"cmds":["other"],"annotations":["a"],"hasbindmounts":true`, Container{}, false},
	} {
		for _, version := range []string{`"version":"0.1.0",`, ``} {
			dir := t.TempDir()
			write(t, dir, "h.json", `{`+version+`"hook":"/bin/sh","arguments":["-c","x"],"stage":["prestart","poststop"],`+c.conditions+`}`)
			s := &specs.Spec{Process: &specs.Process{Args: []string{"/usr/bin/tool", "arg"}}}
			if err := Inject([]string{dir}, s, c.container); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got := s.Hooks != nil && len(*hooksOf(s.Hooks, "prestart")) == 1 && len(s.Hooks.Poststop) == 1
			if got != c.want {
				t.Errorf("%s: added %t: %+v", name, got, s.Hooks)
			}
			if got && strings.Join(s.Hooks.Poststop[0].Args, " ") != "/bin/sh -c x" {
				t.Errorf("%s: arguments %q", name, s.Hooks.Poststop[0].Args)
			}
		}
	}
}

func TestLaterDirectoriesReplaceAndNamesGiveTheOrder(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	write(t, first, "20.json", hook("old", `"always":true`, `"prestart"`))
	write(t, first, "30.json", hook("last", `"always":true`, `"prestart"`))
	write(t, first, "README", "not a hook")
	write(t, second, "20.json", hook("new", `"always":true`, `"prestart"`))
	write(t, second, "10.json", hook("first", `"always":true`, `"prestart"`))
	s := &specs.Spec{Hooks: &specs.Hooks{}}
	if err := Inject([]string{first, second}, s, Container{}); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, h := range *hooksOf(s.Hooks, "prestart") {
		order = append(order, h.Args[0])
	}
	if got := strings.Join(order, " "); got != "first new last" {
		t.Errorf("order: %s", got)
	}
}

func TestWhatCannotBeReadIsAnError(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"garbage":               {"x", "invalid character"},
		"half":                  {`{"version":`, "unexpected"},
		"two":                   {hook("x", `"always":true`, `"poststop"`) + "{}", "after top-level value"},
		"older version":         {`{"version":"0.0.1"}`, `version "0.0.1"`},
		"later version":         {`{"version":"2.0.0"}`, `version "2.0.0"`},
		"no object":             {`[]`, "cannot unmarshal"},
		"old, no hook":          {`{"stages":["prestart"],"cmds":["x"]}`, "hook is missing"},
		"old, no stage":         {`{"hook":"/bin/sh","cmds":["x"]}`, "stages is missing"},
		"old, two names":        {`{"hook":"/bin/sh","stages":["prestart"],"stage":["prestart"],"cmds":["x"]}`, "both stage and stages"},
		"old, no condition":     {`{"hook":"/bin/sh","stages":["prestart"]}`, "no condition"},
		"old with a new field":  {`{"version":"0.1.0","hook":"/bin/sh","stages":["prestart"],"when":{"always":true}}`, "unknown field"},
		"new with an old field": {`{"version":"1.0.0","hook":{"path":"/bin/sh"},"when":{"always":true},"stages":["prestart"],"cmds":["x"]}`, "unknown field"},
		"no stage":              {hook("x", `"always":true`, ``), "stages is missing"},
		"unknown stage":         {hook("x", `"always":true`, `"later"`), `stage "later"`},
		"no condition":          {hook("x", ``, `"poststop"`), "no condition"},
		"unknown field":         {hook("x", `"alway":true`, `"poststop"`), "unknown field"},
		"bad key":               {hook("x", `"annotations":{"(":"."}`, `"poststop"`), "when.annotations"},
		"bad value":             {hook("x", `"annotations":{".":"("}`, `"poststop"`), "when.annotations"},
		"bad command":           {hook("x", `"commands":["("]`, `"poststop"`), "when.commands"},
		"relative":              {strings.Replace(hook("x", `"always":true`, `"poststop"`), "/bin/sh", "sh", 1), "not absolute"},
		"missing program":       {strings.Replace(hook("x", `"always":true`, `"poststop"`), "/bin/sh", "/no/such", 1), "/no/such"},
		"no program":            {strings.Replace(hook("x", `"always":true`, `"poststop"`), "/bin/sh", "/etc/passwd", 1), "no program"},
		"timeout":               {strings.Replace(hook("x", `"always":true`, `"poststop"`), `"args"`, `"timeout":0,"args"`, 1), "timeout"},
		"too long":              {`{"version":"` + strings.Repeat("1", maxFile) + `"}`, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "h.json", c.text)
			if err := Check([]string{dir}); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "h.json") {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(hook("x", `"always":true,"annotations":{"a":"b"},"commands":["c"],"hasBindMounts":true`, `"prestart"`)))
	f.Add([]byte(`{"hook":"/bin/sh","arguments":["a"],"stage":["prestart"],"cmd":["b"],"annotation":["c"],"hasbindmounts":true}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parse(data)
		if err != nil {
			return
		}
		s := &specs.Spec{}
		if h.When.match(s, Container{}) {
			add(s, h)
		}
	})
}

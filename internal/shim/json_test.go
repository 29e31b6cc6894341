// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestJSONField(t *testing.T) {
	for document, want := range map[string]string{
		`{"linux":{"cgroupsPath":"/a/b"}}`:                                       "/a/b",
		` { "x" : [1,{"linux":2}] , "linux" : { "a":"}" , "cgroupsPath" :"/b"}}`: "/b",
		`{"linux":{"cgroupsPath":"\/\u0061\"\\"}}`:                               `/a"\`,
		`{"linux":{}}`:                                                "",
		`{"linux":null}`:                                              "",
		`{"linux":[{"cgroupsPath":"/no"}]}`:                           "",
		`{"linux":{"cgroupsPath":null}}`:                              "",
		`{"cgroupsPath":"/no","linux":{}}`:                            "",
		`{"linux":{"x":{"cgroupsPath":"n"}}}`:                         "",
		`{"linux":{"cgroupsPath":"/1"},"linux":{"cgroupsPath":"/2"}}`: "/2",
		`{}`:   "",
		`[]`:   "",
		`12.5`: "",
	} {
		got, err := jsonString([]byte(document), "linux", "cgroupsPath")
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", document, got, err, want)
		}
	}
	for _, document := range []string{
		``, `{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a" 1}`, `{"a":1,}`, `[1,]`, `[1 2]`, `{a:1}`, `"abc`, `"ab\`, `{}{}`, `nul`, `}`, `{"linux":{"cgroupsPath":7}}`,
		"{\"a\nb\":1}", strings.Repeat("[", maxJSONDepth+1),
	} {
		if got, err := jsonString([]byte(document), "linux", "cgroupsPath"); err == nil {
			t.Errorf("%.30q: %q", document, got)
		}
	}
}

func FuzzJSONFieldAgreesWithEncodingJSON(f *testing.F) {
	f.Add([]byte(`{"process":{"terminal":true},"linux":{"cgroupsPath":"\u002fa"}}`))
	f.Add([]byte(`{"linux":{"cgroupsPath":"a","x":[{},[],"\\",-1e5]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := jsonString(data, "linux", "cgroupsPath")
		var all any
		if json.Unmarshal(data, &all) != nil {
			return // the runtime will refuse it; the scanner may be laxer but must return
		}
		if err != nil && !strings.Contains(err.Error(), "cgroupsPath") {
			t.Fatalf("%q: %v", data, err)
		}
		document, _ := all.(map[string]any)
		linux, _ := document["linux"].(map[string]any)
		want, isString := linux["cgroupsPath"].(string)
		if err == nil && isString && got != want && !strings.Contains(string(data), `\`) && strings.ToValidUTF8(got, "") == got {
			t.Fatalf("%q: %q, encoding/json has %q", data, got, want)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package shimapi

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFactsComeBackAsWritten(t *testing.T) {
	bundle := t.TempDir()
	if _, err := ReadExitFact(bundle); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a fact: %v", err)
	}
	now := time.Now().UTC()
	exit := ExitFact{ID: "c \"quoted\" \\ é \x01", PID: 7, ExitCode: 137, Signal: 9, ExitedAt: now, StartedAt: now.Add(-time.Second), OOMKilled: true, LogBytesDropped: 5}
	if err := WriteExitFact(bundle, exit); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadExitFact(bundle); err != nil || got != exit {
		t.Fatalf("%+v, %v", got, err)
	}
	init := InitFact{PID: 7, StartTime: 1 << 60}
	if err := WriteInitFact(bundle, init); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadInitFact(bundle); err != nil || got != init {
		t.Fatalf("%+v, %v", got, err)
	}
	entries, err := os.ReadDir(bundle)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%v, %v", entries, err)
	}
	data, err := os.ReadFile(filepath.Join(bundle, ExitFactName))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"id"`, `"pid"`, `"exit_code"`, `"signal"`, `"exited_at"`, `"started_at"`, `"oom_killed"`, `"log_bytes_dropped"`} {
		if !strings.Contains(string(data), key) {
			t.Errorf("%s is not in %s", key, data)
		}
	}
	exit.ID, exit.ExitedAt, exit.StartedAt = "plain", time.Now().Truncate(0), time.Time{}
	if err := WriteExitFact(bundle, exit); err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile(filepath.Join(bundle, ExitFactName))
	if err != nil {
		t.Fatal(err)
	}
	if want, err := json.Marshal(exit); err != nil || string(data) != string(want)+"\n" {
		t.Errorf("by hand %s, by encoding/json %s (%v)", data, want, err)
	}
}

func TestDamagedFactIsAnError(t *testing.T) {
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, ExitFactName), []byte(`{"pid":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadExitFact(bundle); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestStreamHeaderLeavesWhatFollows(t *testing.T) {
	var conn bytes.Buffer
	want := StreamHeader{ID: "c", ExecID: "e", Stream: Stdin}
	if err := WriteStreamHeader(&conn, want); err != nil {
		t.Fatal(err)
	}
	conn.WriteString("payload")
	got, err := ReadStreamHeader(&conn)
	if err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	if conn.String() != "payload" {
		t.Fatalf("left %q", conn.String())
	}
}

func TestBadStreamHeaders(t *testing.T) {
	frame := func(size uint32, text string) string {
		return string(binary.BigEndian.AppendUint32(nil, size)) + text
	}
	for name, data := range map[string]string{
		"empty":          frame(0, ""),
		"too long":       frame(MaxStreamHeader+1, strings.Repeat(" ", MaxStreamHeader+1)),
		"not JSON":       frame(3, "abc"),
		"no id":          frame(19, `{"stream":"stdout"}`),
		"unknown stream": frame(25, `{"id":"a","stream":"std"}`),
		"stray pipes":    frame(41, `{"id":"a","stream":"stdout","pipes":true}`),
	} {
		if header, err := ReadStreamHeader(strings.NewReader(data)); !errors.Is(err, ErrStreamHeader) {
			t.Errorf("%s: %+v, %v", name, header, err)
		}
	}
	for name, data := range map[string]string{"cut length": "\x00\x00", "cut body": frame(10, "abc")} {
		if header, err := ReadStreamHeader(strings.NewReader(data)); err == nil || errors.Is(err, ErrStreamHeader) {
			t.Errorf("%s: %+v, %v", name, header, err)
		}
	}
	if err := WriteStreamHeader(&bytes.Buffer{}, StreamHeader{ID: strings.Repeat("x", MaxStreamHeader)}); !errors.Is(err, ErrStreamHeader) {
		t.Errorf("oversized header was written: %v", err)
	}
}

func TestTheExitOfAnExecIsToldInWhole(t *testing.T) {
	var conn bytes.Buffer
	if err := WriteExecExit(&conn, 137); err != nil {
		t.Fatal(err)
	}
	if code, err := ReadExecExit(&conn); code != 137 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	for _, cut := range []string{"", "\x00\x00\x00"} {
		if code, err := ReadExecExit(strings.NewReader(cut)); err == nil {
			t.Errorf("%q is exit %d", cut, code)
		}
	}
}

func TestStreamAnswers(t *testing.T) {
	var conn bytes.Buffer
	if err := WriteStreamAnswer(&conn, nil); err != nil {
		t.Fatal(err)
	}
	if err := ReadStreamAnswer(&conn); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("y", 5000)
	if err := WriteStreamAnswer(&conn, errors.New(long)); err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if err := ReadStreamAnswer(&conn); !errors.As(err, &refused) || refused.Reason != long[:maxRefusal] {
		t.Fatal(err)
	}
	if err := ReadStreamAnswer(&conn); err == nil {
		t.Fatal("no error at the end of the connection")
	}
}

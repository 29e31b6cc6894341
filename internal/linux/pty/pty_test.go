// SPDX-License-Identifier: Apache-2.0

package pty_test

import (
	"io"
	"testing"

	"github.com/berth-run/berth/internal/linux/pty"
)

func TestARawTerminalChangesNoByte(t *testing.T) {
	master, slave, err := pty.OpenRaw()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer slave.Close()
	all := make([]byte, 256) // ^C, ^D, ^S, CR and LF among them
	for i := range all {
		all[i] = byte(i)
	}
	for _, way := range []struct {
		name     string
		from, to io.ReadWriter
	}{{"input", master, slave}, {"output", slave, master}} {
		if _, err := way.from.Write(all); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(all))
		if _, err := io.ReadFull(way.to, got); err != nil || string(got) != string(all) {
			t.Errorf("%s: %q, %v", way.name, got, err)
		}
	}
}

func TestASizeIsSeenAtBothEnds(t *testing.T) {
	master, slave, err := pty.OpenRaw()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if size, err := pty.GetSize(slave); err != nil || size != (pty.Size{}) {
		t.Errorf("at first: %v, %v", size, err)
	}
	if err := pty.SetSize(master, 91, 37); err != nil {
		t.Fatal(err)
	}
	if size, err := pty.GetSize(slave); err != nil || size != (pty.Size{Width: 91, Height: 37}) {
		t.Errorf("got %v, %v", size, err)
	}
	slave.Close()
	if _, err := pty.GetSize(slave); err == nil {
		t.Error("the size of a closed terminal")
	}
}

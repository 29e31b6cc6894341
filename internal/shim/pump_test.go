// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/linux/pty"
)

// slowSink takes longer for each piece than a terminal is given to pass on its last output.
type slowSink struct {
	text strings.Builder
}

func (s *slowSink) put(p []byte) error {
	time.Sleep(2 * ttyDrain)
	s.text.Write(p)
	return nil
}

func (s *slowSink) flush() {}
func (s *slowSink) hurry() {}
func (s *slowSink) close() {}
func (s *slowSink) abort() {}

func TestASlowReaderGetsTheLastOutputOfATerminal(t *testing.T) {
	master, slave, err := pty.OpenRaw()
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Repeat("0123456789abcde\n", 1<<10) // more than one read of a terminal gives
	wrote := make(chan error, 1)
	go func() {
		_, err := slave.WriteString(want)
		slave.Close()
		wrote <- err
	}()
	sink := &slowSink{}
	p := startPump(&pump{source: master, sink: sink, tty: true, last: true})
	if err := <-wrote; err != nil { // the kernel and the pump hold what is left
		t.Fatal(err)
	}
	p.drain()
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the pump does not end")
	}
	if got := sink.text.String(); got != want {
		t.Errorf("%d of %d bytes", len(got), len(want))
	}
}

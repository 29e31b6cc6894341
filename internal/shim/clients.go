// SPDX-License-Identifier: Apache-2.0

package shim

import "os"

// clients are the clients' ends of a process's stdin, stdout and stderr; nil: not wanted.
type clients [3]end

// wanted tells of which streams there is an end.
func (c *clients) wanted() (stdin, stdout, stderr bool) { return c[0] != nil, c[1] != nil, c[2] != nil }

// take hands an end over to a pump.
func (c *clients) take(i int) end {
	taken := c[i]
	c[i] = nil
	return taken
}

// hangUp closes the ends that no pump has taken over.
func (c *clients) hangUp() {
	for i := range c {
		if taken := c.take(i); taken != nil {
			taken.Close()
		}
	}
}

// join connects the process's streams with its clients' ends. leased: a client that hangs up has not ended its input.
func (p *process) join(s *stdio, terminal *os.File, c *clients, leased bool) {
	stdin, outputs := s.stdin, s.output
	if terminal != nil {
		stdin, outputs[0] = terminal, terminal
		p.mu.Lock()
		p.terminal = terminal
		p.mu.Unlock()
	}
	for i, output := range outputs {
		if output == nil {
			continue
		}
		var to sink = discard{} // a terminal must be read, wanted or not
		if client := c.take(i + 1); client != nil {
			to = &clientSink{conn: client}
		}
		p.addPumps(startPump(&pump{source: output, sink: to, tty: terminal != nil, last: true}))
	}
	if client := c.take(0); client != nil {
		sink := &stdinSink{stdin: stdin, keep: terminal != nil}
		if leased {
			sink.client, sink.ended, sink.aborted = client, p.exited, make(chan struct{})
		}
		_, fifo := client.(*os.File)
		p.addPumps(startPump(&pump{source: client, sink: sink, last: true, fifo: fifo}))
	}
}

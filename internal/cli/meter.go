// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	frameEvery = 100 * time.Millisecond
	// lineEvery is for what is no terminal: a log shows that something goes on, and is not filled.
	lineEvery = 10 * time.Second
)

// meter shows that something goes on and how far it is: on a terminal a line that moves, else a plain line now and then.
type meter struct {
	w          io.Writer
	what       string
	moving     bool
	done, gone chan struct{}
	once       sync.Once
	begin      time.Time

	mu   sync.Mutex // guards text and orders what is written
	text string
}

// newMeter begins to show. It wants one stop, and takes more.
func newMeter(w io.Writer, what string) *meter {
	m := &meter{w: w, what: what, done: make(chan struct{}), gone: make(chan struct{}), begin: time.Now()}
	f, ok := w.(*os.File)
	m.moving = ok && term.IsTerminal(int(f.Fd()))
	every := frameEvery
	if !m.moving {
		fmt.Fprintln(w, what)
		every = lineEvery
	}
	go m.run(every)
	return m
}

func (m *meter) run(every time.Duration) {
	defer close(m.gone)
	frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	if !utf8Locale() {
		frames = []rune(`|/-\`)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		if m.moving {
			m.frame(frames[i%len(frames)])
		}
		select {
		case <-m.done:
			m.mu.Lock()
			m.wipe()
			m.mu.Unlock()
			return
		case <-tick.C:
		}
		if !m.moving {
			m.mu.Lock()
			fmt.Fprintln(m.w, m.line())
			m.mu.Unlock()
		}
	}
}

func (m *meter) frame(r rune) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fmt.Fprintf(m.w, "\r\x1b[K%c %s", r, m.line())
}

// line is all there is to tell. Preconditions: mu is held.
func (m *meter) line() string {
	took := time.Since(m.begin).Truncate(frameEvery).String()
	if m.text == "" {
		return m.what + "  " + took
	}
	return m.what + "  " + m.text + "  " + took
}

// wipe takes the moving line away. Preconditions: mu is held.
func (m *meter) wipe() {
	if m.moving {
		fmt.Fprint(m.w, "\r\x1b[K")
	}
}

// set says how far it is.
func (m *meter) set(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.text = text
}

// print writes a line to another place, which may be the same terminal.
func (m *meter) print(w io.Writer, line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wipe()
	fmt.Fprintln(w, line)
}

func (m *meter) stop() { m.once.Do(func() { close(m.done) }); <-m.gone }

// utf8Locale tells whether the terminal is said to show more than ASCII.
func utf8Locale() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

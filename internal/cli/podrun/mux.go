// SPDX-License-Identifier: Apache-2.0

package podrun

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/cli/crilog"
	"github.com/berth-run/berth/internal/cli/manifest"
)

// mux writes the logs of several containers to one terminal, each line with the name of its container. A line that is not whole
// when another container writes is broken there: keeping lines until they end would need memory without bound.
type mux struct {
	out, err io.Writer
	width    int
	readers  sync.WaitGroup
	running  context.Context // until no container runs any more
	over     context.CancelFunc

	mu   sync.Mutex // guards open, and the order of writes
	open source     // whose line is not ended
}

type source struct{ container, stream string }

func newMux(out, err io.Writer, pod *manifest.Pod) *mux {
	m := &mux{out: out, err: err}
	m.running, m.over = context.WithCancel(context.Background())
	for _, c := range pod.Spec.InitContainers {
		m.width = max(m.width, len(c.Name))
	}
	for _, c := range pod.Spec.Containers {
		m.width = max(m.width, len(c.Name))
	}
	return m
}

// follow copies a container's log until ended was called, or the end of all, and its log was read. ended waits for that, or for the end
// of ctx: what is started next writes behind it.
func (m *mux) follow(container, path string) (ended func(ctx context.Context)) {
	running, exit := context.WithCancel(m.running)
	written := make(chan struct{})
	o := crilog.Options{Tail: -1, Follow: true, Ended: running.Done()}
	m.readers.Go(func() {
		defer close(written)
		for tries := patience; ; {
			_, err := crilog.Read(context.Background(), path, o, func(c crilog.Chunk) error { return m.write(container, c) })
			// The runtime may make the file a moment after it has answered.
			if running.Err() != nil {
				tries--
			}
			if !errors.Is(err, fs.ErrNotExist) || tries == 0 {
				m.note(container, err)
				return
			}
			time.Sleep(pause)
		}
	})
	return func(ctx context.Context) {
		exit()
		select {
		case <-written:
		case <-ctx.Done():
		}
	}
}

// A log that is not there when its container has ended is looked for this often more, with a pause in between.
const (
	patience = 10
	pause    = 50 * time.Millisecond
)

// end reads what is left of the logs: no container runs any more.
func (m *mux) end() {
	m.over()
	m.wait()
}

func (m *mux) note(container string, err error) {
	if err == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.breakLine()
	fmt.Fprintf(m.err, "log of container %s: %v\n", container, err)
}

// wait returns when all logs of containers that have ended were written, and ends a last line that has no end.
func (m *mux) wait() {
	m.readers.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.breakLine()
}

func (m *mux) writer(stream string) io.Writer {
	if stream == "stderr" {
		return m.err
	}
	return m.out
}

func (m *mux) breakLine() {
	if m.open != (source{}) {
		fmt.Fprintln(m.writer(m.open.stream))
		m.open = source{}
	}
}

func (m *mux) write(container string, c crilog.Chunk) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from := source{container, c.Stream}
	var b bytes.Buffer
	if m.open != from {
		m.breakLine()
		fmt.Fprintf(&b, "%-*s | ", m.width, container)
	}
	b.Write(c.Data)
	m.open = from
	if c.End {
		b.WriteByte('\n')
		m.open = source{}
	}
	_, err := m.writer(c.Stream).Write(b.Bytes())
	return err
}

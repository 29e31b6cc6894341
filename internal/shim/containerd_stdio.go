// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"os"
	"strings"
	"sync"

	"github.com/berth-run/berth/internal/linux/fifo"
	"github.com/berth-run/berth/internal/shim/rpc"
)

// streamPaths are a process's stdin, stdout and stderr as containerd names them: FIFOs, or for the output URLs of a file (file:///…);
// empty: none.
type streamPaths [3]string

// open fills clients; what it has opened stays the caller's also when it fails. A terminal has no stderr, named or not.
func (p *streamPaths) open(clients *clients, terminal bool) error {
	for i, path := range p {
		if path == "" || terminal && i == 2 {
			continue
		}
		file, err := openStream(path, i == 0)
		if err != nil {
			return rpc.Errorf(rpc.InvalidArgument, "open %s: %v", [3]string{"stdin", "stdout", "stderr"}[i], err)
		}
		clients[i] = file
	}
	return nil
}

func openStream(path string, stdin bool) (*os.File, error) {
	scheme, rest, ok := strings.Cut(path, "://")
	switch {
	case !ok:
		rest = path
	case scheme == "file" && !stdin:
		return os.OpenFile(rest, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	case scheme != "fifo":
		return nil, rpc.Errorf(rpc.Unimplemented, "%q: this shim has FIFOs and, for output, file:///PATH", path)
	}
	if stdin {
		return fifo.Reader(rest)
	}
	return fifo.Writer(rest)
}

// news orders what is told of a process: its exit waits for a start that is not over. The zero value is ready.
type news struct {
	mu       sync.Mutex
	starting chan struct{} // nil: nobody starts it
}

func (n *news) begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.starting == nil {
		n.starting = make(chan struct{})
	}
}

func (n *news) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.starting != nil {
		close(n.starting)
		n.starting = nil
	}
}

func (n *news) wait() {
	n.mu.Lock()
	starting := n.starting
	n.mu.Unlock()
	if starting != nil {
		<-starting
	}
}

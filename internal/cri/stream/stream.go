// SPDX-License-Identifier: Apache-2.0

// Package stream serves the CRI's streams: Exec, Attach and PortForward answer with a URL, and the kubelet (or another client)
// brings its streams there, over SPDY/3.1 or WebSocket. A URL holds a token that is good for one use within a minute: it is all
// the authority that there is, so the server listens on loopback unless it is told otherwise. cri hands out the URLs, daemon
// builds the server; what a session does in a pod is package pod's.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/runtime"
)

// Pods is what sessions need. Implementation: pod.Manager.
type Pods interface {
	CheckExec(id string, cmd []string) error
	Exec(ctx context.Context, id string, cmd []string, session runtime.Session) (code int, err error)
	CheckAttach(id string, stdin bool) error
	Attach(ctx context.Context, id string, session runtime.Session) error
	CheckPortForward(id string) error
	PortForward(ctx context.Context, id string, port uint16, client io.ReadWriteCloser) error
}

// Config is what a Server must know; daemon fills it.
type Config struct {
	Pods Pods
	// Address is the IP address to listen on and to put into URLs; Port 0: any free one.
	Address string
	Port    int
	// CertFile and KeyFile (PEM) make it TLS; they are read anew when they change. Clients then have to show a certificate by
	// one of the CAs in ClientCAFile, if that is set.
	CertFile, KeyFile, ClientCAFile string
	// IdleTimeout ends sessions that nothing is sent in; CreationTimeout bounds the wait for a client's streams.
	IdleTimeout, CreationTimeout time.Duration
	// MaxSessions bounds the sessions at the same time, and the URLs that are not used yet.
	MaxSessions int
	Log         *slog.Logger
	// Opened, if set, is told how long a session ("exec", "attach") took from the client's request to connected streams.
	Opened func(kind string, took time.Duration)

	pongPace time.Duration // for tests; 0: the constant
}

const (
	// headerTimeout, maxHeader and maxStrangers bound what clients can do before they have shown a token.
	headerTimeout = 10 * time.Second
	maxHeader     = 32 << 10
	maxStrangers  = 1024
	// partTime is how long a session that the daemon ends may take to tell its client why.
	partTime = 200 * time.Millisecond
)

// Server hands out URLs and serves them.
type Server struct {
	c        Config
	log      *slog.Logger
	base     url.URL
	listener net.Listener
	http     *http.Server
	tokens   *tokens

	// life ends when the server is closed, and every session with it.
	life context.Context
	end  context.CancelCauseFunc

	strangers atomic.Int64 // connections that are no session

	mu       sync.Mutex
	sessions int
	idle     *sync.Cond // told when sessions has become less
}

// errShutdown is what clients hear when the daemon ends.
var errShutdown = errors.New("the container runtime is shutting down; the container runs on")

// New listens. Serve answers what comes.
func New(c Config) (*Server, error) {
	quietLibraries(c.Log)
	if c.pongPace == 0 {
		c.pongPace = pongPace
	}
	s := &Server{c: c, log: c.Log, tokens: newTokens(c.MaxSessions), base: url.URL{Scheme: "http"}}
	s.idle = sync.NewCond(&s.mu)
	s.life, s.end = context.WithCancelCause(context.Background())
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: headerTimeout, IdleTimeout: headerTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug), ConnState: s.count, Protocols: new(http.Protocols)}
	s.http.Protocols.SetHTTP1(true) // HTTP/2 has no upgrades
	if c.CertFile != "" {
		config, err := newCertificates(c.CertFile, c.KeyFile, c.ClientCAFile, c.Log).config()
		if err != nil {
			return nil, fmt.Errorf("streaming server: %w", err)
		}
		s.base.Scheme, s.http.TLSConfig = "https", config
	}
	l, err := net.Listen("tcp", net.JoinHostPort(c.Address, fmt.Sprint(c.Port)))
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	s.listener, s.base.Host = l, l.Addr().String()
	return s, nil
}

// count hangs up on a connection when too many have not become a session.
func (s *Server) count(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if s.strangers.Add(1) > maxStrangers {
			conn.Close()
		}
	case http.StateHijacked, http.StateClosed:
		s.strangers.Add(-1)
	}
}

// URL is where the server is, without a token.
func (s *Server) URL() string { return s.base.String() }

// Serve answers until Close.
func (s *Server) Serve() error {
	var err error
	if s.http.TLSConfig != nil {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve streams on %s: %w", s.base.Host, err)
}

// Close ends all sessions: execs with them, attached containers not. Clients are told why, if they listen.
func (s *Server) Close() error {
	s.end(errShutdown)
	err := errors.Join(s.http.Close(), s.listener.Close())
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for deadline := time.Now().Add(2 * partTime); s.sessions > 0 && time.Now().Before(deadline); {
		wake := time.AfterFunc(time.Until(deadline), s.idle.Broadcast)
		s.idle.Wait()
		wake.Stop()
	}
	return err
}

// enter takes one of the sessions that there may be.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions >= s.c.MaxSessions || s.life.Err() != nil {
		return false
	}
	s.sessions++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions--
	s.idle.Broadcast()
}

// Exec returns the URL for an exec. Errors: pod.ErrInvalid, pod.ErrNotFound, pod.ErrState, ErrBusy.
func (s *Server) Exec(r *runtimeapi.ExecRequest) (string, error) {
	if err := checkStreams("exec", r.GetContainerId(), r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()); err != nil {
		return "", err
	}
	if err := s.c.Pods.CheckExec(r.GetContainerId(), r.GetCmd()); err != nil {
		return "", err
	}
	return s.issue("exec", r)
}

// Attach returns the URL to attach to a container. Errors: those of Exec.
func (s *Server) Attach(r *runtimeapi.AttachRequest) (string, error) {
	if err := checkStreams("attach", r.GetContainerId(), r.GetTty(), r.GetStdin(), r.GetStdout(), r.GetStderr()); err != nil {
		return "", err
	}
	if err := s.c.Pods.CheckAttach(r.GetContainerId(), r.GetStdin()); err != nil {
		return "", err
	}
	return s.issue("attach", r)
}

// PortForward returns the URL to forward ports of a pod. Errors: those of Exec.
func (s *Server) PortForward(r *runtimeapi.PortForwardRequest) (string, error) {
	if r.GetPodSandboxId() == "" {
		return "", fmt.Errorf("port-forward: pod_sandbox_id is empty: %w", pod.ErrInvalid)
	}
	if i := slices.IndexFunc(r.GetPort(), func(p int32) bool { return p < 1 || p > 65535 }); i >= 0 {
		return "", fmt.Errorf("port-forward: port[%d]: %d is not in 1 to 65535: %w", i, r.GetPort()[i], pod.ErrInvalid)
	}
	if err := s.c.Pods.CheckPortForward(r.GetPodSandboxId()); err != nil {
		return "", err
	}
	return s.issue("portforward", r)
}

// checkStreams refuses what the CRI rules out (ExecRequest, AttachRequest).
func checkStreams(what, id string, tty, stdin, stdout, stderr bool) error {
	switch {
	case id == "":
		return fmt.Errorf("%s: container_id is empty: %w", what, pod.ErrInvalid)
	case tty && stderr:
		return fmt.Errorf("%s: tty and stderr exclude each other: a terminal has one output: %w", what, pod.ErrInvalid)
	case !stdin && !stdout && !stderr:
		return fmt.Errorf("%s: none of stdin, stdout and stderr is asked for: %w", what, pod.ErrInvalid)
	}
	return nil
}

func (s *Server) issue(what string, request any) (string, error) {
	token, err := s.tokens.issue(what, request, time.Now())
	if err != nil {
		return "", err
	}
	u := s.base
	u.Path = "/" + what + "/" + token
	return u.String(), nil
}

// ServeHTTP answers one request, which is a session if all goes well.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "only GET and POST are served", http.StatusMethodNotAllowed)
		return
	case !isUpgrade(r):
		http.Error(w, "upgrade to SPDY/3.1 or websocket: this server has nothing else", http.StatusBadRequest)
		return
	}
	if !s.enter() {
		w.Header().Set("Retry-After", "5")
		http.Error(w, fmt.Sprintf("there are %d sessions, as many as [streaming] max_sessions allows", s.c.MaxSessions), http.StatusServiceUnavailable)
		return
	}
	defer s.leave()
	request, ok := s.tokens.redeem(what, token, time.Now())
	if !ok {
		http.Error(w, "the token is not known: each is good for one use within a minute; ask the CRI for another URL", http.StatusNotFound)
		return
	}
	s.serve(w, r, request)
}

func isUpgrade(r *http.Request) bool {
	for _, value := range r.Header.Values("Connection") {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), "upgrade") {
				return r.Header.Get("Upgrade") != ""
			}
		}
	}
	return false
}

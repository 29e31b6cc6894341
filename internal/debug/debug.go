// SPDX-License-Identifier: Apache-2.0

// Package debug serves metrics for Prometheus and, to root only, profiles, operations in flight, the state and the log level, over HTTP.
// It is off by default; daemon starts it. It is the only importer of Prometheus' client library.
package debug

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/telemetry"
)

// Config says where to serve.
type Config struct {
	// Address is "IP:PORT", or "unix:///path" for a socket that only root can use.
	Address string
	// CertFile and KeyFile make it TLS, ClientCAFile demands a client's certificate. The certificate is read for each connection.
	CertFile, KeyFile, ClientCAFile string
	// Debug serves profiles, state and log level beside metrics: only where nobody but root gets to.
	Debug bool
	Log   *slog.Logger
}

// Sources are what is shown.
type Sources struct {
	Pods  *pod.Manager
	Calls *telemetry.Calls
	// FSInfo and Images tell of the image store.
	FSInfo func(context.Context) (image.FSInfo, error)
	Images func() []image.Image
	// ShimMemory tells how many shims the sandboxes have, and their memory in bytes.
	ShimMemory func(sandboxes []string) (shims int, bytes uint64)
	// Denials counts what seccomp refused; nil where the kernel's log cannot be read.
	Denials func() (uint64, error)
	// SetLevel changes the log's level until the next start or reload; Level tells it.
	SetLevel func(level string) error
}

const (
	// Bounds against slow and greedy clients.
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 16 << 10
	maxScrapes    = 4
	scrapeTimeout = 10 * time.Second
	unixPrefix    = "unix://"
)

// Server serves.
type Server struct {
	http http.Server
	log  *slog.Logger
	done chan struct{}
}

// Listen takes the address and serves in the background until Close.
func Listen(c Config, m *Metrics, s Sources) (*Server, error) {
	m.watch(s)
	l, err := listen(c)
	if err != nil {
		return nil, fmt.Errorf("metrics on %s: %w", c.Address, err)
	}
	server := &Server{log: c.Log, done: make(chan struct{}), http: http.Server{Handler: handler(c, m, s), ReadHeaderTimeout: headerTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug)}}
	go func() {
		defer close(server.done)
		if err := server.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			c.Log.Error("metrics", "error", err)
		}
	}()
	c.Log.Info("serving metrics", "address", l.Addr().String(), "debug", c.Debug)
	return server, nil
}

// Close ends all connections.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

func listen(c Config) (net.Listener, error) {
	if path, ok := strings.CutPrefix(c.Address, unixPrefix); ok {
		return listenUnix(path)
	}
	l, err := net.Listen("tcp", c.Address)
	if err != nil || c.CertFile == "" {
		return l, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		return &pair, err
	}}
	if _, err := config.GetCertificate(nil); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if c.ClientCAFile != "" {
		raw, err := os.ReadFile(c.ClientCAFile)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !config.ClientCAs.AppendCertsFromPEM(raw) {
			return nil, errors.Join(fmt.Errorf("%s: holds no certificate", c.ClientCAFile), l.Close())
		}
	}
	return tls.NewListener(l, config), nil
}

// listenUnix replaces a socket that nobody serves any more; the root folder's lock keeps a second daemon away.
func listenUnix(path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode()&os.ModeSocket == 0:
		return nil, errors.New("is there already and is not a socket")
	case err == nil:
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func handler(c Config, m *Metrics, s Sources) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: maxScrapes,
		Timeout: scrapeTimeout, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn)}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	if !c.Debug {
		return mux
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/operations", func(w http.ResponseWriter, _ *http.Request) { answer(w, operations(s.Calls, s.Pods)) })
	mux.HandleFunc("GET /debug/state", func(w http.ResponseWriter, _ *http.Request) { answer(w, state(s.Pods)) })
	mux.HandleFunc("PUT /debug/log-level", func(w http.ResponseWriter, r *http.Request) { setLevel(w, r, s.SetLevel) })
	return mux
}

// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"time"
)

// Fault is something that goes wrong in place of a request.
type Fault struct {
	// Match is a part of "METHOD path"; "/blobs/sha256:…" and "GET /v2/app/manifests" are typical.
	Match string
	// Times is how many requests suffer; 0 means each.
	Times int
	// Do answers the request. next is the healthy registry.
	Do func(w http.ResponseWriter, r *http.Request, next http.Handler)

	seen int // guarded by Server.mu
}

// Inject lets requests fail until the returned function is called. The first fault that matches wins.
func (s *Server) Inject(f Fault) (heal func()) {
	p := &f
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, p)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = slices.DeleteFunc(s.faults, func(q *Fault) bool { return q == p })
	}
}

// Status answers with an HTTP status; a Retry-After of 0 seconds is left out.
func Status(code, retryAfter int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if retryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		}
		apiError(w, code, map[int]string{
			401: "UNAUTHORIZED", 403: "DENIED", 404: "MANIFEST_UNKNOWN", 429: "TOOMANYREQUESTS",
		}[code])
	}
}

// Stall answers nothing for the time, or until the client goes away.
func Stall(d time.Duration) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		select {
		case <-time.After(d):
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
}

// StallBody sends the first n bytes of the answer and then nothing for the time.
func StallBody(n int, d time.Duration) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		a := answer(r, next)
		a.head(w)
		body := a.Body.Bytes()
		n := min(n, len(body))
		w.Write(body[:n])
		w.(http.Flusher).Flush()
		select {
		case <-time.After(d):
			w.Write(body[n:])
		case <-r.Context().Done():
		}
	}
}

// Corrupt flips a bit in the middle of the answer's body; its length stays right.
func Corrupt(w http.ResponseWriter, r *http.Request, next http.Handler) {
	a := answer(r, next)
	body := bytes.Clone(a.Body.Bytes())
	if len(body) > 0 {
		body[len(body)/2] ^= 1
	}
	a.head(w)
	w.Write(body)
}

// Reset sends n bytes of the body and then a TCP RST.
func Reset(n int) func(http.ResponseWriter, *http.Request, http.Handler) {
	return After(n, func() {}, true)
}

// After calls f once n bytes of the body are out, before the rest; with reset the connection is cut there.
func After(n int, f func(), reset bool) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		a := answer(r, next)
		a.head(w)
		body := a.Body.Bytes()
		n := min(n, len(body))
		w.Write(body[:n])
		w.(http.Flusher).Flush()
		f()
		if !reset {
			w.Write(body[n:])
			return
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		conn.Close()
	}
}

type recorded struct{ *httptest.ResponseRecorder }

// answer lets the healthy registry answer into memory, whole: ranges would move what a fault counts.
func answer(r *http.Request, next http.Handler) recorded {
	rec := httptest.NewRecorder()
	whole := r.Clone(r.Context())
	whole.Header.Del("Range")
	next.ServeHTTP(rec, whole)
	return recorded{rec}
}

func (a recorded) head(w http.ResponseWriter) {
	for k, v := range a.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", strconv.Itoa(a.Body.Len()))
	w.WriteHeader(a.Code)
}

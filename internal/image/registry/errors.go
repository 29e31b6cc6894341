// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

var (
	// ErrNotFound: the registry knows no such image or blob.
	ErrNotFound = errors.New("not found in the registry")
	// ErrUnauthorized: the registry refuses the credentials, or wants some.
	ErrUnauthorized = errors.New("registry refuses access")
	// ErrUnavailable: no registry for the image could be reached or gave a useful answer; trying later may help.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrNoRange: the registry does not send the rest of a blob, only all of it.
	ErrNoRange = errors.New("registry sends no part of a blob")
	// ErrTooLarge: an answer has more bytes than any honest one.
	ErrTooLarge = errors.New("answer of the registry is too large")
)

// Error is what went wrong with one host. Its text has neither queries nor user information of URLs, because registries
// put tokens there; so nothing that could tell more is wrapped but the class.
type Error struct {
	host, text string
	class      error
	// broken: the answer had begun, so the rest can be asked for.
	broken bool
}

func (e *Error) Error() string {
	if e.host == "" {
		return e.text
	}
	return e.host + ": " + e.text
}

// Unwrap gives the class, one of this package's errors.
func (e *Error) Unwrap() error { return e.class }

// Interrupted says whether a body broke off, so that fetching the rest is worth a try.
func Interrupted(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.broken
}

// notes are the errors of all hosts that one operation has tried. containerd's resolver returns the first, which is often
// that of a dead mirror and hides what the registry itself says.
type notes struct {
	mu     sync.Mutex
	origin *Error
	texts  []string
}

type notesKey struct{}

const maxNotes = 8 // hosts named in one error

func (n *notes) add(e *Error, origin bool) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if origin {
		n.origin = e
	}
	text := e.Error()
	for _, t := range n.texts {
		if t == text {
			return
		}
	}
	if len(n.texts) < maxNotes {
		n.texts = append(n.texts, text)
	}
}

func notesOf(ctx context.Context) *notes {
	n, _ := ctx.Value(notesKey{}).(*notes)
	return n
}

// sum turns the error of a whole operation into one that names every host that was tried.
func (n *notes) sum(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	last := classify(err)
	if n.origin != nil {
		last.class, last.broken = n.origin.class, n.origin.broken
	}
	if len(n.texts) > 0 {
		last.host, last.text = "", strings.Join(n.texts, "; ")
	}
	return last
}

// classify gives an error of containerd's resolver a class, and keeps its text free of secrets.
func classify(err error) *Error {
	var own *Error
	if errors.As(err, &own) {
		e := *own
		return &e
	}
	var status remoteserrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		host := ""
		if u, err := url.Parse(status.RequestURL); err == nil {
			host = u.Host
		}
		return statusError(host, status.StatusCode, status.Body)
	}
	var request *url.Error
	if errors.As(err, &request) {
		host := ""
		if u, err := url.Parse(request.URL); err == nil {
			host = u.Host
		}
		return &Error{host: host, text: Redact(request.Err.Error()), class: ErrUnavailable}
	}
	e := &Error{text: Redact(err.Error()), class: ErrUnavailable}
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization):
		e.class = ErrUnauthorized
	case errdefs.IsNotFound(err):
		e.class = ErrNotFound
	}
	return e
}

// statusError says what a registry answered, with its own words where it has some.
func statusError(host string, code int, body []byte) *Error {
	e := &Error{host: host, text: strings.TrimSpace(fmt.Sprintf("status %d %s", code, http.StatusText(code))), class: ErrUnavailable}
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.class = ErrUnauthorized
	case http.StatusNotFound:
		e.class = ErrNotFound
	case http.StatusRequestedRangeNotSatisfiable:
		e.class = ErrNoRange
	}
	if said := explain(body); said != "" {
		e.text += ": " + said
	}
	return e
}

const maxExplanation = 256 // characters of a registry's own words

// explain reads the distribution API's error body.
func explain(body []byte) string {
	var answer struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	said := strings.TrimPrefix(answer.Errors[0].Code+": "+answer.Errors[0].Message, ": ")
	said = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, said)
	if len(said) > maxExplanation {
		said = strings.ToValidUTF8(said[:maxExplanation], "") + "…"
	}
	return Redact(said)
}

var (
	urlQuery = regexp.MustCompile(`(https?://[^\s"?]*)\?[^\s"]*`)
	urlUser  = regexp.MustCompile(`(https?://)[^\s"/@]*@`)
)

// Redact takes query strings and user information out of the URLs in a text.
func Redact(s string) string {
	return urlUser.ReplaceAllString(urlQuery.ReplaceAllString(s, "$1"), "$1")
}

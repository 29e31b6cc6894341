// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"
)

// tokenLife is how long a URL waits for its client.
const tokenLife = time.Minute

// ErrBusy: there are as many URLs that nobody has used as there may be.
var ErrBusy = errors.New("too many streaming requests are waiting for their clients; try again in a minute")

// tokens are the URLs that are handed out and not used yet.
type tokens struct {
	max int

	mu      sync.Mutex
	waiting map[string]waiting
	order   []string // by age, the oldest first; redeemed ones are still in it
}

type waiting struct {
	what    string
	request any
	until   time.Time
}

func newTokens(limit int) *tokens { return &tokens{max: limit, waiting: map[string]waiting{}} }

// issue makes a token of 128 random bits for a request.
func (t *tokens) issue(what string, request any, now time.Time) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(now)
	if len(t.waiting) >= t.max {
		return "", fmt.Errorf("%s: %d URLs: %w", what, len(t.waiting), ErrBusy)
	}
	token := rand.Text()
	t.waiting[token] = waiting{what: what, request: request, until: now.Add(tokenLife)}
	t.order = append(t.order, token)
	return token, nil
}

// redeem returns the request, once. A token for something else is as unknown as a wrong one, and stays.
func (t *tokens) redeem(what, token string, now time.Time) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.waiting[token]
	if !ok || w.what != what {
		return nil, false
	}
	delete(t.waiting, token)
	return w.request, !now.After(w.until)
}

// forget drops what is too old, and what has been redeemed at the front. Preconditions: t.mu is held.
func (t *tokens) forget(now time.Time) {
	for len(t.order) > 0 {
		w, ok := t.waiting[t.order[0]]
		if ok && !now.After(w.until) {
			break
		}
		delete(t.waiting, t.order[0])
		t.order = t.order[1:]
	}
	if len(t.order) > 2*t.max { // redeemed ones behind one that waits
		kept := make([]string, 0, len(t.waiting))
		for _, token := range t.order {
			if _, ok := t.waiting[token]; ok {
				kept = append(kept, token)
			}
		}
		t.order = kept
	}
}

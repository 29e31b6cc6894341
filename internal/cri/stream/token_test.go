// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"errors"
	"testing"
	"time"
)

func TestTokensExpire(t *testing.T) {
	tokens, now := newTokens(2), time.Now()
	first, err := tokens.issue("exec", 1, now)
	if err != nil {
		t.Fatal(err)
	}
	second, err := tokens.issue("exec", 2, now.Add(tokenLife/2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tokens.issue("exec", 3, now.Add(tokenLife/2)); !errors.Is(err, ErrBusy) {
		t.Errorf("a third one: %v", err)
	}
	later := now.Add(tokenLife + time.Second)
	if _, ok := tokens.redeem("exec", first, later); ok {
		t.Error("an expired token was taken")
	}
	if got, ok := tokens.redeem("exec", second, later); !ok || got != 2 {
		t.Errorf("got %v, %v", got, ok)
	}
	if _, ok := tokens.redeem("exec", second, later); ok {
		t.Error("a token was taken twice")
	}
	for range 100 {
		token, err := tokens.issue("exec", 4, later)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := tokens.redeem("exec", token, later); !ok {
			t.Fatal("a fresh token was not taken")
		}
	}
	if len(tokens.waiting) != 0 || len(tokens.order) > 2*tokens.max+1 {
		t.Errorf("%d tokens wait, %d are remembered", len(tokens.waiting), len(tokens.order))
	}
}

func FuzzToken(f *testing.F) {
	f.Add("/exec/", uint16(0))
	f.Add("/exec/AAAAAAAAAAAAAAAAAAAAAAAAAA", uint16(3))
	f.Add("/portforward/../exec/x", uint16(9))
	f.Fuzz(func(t *testing.T, path string, n uint16) {
		tokens, now := newTokens(16), time.Now()
		issued := map[string]bool{}
		for range n % 16 {
			token, err := tokens.issue("exec", "x", now)
			if err != nil || issued[token] {
				t.Fatalf("%q, %v", token, err)
			}
			issued[token] = true
		}
		for _, what := range []string{"exec", "attach", path} {
			if _, ok := tokens.redeem(what, path, now); ok && (what != "exec" || !issued[path]) {
				t.Fatalf("%q of kind %q was taken", path, what)
			}
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

package apparmor

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func fake(t *testing.T, listed string) (*Profiles, *int) {
	t.Helper()
	p := &Profiles{list: filepath.Join(t.TempDir(), "profiles")}
	if err := os.WriteFile(p.list, []byte(listed), 0o600); err != nil {
		t.Fatal(err)
	}
	loads := 0
	p.load = func(name string) error {
		loads++
		return os.WriteFile(p.list, []byte(listed+name+" (enforce)\n"), 0o600)
	}
	return p, &loads
}

func TestWhichProfilesAreLoaded(t *testing.T) {
	p, _ := fake(t, "docker-default (enforce)\nmy profile (complain)\n/usr/sbin/cupsd (enforce)\n/usr/sbin/cupsd//third_party (enforce)\n")
	for name, want := range map[string]bool{"docker-default": true, "my profile": true, "my": false, "/usr/sbin/cupsd": true, "docker": false, "": false,
		"docker-default (enforce)": false} {
		if got, err := p.Loaded(name); err != nil || got != want {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	p.list += ".gone"
	if _, err := p.Loaded("x"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestTheDefaultProfileIsLoadedOnceAndAgainWhenItIsGone(t *testing.T) {
	p, loads := fake(t, "other (enforce)\n")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := p.EnsureDefault(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if *loads != 1 {
		t.Errorf("loaded %d times", *loads)
	}
	if err := os.WriteFile(p.list, nil, 0o600); err != nil { // aa-teardown
		t.Fatal(err)
	}
	if err := p.EnsureDefault(); err != nil || *loads != 2 {
		t.Error(*loads, err)
	}
}

func TestAProfileThatDoesNotArriveIsAnError(t *testing.T) {
	p, _ := fake(t, "")
	p.load = func(string) error { return nil }
	if p.EnsureDefault() == nil {
		t.Error("the kernel does not list it")
	}
	p.load = func(string) error { return ErrNoParser }
	if err := p.EnsureDefault(); !errors.Is(err, ErrNoParser) {
		t.Error(err)
	}
}

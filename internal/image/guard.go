// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"sync"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berth-run/berth/internal/image/registry"
	"github.com/berth-run/berth/internal/image/trust"
)

// maxTrusted bounds what is remembered to be let in.
const maxTrusted = 4096

// guard asks the signature policy, and remembers what it has let in: a signature that counts once counts until the policy is read anew.
type guard struct {
	file string

	mu     sync.Mutex // guards what follows
	policy *trust.Policy
	broken error // why there is no policy though there should be one: nothing is let in
	let    map[admission]bool
}

type admission struct {
	name  string
	image digest.Digest
}

// load reads the policy; who is let in by the former one is checked again.
func (g *guard) load() error {
	if g.file == "" {
		return nil
	}
	p, err := trust.Load(g.file)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil:
		g.policy, g.broken, g.let = p, nil, map[admission]bool{}
	case g.policy == nil:
		g.broken = fmt.Errorf("%w: %w", err, ErrRefused)
	}
	return err
}

// check is nil when the image may be used under the name. manifests are those from the one that the name stands for to this node's.
func (g *guard) check(ctx context.Context, session *registry.Session, name reference.Named, manifests ...digest.Digest) error {
	g.mu.Lock()
	p, key := g.policy, admission{name.String(), manifests[0]}
	known, broken := g.let[key], g.broken
	g.mu.Unlock()
	if broken != nil {
		return broken
	}
	if p == nil || known || p.Open(name) {
		return nil
	}
	if err := p.Check(ctx, name, manifests, session); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.policy == p {
		if len(g.let) >= maxTrusted {
			clear(g.let)
		}
		g.let[key] = true
	}
	return nil
}

// given is nil when an image that is here, or in an archive, may have a name that it was not pulled by.
func (g *guard) given(name reference.Named, archive bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken != nil || g.policy == nil {
		return g.broken
	}
	return g.policy.Given(name, archive)
}

// ReloadPolicy reads the signature policy anew. With an error the former one stays in force.
func (s *Store) ReloadPolicy() error { return s.guard.load() }

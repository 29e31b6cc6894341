// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
)

const (
	// answerWithin is how long Ready waits for plugins that were never asked yet.
	answerWithin = 80 * time.Millisecond
	// goodFor and badFor say when plugins are asked again: a network that is down should be seen to come up soon.
	goodFor = 10 * time.Second
	badFor  = 2 * time.Second
)

// Ready tells whether pods can be connected: nil, or ErrNotReady with the reason. It reads no file but looks for the
// plugins, and never waits long: plugins with a STATUS (spec 1.1) are asked in the background while the last
// answer holds. Nobody asks them while nobody asks Ready.
func (n *Network) Ready() error {
	s := n.snapshot()
	if err := s.notReady(n.cfg.ConfDir); err != nil {
		return err
	}
	for _, plugin := range binaries(s.list) {
		if _, err := n.run.find(plugin); err != nil {
			return fmt.Errorf("%w: network %s (%s): %w", ErrNotReady, s.list.Name, s.file, err)
		}
	}
	if !atLeast(s.list, "1.1.0") {
		return nil
	}
	return n.health.answer(s.generation, func(done func(error)) {
		n.work.Go(func() { done(n.status(s.list)) })
	})
}

// status asks each plugin; the first that is not content decides.
func (n *Network) status(list *libcni.NetworkConfigList) error {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.CheckTimeout)
	defer cancel()
	for _, p := range list.Plugins {
		err := n.verb(ctx, "STATUS", list, p, nil)
		if err != nil {
			return fmt.Errorf("%w: network %s: %w", ErrNotReady, list.Name, err)
		}
	}
	return nil
}

// verb runs STATUS or GC, which are about the network and no attachment. A plugin that does not know the verb is content.
func (n *Network) verb(ctx context.Context, verb string, list *libcni.NetworkConfigList, p *libcni.PluginConfig, more map[string]any) error {
	inject := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	for k, v := range more {
		inject[k] = v
	}
	conf, err := libcni.InjectConf(p, inject)
	if err != nil {
		return fmt.Errorf("configuration of plugin %s: %w", p.Network.Type, err)
	}
	args := invoke.Args{Command: verb, Path: strings.Join(n.cfg.BinDirs, ":")}
	err = n.run.do(ctx, call{plugin: p.Network.Type, conf: conf.Bytes, args: args})
	var said *PluginError
	if errors.As(err, &said) && said.Code == types.ErrInvalidEnvironmentVariables && strings.Contains(said.Msg, "unknown CNI_COMMAND") {
		return nil
	}
	return err
}

// health is the last answer of the plugins of one configuration.
type health struct {
	mu   sync.Mutex
	last answer
}

type answer struct {
	generation int
	known      bool
	err        error
	at         time.Time
	asking     chan struct{} // closed with the answer; nil: nobody asks
}

func (a answer) fresh() bool {
	holds := goodFor
	if a.err != nil {
		holds = badFor
	}
	return a.known && time.Since(a.at) < holds
}

// answer returns what is known and calls ask where that is too old. It waits only where nothing is known.
func (h *health) answer(generation int, ask func(done func(error))) error {
	now := h.refresh(generation, ask)
	if now.known {
		return now.err
	}
	select {
	case <-now.asking:
	case <-time.After(answerWithin):
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last.generation != generation || !h.last.known {
		return fmt.Errorf("%w: %w", ErrNotReady, ErrUnanswered)
	}
	return h.last.err
}

func (h *health) refresh(generation int, ask func(done func(error))) answer {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last.generation != generation {
		h.last = answer{generation: generation}
	}
	if h.last.fresh() || h.last.asking != nil {
		return h.last
	}
	over := make(chan struct{})
	h.last.asking = over
	ask(func(err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		defer close(over)
		if h.last.generation == generation { // else it is about a configuration of the past
			h.last = answer{generation: generation, known: true, err: err, at: time.Now()}
		}
	})
	return h.last
}

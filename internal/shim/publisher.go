// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/shim/rpc"
	"github.com/berth-run/berth/internal/shim/wire"
)

const (
	// maxEvents bounds what is kept for a containerd that is away.
	maxEvents = 2048
	// eventLimit bounds one try to hand an event over, and all of them once the shim ends; eventPatience all of them before, with eventPause in between.
	eventLimit    = 5 * time.Second
	eventPause    = time.Second / 2
	eventPatience = time.Minute
)

// publisher tells containerd what happens, in order. It has a goroutine, and a connection, only while there is something to tell.
type publisher struct {
	namespace string
	path      string
	log       *slog.Logger

	mu    sync.Mutex
	queue []wire.Envelope
	busy  chan struct{} // closed when the goroutine has ended; nil: there is none
}

func newPublisher(config ContainerdConfig) *publisher {
	return &publisher{
		namespace: config.Namespace, path: strings.TrimPrefix(config.Events, "unix://"), log: config.Log,
	}
}

// publish never waits. kind is the event's name in containerd.events.
func (p *publisher) publish(topic, kind string, event wire.Message) {
	if p.path == "" {
		return
	}
	envelope := wire.Envelope{
		Timestamp: time.Now(), Namespace: p.namespace, Topic: topic, Event: wire.Any{TypeURL: "containerd.events." + kind, Value: wire.Marshal(event)},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) >= maxEvents {
		p.log.Error("an event is dropped: containerd takes none", "topic", topic)
		return
	}
	p.queue = append(p.queue, envelope)
	if p.busy == nil {
		p.busy = make(chan struct{})
		go p.run(p.busy)
	}
}

// run hands all events over.
func (p *publisher) run(busy chan struct{}) {
	defer close(busy)
	var client *rpc.Client
	defer func() {
		if client != nil {
			client.Close()
		}
	}()
	for {
		p.mu.Lock()
		if len(p.queue) == 0 {
			p.queue, p.busy = nil, nil
			p.mu.Unlock()
			return
		}
		envelope := p.queue[0]
		p.queue = p.queue[1:]
		p.mu.Unlock()
		client = p.deliver(client, envelope)
	}
}

// deliver tries until containerd has answered; it returns the connection, if there is one.
func (p *publisher) deliver(client *rpc.Client, envelope wire.Envelope) *rpc.Client {
	for {
		var err error
		if client == nil {
			client, err = rpc.Dial(p.path, eventLimit)
		}
		if err == nil {
			err = client.Call(eventLimit, "containerd.services.events.ttrpc.v1.Events", "Forward", &wire.ForwardRequest{Envelope: envelope}, &wire.Empty{})
		}
		var refused *rpc.Error
		if err == nil || errors.As(err, &refused) {
			if err != nil {
				p.log.Error("containerd refuses an event", "topic", envelope.Topic, "err", err)
			}
			return client
		}
		if client != nil {
			client.Close()
			client = nil
		}
		if time.Since(envelope.Timestamp) > eventPatience {
			p.log.Error("an event is dropped: containerd does not take it", "topic", envelope.Topic, "err", err)
			return nil
		}
		time.Sleep(eventPause)
	}
}

// close waits until all has been handed over, at most for eventLimit.
func (p *publisher) close() {
	p.mu.Lock()
	busy := p.busy
	p.mu.Unlock()
	if busy == nil {
		return
	}
	timer := time.NewTimer(eventLimit)
	defer timer.Stop()
	select {
	case <-busy:
	case <-timer.C:
		p.log.Error("events are dropped: containerd does not take them")
	}
}

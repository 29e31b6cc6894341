// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// peer is between the library and the wire to one plugin. It makes up for what the library lacks: what cannot be read is taken there for a plugin's refusal, which
// would fail requests for a plugin that nobody needs; and the error of a plugin about what is so already keeps it from all plugins after that one.
type peer struct {
	n      *NRI
	client *ttrpc.Client
	// policy is what the plugin wants for its failures; nil: it has not said.
	policy atomic.Pointer[api.FailurePolicy]
}

// peers is an option that gives each connection to a plugin its peer.
func (n *NRI) peers(c *ttrpc.Client) {
	p := &peer{n: n, client: c}
	ttrpc.WithUnaryClientInterceptor(p.call)(c)
}

func (p *peer) call(ctx context.Context, request *ttrpc.Request, response *ttrpc.Response, _ *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
	err := p.exchange(ctx, request, response, call)
	if err == nil || errors.Is(err, context.Canceled) || !told(request) || !p.policy.Load().GetFailRequest() {
		return err
	}
	// There is no request to fail. The library would drop the plugin, and then tell nobody else.
	p.missed(ctx, request, response, err.Error())
	if !errors.Is(err, context.DeadlineExceeded) || !p.policy.Load().GetKeepConnected() {
		if err := p.client.Close(); err != nil {
			p.n.log.WarnContext(ctx, "close the connection to a plugin", "error", err)
		}
	}
	return nil
}

// exchange has errors for transport and garbage only: what a plugin answers, errors too, is in the response.
func (p *peer) exchange(ctx context.Context, request *ttrpc.Request, response *ttrpc.Response, call ttrpc.Invoker) error {
	if err := call(ctx, request, response); err != nil {
		if unanswered(err) || ctx.Err() != nil {
			return err
		}
		return fmt.Errorf("%w: %w", ttrpc.ErrProtocol, err)
	}
	if s := response.GetStatus(); codes.Code(s.GetCode()) != codes.OK {
		if told(request) && codes.Code(s.GetCode()) != codes.Unimplemented { // to that, the library makes an older call
			p.missed(ctx, request, response, s.GetMessage())
		}
		return nil
	}
	answer, err := answerTo(request.GetMethod())
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(response.GetPayload(), answer); err != nil {
		return fmt.Errorf("%w: its answer: %w", ttrpc.ErrProtocol, err)
	}
	if c, ok := answer.(*api.ConfigureResponse); ok {
		p.policy.Store(c.GetFailurePolicy())
	}
	p.n.seeEvictions(answer)
	return nil
}

// missed makes an empty answer of one that a plugin has failed to give.
func (p *peer) missed(ctx context.Context, request *ttrpc.Request, response *ttrpc.Response, why string) {
	p.n.log.WarnContext(ctx, "a plugin fails to hear of an event", "event", request.GetMethod(), "error", why)
	response.Status, response.Payload = nil, nil
}

// answerTo makes an empty answer of the kind that a method has.
func answerTo(method string) (proto.Message, error) {
	m := api.File_pkg_api_api_proto.Services().ByName("Plugin").Methods().ByName(protoreflect.Name(method))
	if m == nil {
		return nil, fmt.Errorf("plugins have no method %q", method)
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil, fmt.Errorf("answer to %s: %w", method, err)
	}
	return kind.New().Interface(), nil
}

// told tells whether a request is about what is so already, which no plugin can refuse.
func told(r *ttrpc.Request) bool {
	switch r.GetMethod() {
	case "PostUpdatePodSandbox", "StopPodSandbox", "RemovePodSandbox", "PostCreateContainer", "PostStartContainer", "PostUpdateContainer", "StopContainer", "RemoveContainer":
		return true
	case "StateChange": // what plugins made with NRI before 0.12 have for most events
		var change api.StateChangeEvent
		return proto.Unmarshal(r.GetPayload(), &change) == nil && change.GetEvent() != api.Event_RUN_POD_SANDBOX && change.GetEvent() != api.Event_START_CONTAINER
	}
	return false
}

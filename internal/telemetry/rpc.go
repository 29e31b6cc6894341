// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// maxErrorText bounds the error in a log line, maxMethod a method's name as a label.
	maxErrorText = 4096
	maxMethod    = 64
	// endless lasts as long as its subscriber likes, so it is not traced.
	endless = "GetContainerEvents"
)

// Observer measures calls. Method is the bare name of a method that the server has, so its values are few.
type Observer interface {
	// ctx tells the trace, see TraceID.
	Observe(ctx context.Context, method string, code codes.Code, took time.Duration)
}

// InterceptorConfig says what the interceptors work with. Only Log is required.
type InterceptorConfig struct {
	Log *slog.Logger
	// Status gives an error its code: it returns a gRPC status error. Without it, what is no status yet becomes Unknown.
	Status func(error) error
	// Describe adds what the daemon knows of an object that the request names by ID only. It must not block.
	Describe func(*Object)
	Observer Observer
	// Calls is the table that the calls in flight are kept in.
	Calls *Calls
	// Tracer makes a span of each call; nil: tracing is off.
	Tracer *Tracer
}

// Interceptors returns the one interceptor of the server, in its two forms. It comes first: whatever happens behind it is
// answered with a code, logged, measured, and a panic ends the call, not the process.
func Interceptors(c InterceptorConfig) (grpc.UnaryServerInterceptor, grpc.StreamServerInterceptor) {
	if c.Calls == nil {
		c.Calls = NewCalls()
	}
	i := interceptor{c}
	return i.unary, i.stream
}

type interceptor struct{ InterceptorConfig }

func (i interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c := i.begin(ctx, info.FullMethod)
	c.describe(req)
	var resp any
	err := c.guard(func() (err error) {
		resp, err = next(c.context(), req)
		return err
	})
	if err = c.end(resp, err); err != nil {
		return nil, err
	}
	return resp, nil
}

func (i interceptor) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	c := i.begin(ss.Context(), info.FullMethod)
	err := c.guard(func() error { return next(srv, &describedStream{ss, c}) })
	return c.end(nil, err)
}

// describedStream learns from the first message what the call is about, and hands out a context that says so.
type describedStream struct {
	grpc.ServerStream
	call *call
}

func (s *describedStream) Context() context.Context { return s.call.context() }

func (s *describedStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		s.call.describeOnce.Do(func() { s.call.describe(m) })
	}
	return err
}

// call is one request on its way through the interceptor.
type call struct {
	interceptor
	method       string
	id           uint64
	begin        time.Time
	span         Span
	describeOnce sync.Once

	mu      sync.Mutex
	ctx     context.Context
	object  Object
	secrets *strings.Replacer
}

func (i interceptor) begin(ctx context.Context, fullMethod string) *call {
	method := clip(fullMethod[strings.LastIndexByte(fullMethod, '/')+1:], maxMethod)
	c := &call{interceptor: i, method: method, begin: time.Now(), ctx: ctx, secrets: nothing}
	c.id = i.Calls.add(Call{Method: method, Since: c.begin})
	if i.Tracer != nil && method != endless {
		c.ctx, c.span = i.Tracer.request(ctx, fullMethod)
		if id := TraceID(c.ctx); id != "" {
			c.ctx = With(c.ctx, slog.String("trace", id))
		}
	}
	return c
}

// describe learns from the request what it is about and what must not be repeated.
func (c *call) describe(req any) {
	o := objectOf(req)
	if c.Describe != nil {
		c.Describe(&o)
	}
	c.Calls.describe(c.id, o)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.object, c.secrets, c.ctx = o, secretsOf(req), o.With(c.ctx)
}

func (c *call) context() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ctx
}

// panicked is a panic as an error.
type panicked struct {
	value any
	stack []byte
}

func (p panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

func (c *call) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked{p, debug.Stack()}
		}
	}()
	return f()
}

// end gives the error its code, logs and measures the call, and returns what the caller gets.
func (c *call) end(resp any, err error) error {
	took := time.Since(c.begin)
	c.Calls.remove(c.id)
	c.mu.Lock()
	ctx, object, secrets := c.ctx, c.object, c.secrets
	c.mu.Unlock()
	if resp != nil && err == nil {
		object.fill(objectOf(resp)) // the ID of what the call has made
	}
	attrs := []slog.Attr{slog.String("method", c.method)}
	attrs = append(attrs, object.attrs()...)
	var p panicked
	isPanic := errors.As(err, &p)
	if isPanic {
		attrs = append(attrs, slog.String("stack", string(p.stack)))
		err = status.Errorf(codes.Internal, "%s: internal error; the daemon's log has the details", c.method)
	} else {
		err = redact(c.status(err), secrets)
	}
	code := status.Code(err)
	attrs = append(attrs, slog.Duration("took", took), slog.String("code", code.String()))
	switch {
	case isPanic:
		attrs = append(attrs, slog.String("error", clip(secrets.Replace(p.Error()), maxErrorText)))
	case err != nil:
		attrs = append(attrs, slog.String("error", clip(status.Convert(err).Message(), maxErrorText)))
	}
	c.Log.LogAttrs(ctx, levelOf(c.method, code), "call", attrs...)
	if c.Observer != nil {
		c.Observer.Observe(ctx, c.method, code, took)
	}
	c.span.finish(object, code, status.Convert(err).Message())
	return err
}

func (c *call) status(err error) error {
	if err == nil {
		return nil
	}
	if c.Status != nil {
		err = c.Status(err)
	}
	return status.Convert(err).Err()
}

// quiet are the calls that a kubelet makes all the time and that change nothing, and the probes.
var quiet = map[string]bool{
	"Version": true, "Status": true, "RuntimeConfig": true, "ExecSync": true, "GetContainerEvents": true,
	"PodSandboxStatus": true, "ListPodSandbox": true, "StreamPodSandboxes": true,
	"ContainerStatus": true, "ListContainers": true, "StreamContainers": true,
	"ContainerStats": true, "ListContainerStats": true, "StreamContainerStats": true,
	"PodSandboxStats": true, "ListPodSandboxStats": true, "StreamPodSandboxStats": true,
	"ListMetricDescriptors": true, "ListPodSandboxMetrics": true, "StreamPodSandboxMetrics": true,
	"ListImages": true, "StreamImages": true, "ImageStatus": true, "ImageFsInfo": true,
}

func levelOf(method string, code codes.Code) slog.Level {
	switch code {
	case codes.OK:
		if quiet[method] {
			return slog.LevelDebug
		}
		return slog.LevelInfo
	case codes.NotFound, codes.Canceled:
		// A kubelet asks about what it has just removed, and a stream of events ends when its reader leaves.
		if quiet[method] {
			return slog.LevelDebug
		}
		return slog.LevelWarn
	case codes.DeadlineExceeded:
		if method == "ExecSync" { // the command has run into its own timeout, as probes do
			return slog.LevelWarn
		}
	case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.Unimplemented, codes.OutOfRange:
		return slog.LevelWarn // the caller's doing
	}
	return slog.LevelError
}

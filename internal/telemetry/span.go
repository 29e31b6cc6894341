// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Span is a timed part of a traced request. The zero value is none, and all its methods then do nothing.
type Span struct{ span trace.Span }

// Start begins a span below the one that ctx carries. Where ctx carries none, because tracing is off or the request was not sampled, it
// costs a look at the context: nothing is allocated. Its name is the words; they come from the code, never from a request.
func Start(ctx context.Context, words ...string) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() && !parent.SpanContext().IsSampled() {
		return ctx, Span{}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, strings.Join(words, " "))
	return ctx, Span{span}
}

// Set adds what the span is about. Values are clipped, and must not be secret.
func (s Span) Set(key, value string) {
	if s.span != nil && value != "" {
		s.span.SetAttributes(attribute.String(key, clip(value, maxAttr)))
	}
}

// SetInt adds a number.
func (s Span) SetInt(key string, value int64) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int64(key, value))
	}
}

// End ends the span. It tells that there was an error, not which: only the answer to the request is known to be without
// its secrets, and the span of the request has that.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, "")
	}
	s.span.End()
}

// TraceID is the ID of the trace that ctx belongs to, in hexadecimal; empty if it is not recorded.
func TraceID(ctx context.Context) string {
	if c := trace.SpanContextFromContext(ctx); c.IsSampled() {
		return c.TraceID().String()
	}
	return ""
}

// Under returns ctx, which outlives the request that from belongs to, with that request's span: what is done for it shows below it.
func Under(ctx, from context.Context) context.Context {
	if span := trace.SpanFromContext(from); span.SpanContext().IsSampled() {
		return trace.ContextWithSpan(ctx, span)
	}
	return ctx
}

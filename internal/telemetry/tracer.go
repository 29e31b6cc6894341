// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
)

const (
	// scope names the spans' origin.
	scope   = "github.com/berth-run/berth"
	million = 1e6
	// Bounds for what waits for a collector that is slow or away: spans beyond that are dropped.
	maxQueue    = 2048
	maxBatch    = 512
	exportEvery = 2 * time.Second
	exportLimit = 10 * time.Second
	// complainEvery bounds how often the log tells that the collector cannot be reached.
	complainEvery = time.Minute
)

// TracingConfig says where spans go and which are made.
type TracingConfig struct {
	// Endpoint is the HOST:PORT of an OTLP collector that speaks gRPC.
	Endpoint string
	// SamplingRatePerMillion is how many of a million requests are traced whose caller says nothing about it. What the caller samples
	// (the flag of W3C's traceparent) is always traced, and what it decides not to sample never is.
	SamplingRatePerMillion int
	// Insecure is without TLS. CAFile (PEM) holds who may sign the collector's certificate; empty: whom the system trusts.
	Insecure bool
	CAFile   string
	// Version and Node tell the daemons apart.
	Version, Node string
	Log           *slog.Logger
}

// Tracer makes the spans of requests and sends them to a collector, in the background. It is the only thing in the daemon that does.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// NewTracer connects to nothing yet: a collector that is away costs spans, never a request.
func NewTracer(ctx context.Context, c TracingConfig) (*Tracer, error) {
	options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(c.Endpoint), otlptracegrpc.WithTimeout(exportLimit)}
	if c.Insecure {
		options = append(options, otlptracegrpc.WithInsecure())
	} else {
		trusted, err := collectorTLS(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tracing: %w", err)
		}
		options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(trusted)))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("tracing to %s: %w", c.Endpoint, err)
	}
	otel.SetErrorHandler(&complaints{log: c.Log, endpoint: c.Endpoint})
	return newTracer(c, sdk.WithBatcher(exporter, sdk.WithMaxQueueSize(maxQueue), sdk.WithMaxExportBatchSize(maxBatch),
		sdk.WithBatchTimeout(exportEvery), sdk.WithExportTimeout(exportLimit))), nil
}

func newTracer(c TracingConfig, to sdk.TracerProviderOption) *Tracer {
	provider := sdk.NewTracerProvider(to,
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(float64(c.SamplingRatePerMillion)/million))),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", "berth"), attribute.String("service.version", c.Version),
			attribute.String("host.name", c.Node))))
	return &Tracer{provider: provider, tracer: provider.Tracer(scope)}
}

func collectorTLS(caFile string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return config, nil
	}
	raw, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(raw) {
		return nil, fmt.Errorf("ca_file: %s holds no certificate", caFile)
	}
	return config, nil
}

// Close sends what is left, until ctx ends.
func (t *Tracer) Close(ctx context.Context) error {
	if err := t.provider.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("tracing: %w", err)
	}
	return nil
}

// headers reads W3C trace context from a request's metadata, as a kubelet sends it.
type headers metadata.MD

// Get implements propagation.TextMapCarrier.
func (h headers) Get(key string) string {
	if values := metadata.MD(h).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (h headers) Set(key, value string) { metadata.MD(h).Set(key, value) }

// Keys implements propagation.TextMapCarrier.
func (h headers) Keys() []string {
	keys := make([]string, 0, len(h))
	for key := range h {
		keys = append(keys, key)
	}
	return keys
}

// request begins the span of an RPC, below the caller's.
func (t *Tracer) request(ctx context.Context, fullMethod string) (context.Context, Span) {
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = propagation.TraceContext{}.Extract(ctx, headers(md))
	}
	name := strings.TrimPrefix(fullMethod, "/")
	ctx, span := t.tracer.Start(ctx, clip(name, maxAttr), trace.WithSpanKind(trace.SpanKindServer))
	if !span.IsRecording() {
		return ctx, Span{}
	}
	service, method, _ := strings.Cut(name, "/")
	span.SetAttributes(attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", clip(service, maxAttr)),
		attribute.String("rpc.method", clip(method, maxAttr)))
	return ctx, Span{span}
}

// finish ends the span of an RPC; text is the error's without its secrets.
func (s Span) finish(o Object, code codes.Code, text string) {
	if s.span == nil {
		return
	}
	for _, a := range o.attrs() {
		s.span.SetAttributes(attribute.String(a.Key, a.Value.String()))
	}
	s.span.SetAttributes(attribute.Int64("rpc.grpc.status_code", int64(code)))
	if code != codes.OK {
		s.span.SetStatus(otelcodes.Error, clip(text, maxErrorText))
	}
	s.span.End()
}

// complaints are what goes wrong on the way to the collector.
type complaints struct {
	log      *slog.Logger
	endpoint string

	mu   sync.Mutex
	last time.Time
}

// Handle implements otel.ErrorHandler.
func (c *complaints) Handle(err error) {
	c.mu.Lock()
	due := time.Since(c.last) >= complainEvery
	if due {
		c.last = time.Now()
	}
	c.mu.Unlock()
	if due {
		c.log.Warn("traces do not reach their collector", "endpoint", c.endpoint, "error", clip(err.Error(), maxErrorText))
	}
}

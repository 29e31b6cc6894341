// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	otelcodes "go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	callersTrace = "0af7651916cd43dd8448eb211c80319c"
	callersSpan  = "b7ad6b7169203331"
	runPod       = "/runtime.v1.RuntimeService/RunPodSandbox"
)

// traced makes interceptors whose spans stay in memory.
func traced(t *testing.T, perMillion int) (grpc.UnaryServerInterceptor, *tracetest.InMemoryExporter) {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	tracer := newTracer(TracingConfig{SamplingRatePerMillion: perMillion, Version: "v9", Node: "n"}, sdk.WithSyncer(spans))
	t.Cleanup(func() {
		if err := tracer.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	unary, _ := Interceptors(InterceptorConfig{Log: slog.New(slog.DiscardHandler), Tracer: tracer})
	return unary, spans
}

func from(t *testing.T, flags string) context.Context {
	t.Helper()
	return metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "00-"+callersTrace+"-"+callersSpan+"-"+flags))
}

func TestSpansAreBelowTheCallers(t *testing.T) {
	unary, spans := traced(t, 0)
	req := &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "n", Name: "p"}}}
	_, err := unary(from(t, "01"), req, &grpc.UnaryServerInfo{FullMethod: runPod}, func(ctx context.Context, _ any) (any, error) {
		if id := TraceID(ctx); id != callersTrace {
			t.Errorf("trace %q", id)
		}
		inner, span := Start(ctx, "set up", "sandbox", "network")
		span.Set("plugin", strings.Repeat("x", 2*maxAttr))
		span.SetInt("bytes", 7)
		_, below := Start(Under(t.Context(), inner), "CNI", "ADD")
		below.End(nil)
		span.End(errors.New("with a secret"))
		return nil, status.Error(codes.Unavailable, "no address")
	})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	got := map[string]tracetest.SpanStub{}
	for _, s := range spans.GetSpans() {
		got[s.Name] = s
		if s.SpanContext.TraceID().String() != callersTrace {
			t.Errorf("%s is of trace %s", s.Name, s.SpanContext.TraceID())
		}
	}
	rpc, network, cni := got[strings.TrimPrefix(runPod, "/")], got["set up sandbox network"], got["CNI ADD"]
	if len(got) != 3 || rpc.Parent.SpanID().String() != callersSpan || network.Parent.SpanID() != rpc.SpanContext.SpanID() ||
		cni.Parent.SpanID() != network.SpanContext.SpanID() {
		t.Fatalf("not one tree: %v", got)
	}
	if network.Status.Code != otelcodes.Error || network.Status.Description != "" {
		t.Errorf("stage: %v", network.Status)
	}
	if rpc.Status.Code != otelcodes.Error || rpc.Status.Description != "no address" {
		t.Errorf("RPC: %v", rpc.Status)
	}
	attrs := map[string]string{}
	for _, a := range append(rpc.Attributes, network.Attributes...) {
		attrs[string(a.Key)] = a.Value.String()
	}
	if attrs["rpc.method"] != "RunPodSandbox" || attrs["pod"] != "n/p" || attrs["rpc.grpc.status_code"] != "14" || attrs["bytes"] != "7" ||
		len(attrs["plugin"]) > maxAttr+len("…") {
		t.Errorf("attributes: %v", attrs)
	}
}

func TestWhoDecidesWhatIsTraced(t *testing.T) {
	for name, c := range map[string]struct {
		ctx        context.Context
		perMillion int
		want       int
	}{
		"the caller says no":            {from(t, "00"), 1_000_000, 0},
		"the caller says yes":           {from(t, "01"), 0, 1},
		"nobody asks":                   {t.Context(), 0, 0},
		"all are wanted":                {t.Context(), 1_000_000, 1},
		"a header that is none":         {metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "zz")), 0, 0},
		"all wanted, bad header":        {metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", "zz")), 1_000_000, 1},
		"the header of a future format": {from(t, "01-more"), 0, 0},
	} {
		unary, spans := traced(t, c.perMillion)
		if _, err := unary(c.ctx, nil, &grpc.UnaryServerInfo{FullMethod: runPod}, func(ctx context.Context, _ any) (any, error) {
			if (TraceID(ctx) != "") != (c.want > 0) {
				t.Errorf("%s: trace %q", name, TraceID(ctx))
			}
			return nil, nil //nolint:nilnil // no answer is looked at
		}); err != nil {
			t.Error(err)
		}
		if n := len(spans.GetSpans()); n != c.want {
			t.Errorf("%s: %d spans, want %d", name, n, c.want)
		}
	}
}

func stages(ctx context.Context) {
	ctx, span := Start(ctx, "set up", "sandbox", "network")
	span.Set("plugin", "bridge")
	span.SetInt("bytes", 1<<20)
	_ = TraceID(Under(ctx, ctx))
	span.End(nil)
}

func TestNoTracingAllocatesNothing(t *testing.T) {
	ctx := With(t.Context(), slog.String("pod", "n/p"))
	if n := testing.AllocsPerRun(100, func() { stages(ctx) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkStageWithoutTracing(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		stages(b.Context())
	}
}

func TestACollectorsCertificateNeedsItsCA(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(file, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ca := range []string{file, file + "-missing"} {
		_, err := NewTracer(t.Context(), TracingConfig{Endpoint: "127.0.0.1:1", CAFile: ca})
		if err == nil || !strings.Contains(err.Error(), ca) {
			t.Errorf("%s: %v", ca, err)
		}
	}
}

func TestACollectorThatIsAwayHoldsUpNobody(t *testing.T) {
	tracer, err := NewTracer(t.Context(), TracingConfig{Endpoint: "127.0.0.1:1", Insecure: true, SamplingRatePerMillion: 1_000_000, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 * maxQueue {
		ctx, span := tracer.request(t.Context(), runPod)
		stages(ctx)
		span.finish(Object{}, codes.OK, "")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tracer.Close(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

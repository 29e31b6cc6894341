// SPDX-License-Identifier: Apache-2.0

package debug

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/telemetry"
)

// Metrics counts what happens. No label takes its values from a request: there are as many series as methods, codes and stages.
type Metrics struct {
	registry *prometheus.Registry

	operations, errors *prometheus.CounterVec
	latency, stages    *prometheus.HistogramVec
	plugins, opened    *prometheus.HistogramVec
	pulls, collections *prometheus.HistogramVec
	pulled             prometheus.Counter
	layers             *prometheus.CounterVec
	dropped            prometheus.Counter
	recovery           prometheus.Gauge
}

// Buckets in seconds: a CRI call takes from a millisecond to the kubelet's four minutes.
var buckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5, 10, 30, 60, 120, 240}

// NewMetrics makes them; version is Berth's own.
func NewMetrics(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "container_runtime_cri_operations_total",
			Help: "CRI calls by operation and gRPC code."}, []string{"operation", "code"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "container_runtime_cri_operations_errors_total",
			Help: "CRI calls that failed, by operation and gRPC code."}, []string{"operation", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "container_runtime_cri_operations_latency_seconds",
			Help: "How long CRI calls took, by operation and gRPC code.", Buckets: buckets}, []string{"operation", "code"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "berth_stage_duration_seconds",
			Help:    "How long the stages of making (setup) and taking down (release) sandboxes and containers took.",
			Buckets: buckets}, []string{"object", "stage", "action", "result"}),
		plugins: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "berth_cni_plugin_duration_seconds",
			Help: "How long runs of CNI plugins took, by plugin, command and result.", Buckets: buckets}, []string{"plugin", "command", "result"}),
		opened: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "berth_stream_open_duration_seconds",
			Help: "How long clients of exec and attach waited for connected streams, by kind.", Buckets: buckets}, []string{"kind"}),
		pulls: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "berth_image_pull_duration_seconds",
			Help: "How long pulls took, by result; present: the image was there.", Buckets: append(slices.Clone(buckets), 600, 1800)}, []string{"result"}),
		pulled: prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_image_pull_bytes_total", Help: "What pulls brought over the network."}),
		layers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "berth_image_layers_total",
			Help: "Layers of pulled images, by where they came from: present (unpacked here already) or fetched."}, []string{"source"}),
		collections: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "berth_image_gc_duration_seconds",
			Help: "How long garbage collections of the image store took, by result.", Buckets: buckets}, []string{"result"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "berth_log_dropped_bytes_total",
			Help: "Output of containers that could not be written to their logs; counted when a container ends."}),
		recovery: prometheus.NewGauge(prometheus.GaugeOpts{Name: "berth_recovery_seconds", Help: "How long the recovery at the last start took."}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "berth_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version()}})
	build.Set(1)
	m.registry.MustRegister(m.operations, m.errors, m.latency, m.stages, m.plugins, m.opened, m.pulls, m.pulled, m.layers, m.collections, m.dropped, m.recovery, build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Observe implements telemetry.Observer.
func (m *Metrics) Observe(ctx context.Context, method string, code codes.Code, took time.Duration) {
	m.operations.WithLabelValues(method, code.String()).Inc()
	if code != codes.OK {
		m.errors.WithLabelValues(method, code.String()).Inc()
	}
	if method != "GetContainerEvents" { // it takes as long as its subscriber likes
		observe(ctx, m.latency.WithLabelValues(method, code.String()), took)
	}
}

// Stage implements pod.Observer.
func (m *Metrics) Stage(ctx context.Context, object, stage string, release bool, took time.Duration, err error) {
	action, result := "setup", "ok"
	if release {
		action = "release"
	}
	if err != nil {
		result = "error"
	}
	observe(ctx, m.stages.WithLabelValues(object, stage, action, result), took)
}

// PluginRan tells of a run of a CNI plugin. The names are those of the configuration in use, so they are few.
func (m *Metrics) PluginRan(ctx context.Context, plugin, verb string, took time.Duration, err error) {
	result := "ok"
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		result = "timeout"
	case errors.Is(err, context.Canceled):
		result = "canceled"
	case err != nil:
		result = "error"
	}
	observe(ctx, m.plugins.WithLabelValues(plugin, verb, result), took)
}

// StreamOpened tells of an exec or an attach that is connected.
func (m *Metrics) StreamOpened(kind string, took time.Duration) {
	m.opened.WithLabelValues(kind).Observe(took.Seconds())
}

// Pulled tells of a pull.
func (m *Metrics) Pulled(r image.PullReport) {
	result := "ok"
	switch {
	case r.Err != nil:
		result = "error"
	case r.Layers == r.Present && r.Bytes == 0:
		result = "present"
	}
	observe(r.Context, m.pulls.WithLabelValues(result), r.Took)
	m.pulled.Add(float64(r.Bytes))
	m.layers.WithLabelValues("present").Add(float64(r.Present))
	if r.Err == nil {
		m.layers.WithLabelValues("fetched").Add(float64(r.Layers - r.Present))
	}
}

// Collected tells of a garbage collection of the image store.
func (m *Metrics) Collected(took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.collections.WithLabelValues(result).Observe(took.Seconds())
}

// observe names the trace that shows where the time went (OpenMetrics' exemplars), where there is one.
func observe(ctx context.Context, o prometheus.Observer, took time.Duration) {
	if id := telemetry.TraceID(ctx); id != "" {
		if e, ok := o.(prometheus.ExemplarObserver); ok {
			e.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": id})
			return
		}
	}
	o.Observe(took.Seconds())
}

// LogDropped implements pod.Observer.
func (m *Metrics) LogDropped(bytes uint64) { m.dropped.Add(float64(bytes)) }

// Recovered notes how long the recovery took.
func (m *Metrics) Recovered(took time.Duration) { m.recovery.Set(took.Seconds()) }

// watch adds what is read when somebody asks.
func (m *Metrics) watch(s Sources) { m.registry.MustRegister(watcher{s}) }

type watcher struct{ Sources }

var (
	sandboxesDesc  = prometheus.NewDesc("berth_sandboxes", "Pod sandboxes by state.", []string{"state"}, nil)
	containersDesc = prometheus.NewDesc("berth_containers", "Containers by state.", []string{"state"}, nil)
	inFlightDesc   = prometheus.NewDesc("berth_operations_in_flight", "CRI calls that are not answered yet, without streams of events.", nil, nil)
	oldestDesc     = prometheus.NewDesc("berth_operation_oldest_seconds", "Age of the oldest CRI call in flight, without streams of events.", nil, nil)
	imagesDesc     = prometheus.NewDesc("berth_images", "Images.", nil, nil)
	usedDesc       = prometheus.NewDesc("berth_image_filesystem_used_bytes", "What images take.", nil, nil)
	availableDesc  = prometheus.NewDesc("berth_image_filesystem_available_bytes", "What the file system of the images has left.", nil, nil)
	capacityDesc   = prometheus.NewDesc("berth_image_filesystem_capacity_bytes", "Size of the file system of the images.", nil, nil)
	shimsDesc      = prometheus.NewDesc("berth_shims", "Shims that run.", nil, nil)
	shimMemoryDesc = prometheus.NewDesc("berth_shim_memory_bytes", "Memory of all shims that no file backs.", nil, nil)
	denialsDesc    = prometheus.NewDesc("berth_seccomp_denials_total",
		"What seccomp refused on the node since the daemon's start, as the kernel's log tells; missing where that cannot be read.", nil, nil)
	inodesDesc = prometheus.NewDesc("berth_image_filesystem_inodes_free", "Inodes that the file system of the images has left.", nil, nil)
)

func (w watcher) denials(to chan<- prometheus.Metric) {
	n, err := w.Denials()
	if err != nil {
		to <- prometheus.NewInvalidMetric(denialsDesc, err)
		return
	}
	to <- prometheus.MustNewConstMetric(denialsDesc, prometheus.CounterValue, float64(n))
}

// Describe implements prometheus.Collector.
func (watcher) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sandboxesDesc, containersDesc, inFlightDesc, oldestDesc, imagesDesc, usedDesc, availableDesc, capacityDesc, inodesDesc,
		shimsDesc, shimMemoryDesc, denialsDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (w watcher) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	ready, notReady := 0, 0
	var ids []string
	for _, s := range w.Pods.Sandboxes() {
		if s.Ready {
			ids = append(ids, s.ID)
			ready++
		} else {
			notReady++
		}
	}
	gauge(sandboxesDesc, float64(ready), "ready")
	gauge(sandboxesDesc, float64(notReady), "notready")
	states := map[runtimeapi.ContainerState]int{}
	for _, c := range w.Pods.Containers() {
		states[c.State]++
	}
	for state, name := range map[runtimeapi.ContainerState]string{runtimeapi.ContainerState_CONTAINER_CREATED: "created",
		runtimeapi.ContainerState_CONTAINER_RUNNING: "running", runtimeapi.ContainerState_CONTAINER_EXITED: "exited"} {
		gauge(containersDesc, float64(states[state]), name)
	}
	shims, memory := w.ShimMemory(ids)
	gauge(shimsDesc, float64(shims))
	gauge(shimMemoryDesc, float64(memory))
	if w.Denials != nil {
		w.denials(to)
	}
	n, oldest := 0, time.Duration(0)
	for _, c := range w.Calls.List() {
		if c.Method != "GetContainerEvents" {
			n++
			oldest = max(oldest, time.Since(c.Since))
		}
	}
	gauge(inFlightDesc, float64(n))
	gauge(oldestDesc, oldest.Seconds())
	gauge(imagesDesc, float64(len(w.Images())))
	info, err := w.FSInfo(context.Background())
	if err != nil {
		to <- prometheus.NewInvalidMetric(availableDesc, err)
		return
	}
	gauge(usedDesc, float64(info.UsedBytes))
	gauge(availableDesc, float64(info.AvailableBytes))
	gauge(capacityDesc, float64(info.CapacityBytes))
	gauge(inodesDesc, float64(info.InodesFree))
}

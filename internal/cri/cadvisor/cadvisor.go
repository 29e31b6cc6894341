// SPDX-License-Identifier: Apache-2.0

// Package cadvisor turns figures into the metrics that a kubelet otherwise has from cAdvisor: the same names, labels and units
// (KEP-2371; google/cadvisor lib/metrics/prometheus.go). Pure; for cri. The CRI carries whole numbers only, so seconds are whole ones.
package cadvisor

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/stats"
)

// Labels are those that every metric has, as the kubelet gives them to cAdvisor's.
type Labels struct {
	// Container and Image are empty for a pod. ID is the path of the cgroup, Name the ID of the container.
	Container, ID, Image, Name, Namespace, Pod string
}

var labelKeys = []string{"container", "id", "image", "name", "namespace", "pod"}

func (l Labels) values() []string {
	return []string{l.Container, l.ID, l.Image, l.Name, l.Namespace, l.Pod}
}

// Object is a pod or a container. Parts that are nil give no metrics.
type Object struct {
	Labels
	// Now is when the figures were read, Started when the object started.
	Now, Started time.Time
	Detail       *stats.Detail
	// For containers:
	Processes *stats.Processes
	FS        *FS
	// For pods:
	Network []netns.Interface
}

// FS is the file system of a writable layer and what the layer takes of it.
type FS struct {
	Device                       string
	Capacity, Inodes, InodesFree uint64
	Layer                        *stats.Layer // nil: not counted yet
}

// metric is one row of the table: a name and how its values come about.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	// extra are the keys of the labels beside those that every metric has.
	extra  []string
	values func(o *Object, emit emit)
}

// emit takes a value with those of the extra labels.
type emit func(value uint64, extra ...string)

const (
	counterType = runtimeapi.MetricType_COUNTER
	gaugeType   = runtimeapi.MetricType_GAUGE
)

// Descriptors lists every metric that Metrics may give; it does not change (CRI: ListMetricDescriptors).
func Descriptors() []*runtimeapi.MetricDescriptor {
	out := make([]*runtimeapi.MetricDescriptor, 0, len(table))
	for _, m := range table {
		keys := append(append(make([]string, 0, len(labelKeys)+len(m.extra)), labelKeys...), m.extra...)
		out = append(out, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: keys})
	}
	return out
}

// Metrics are an object's. They carry no timestamp: they are of the moment (CRI: Metric.timestamp).
func Metrics(o *Object) []*runtimeapi.Metric {
	out := make([]*runtimeapi.Metric, 0, len(table)+8)
	base := o.Labels.values()
	for _, m := range table {
		m.values(o, func(value uint64, extra ...string) {
			labels := base
			if len(extra) > 0 {
				labels = append(append(make([]string, 0, len(base)+len(extra)), base...), extra...)
			}
			out = append(out, &runtimeapi.Metric{Name: m.name, MetricType: m.kind, LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: value}})
		})
	}
	return out
}

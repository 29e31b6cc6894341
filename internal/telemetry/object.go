// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"cmp"
	"context"
	"log/slog"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxAttr bounds what a caller's text may take of a log line.
const maxAttr = 256

// Object is what a call is about, as far as it is known.
type Object struct {
	// Sandbox and Container are IDs.
	Sandbox, Container string
	// Pod is NAMESPACE/NAME, Name the container's name in the pod.
	Pod, Name string
	// Image is a reference as the caller wrote it.
	Image string
}

// With returns a context whose log lines carry the object.
func (o Object) With(ctx context.Context) context.Context { return With(ctx, o.attrs()...) }

// String is for people: the pod and what it is about in it, or else the ID or the image.
func (o Object) String() string {
	switch {
	case o.Pod != "" && o.Name != "":
		return o.Pod + "/" + o.Name
	case o.Pod != "":
		return o.Pod
	}
	return cmp.Or(o.Container, o.Sandbox, o.Image)
}

func (o Object) attrs() []slog.Attr {
	var attrs []slog.Attr
	for _, a := range []struct{ key, value string }{
		{"pod", o.Pod}, {"name", o.Name}, {"sandbox", o.Sandbox}, {"container", o.Container}, {"image", o.Image},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, clip(a.value, maxAttr)))
		}
	}
	return attrs
}

// objectOf reads the object off a CRI message. It looks at names and IDs only: the rest of a message may hold secrets.
func objectOf(message any) Object {
	var o Object
	if m, ok := message.(interface{ GetPodSandboxId() string }); ok {
		o.Sandbox = m.GetPodSandboxId()
	}
	if m, ok := message.(interface{ GetContainerId() string }); ok {
		o.Container = m.GetContainerId()
	}
	if m, ok := message.(interface {
		GetConfig() *runtimeapi.PodSandboxConfig
	}); ok {
		o.Pod = podName(m.GetConfig())
	}
	if m, ok := message.(interface {
		GetSandboxConfig() *runtimeapi.PodSandboxConfig
	}); ok {
		o.Pod = podName(m.GetSandboxConfig())
	}
	if m, ok := message.(interface {
		GetConfig() *runtimeapi.ContainerConfig
	}); ok {
		o.Name = m.GetConfig().GetMetadata().GetName()
	}
	if m, ok := message.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		o.Image = m.GetImage().GetImage()
	}
	return o
}

func podName(c *runtimeapi.PodSandboxConfig) string {
	if c.GetMetadata() == nil {
		return ""
	}
	return c.Metadata.Namespace + "/" + c.Metadata.Name
}

// fill takes from other what o does not know.
func (o *Object) fill(other Object) {
	for _, f := range []struct {
		to   *string
		from string
	}{{&o.Sandbox, other.Sandbox}, {&o.Container, other.Container}, {&o.Pod, other.Pod}, {&o.Name, other.Name}, {&o.Image, other.Image}} {
		if *f.to == "" {
			*f.to = f.from
		}
	}
}

// clip cuts s to at most n bytes, and says so.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

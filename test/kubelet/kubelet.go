// SPDX-License-Identifier: Apache-2.0

// Package kubelet makes the requests that a kubelet makes, for tests of a runtime: with the same fields
// set, in the same order, and with clean-up at the end of the test.
package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
)

// CallTimeout bounds each call; a kubelet waits two minutes.
const CallTimeout = 60 * time.Second

// Kubelet drives one daemon for one test.
type Kubelet struct {
	T testing.TB
	D *daemon.Daemon
	// Image is what containers are made of.
	Image string
	// Handler is the runtime handler of pods; empty: the default one.
	Handler string
	// Trace, if set, is the W3C traceparent that each call carries.
	Trace string
}

// Ctx bounds one call.
func (k *Kubelet) Ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), daemon.Slow(CallTimeout))
	k.T.Cleanup(cancel)
	if k.Trace != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", k.Trace)
	}
	return ctx
}

// For is the same daemon in a subtest, which must leave nothing behind when it ends.
func (k *Kubelet) For(t testing.TB) *Kubelet {
	t.Helper()
	before, err := k.D.Scope().Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			k.D.Scope().Check(t, before)
		}
	})
	return &Kubelet{T: t, D: k.D, Image: k.Image}
}

// Must fails the test when a call failed.
func Must[R any](k *Kubelet, r R, err error) R {
	k.T.Helper()
	if err != nil {
		k.T.Fatal(err)
	}
	return r
}

// WantError fails the test unless the error has one of the codes and its text holds each part, in any case.
func WantError(t testing.TB, err error, want []codes.Code, parts ...string) {
	t.Helper()
	ok := false
	for _, c := range want {
		ok = ok || status.Code(err) == c
	}
	if !ok {
		t.Errorf("got code %s (%v), want %v", status.Code(err), err, want)
		return
	}
	for _, p := range parts {
		if !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(p)) {
			t.Errorf("error does not mention %q: %v", p, err)
		}
	}
}

// Eventually waits for a condition, which says what is missing.
func Eventually(t testing.TB, limit time.Duration, missing func() string) {
	t.Helper()
	limit = daemon.Slow(limit)
	var last string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if last = missing(); last == "" {
			return
		}
	}
	t.Fatalf("after %s: %s", limit, last)
}

// Pull gets an image and returns its ID.
func (k *Kubelet) Pull(ref string) string {
	k.T.Helper()
	r, err := k.D.Images.PullImage(k.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return Must(k, r, err).GetImageRef()
}

// PodConfig is an ordinary pod.
func (k *Kubelet) PodConfig(name string) *cri.PodSandboxConfig {
	uid := fmt.Sprintf("%s-%x", name, time.Now().UnixNano())
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
		Hostname:     name,
		LogDirectory: filepath.Join(k.D.Logs, uid),
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.test"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.uid": uid},
		Annotations:  map[string]string{"example.com/Note": "as it was: \"\u00e4\"\n"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: k.D.SharedCgroup("pod" + uid),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// Pod is a sandbox.
type Pod struct {
	*Kubelet
	ID     string
	Config *cri.PodSandboxConfig
}

// TryRunPod asks for a sandbox. The log folder is made first, as a kubelet does.
func (k *Kubelet) TryRunPod(c *cri.PodSandboxConfig) (*Pod, error) {
	k.T.Helper()
	if c.LogDirectory != "" {
		if err := os.MkdirAll(c.LogDirectory, 0o755); err != nil {
			k.T.Fatal(err)
		}
	}
	r, err := k.D.Runtime.RunPodSandbox(k.Ctx(), &cri.RunPodSandboxRequest{Config: c, RuntimeHandler: k.Handler})
	if err != nil {
		return nil, err
	}
	p := &Pod{k, r.PodSandboxId, c}
	k.T.Cleanup(p.Remove)
	return p, nil
}

// RunPod runs a sandbox until the end of the test.
func (k *Kubelet) RunPod(c *cri.PodSandboxConfig) *Pod {
	k.T.Helper()
	p, err := k.TryRunPod(c)
	return Must(k, p, err)
}

// Status is the sandbox's status.
func (p *Pod) Status() *cri.PodSandboxStatus {
	p.T.Helper()
	r, err := p.D.Runtime.PodSandboxStatus(p.Ctx(), &cri.PodSandboxStatusRequest{PodSandboxId: p.ID})
	return Must(p.Kubelet, r, err).GetStatus()
}

// IP is the pod's first address.
func (p *Pod) IP() string {
	p.T.Helper()
	return p.Status().GetNetwork().GetIp()
}

// Stop stops the sandbox and with it its containers.
func (p *Pod) Stop() {
	p.T.Helper()
	if _, err := p.D.Runtime.StopPodSandbox(p.Ctx(), &cri.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.T.Errorf("stop sandbox: %v", err)
	}
}

// Remove stops and removes the sandbox; one that is gone already is fine.
func (p *Pod) Remove() {
	p.T.Helper()
	p.Stop()
	if _, err := p.D.Runtime.RemovePodSandbox(p.Ctx(), &cri.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.T.Errorf("remove sandbox: %v", err)
	}
}

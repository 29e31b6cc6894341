// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// adjusts makes a plugin's answer to CreateContainer of one change.
func adjusts(change func(a *api.ContainerAdjustment)) func() (*api.ContainerAdjustment, []*api.ContainerUpdate) {
	return func() (*api.ContainerAdjustment, []*api.ContainerUpdate) {
		a := &api.ContainerAdjustment{}
		change(a)
		return a, nil
	}
}

func setSeccomp(a *api.ContainerAdjustment) {
	a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"})
}

func withSeccomp(kind runtimeapi.SecurityProfile_ProfileType) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: kind}
}

// rejectable has, for each value of Config.Reject, what it is about and what it is not.
var rejectable = []struct {
	what    string
	seccomp *runtimeapi.SecurityProfile
	change  func(a *api.ContainerAdjustment)
	want    string // in the error; empty: it is not rejected
}{
	{"hooks", nil, func(a *api.ContainerAdjustment) { a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true"}}}) }, "OCI hook"},
	{"hooks", nil, func(a *api.ContainerAdjustment) { a.AddEnv("A", "b") }, ""},
	{"namespaces", nil, func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "cgroup"}) }, `namespace "cgroup"`},
	{"namespaces", nil, func(a *api.ContainerAdjustment) { a.RemoveNamespace(&api.LinuxNamespace{Type: "ipc"}) }, `namespace "ipc"`},
	{"namespaces", nil, setSeccomp, ""},
	{"sysctls", nil, func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net.core.somaxconn", "1") }, "sysctl"},
	{"sysctls", nil, func(a *api.ContainerAdjustment) { a.SetLinuxSysctl(api.MarkForRemoval("net.core.somaxconn"), "") }, "sysctl"},
	{"sysctls", nil, setSeccomp, ""},
	{"seccomp_unconfined", nil, setSeccomp, "unconfined seccomp"},
	{"seccomp_unconfined", withSeccomp(runtimeapi.SecurityProfile_Unconfined), setSeccomp, "unconfined seccomp"},
	{"seccomp_unconfined", withSeccomp(runtimeapi.SecurityProfile_RuntimeDefault), setSeccomp, ""},
	{"seccomp_runtime_default", withSeccomp(runtimeapi.SecurityProfile_RuntimeDefault), setSeccomp, "runtime default seccomp"},
	{"seccomp_runtime_default", withSeccomp(runtimeapi.SecurityProfile_Localhost), setSeccomp, ""},
	{"seccomp_localhost", withSeccomp(runtimeapi.SecurityProfile_Localhost), setSeccomp, "custom seccomp"},
	{"seccomp_localhost", withSeccomp(runtimeapi.SecurityProfile_RuntimeDefault), setSeccomp, ""},
}

func TestWhatNoPluginMayAdjust(t *testing.T) {
	known := map[string]bool{}
	for _, c := range rejectable {
		known[c.what] = true
		t.Run(strings.TrimSpace(c.what+" "+c.want), func(t *testing.T) {
			n, _ := start(t, Config{Reject: []string{c.what}})
			first := n.connect(t, "10", "first")
			n.connect(t, "20", "culprit").create = adjusts(c.change)
			box := testContainer
			box.Seccomp = c.seccomp
			_, err := n.CreateContainer(t.Context(), testPod, box)
			if c.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "20-culprit") {
				t.Errorf("got %v, want ErrRefused with %q and the plugin's name", err, c.want)
			}
			if got, want := first.told(), []string{"sync 1 1", "create", "stop container", "remove container"}; !slices.Equal(got, want) {
				t.Errorf("another plugin was told %q, want %q", got, want)
			}
		})
	}
	for what := range Rejectable {
		if !known[what] {
			t.Errorf("%s is not tested", what)
		}
	}
	if _, err := New(Config{Reject: []string{"hook"}}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), `"hook" is not known`) {
		t.Errorf("a word that is not known: %v", err)
	}
}

func TestAnnotationsRequireAndTolerate(t *testing.T) {
	const required, tolerate = "required-plugins.noderesource.dev", "example.com/tolerate-missing"
	for _, c := range []struct {
		name        string
		annotations map[string]string
		demanded    bool
		want        string // in the error; empty: none
	}{
		{"a configured plugin that is missing", nil, false, `"guard" is not connected`},
		{"tolerated by the pod", map[string]string{tolerate: "true"}, false, ""},
		{"tolerated by the pod's form", map[string]string{tolerate + "/pod": "1"}, false, ""},
		{"tolerated by the container", map[string]string{tolerate + "/container.main": "true", tolerate: "false"}, false, ""},
		{"tolerated by another container", map[string]string{tolerate + "/container.other": "true"}, false, `"guard" is not connected`},
		{"tolerated by none", map[string]string{tolerate: "false"}, false, `"guard" is not connected`},
		{"a word that is no boolean", map[string]string{tolerate: "maybe"}, false, `"maybe"`},
		{"an annotated plugin that is there", map[string]string{tolerate: "false", required: "[there]"}, true, `"guard" is not connected`},
		{"an annotated plugin that is missing", map[string]string{required: "[there, gone]"}, true, `required plugin "gone" not present`},
		{"one of the container", map[string]string{required + "/container.main": "[10-there, gone]"}, true, `required plugin "gone" not present`},
		{"one of another container", map[string]string{required + "/container.other": "[gone]", tolerate + "/container.main": "true"}, false, ""},
		{"tolerated with an annotated one", map[string]string{required: "[gone]", tolerate: "true"}, true, ""},
		{"a list that is none", map[string]string{required: "{"}, true, required},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, _ := start(t, Config{Required: []string{"guard"}, Tolerate: tolerate})
			n.connect(t, "10", "there")
			p, box := testPod, testContainer
			p.Annotations, box.Name = maps.Clone(c.annotations), "main"
			if got := Demanded(p, box.Name); got != c.demanded {
				t.Errorf("plugins are demanded by the pod: %v, want %v", got, c.demanded)
			}
			_, err := n.CreateContainer(t.Context(), p, box)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// TestAnAnnotationIsNoWayRoundRequiredPlugins: unless the configuration names it.
func TestAnAnnotationIsNoWayRoundRequiredPlugins(t *testing.T) {
	n, _ := start(t, Config{Required: []string{"guard"}})
	p := testPod
	p.Annotations = map[string]string{"": "true", "/pod": "true", "tolerate-missing-plugins": "true", "tolerate-missing-plugins.noderesource.dev": "true"}
	if _, err := n.CreateContainer(t.Context(), p, testContainer); !errors.Is(err, ErrRequired) {
		t.Errorf("got %v, want ErrRequired", err)
	}
}

// TestAnAnnotatedPluginThatHangsHasHadNoSay: upstream's validator takes a plugin that was called for one that has answered.
func TestAnAnnotatedPluginThatHangsHasHadNoSay(t *testing.T) {
	n, _ := start(t, Config{RegistrationTimeout: 5 * time.Second, RequestTimeout: 300 * time.Millisecond})
	release := make(chan struct{})
	defer close(release)
	n.connect(t, "10", "slow").setAnswer(func(event string) error {
		if event == "create" {
			<-release
		}
		return nil
	})
	p := testPod
	p.Annotations = map[string]string{"required-plugins.noderesource.dev": "[slow]"}
	if _, err := n.CreateContainer(t.Context(), p, testContainer); err == nil || !strings.Contains(err.Error(), `required plugin "slow" not present`) {
		t.Errorf("got %v", err)
	}
}

// judge is a plugin that validates what others adjust.
type judge struct {
	plugin
	verdict func(r *api.ValidateContainerAdjustmentRequest) error
}

func (j *judge) ValidateContainerAdjustment(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	return j.verdict(r)
}

func TestPluginsValidateWhatOthersAdjust(t *testing.T) {
	n, _ := start(t, Config{RegistrationTimeout: 5 * time.Second, RequestTimeout: time.Second})
	n.connect(t, "10", "adjuster").create = adjusts(func(a *api.ContainerAdjustment) { a.AddEnv("A", "b") })
	release := make(chan struct{})
	defer close(release)
	j := &judge{plugin: plugin{synced: make(chan struct{})}, verdict: func(r *api.ValidateContainerAdjustmentRequest) error {
		owner, _ := r.GetOwners().EnvOwner(r.GetContainer().GetId(), "A")
		switch r.GetPod().GetName() {
		case "no":
			return errors.New("no variables from " + owner)
		case "hang":
			<-release
		}
		return nil
	}}
	n.join(t, j, &j.plugin, "20", "judge")
	create := func(pod string) error {
		p := testPod
		p.Name = pod
		_, err := n.CreateContainer(t.Context(), p, testContainer)
		return err
	}
	if err := create("yes"); err != nil {
		t.Error(err)
	}
	err := create("no")
	for _, want := range []string{"20-judge", "no variables from 10-adjuster"} {
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ErrRefused with %q", err, want)
		}
	}
	if err := create("hang"); !errors.Is(err, ErrRequired) || !strings.Contains(err.Error(), "20-judge") {
		t.Errorf("a validator that hangs: %v, want ErrRequired", err)
	}
	if err := create("no"); err != nil {
		t.Errorf("with the validator gone: %v", err)
	}
}

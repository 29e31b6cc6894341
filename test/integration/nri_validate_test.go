// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// nriJudge is a plugin that validates what others adjust.
type nriJudge struct {
	nriPlugin
	verdict func(r *api.ValidateContainerAdjustmentRequest) error
}

func (p *nriJudge) ValidateContainerAdjustment(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	return p.verdict(r)
}

// rejections are containers by name, with what a plugin wants of each, and the error; none: it is let through.
func rejections() map[string]struct {
	seccomp cri.SecurityProfile_ProfileType
	adjust  func(a *api.ContainerAdjustment)
	want    string
} {
	seccomp := func(a *api.ContainerAdjustment) {
		a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"})
	}
	return map[string]struct {
		seccomp cri.SecurityProfile_ProfileType
		adjust  func(a *api.ContainerAdjustment)
		want    string
	}{
		"hooks": {0, func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true", Args: []string{"true"}}}})
		}, "OCI hook"},
		"namespaces":  {0, func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "cgroup"}) }, "namespace"},
		"sysctls":     {0, func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net.ipv4.ip_unprivileged_port_start", "0") }, "sysctl"},
		"default":     {cri.SecurityProfile_RuntimeDefault, seccomp, "runtime default seccomp"},
		"unconfined":  {cri.SecurityProfile_Unconfined, seccomp, "unconfined seccomp"},
		"environment": {0, func(a *api.ContainerAdjustment) { a.AddEnv("JUDGED", "1") }, "no variables from 10-adjuster"},
		"rlimits":     {0, func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_NOFILE", 88, 88) }, ""},
	}
}

// TestAdjustmentsAreValidated has all validators there are: the built-in one with all its rules, and a plugin. An error names who did it.
func TestAdjustmentsAreValidated(t *testing.T) {
	t.Parallel()
	k, socket := nriNode(t, `reject = ["hooks", "namespaces", "sysctls", "seccomp_runtime_default", "seccomp_unconfined"]`+"\n")
	cases := rejections()
	adjuster := &nriPlugin{create: func(c *api.Container) (*api.ContainerAdjustment, error) {
		a := &api.ContainerAdjustment{}
		cases[c.GetName()].adjust(a)
		return a, nil
	}}
	adjuster.connect(t, socket, "adjuster")
	judge := &nriJudge{verdict: func(r *api.ValidateContainerAdjustmentRequest) error {
		if owner, ok := r.GetOwners().EnvOwner(r.GetContainer().GetId(), "JUDGED"); ok {
			return errors.New("no variables from " + owner)
		}
		return nil
	}}
	judge.connectAs(t, judge, socket, "judge")
	p := k.RunPod(k.PodConfig("pod"))
	for name, c := range cases {
		config := k.Forever(name)
		config.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: c.seccomp}
		if c.want == "" {
			equal(t, name, strings.TrimSpace(p.Start(config).Exec("ulimit -n")), "88")
			continue
		}
		_, err := p.TryCreate(config)
		wantError(t, err, []codes.Code{codes.FailedPrecondition}, c.want, "10-adjuster")
	}
	contains(t, "told", adjuster.told(), "removed hooks", "removed environment")
}

// TestAnnotationsAboutRequiredPlugins: a pod may ask for plugins, and, where the configuration names an annotation for it, do without.
func TestAnnotationsAboutRequiredPlugins(t *testing.T) {
	t.Parallel()
	k, _ := nriNode(t, "required_plugins = [\"guard\"]\ntolerate_missing_annotation = \"example.com/tolerate\"\n")
	pod := func(name string, annotations map[string]string) *kubelet.Pod {
		config := k.PodConfig(name)
		config.Annotations = annotations
		return k.RunPod(config)
	}
	_, err := pod("plain", nil).TryCreate(k.Forever("main"))
	wantError(t, err, []codes.Code{codes.Unavailable}, `"guard" is not connected`)
	static := pod("static", map[string]string{"example.com/tolerate/container.main": "true"})
	equal(t, "a container that tolerates it", static.Start(k.Forever("main")).Exec("echo fine"), "fine")
	_, err = static.TryCreate(k.Forever("other"))
	wantError(t, err, []codes.Code{codes.Unavailable}, `"guard" is not connected`)

	k, _ = nriNode(t, "") // and nobody is connected
	config := k.PodConfig("asks")
	config.Annotations = map[string]string{"required-plugins.noderesource.dev": "[quota]"}
	_, err = k.RunPod(config).TryCreate(k.Forever("main"))
	wantError(t, err, []codes.Code{codes.FailedPrecondition}, `required plugin "quota" not present`)
}

// TestTheProjectsOwnPluginRuns builds an example plugin of the nri project, of a version with the protocol as it was in 2023, and has the daemon start it.
func TestTheProjectsOwnPluginRuns(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	dir := t.TempDir()
	build := exec.Command("go", "build", "-C", "../../tools/nri", "-o", filepath.Join(dir, "10-ulimit-adjuster"), "github.com/containerd/nri/plugins/ulimit-adjuster")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v: %s", err, text)
	}
	k := node(t, daemon.Spec{Config: fmt.Sprintf("\n[nri]\nenable = true\nsocket = \"\"\nplugin_dir = %q\nplugin_config_dir = %[1]q\nrequired_plugins = [\"ulimit-adjuster\"]\n", dir)})
	config := k.PodConfig("pod")
	config.Annotations = map[string]string{"ulimits.nri.containerd.io/container.main": "[{type: nofile, hard: 99, soft: 66}, {type: RLIMIT_CORE, hard: 0, soft: 0}]",
		"ulimits.nri.containerd.io/container.bad": "[{type: no-such-limit, hard: 1, soft: 1}]"}
	p := k.RunPod(config)
	equal(t, "limits", strings.TrimSpace(p.Start(k.Forever("main")).Exec("ulimit -Sn; ulimit -Hn; ulimit -c")), "66\n99\n0")
	_, err := p.TryCreate(k.Forever("bad"))
	wantError(t, err, []codes.Code{codes.FailedPrecondition}, `failed to parse type: "no-such-limit"`)
	p.Start(k.Forever("other"))
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/transcript"
)

// runPod runs a manifest with folders of its own; what is left in them is returned.
func (f *fakeCRI) runPod(ctx context.Context, t *testing.T, spec string, flags ...string) (got outcome, left []string) {
	t.Helper()
	dir := t.TempDir()
	args := append([]string{"run", "--socket", f.socket, "--pods-dir", dir, "-"}, flags...)
	got = berthIn(ctx, "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"+spec, args...)
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return got, left
}

// watched is a stream that calls seen once it holds text.
type watched struct {
	transcript.Text
	text string
	seen func()
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Text.Write(p)
	if strings.Contains(w.String(), w.text) {
		w.seen()
	}
	return n, err
}

// without takes out what tests don't compare.
func without(calls []string, prefixes ...string) []string {
	return slices.DeleteFunc(calls, func(c string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(c, p) })
	})
}

func TestRunShowsLogsAndRemovesThePod(t *testing.T) {
	f := newFake(t)
	f.acts["setup"] = []act{{lines: []string{"stdout F ready"}}}
	f.acts["web"] = []act{{lines: []string{"stdout P hel", "stdout F lo", "stderr F careful"}, code: 0}}
	got, left := f.runPod(t.Context(), t, `
  restartPolicy: Never
  volumes: [{name: data, emptyDir: {}}]
  initContainers: [{name: setup, image: "busybox:1"}]
  containers: [{name: web, image: "busybox:1", volumeMounts: [{name: data, mountPath: /data, subPath: x/y}]}]
`)
	if got.code != 0 || got.out != "setup | ready\nweb   | hello\n" || !strings.HasSuffix(got.err, "web   | careful\n") {
		t.Errorf("got %+v", got)
	}
	want := []string{"pull busybox:1", "run pod p", "create setup/0", "start setup/0", "create web/0", "start web/0", "stop pod p", "remove pod p"}
	if calls := f.history(); !slices.Equal(calls, want) {
		t.Errorf("calls %q", calls)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	mounts := f.configs[1].Mounts
	if len(mounts) != 2 || !strings.HasSuffix(mounts[0].HostPath, "/volumes/data/x/y") || mounts[1].ContainerPath != "/etc/hosts" {
		t.Errorf("mounts %v", mounts)
	}
}

// ownUsers is a pod whose users are not the host's, with a model from an image.
const ownUsers = `
  restartPolicy: Never
  hostUsers: false
  volumes: [{name: data, emptyDir: {}}, {name: model, image: {reference: "model:1"}}]
  containers: [{name: a, image: "busybox:1", volumeMounts: [{name: data, mountPath: /data}, {name: model, mountPath: /model, subPath: v1}]}]
`

func TestRunGivesUsersThatNoOtherPodHas(t *testing.T) {
	f := newFake(t)
	// All blocks but one are another pod's.
	const first, size, free = 0x70000000, 0x0fff0000, 0x70120000
	other := &runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{{HostId: first, Length: free - first}},
		Gids: []*runtimeapi.IDMapping{{HostId: free + 65536, Length: first + size - free - 65536}}}
	f.addPod("b", "other", runtimeapi.PodSandboxState_SANDBOX_READY)
	f.pods[0].config = &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: other}}}}
	got, left := f.runPod(t.Context(), t, ownUsers)
	if got.code != 0 || len(left) > 0 {
		t.Fatalf("got %+v, left %q", got, left)
	}
	want := []string{"pull busybox:1", "pull model:1"}
	if calls := f.history(); !slices.Equal(calls[:2], want) {
		t.Errorf("calls %q", calls)
	}
	c := f.configs[0]
	mine := c.Linux.SecurityContext.NamespaceOptions.UsernsOptions
	if mine.GetMode() != runtimeapi.NamespaceMode_POD || mine.Uids[0].HostId != free || mine.Gids[0].Length != 65536 {
		t.Errorf("users %v", mine)
	}
	data, model := c.Mounts[0], c.Mounts[1]
	if data.UidMappings[0].HostId != free || data.GidMappings[0].HostId != free {
		t.Errorf("volume %v", data)
	}
	if model.GetImage().GetUserSpecifiedImage() != "model:1" || !strings.HasPrefix(model.Image.Image, "sha256:") || !model.Readonly || model.ImageSubPath != "v1" || model.HostPath != "" {
		t.Errorf("image volume %v", model)
	}

	other.Uids[0].Length = size
	if got, left = f.runPod(t.Context(), t, ownUsers); got.code == 0 || !strings.Contains(got.err, "hostUsers: false: all users that pods could have are taken") || len(left) > 0 {
		t.Errorf("got %+v, left %q", got, left)
	}
}

func TestRunsExitCodeIsTheFirstFailure(t *testing.T) {
	f := newFake(t)
	f.acts["a"], f.acts["b"], f.acts["c"] = []act{{}}, []act{{code: 7}}, []act{{code: 9}}
	got, left := f.runPod(t.Context(), t, "  restartPolicy: Never\n  containers: [{name: a, image: \"i:1\"}, {name: b, image: \"i:1\"}, {name: c, image: \"i:1\"}]\n")
	if got.code != 7 || len(left) > 0 {
		t.Errorf("got %+v, left %q", got, left)
	}
}

func TestRunEndsWithAFailedInitContainer(t *testing.T) {
	f := newFake(t)
	f.acts["setup"] = []act{{code: 4}}
	got, left := f.runPod(t.Context(), t, "  restartPolicy: Never\n  initContainers: [{name: setup, image: \"i:1\"}]\n  containers: [{name: a, image: \"i:1\"}]\n")
	if got.code != 4 || len(left) > 0 || !strings.Contains(got.err, "berth: init container setup has failed: the pod is not started\n") {
		t.Errorf("got %+v, left %q", got, left)
	}
	if calls := f.history(); slices.Contains(calls, "create a/0") || calls[len(calls)-1] != "remove pod p" {
		t.Errorf("calls %q", calls)
	}
}

func TestRunRestartsOnFailureWithANewAttempt(t *testing.T) {
	f := newFake(t)
	f.acts["a"] = []act{{code: 1, lines: []string{"stdout F first"}}, {lines: []string{"stdout F second"}}}
	begin := time.Now()
	got, _ := f.runPod(t.Context(), t, "  restartPolicy: OnFailure\n  containers: [{name: a, image: \"i:1\"}]\n")
	if got.code != 0 || got.out != "a | first\na | second\n" || !strings.Contains(got.err, "container a has ended with exit code 1; it is started again in 1s") {
		t.Errorf("got %+v", got)
	}
	want := []string{"create a/0", "start a/0", "create a/1", "start a/1"}
	if calls := without(f.history(), "pull", "run", "stop", "remove"); !slices.Equal(calls, want) || time.Since(begin) < time.Second {
		t.Errorf("calls %q in %s", calls, time.Since(begin))
	}
}

func TestInterruptedRunStopsAndRemovesThePod(t *testing.T) {
	f := newFake(t)
	f.acts["a"] = []act{{forever: true, lines: []string{"stdout F up"}}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := t.TempDir()
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  terminationGracePeriodSeconds: 5\n  containers: [{name: a, image: \"i:1\"}]\n"
	// Interrupted once its output is there: earlier, there may be nothing to show yet.
	out := &watched{text: "up\n", seen: cancel}
	var errs transcript.Text
	code := New(Options{Version: "0.9", In: strings.NewReader(manifest), Out: out, Err: &errs}).Run(ctx,
		[]string{"run", "--socket", f.socket, "--pods-dir", dir, "-"})
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if code == 0 || out.String() != "a | up\n" || len(left) > 0 || err != nil {
		t.Errorf("code %d, out %q, err %q, left %q, %v", code, out.String(), errs.String(), left, err)
	}
	calls := f.history()
	if want := []string{"stop a in 5s", "stop pod p", "remove pod p"}; !slices.Equal(calls[len(calls)-3:], want) {
		t.Errorf("calls %q", calls)
	}
}

func TestDetachedRunPrintsTheIDAndRmTakesItsFiles(t *testing.T) {
	f := newFake(t)
	f.acts["a"] = []act{{forever: true}}
	dir := t.TempDir()
	file := filepath.Join(dir, "pod.yaml")
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  restartPolicy: Never\n  volumes: [{name: v, emptyDir: {}}]\n  containers: [{name: a, image: \"i:1\"}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	pods := filepath.Join(dir, "pods")
	if got := f.berth(t, "run", "-d", "--pods-dir", pods, file); got.code != 0 || got.out != id("a0")+"\n" {
		t.Fatalf("got %+v", got)
	}
	if found, _ := filepath.Glob(pods + "/*/volumes/v"); len(found) != 1 {
		t.Errorf("volumes %q", found)
	}
	if got := f.berth(t, "rm", "-f", "--pods-dir", pods, "p"); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	if found, _ := filepath.Glob(pods + "/*"); len(found) != 0 {
		t.Errorf("left behind %q", found)
	}
}

func TestRunTakesBackWhatItMadeBeforeAnError(t *testing.T) {
	for _, method := range []string{"PullImage", "RunPodSandbox", "CreateContainer", "StartContainer"} {
		t.Run(method, func(t *testing.T) {
			f := newFake(t)
			f.fail[method] = os.ErrDeadlineExceeded
			got, left := f.runPod(t.Context(), t, "  containers: [{name: a, image: \"i:1\"}]\n")
			if got.code != 1 || !strings.Contains(got.err, "i/o timeout") || len(left) > 0 || len(f.pods) > 0 {
				t.Errorf("got %+v, left %q and %d pods", got, left, len(f.pods))
			}
		})
	}
}

func TestRunPullsByPolicy(t *testing.T) {
	for policy, want := range map[string]struct {
		here, pulled bool
		code         int
	}{"Always": {true, true, 0}, "IfNotPresent": {true, false, 0}, "Never": {false, false, 1}} {
		f := newFake(t)
		if want.here {
			f.images = []*runtimeapi.Image{{Id: "sha256:" + id("e"), RepoTags: []string{"i:1"}}}
		}
		got, _ := f.runPod(t.Context(), t, "  restartPolicy: Never\n  containers: [{name: a, image: \"i:1\", imagePullPolicy: "+policy+"}]\n")
		if pulled := slices.Contains(f.history(), "pull i:1"); got.code != want.code || pulled != want.pulled {
			t.Errorf("%s: pulled %v, %+v", policy, pulled, got)
		}
	}
}

func TestRunRefusesBeforeAnythingIsMade(t *testing.T) {
	f := newFake(t)
	got, _ := f.runPod(t.Context(), t, "  containers:\n  - {name: a, image: i, imagee: x}\n")
	if got.code != 1 || got.err != "berth: standard input: unknown field \"spec.containers[0].imagee\"\n" {
		t.Errorf("got %+v", got)
	}
	if calls := f.history(); len(calls) > 0 {
		t.Errorf("calls %q", calls)
	}
}

func TestRestartWaitsForADaemonThatIsAway(t *testing.T) {
	for _, method := range []string{"CreateContainer", "StartContainer"} {
		t.Run(method, func(t *testing.T) {
			f := newFake(t)
			f.acts["a"] = []act{{code: 1}, {}}
			go func() {
				for !slices.Contains(f.history(), "start a/0") {
					time.Sleep(5 * time.Millisecond)
				}
				f.setFail(method, status.Error(codes.Unavailable, "away"))
				time.Sleep(2 * time.Second) // the restart comes after one
				f.setFail(method, nil)
			}()
			got, left := f.runPod(t.Context(), t, "  restartPolicy: OnFailure\n  containers: [{name: a, image: \"i:1\"}]\n")
			if got.code != 0 || len(left) > 0 || !slices.Contains(f.history(), "start a/1") {
				t.Errorf("got %+v, left %q, calls %q", got, left, f.history())
			}
		})
	}
}

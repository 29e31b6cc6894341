// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckpointPod writes a manifest as the daemon does.
func (f *fakeCRI) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if end, ok := ctx.Deadline(); !ok || time.Until(end) < 10*time.Minute {
		return nil, errors.New("no deadline, or one that is soon")
	}
	f.called("checkpoint %.2s of %.2s", r.ContainerIds, r.PodSandboxId)
	pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "front", Uid: "11-22"}, LogDirectory: filepath.Join(r.OutputPath, "logs", "front_11-22"),
		Labels: map[string]string{"uid": "11-22", "app": "front"}, Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods-pod11_22.slice"}}
	type container struct{ Config json.RawMessage }
	manifest := struct {
		Handler    string            `json:"handler"`
		Config     json.RawMessage   `json:"config"`
		Containers []json.RawMessage `json:"containers"`
	}{Handler: "runc", Config: jsonOf(pod)}
	raw, err := json.Marshal(container{jsonOf(&runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, LogPath: "web/0.log"})})
	manifest.Containers = append(manifest.Containers, raw)
	if err == nil {
		raw, err = json.Marshal(manifest)
	}
	return &runtimeapi.CheckpointPodResponse{}, errors.Join(err, os.WriteFile(filepath.Join(r.OutputPath, "manifest.json"), raw, 0o600))
}

func jsonOf(m proto.Message) json.RawMessage {
	raw, err := protojson.Marshal(m)
	if err != nil {
		panic(err)
	}
	return raw
}

func (f *fakeCRI) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	f.mu.Lock()
	refuse := f.refuseRestore
	f.mu.Unlock()
	if refuse {
		for _, c := range r.ContainerConfigs {
			if _, err := os.Stat(filepath.Dir(filepath.Join(r.Config.LogDirectory, c.LogPath))); err != nil {
				return nil, err
			}
		}
		return nil, errors.New("refused")
	}
	if _, ok := ctx.Deadline(); !ok || r.RuntimeHandler != "runc" {
		return nil, fmt.Errorf("no deadline, or handler %q", r.RuntimeHandler)
	}
	pod, err := f.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: r.Config})
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.RestorePodResponse{PodSandboxId: pod.PodSandboxId}
	for _, c := range r.ContainerConfigs {
		made, err := f.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: c, SandboxConfig: r.Config})
		if err != nil {
			return nil, err
		}
		out.RestoredContainers = append(out.RestoredContainers, &runtimeapi.RestoredContainer{Name: c.Metadata.Name, ContainerId: made.ContainerId})
	}
	return out, nil
}

func TestAPodIsCheckpointedAndRestored(t *testing.T) {
	f := populated(t)
	folder := t.TempDir()
	if got := f.berth(t, "checkpoint", "--pod", "front", folder); got.code != 0 || got.out != folder+"\n" {
		t.Fatalf("got %+v", got)
	}
	got := f.berth(t, "restore", folder)
	f.mu.Lock()
	pod := f.pods[len(f.pods)-1]
	f.mu.Unlock()
	if got.code != 0 || got.out != pod.Id+"\n" {
		t.Fatalf("got %+v", got)
	}
	want := []string{"checkpoint [d1] of b1", "run pod front", "create web/0", "start web/0"}
	if calls := f.history(); strings.Join(calls, "; ") != strings.Join(want, "; ") {
		t.Errorf("calls %q, want %q", calls, want)
	}
	uid := pod.config.Metadata.Uid
	if uid == "11-22" || len(uid) != 36 || pod.config.LogDirectory != filepath.Join(folder, "logs", "front_"+uid) || pod.config.Labels["uid"] != uid || pod.config.Labels["app"] != "front" ||
		pod.config.Linux.CgroupParent != "/kubepods-pod"+strings.ReplaceAll(uid, "-", "_")+".slice" {
		t.Errorf("restored as %v", pod.config)
	}
}

func TestWhatIsNoCheckpointIsNotRestored(t *testing.T) {
	f := populated(t)
	for name, x := range map[string]struct{ manifest, says string }{
		"nothing":         {"", "no checkpoint of a pod"},
		"garbage":         {"{", "manifest.json: unexpected end of JSON"},
		"another message": {`{"config":{"cats":1}}`, "manifest.json: "},
		"a log elsewhere": {`{"config":{"metadata":{"uid":"u"},"logDirectory":"/x"},"containers":[{"config":{"logPath":"../../y"}}]}`, "leads out of its folder"},
	} {
		folder := t.TempDir()
		if x.manifest != "" {
			if err := os.WriteFile(filepath.Join(folder, "manifest.json"), []byte(x.manifest), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := f.berth(t, "restore", folder); got.code == 0 || !strings.Contains(got.err, x.says) || !strings.Contains(got.err, folder) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if calls := f.history(); len(calls) > 0 {
		t.Errorf("calls %q", calls)
	}
}

func TestARestorationThatFailsLeavesNoFolders(t *testing.T) {
	f := populated(t)
	folder := t.TempDir()
	if got := f.berth(t, "checkpoint", "--pod", "front", folder); got.code != 0 {
		t.Fatalf("got %+v", got)
	}
	f.mu.Lock()
	f.refuseRestore = true
	f.mu.Unlock()
	if got := f.berth(t, "restore", folder); got.code == 0 || !strings.Contains(got.err, "refused") || strings.Contains(got.err, "remove") {
		t.Errorf("got %+v", got)
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
		t.Errorf("left beside the manifest: %v, %v", entries, err)
	}
}

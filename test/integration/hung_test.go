// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// hung is a file system whose server never answers, as that of a dead CSI driver or NFS server: each look at it waits until mend is called.
func hung(t *testing.T, dir string) (mend func()) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	mended := false
	mend = func() {
		if !mended {
			mended = true
			if err := syscall.Close(server); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(func() {
		mend()
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Mount("hung", dir, "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)); err != nil {
		t.Fatal(err)
	}
	return mend
}

// What hangs in a volume's file system is told by the error, and holds up its own container only: not the lists, nor the pod's other containers, nor its end,
// nor another pod.
func TestAVolumeThatHangsHoldsUpOnlyItsContainer(t *testing.T) {
	t.Parallel()
	berthOnly(t) // containerd waits without a word
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("hung"))
	dir := filepath.Join(k.D.Dir, "volume")
	mend := hung(t, dir)
	spec := k.Forever("main")
	spec.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/v"}}
	if err := os.MkdirAll(filepath.Join(p.Config.LogDirectory, "main"), 0o755); err != nil {
		t.Fatal(err)
	}
	create := func(p *kubelet.Pod, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(k.Ctx(), patience)
		defer cancel()
		_, err := k.D.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: spec, SandboxConfig: p.Config})
		return err
	}
	for range 2 { // the second joins the first
		wantError(t, create(p, 2*time.Second), []codes.Code{codes.DeadlineExceeded})
	}
	// In time or too late for a client on a slow machine: the log has it anyhow.
	kubelet.Eventually(t, 10*time.Second, func() string {
		if strings.Count(k.D.Log(), "in stage volume "+dir+" (mounts[0] /v) for ") < 2 {
			return "the log does not tell what hangs"
		}
		return ""
	})
	list, err := k.D.Runtime.ListContainers(k.Ctx(), &cri.ListContainersRequest{})
	kubelet.Must(k, list, err)
	equal(t, "another container of the pod", p.Start(k.Forever("beside")).Exec("echo runs"), "runs")
	other := k.RunPod(k.PodConfig("other"))
	equal(t, "another pod", other.Start(k.Forever("beside")).Exec("echo runs"), "runs")
	p.Remove() // stopped first, as a kubelet does
	mend()
	if err := os.MkdirAll(filepath.Join(other.Config.LogDirectory, "main"), 0o755); err != nil {
		t.Fatal(err)
	}
	wantError(t, create(other, time.Minute), append(invalid, failures...), dir, "mounts[0]")
}

// TestALogFolderThatHangsKeepsNoPod is of a folder of logs on a file system that stops to answer before a container is created, or before it is started.
func TestALogFolderThatHangsKeepsNoPod(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	for _, request := range []string{"CreateContainer", "StartContainer"} {
		t.Run(request, func(t *testing.T) {
			p := k.RunPod(k.PodConfig(strings.ToLower(request)))
			spec := k.Forever("main")
			logs := filepath.Dir(filepath.Join(p.Config.LogDirectory, spec.LogPath))
			if err := os.MkdirAll(logs, 0o755); err != nil {
				t.Fatal(err)
			}
			create := &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: spec, SandboxConfig: p.Config}
			ask := func(ctx context.Context) error { _, err := k.D.Runtime.CreateContainer(ctx, create); return err }
			what := "in stage log folder " + logs
			if request == "StartContainer" {
				made, err := k.D.Runtime.CreateContainer(k.Ctx(), create)
				if err != nil {
					t.Fatal(err)
				}
				start := &cri.StartContainerRequest{ContainerId: made.ContainerId}
				ask = func(ctx context.Context) error { _, err := k.D.Runtime.StartContainer(ctx, start); return err }
				what = "StartContainer has been running"
			}
			hung(t, logs)
			ctx, cancel := context.WithTimeout(k.Ctx(), 2*time.Second)
			defer cancel()
			wantError(t, ask(ctx), []codes.Code{codes.DeadlineExceeded})
			kubelet.Eventually(t, 10*time.Second, func() string {
				if !strings.Contains(k.D.Log(), what) {
					return "the log does not tell what hangs"
				}
				return ""
			})
			equal(t, "another container of the pod", p.Start(k.Forever("beside")).Exec("echo runs"), "runs")
			p.Remove() // stopped first, as a kubelet does
		})
	}
}

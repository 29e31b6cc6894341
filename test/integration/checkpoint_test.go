// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// daemonPath is the PATH of the daemon's OCI runtimes.
const daemonPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// hasCRIU tells whether the daemon will find CRIU.
func hasCRIU(t *testing.T) bool {
	t.Helper()
	for dir := range strings.SplitSeq(daemonPath, ":") {
		if _, err := os.Stat(filepath.Join(dir, "criu")); err == nil {
			return true
		}
	}
	return false
}

// readArchive is the content of the small files, and the sizes of all.
func readArchive(t *testing.T, path string) (files map[string][]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files = map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func checkpoint(k *kubelet.Kubelet, c *kubelet.Container, to string) error {
	_, err := k.D.Runtime.CheckpointContainer(k.Ctx(), &cri.CheckpointContainerRequest{ContainerId: c.ID, Location: to})
	return err
}

// counting counts in memory, and writes each number to a file.
const counting = `i=0; rm /bin/false; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done`

func count(t *testing.T, c *kubelet.Container) int {
	t.Helper()
	n, _ := strconv.Atoi(c.Exec("cat /count || true")) // the file may just be being written
	return n
}

// TestACheckpointIsWrittenAndTheContainerGoesOn is whole where there is CRIU (make test-vm); elsewhere a request must say what is missing, and change nothing.
func TestACheckpointIsWrittenAndTheContainerGoesOn(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("checkpoint")).Start(k.Shell("main", counting))
	folder := t.TempDir()
	location := filepath.Join(folder, "c.tar")
	counts := func(beyond int) {
		t.Helper()
		kubelet.Eventually(t, daemon.Slow(20*time.Second), func() string {
			if n := count(t, c); n <= beyond {
				return fmt.Sprintf("the container has counted to %d, not beyond %d", n, beyond)
			}
			return ""
		})
	}
	counts(0)
	err := checkpoint(k, c, location)
	if !hasCRIU(t) {
		wantError(t, err, []codes.Code{codes.Unimplemented}, "install the package criu")
	} else if err != nil {
		t.Fatal(err)
	}
	counts(count(t, c))
	entries, derr := os.ReadDir(folder)
	if left, _ := filepath.Glob(filepath.Join(k.D.Root, "checkpoints/*")); derr != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, derr)
	}
	if err != nil {
		if len(entries) > 0 {
			t.Errorf("after an error there is %v", entries)
		}
		return
	}
	if info, err := os.Stat(location); err != nil || info.Mode() != 0o600 || len(entries) != 1 {
		t.Errorf("archive %v, %v; folder %v", info, err, entries)
	}
	files := readArchive(t, location)
	var config struct{ ID, Name, RootfsImageRef, Runtime string }
	if err := json.Unmarshal(files["config.dump"], &config); err != nil || config.ID != c.ID || config.Name != "main" || config.RootfsImageRef == "" || config.Runtime == "" {
		t.Errorf("config.dump %s: %v", files["config.dump"], err)
	}
	var status cri.ContainerStatus
	if err := json.Unmarshal(files["status.dump"], &status); err != nil || status.GetId() != c.ID || status.GetState() != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status.dump %s: %v", files["status.dump"], err)
	}
	for _, name := range []string{"spec.dump", "dump.log", "stats-dump", "container.log", "checkpoint/inventory.img", "checkpoint/pages-1.img", "rootfs-diff.tar"} {
		if files[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	if diff := files["rootfs-diff.tar"]; !bytes.Contains(diff, []byte("count\x00")) || !bytes.Contains(diff, []byte("bin/.wh.false\x00")) {
		t.Errorf("rootfs-diff.tar has %d bytes, and not both of count and bin/.wh.false", len(diff))
	}
	restored(t, k, files, c)
}

// restored has the OCI runtime restore the archive, as somebody would who has only that and the image, and sees it count on.
func restored(t *testing.T, k *kubelet.Kubelet, files map[string][]byte, c *kubelet.Container) {
	t.Helper()
	bundle := t.TempDir()
	rootfs := filepath.Join(bundle, "rootfs")
	images := filepath.Join(bundle, "checkpoint")
	for _, dir := range []string{rootfs, images} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range files {
		if at, ok := strings.CutPrefix(name, "checkpoint/"); ok && at != "" {
			if err := os.WriteFile(filepath.Join(images, at), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	image := exec.Command("cp", "-aT", filepath.Join(k.D.State, "pods", c.Pod.ID, c.ID, "rootfs"), rootfs)
	unpack := exec.Command("tar", "-x", "-C", rootfs)
	unpack.Stdin = bytes.NewReader(files["rootfs-diff.tar"])
	for _, cmd := range []*exec.Cmd{image, unpack} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd.Args, err, out)
		}
	}
	var spec map[string]any
	numbers := json.NewDecoder(bytes.NewReader(files["spec.dump"]))
	numbers.UseNumber() // limits are larger than a float is exact
	if err := numbers.Decode(&spec); err != nil {
		t.Fatal(err)
	}
	spec["root"].(map[string]any)["path"] = "rootfs"
	spec["linux"].(map[string]any)["cgroupsPath"] = "/berth-restored-" + c.ID[:8]
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	at := countIn(t, rootfs)
	runc := func(args ...string) *exec.Cmd {
		cmd := exec.Command(k.D.Spec.OCIRuntime, append([]string{"--root", filepath.Join(bundle, "state")}, args...)...)
		cmd.Env = []string{"PATH=" + daemonPath}
		return cmd
	}
	id := "restored-" + c.ID[:8]
	restore := runc("restore", "--detach", "--bundle", bundle, "--image-path", images, "--work-path", bundle, id)
	restore.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	said, err := os.Create(filepath.Join(bundle, "said")) // no pipe, which the restored process would keep
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	restore.Stdout, restore.Stderr = said, said
	err = restore.Run()
	t.Cleanup(func() {
		if out, err := runc("delete", "--force", id).CombinedOutput(); err != nil {
			t.Errorf("delete: %v: %s", err, out)
		}
	})
	if err != nil {
		out, _ := os.ReadFile(said.Name())
		log, _ := os.ReadFile(filepath.Join(bundle, "restore.log"))
		t.Fatalf("restore: %v: %s\n%s", err, out, log)
	}
	var now int
	for begin := time.Now(); time.Since(begin) < 20*time.Second && now < at+3; time.Sleep(50 * time.Millisecond) {
		now = countIn(t, rootfs)
	}
	if now < at+3 || now > at+1000 {
		t.Errorf("the restored container has counted from %d to %d", at, now)
	}
}

func countIn(t *testing.T, rootfs string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(rootfs, "count"))
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return n
}

func TestACheckpointThatCannotBeIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("refused"))
	c := p.Start(k.Forever("main"))
	created := p.Create(k.Forever("created"))
	folder := t.TempDir()
	for name, x := range map[string]struct {
		r    *cri.CheckpointContainerRequest
		code codes.Code
		says string
	}{
		"no container":       {&cri.CheckpointContainerRequest{ContainerId: "nobody", Location: folder + "/x"}, codes.NotFound, "nobody"},
		"not started":        {&cri.CheckpointContainerRequest{ContainerId: created.ID, Location: folder + "/x"}, codes.FailedPrecondition, "created"},
		"no location":        {&cri.CheckpointContainerRequest{ContainerId: c.ID}, codes.InvalidArgument, "absolute path"},
		"relative location":  {&cri.CheckpointContainerRequest{ContainerId: c.ID, Location: "x"}, codes.InvalidArgument, "absolute path"},
		"no such folder":     {&cri.CheckpointContainerRequest{ContainerId: c.ID, Location: folder + "/no/x"}, codes.InvalidArgument, "there is no folder"},
		"a folder":           {&cri.CheckpointContainerRequest{ContainerId: c.ID, Location: folder}, codes.InvalidArgument, "no regular file"},
		"a NUL":              {&cri.CheckpointContainerRequest{ContainerId: c.ID, Location: folder + "/x\x00y"}, codes.InvalidArgument, "absolute path"},
		"a negative timeout": {&cri.CheckpointContainerRequest{ContainerId: c.ID, Location: folder + "/x", Timeout: -1}, codes.InvalidArgument, "negative"},
	} {
		_, err := k.D.Runtime.CheckpointContainer(k.Ctx(), x.r)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		wantError(t, err, []codes.Code{x.code}, x.says)
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) > 0 {
		t.Errorf("there is %v, %v", entries, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// connected also holds both ends of a TCP connection, and listens.
const connected = `(nc -l -p 7000 -s 127.0.0.1 >/got &); sleep 0.3; (sleep 1000 | nc 127.0.0.1 7000 &); echo of memory >/dev/shm/note; ` + counting

// restoreConfigs are those of a pod and its containers, for a pod of another UID.
func restoreConfigs(k *kubelet.Kubelet, p *kubelet.Pod, cs ...*kubelet.Container) (pod *cri.PodSandboxConfig, containers []*cri.ContainerConfig) {
	pod = proto.CloneOf(p.Config)
	pod.Metadata.Uid += "-restored"
	pod.Hostname = "restored"
	pod.LogDirectory += "-restored"
	pod.Linux.CgroupParent = k.D.SharedCgroup("pod" + pod.Metadata.Uid)
	for _, c := range cs {
		containers = append(containers, proto.CloneOf(c.Spec))
		if err := os.MkdirAll(filepath.Join(pod.LogDirectory, filepath.Dir(c.Spec.LogPath)), 0o755); err != nil {
			k.T.Fatal(err)
		}
	}
	return pod, containers
}

// TestAPodIsRestoredAndGoesOn is whole where there is CRIU (make test-vm); elsewhere both calls must say what is missing, and change nothing.
func TestAPodIsRestoredAndGoesOn(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("checkpointed"))
	second := "echo begun; " + counting
	listens := canDumpListeners(t)
	if listens {
		second = "echo begun; nc -l -p 9000 & " + counting
	}
	cs := []*kubelet.Container{p.Start(k.Shell("first", connected)), p.Start(k.Shell("second", second))}
	counted := func(cs []*kubelet.Container) (all []int) {
		for _, c := range cs {
			kubelet.Eventually(t, daemon.Slow(20*time.Second), func() string {
				if count(t, c) == 0 {
					return c.Spec.Metadata.Name + " does not count"
				}
				return ""
			})
			all = append(all, count(t, c))
		}
		return all
	}
	counted(cs)
	folder := t.TempDir()
	segment := shareMemory(t, p, "kept")
	ctx, cancel := context.WithTimeout(k.Ctx(), daemon.Slow(time.Minute))
	defer cancel()
	_, err := k.D.Runtime.CheckpointPod(ctx, &cri.CheckpointPodRequest{PodSandboxId: p.ID, OutputPath: folder, ContainerIds: []string{cs[0].ID, cs[1].ID}})
	newPod, containers := restoreConfigs(k, p, cs...)
	slices.Reverse(containers)
	request := &cri.RestorePodRequest{CheckpointPath: folder, Config: newPod, ContainerConfigs: containers}
	if !hasCRIU(t) {
		wantError(t, err, []codes.Code{codes.Unimplemented}, "install the package criu")
		_, err := k.D.Runtime.RestorePod(ctx, request)
		wantError(t, err, []codes.Code{codes.Unimplemented}, "install the package criu")
		if entries, err := os.ReadDir(folder); err != nil || len(entries) > 0 {
			t.Errorf("after an error there is %v, %v", entries, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	before := counted(cs) // it goes on
	if info, err := os.Stat(filepath.Join(folder, "manifest.json")); err != nil || info.Mode() != 0o600 {
		t.Errorf("manifest %v, %v", info, err)
	}
	p.Stop()
	p.Remove()

	restored, err := k.D.Runtime.RestorePod(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	again, err := k.D.Runtime.RestorePod(ctx, request)
	if err != nil || !proto.Equal(again, restored) {
		t.Errorf("a repeated call: %v, %v; want %v", again, err, restored)
	}
	if err := os.RemoveAll(folder); err != nil { // it is the caller's
		t.Fatal(err)
	}
	q := &kubelet.Pod{Kubelet: k, ID: restored.PodSandboxId, Config: newPod}
	t.Cleanup(q.Remove)
	byName := map[string]*kubelet.Container{}
	for i, r := range restored.RestoredContainers {
		c := &kubelet.Container{Pod: q, ID: r.ContainerId, Spec: containers[i]}
		if r.Name != containers[i].Metadata.Name || c.Status().State != cri.ContainerState_CONTAINER_CREATED {
			t.Errorf("restored %v, want %s, created", c.Status(), containers[i].Metadata.Name)
		}
		byName[r.Name] = c
	}
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Restart(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"first", "second"} {
		c := byName[name]
		if err := c.TryStart(); err != nil {
			t.Fatal(err)
		}
		now := counted([]*kubelet.Container{c})[0]
		if now < 2 || now > before[i]+1000 {
			t.Errorf("%s has counted to %d, and was at %d", name, now, before[i])
		}
		kubelet.Eventually(t, daemon.Slow(20*time.Second), func() string {
			if n := count(t, c); n < now+3 {
				return fmt.Sprintf("it has counted to %d, from %d", n, now)
			}
			return ""
		})
		equal(t, name+": host name", c.Exec("hostname"), "restored")
		equal(t, name+": namespaces", c.Exec("for ns in net ipc uts; do readlink /proc/1/ns/$ns; done"), inPod(t, q))
		if out := c.Exec("ls /bin/false || true"); strings.Contains(out, "/bin/false\n") {
			t.Errorf("%s: what was deleted is there: %q", name, out)
		}
	}
	equal(t, "shared memory", sharedMemory(t, q, segment), "kept")
	equal(t, "/dev/shm/note", byName["first"].Exec("cat /dev/shm/note"), "of memory")
	if out := byName["second"].Output("stdout"); strings.Contains(out, "begun") {
		t.Errorf("it has begun anew: %q", out)
	}
	if listens {
		byName["first"].Exec("echo through a new network | nc " + q.IP() + " 9000")
		byName["second"].WaitOutput("through a new network")
	}
	if left, err := os.ReadDir(filepath.Join(k.D.Root, "restores")); err != nil || len(left) > 0 {
		t.Errorf("left of the images: %v, %v", left, err)
	}
	byName["first"].Stop(0)
	if st := byName["first"].WaitExit(); st.ExitCode != 137 {
		t.Errorf("stopped: %v", st)
	}
}

// canDumpListeners tells whether the kernel tells CRIU all that it asks of an Internet socket: since Linux 6.16 it does not have SO_PASSCRED and SO_PASSSEC,
// without which CRIU 4.1 dumps none that it does not leave out.
func canDumpListeners(t *testing.T) bool {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	_, err = syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_PASSCRED)
	return err == nil
}

// inPod are the namespaces that a pod's containers share, as links in /proc name them.
func inPod(t *testing.T, p *kubelet.Pod) string {
	t.Helper()
	var all []string
	for _, kind := range []string{"net", "ipc", "uts"} {
		path := filepath.Join(p.D.State, "pods", p.ID, "ns", kind)
		if kind == "net" {
			path = filepath.Join(p.D.Netns, "berth-"+p.ID)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s:[%d]", kind, st.Ino))
	}
	return strings.Join(all, "\n")
}

// sysSetns is a number that package syscall lacks.
var sysSetns = map[string]uintptr{"amd64": 308, "arm64": 268}[runtime.GOARCH]

// inIPC runs f in a pod's IPC namespace.
func inIPC(t *testing.T, p *kubelet.Pod, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never back: the thread ends with the goroutine
		ns, err := os.Open(filepath.Join(p.D.State, "pods", p.ID, "ns", "ipc"))
		if err == nil {
			defer ns.Close()
			if _, _, errno := syscall.RawSyscall(sysSetns, ns.Fd(), syscall.CLONE_NEWIPC, 0); errno != 0 {
				err = errno
			}
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

const (
	shmSize   = 4096
	shmCreate = 0o1000 | 0o600 // IPC_CREAT
)

// shareMemory makes a System V segment with a text, and returns its ID.
func shareMemory(t *testing.T, p *kubelet.Pod, text string) (id uintptr) {
	t.Helper()
	inIPC(t, p, func() error {
		var errno syscall.Errno
		if id, _, errno = syscall.Syscall(syscall.SYS_SHMGET, 0x5ea, shmSize, shmCreate); errno != 0 {
			return errno
		}
		return withMemory(id, func(b []byte) { copy(b, text) })
	})
	return id
}

func sharedMemory(t *testing.T, p *kubelet.Pod, id uintptr) (text string) {
	t.Helper()
	inIPC(t, p, func() error {
		return withMemory(id, func(b []byte) { text, _, _ = strings.Cut(string(b), "\x00") })
	})
	return text
}

func withMemory(id uintptr, f func([]byte)) error {
	at, _, errno := syscall.Syscall(syscall.SYS_SHMAT, id, 0, 0)
	if errno != 0 {
		return errno
	}
	f(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), at)), shmSize))
	if _, _, errno := syscall.Syscall(syscall.SYS_SHMDT, at, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

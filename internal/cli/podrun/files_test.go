// SPDX-License-Identifier: Apache-2.0

package podrun

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/manifest"
)

func podWith(volumes ...corev1.Volume) *manifest.Pod {
	return &manifest.Pod{Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u-1"}, Spec: corev1.PodSpec{Volumes: volumes}}}
}

func emptyDir(name string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
}

func hostPath(path string, kind corev1.HostPathType) corev1.Volume {
	return corev1.Volume{Name: "h", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}}
}

func mustMake(t *testing.T, in Folders, logDir string, pod *manifest.Pod) *files {
	t.Helper()
	f, err := makeFiles(in, logDir, pod)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestSubPathsStayInTheVolume(t *testing.T) {
	f := mustMake(t, Folders{Pods: t.TempDir()}, "", podWith(emptyDir("v")))
	dir := f.volumes["v"]
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{"out": "is a symbolic link", "out/passwd": "is a symbolic link", "file/x": "is not a folder"} {
		if got, err := f.volume("v", sub); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v", sub, got, err)
		}
	}
	for _, sub := range []string{"", "a/b", "a//b/", "file"} {
		got, err := f.volume("v", sub)
		if err != nil || got != filepath.Join(dir, sub) || !exists(got) {
			t.Errorf("%s: %q, %v", sub, got, err)
		}
	}
}

func TestAnyUserOfThePodMayWriteToAnEmptyDir(t *testing.T) {
	f := mustMake(t, Folders{Pods: t.TempDir()}, "", podWith(emptyDir("v")))
	info, err := os.Stat(f.volumes["v"])
	if err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if info, err = os.Stat(f.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the pod's folder has mode %v, %v", info.Mode(), err)
	}
}

func TestFilesAreRemovedAndNothingElseIs(t *testing.T) {
	top := t.TempDir()
	in := Folders{Pods: filepath.Join(top, "pods"), Logs: filepath.Join(top, "logs")}
	host := filepath.Join(top, "host")
	f := mustMake(t, in, "", podWith(emptyDir("v"), hostPath(host, corev1.HostPathDirectoryOrCreate)))
	if f.logs != filepath.Join(in.Logs, "n_p_u-1") || !exists(f.logs) || !exists(host) {
		t.Fatalf("files are %+v", f)
	}
	if err := RemoveFiles(in, &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u-1"}); err != nil {
		t.Fatal(err)
	}
	if exists(f.dir) || exists(f.logs) || !exists(host) || !exists(in.Pods) {
		t.Errorf("folder there: %v, logs there: %v, host path there: %v", exists(f.dir), exists(f.logs), exists(host))
	}
}

func TestAStrangersPodRemovesNoOtherFolder(t *testing.T) {
	top := t.TempDir()
	in := Folders{Pods: filepath.Join(top, "pods"), Logs: filepath.Join(top, "logs")}
	victim := filepath.Join(top, "victim_u")
	for _, dir := range []string{in.Pods, filepath.Join(in.Logs, "x_"), victim} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range []*runtimeapi.PodSandboxMetadata{
		{Namespace: "x", Name: "/../../victim", Uid: "u"}, {Namespace: "n", Name: "p", Uid: ""}, {Namespace: "n", Name: "p", Uid: ".."}, {Uid: "../../victim_u"},
	} {
		if err := RemoveFiles(in, m); err != nil {
			t.Errorf("%v: %v", m, err)
		}
		if !exists(victim) || !exists(in.Pods) || !exists(in.Logs) {
			t.Fatalf("%v has removed a folder that is not a pod's", m)
		}
	}
}

func TestLogDirOfTheUserIsKept(t *testing.T) {
	logs := filepath.Join(t.TempDir(), "mine")
	f := mustMake(t, Folders{Pods: t.TempDir(), Logs: t.TempDir()}, logs, podWith())
	if f.logs != logs {
		t.Errorf("logs go to %s", f.logs)
	}
	if err := f.remove(); err != nil || !exists(logs) || exists(f.dir) {
		t.Errorf("logs there: %v, folder there: %v, %v", exists(logs), exists(f.dir), err)
	}
}

func TestNothingIsLeftOfAPodWhoseVolumeCannotBeMade(t *testing.T) {
	in := Folders{Pods: t.TempDir(), Logs: t.TempDir()}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[corev1.HostPathType]string{corev1.HostPathDirectory: "is not a Directory", "Weird": `"Weird" is unknown`} {
		_, err := makeFiles(in, "", podWith(emptyDir("v"), hostPath(file, kind)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", kind, err)
		}
		for _, dir := range []string{in.Pods, in.Logs} {
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("%s: left behind: %v", kind, left)
			}
		}
	}
}

func TestResolvConf(t *testing.T) {
	got := parseResolvConf("# made by hand\nnameserver 1.1.1.1\nnameserver 9.9.9.9 # second\nsearch a.b c.d\noptions ndots:2 edns0\n")
	if strings.Join(got.Servers, " ") != "1.1.1.1 9.9.9.9" || strings.Join(got.Searches, " ") != "a.b c.d" || strings.Join(got.Options, " ") != "ndots:2 edns0" {
		t.Errorf("got %v", got)
	}
}

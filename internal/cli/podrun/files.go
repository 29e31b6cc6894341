// SPDX-License-Identifier: Apache-2.0

package podrun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/manifest"
)

// memoryDir is a file system in memory that every Linux has; making a folder there needs no mount that could be left behind.
const memoryDir = "/dev/shm"

// tmpfsMagic is what statfs calls a tmpfs.
const tmpfsMagic = 0x01021994

// Folders are where pods have their files: below Pods a folder for each, by its UID, and below Logs one with its containers' logs.
// Without Logs those are in the pod's own folder.
type Folders struct{ Pods, Logs string }

// files are what a pod has on the host: its folder PODS/UID with volumes/NAME and hosts, its log folder with
// CONTAINER/ATTEMPT.log, and volumes in memory. They are found again by what the runtime knows of the pod.
type files struct {
	dir, memory string
	logs        string
	ownLogs     string // the log folder if it goes with the pod and is not in dir
	hosts       string
	volumes     map[string]string
	parents     map[string]bool // the folders of volumes that were made
}

func folders(podsDir, uid string) (dir, memory string) {
	return filepath.Join(podsDir, uid), filepath.Join(memoryDir, "berth-pod-"+uid)
}

// makeFiles makes the folder; on an error nothing is left of it.
func makeFiles(in Folders, logDir string, pod *manifest.Pod) (*files, error) {
	podsDir, err := filepath.Abs(in.Pods)
	if err != nil {
		return nil, fmt.Errorf("folder of the pod: %w", err)
	}
	f := &files{volumes: map[string]string{}, parents: map[string]bool{}}
	f.dir, f.memory = folders(podsDir, string(pod.UID))
	if err := os.MkdirAll(podsDir, 0o700); err != nil {
		return nil, fmt.Errorf("folder for pods: %w: --pods-dir names another one", err)
	}
	if err := os.Mkdir(f.dir, 0o700); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("folder of the pod: %s: a pod with this UID was not removed with `berth rm`", f.dir)
	} else if err != nil {
		return nil, fmt.Errorf("folder of the pod: %w", err)
	}
	f.logs = filepath.Join(f.dir, "logs")
	switch {
	case logDir != "":
		if f.logs, err = filepath.Abs(logDir); err != nil {
			return nil, errors.Join(fmt.Errorf("log folder: %w", err), f.remove())
		}
	case in.Logs != "":
		f.ownLogs = filepath.Join(in.Logs, logName(pod.Namespace, pod.Name, string(pod.UID)))
		f.logs = f.ownLogs
	}
	err = os.MkdirAll(f.logs, 0o755)
	for i := range pod.Spec.Volumes {
		if err == nil {
			err = f.makeVolume(&pod.Spec.Volumes[i], pod.Spec.SecurityContext)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.remove())
	}
	return f, nil
}

func (f *files) makeVolume(v *corev1.Volume, security *corev1.PodSecurityContext) error {
	if v.Image != nil { // the runtime's
		return nil
	}
	if v.HostPath != nil {
		f.volumes[v.Name] = filepath.Clean(v.HostPath.Path)
		return checkHostPath(v)
	}
	parent := filepath.Join(f.dir, "volumes")
	if v.EmptyDir.Medium == corev1.StorageMediumMemory {
		parent = f.memory
		var st syscall.Statfs_t
		if err := syscall.Statfs(memoryDir, &st); err != nil || st.Type != tmpfsMagic {
			return fmt.Errorf("volume %s: medium Memory needs a tmpfs on %s, and there is none", v.Name, memoryDir)
		}
	}
	if !f.parents[parent] { // one that is there was made by somebody else
		if err := os.Mkdir(parent, 0o700); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		f.parents[parent] = true
	}
	dir := filepath.Join(parent, v.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("volume %s: %w", v.Name, err)
	}
	mode := os.FileMode(0o777) // as the kubelet has it: any user of the pod may write
	if security != nil && security.FSGroup != nil {
		mode |= os.ModeSetgid
		if err := os.Chown(dir, -1, int(*security.FSGroup)); err != nil {
			return fmt.Errorf("volume %s: fsGroup: %w", v.Name, err)
		}
	}
	if err := os.Chmod(dir, mode); err != nil { // whatever the umask
		return fmt.Errorf("volume %s: %w", v.Name, err)
	}
	f.volumes[v.Name] = dir
	return nil
}

// checkHostPath makes sure that a host path is what its type says; without a type it may be anything, or nothing yet.
func checkHostPath(v *corev1.Volume) error {
	if v.HostPath.Type == nil || *v.HostPath.Type == corev1.HostPathUnset {
		return nil
	}
	path, want := v.HostPath.Path, *v.HostPath.Type
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		switch want {
		case corev1.HostPathDirectoryOrCreate:
			err = os.MkdirAll(path, 0o755)
		case corev1.HostPathFileOrCreate:
			var file *os.File
			if file, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err == nil {
				err = file.Close()
			}
		}
		if err == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("volume %s: hostPath: %w", v.Name, err)
	}
	kinds := map[corev1.HostPathType]bool{
		corev1.HostPathDirectory:         info.IsDir(),
		corev1.HostPathDirectoryOrCreate: info.IsDir(),
		corev1.HostPathFile:              info.Mode().IsRegular(),
		corev1.HostPathFileOrCreate:      info.Mode().IsRegular(),
		corev1.HostPathSocket:            info.Mode()&os.ModeSocket != 0,
		corev1.HostPathCharDev:           info.Mode()&os.ModeCharDevice != 0,
		corev1.HostPathBlockDev:          info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0,
	}
	is, known := kinds[want]
	switch {
	case !known:
		return fmt.Errorf("volume %s: hostPath.type: %q is unknown", v.Name, want)
	case !is:
		return fmt.Errorf("volume %s: hostPath: %s is not a %s", v.Name, path, want)
	}
	return nil
}

// volume is where a volume is on the host, or a path below it. A path below is made if it is missing, and refused if a link is in it:
// a container that wrote to the volume before could have put it there to reach the host's files.
func (f *files) volume(name, sub string) (string, error) {
	dir := f.volumes[name]
	if sub == "" {
		return dir, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("subPath: %w", err)
	}
	defer root.Close()
	at := ""
	parts := strings.FieldsFunc(filepath.Clean(sub), func(r rune) bool { return r == '/' })
	for i, part := range parts {
		at = filepath.Join(at, part)
		info, err := root.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) {
			if err = root.Mkdir(at, 0o755); err == nil {
				info, err = root.Lstat(at)
			}
		}
		switch {
		case err != nil:
			return "", fmt.Errorf("subPath: %w", err)
		case info.Mode()&os.ModeSymlink != 0:
			return "", fmt.Errorf("subPath: %s is a symbolic link, which is refused", filepath.Join(dir, at))
		case i < len(parts)-1 && !info.IsDir():
			return "", fmt.Errorf("subPath: %s is not a folder", filepath.Join(dir, at))
		}
	}
	return filepath.Join(dir, at), nil
}

// writeHosts makes the hosts file, which belongs to the pod's root.
func (f *files) writeHosts(text string, root int) error {
	path := filepath.Join(f.dir, "hosts")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("hosts file of the pod: %w", err)
	}
	f.hosts = path
	if root != 0 {
		if err := os.Chown(path, root, root); err != nil {
			return fmt.Errorf("hosts file of the pod: %w", err)
		}
	}
	return os.Chmod(path, 0o644) // whatever the umask: every user of the pod reads it
}

func (f *files) makeLogDir(container string) error {
	if err := os.MkdirAll(filepath.Join(f.logs, container), 0o755); err != nil {
		return fmt.Errorf("log folder of container %s: %w", container, err)
	}
	return nil
}

func (f *files) logFile(container string, attempt uint32) string {
	return filepath.Join(f.logs, manifest.LogPath(container, attempt))
}

func (f *files) remove() error {
	if f == nil {
		return nil
	}
	errs := []error{removeTree(f.dir)}
	if f.ownLogs != "" {
		errs = append(errs, removeTree(f.ownLogs))
	}
	if f.parents[f.memory] {
		errs = append(errs, removeTree(f.memory))
	}
	return errors.Join(errs...)
}

// logName is the log folder's name, as the kubelet makes it.
func logName(namespace, name, uid string) string { return namespace + "_" + name + "_" + uid }

// RemoveFiles removes what Run has made for a pod; of any other pod there is nothing, and that is fine.
func RemoveFiles(in Folders, pod *runtimeapi.PodSandboxMetadata) error {
	if !manifest.ValidUID(pod.GetUid()) {
		return nil
	}
	dir, memory := folders(in.Pods, pod.GetUid())
	errs := []error{removeTree(dir), removeTree(memory)}
	// Whoever made the pod chose its name: it must not lead to another folder.
	if name := logName(pod.GetNamespace(), pod.GetName(), pod.GetUid()); in.Logs != "" && !strings.ContainsAny(name, "/\x00") {
		errs = append(errs, removeTree(filepath.Join(in.Logs, name)))
	}
	return errors.Join(errs...)
}

// removeTree removes a folder unless something is mounted in it: what is behind a mount is not the pod's.
func removeTree(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4]+"/", dir+"/") {
			return fmt.Errorf("remove %s: %s is still mounted", dir, fields[4])
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove folder of the pod: %w", err)
	}
	return nil
}

// hostDNS is what the host's resolv.conf says.
func hostDNS() (*runtimeapi.DNSConfig, error) {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the host's resolv.conf: %w", err)
	}
	return parseResolvConf(string(data)), nil
}

func parseResolvConf(text string) *runtimeapi.DNSConfig {
	out := &runtimeapi.DNSConfig{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if i := slices.IndexFunc(fields, func(f string) bool { return strings.HasPrefix(f, "#") || strings.HasPrefix(f, ";") }); i >= 0 {
			fields = fields[:i]
		}
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			out.Servers = append(out.Servers, fields[1])
		case "search", "domain": // the last one counts
			out.Searches = fields[1:]
		case "options":
			out.Options = append(out.Options, fields[1:]...)
		}
	}
	return out
}

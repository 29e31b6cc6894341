// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
)

// Container is a container of a pod.
type Container struct {
	*Pod
	ID   string
	Spec *cri.ContainerConfig
}

// What a kubelet hides from containers that are not privileged.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// ContainerConfig is an ordinary container with a command.
func (k *Kubelet) ContainerConfig(name string, command ...string) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata:    &cri.ContainerMetadata{Name: name},
		Image:       &cri.ImageSpec{Image: k.Image},
		Command:     command,
		LogPath:     name + "/0.log",
		Labels:      map[string]string{"io.kubernetes.container.name": name},
		Annotations: map[string]string{"io.kubernetes.container.hash": "a1b2c3"},
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{CpuShares: 102, OomScoreAdj: 1000},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				MaskedPaths:      maskedPaths,
				ReadonlyPaths:    readonlyPaths,
			},
		},
	}
}

// Shell is an ordinary container that runs a shell script.
func (k *Kubelet) Shell(name, script string) *cri.ContainerConfig {
	return k.ContainerConfig(name, "sh", "-c", script)
}

// Forever is a container that runs until it is stopped, and then ends at once.
func (k *Kubelet) Forever(name string) *cri.ContainerConfig {
	return k.Shell(name, `trap "exit 0" TERM; while :; do sleep 1000 & wait; done`)
}

// TryCreate asks for a container.
func (p *Pod) TryCreate(c *cri.ContainerConfig) (*Container, error) {
	p.T.Helper()
	if c.LogPath != "" && p.Config.LogDirectory != "" {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(p.Config.LogDirectory, c.LogPath)), 0o755); err != nil {
			p.T.Fatal(err)
		}
	}
	r, err := p.D.Runtime.CreateContainer(p.Ctx(), &cri.CreateContainerRequest{PodSandboxId: p.ID, Config: c, SandboxConfig: p.Config})
	if err != nil {
		return nil, err
	}
	return &Container{p, r.ContainerId, c}, nil
}

// Create makes a container; it goes with its pod.
func (p *Pod) Create(c *cri.ContainerConfig) *Container {
	p.T.Helper()
	made, err := p.TryCreate(c)
	return Must(p.Kubelet, made, err)
}

// Start makes a container and starts it.
func (p *Pod) Start(c *cri.ContainerConfig) *Container {
	p.T.Helper()
	made := p.Create(c)
	if err := made.TryStart(); err != nil {
		p.T.Fatal(err)
	}
	return made
}

// TryStart asks for the start of a container.
func (c *Container) TryStart() error {
	c.T.Helper()
	_, err := c.D.Runtime.StartContainer(c.Ctx(), &cri.StartContainerRequest{ContainerId: c.ID})
	return err
}

// Stop stops the container within a grace period in seconds.
func (c *Container) Stop(grace int64) {
	c.T.Helper()
	if _, err := c.D.Runtime.StopContainer(c.Ctx(), &cri.StopContainerRequest{ContainerId: c.ID, Timeout: grace}); err != nil {
		c.T.Fatalf("stop container: %v", err)
	}
}

// Cgroup is where the container is, below each hierarchy's mount point.
func (c *Container) Cgroup() string {
	c.T.Helper()
	path, err := c.D.ContainerCgroup(c.Config.GetLinux().GetCgroupParent(), c.ID)
	return Must(c.Kubelet, path, err)
}

// Remove removes the container.
func (c *Container) Remove() {
	c.T.Helper()
	if _, err := c.D.Runtime.RemoveContainer(c.Ctx(), &cri.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		c.T.Fatalf("remove container: %v", err)
	}
}

// Status is the container's status.
func (c *Container) Status() *cri.ContainerStatus {
	c.T.Helper()
	r, err := c.D.Runtime.ContainerStatus(c.Ctx(), &cri.ContainerStatusRequest{ContainerId: c.ID})
	return Must(c.Kubelet, r, err).GetStatus()
}

// WaitExit waits until the container has ended.
func (c *Container) WaitExit() *cri.ContainerStatus {
	c.T.Helper()
	var s *cri.ContainerStatus
	Eventually(c.T, 30*time.Second, func() string {
		if s = c.Status(); s.State == cri.ContainerState_CONTAINER_EXITED {
			return ""
		}
		return "container is " + s.State.String()
	})
	return s
}

// ExecSync runs a command in the container.
func (c *Container) ExecSync(seconds int64, command ...string) (*cri.ExecSyncResponse, error) {
	c.T.Helper()
	return c.D.Runtime.ExecSync(c.Ctx(), &cri.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: seconds})
}

// Exec runs a shell script in the container, which must succeed, and returns its output without white space around it.
func (c *Container) Exec(script string) string {
	c.T.Helper()
	r, err := c.ExecSync(int64(daemon.Slow(30*time.Second).Seconds()), "sh", "-c", script)
	if err != nil || r.ExitCode != 0 {
		c.T.Fatalf("exec %q: code %d, %v\n%s%s", script, r.GetExitCode(), err, r.GetStdout(), r.GetStderr())
	}
	return strings.TrimSpace(string(r.Stdout))
}

// Line is one line of a log in CRI format.
type Line struct {
	Time                 time.Time
	Stream, Tag, Content string
}

// LogPath is the log file on the host.
func (c *Container) LogPath() string { return filepath.Join(c.Config.LogDirectory, c.Spec.LogPath) }

// Log reads the log, whose every line must be in CRI format.
func (c *Container) Log() []Line {
	c.T.Helper()
	lines, err := ReadLog(c.LogPath())
	if err != nil {
		c.T.Fatal(err)
	}
	return lines
}

// ReadLog reads a log file in CRI format.
func ReadLog(path string) ([]Line, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	var lines []Line
	for text := range strings.Lines(string(data)) {
		if !strings.HasSuffix(text, "\n") {
			break // being written
		}
		f := strings.SplitN(strings.TrimSuffix(text, "\n"), " ", 4)
		if len(f) != 4 {
			return nil, fmt.Errorf("log line is not in CRI format: %.200q", text)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil || (f[1] != "stdout" && f[1] != "stderr") || (f[2] != "P" && f[2] != "F") {
			return nil, fmt.Errorf("log line is not in CRI format: %.200q", text)
		}
		lines = append(lines, Line{at, f[1], f[2], f[3]})
	}
	return lines, nil
}

// Output is what the log holds of one stream.
func (c *Container) Output(stream string) string {
	c.T.Helper()
	var b strings.Builder
	for _, l := range c.Log() {
		if l.Stream == stream {
			b.WriteString(l.Content)
			if l.Tag == "F" {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

// WaitOutput waits until the log of stdout holds the text.
func (c *Container) WaitOutput(text string) {
	c.T.Helper()
	Eventually(c.T, 20*time.Second, func() string {
		if out := c.Output("stdout"); !strings.Contains(out, text) {
			return fmt.Sprintf("output %q lacks %q", out, text)
		}
		return ""
	})
}

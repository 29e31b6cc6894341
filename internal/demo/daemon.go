// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/config"
)

// startTime bounds the daemon's start, stopTime its end.
const (
	startTime = 15 * time.Second
	stopTime  = 10 * time.Second
)

// configText is the daemon's file. The pods' cgroups are made as folders even under systemd: their place is the demo's own.
func (d *demo) configText() string {
	dirs := config.Defaults().Network.BinDirs
	if d.programs.cni != "" {
		dirs = append([]string{d.programs.cni}, dirs...)
	}
	quoted := make([]string, len(dirs))
	for i, dir := range dirs {
		quoted[i] = fmt.Sprintf("%q", dir)
	}
	text := fmt.Sprintf(`version = 1

[network]
conf_dir = %q
bin_dirs = [%s]
netns_dir = %q

[cgroup]
driver = "cgroupfs"
parent = %q

[registry]
config_path = %q
`, d.dir+"/net.d", strings.Join(quoted, ", "), d.netns, d.cgroup, d.dir+"/certs.d")
	if d.programs.runc != "" {
		text += fmt.Sprintf("\n[runtimes.runc]\npath = %q\n", d.programs.runc)
	}
	return text
}

// conflist is the CNI configuration: a bridge with its own addresses, kept in the demo's folder, and host ports.
func (d *demo) conflist() (string, error) {
	text, err := json.MarshalIndent(map[string]any{"cniVersion": "1.0.0", "name": d.network, "plugins": []map[string]any{
		{"type": "bridge", "bridge": d.bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": map[string]any{
			"type": "host-local", "dataDir": d.ipam, "ranges": [][]map[string]string{{{"subnet": d.subnet}}},
			"routes": []map[string]string{{"dst": "0.0.0.0/0"}}}},
		{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
	}}, "", "  ")
	return string(text) + "\n", err
}

// startDaemon starts it and waits until it can run pods.
func (d *demo) startDaemon(ctx context.Context) error {
	conflist, err := d.conflist()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"config.toml": d.configText(), "net.d/10-demo.conflist": conflist} {
		if _, err := d.write(name, text); err != nil {
			return err
		}
	}
	begin := time.Now()
	d.daemon, err = launch(d.log, d.programs.self, "serve", "--config", d.config, "--root", d.root, "--state", d.state, "--socket", d.socket)
	if err != nil {
		return err
	}
	if err := d.waitReady(ctx); err != nil {
		return err
	}
	d.say("daemon %d is ready after %s", d.daemon.pid(), since(begin))
	return nil
}

func (d *demo) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+d.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to the daemon: %w", err)
	}
	defer conn.Close()
	for {
		why := ready(ctx, runtimeapi.NewRuntimeServiceClient(conn))
		if why == nil {
			return nil
		}
		conn.ResetConnectBackoff() // it is expected to come at any moment
		select {
		case <-d.daemon.gone:
			return fmt.Errorf("the daemon has ended: %s", d.daemon.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("the daemon is not ready after %s: %w", startTime, why)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func ready(ctx context.Context, client runtimeapi.RuntimeServiceClient) error {
	st, err := client.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range st.GetStatus().GetConditions() {
		if !c.GetStatus() {
			return fmt.Errorf("%s: %s", c.GetType(), c.GetMessage())
		}
	}
	return nil
}

// process is the daemon as a child of the demo.
type process struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
}

func launch(logPath string, args ...string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which takes things down in order
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	p := &process{cmd: cmd, gone: make(chan struct{})}
	go func() {
		defer close(p.gone)
		_ = cmd.Wait() // how it ended is in ProcessState
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// kill is kill -9.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill the daemon: %w", err)
	}
	<-p.gone
	return nil
}

// stop is what an init system does: SIGTERM, and SIGKILL if that does not help.
func (p *process) stop(ctx context.Context) error {
	err := p.cmd.Process.Signal(syscall.SIGTERM)
	switch {
	case errors.Is(err, os.ErrProcessDone):
		return fmt.Errorf("the daemon had ended before: %s", p.cmd.ProcessState)
	case err != nil:
		return fmt.Errorf("stop the daemon: %w", err)
	}
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
	case <-time.After(stopTime):
	}
	return errors.Join(fmt.Errorf("the daemon has not ended %s after SIGTERM", stopTime), p.kill())
}

// daemonLog shows the end of the daemon's log: a failure is explained there or nowhere.
func (d *demo) daemonLog() {
	data, err := os.ReadFile(d.log)
	if err != nil { // it was not started
		return
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	fmt.Fprintln(d.out, "    The end of the daemon's log:")
	for _, l := range lines[max(0, len(lines)-15):] {
		fmt.Fprintln(d.out, "    "+l)
	}
	fmt.Fprintln(d.out)
}

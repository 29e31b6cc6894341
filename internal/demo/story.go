// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	repository = "demo/busybox:1"
	podName    = "hello"
	web, ask   = "web", "ask"
	greeting   = "hello from a pod on Berth"
)

// containers are the pod's, in its order.
var containers = []string{web, ask}

func (d *demo) serveImage(ctx context.Context) error {
	var err error
	if d.registry, err = startRegistry(); err != nil {
		return err
	}
	size, err := d.registry.push(ctx, repository, d.programs.busybox)
	if err != nil {
		return err
	}
	d.say("%s, %s", d.image(), size)
	return nil
}

func (d *demo) image() string { return d.registry.host + "/" + repository }

func (d *demo) pull(ctx context.Context) error {
	if err := d.berth(ctx, "pull", d.image()); err != nil {
		return err
	}
	return d.berth(ctx, "images")
}

// manifest is what a user of Kubernetes writes. The second container asks the first over the pod's own loopback.
func (d *demo) manifest() string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: %s
    image: %[4]s
    command: [httpd, -f, -vv, -p, "8080", -h, /www]
    ports: [{containerPort: 8080, hostPort: %[5]d}]
    resources: {requests: {cpu: 100m}, limits: {memory: 64Mi}}
  - name: %[3]s
    image: %[4]s
    command: [sh, -c]
    args: ['trap "exit 0" TERM; n=0; while true; do n=$((n+1)); echo "$n: $(wget -qO- http://localhost:8080/)"; sleep 0.2; done']
    env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
`, podName, web, ask, d.image(), d.hostPort)
}

func (d *demo) runPod(ctx context.Context) error {
	var err error
	if d.hostPort, err = freePort(); err != nil {
		return err
	}
	path, err := d.write("pod.yaml", d.manifest())
	if err != nil {
		return err
	}
	if err := d.berth(ctx, "run", "-d", path); err != nil {
		return err
	}
	return d.readPIDs(ctx)
}

// readPIDs remembers the process of each container; later ones must be the same.
func (d *demo) readPIDs(ctx context.Context) error {
	for _, name := range containers {
		pid, err := d.quiet(ctx, "inspect", podName+"/"+name, "-o", "go-template", "--template", "{{.info.pid}}")
		if err != nil {
			return err
		}
		switch before := d.pids[name]; {
		case before == "":
			d.pids[name] = pid
		case before != pid:
			return fmt.Errorf("container %s has process %s, it was %s", name, pid, before)
		}
	}
	return nil
}

func (d *demo) pidText() string {
	return fmt.Sprintf("%s %s, %s %s", web, d.pids[web], ask, d.pids[ask])
}

func (d *demo) showPod(ctx context.Context) error {
	if err := d.berth(ctx, "pods", "-o", "wide"); err != nil {
		return err
	}
	if err := d.berth(ctx, "ps"); err != nil {
		return err
	}
	var err error
	d.podIP, err = d.quiet(ctx, "inspect", podName, "-o", "go-template", "--template", "{{.status.network.ip}}")
	return err
}

func (d *demo) askPod(ctx context.Context) error {
	for _, host := range []string{d.address(), fmt.Sprintf("127.0.0.1:%d", d.hostPort)} {
		if err := d.get(ctx, "http://"+host+"/"); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) address() string { return net.JoinHostPort(d.podIP, "8080") }

// get asks a few times: a web server may not listen yet when its container has just started.
func (d *demo) get(ctx context.Context, url string) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var err error
	for try := 0; try < 25 && ctx.Err() == nil; try++ {
		var text string
		if text, err = getOnce(ctx, client, url); err == nil {
			d.say("GET %s: %s", url, text)
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("get %s: %w", url, err)
}

func getOnce(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(body))
	if answer.StatusCode != http.StatusOK || text != greeting {
		return "", fmt.Errorf("%s: %q", answer.Status, text)
	}
	return text, nil
}

func (d *demo) showLogs(ctx context.Context) error {
	for _, name := range containers {
		if err := d.berth(ctx, "logs", "--tail", "2", name); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) exec(ctx context.Context) error { return d.berth(ctx, "exec", web, "ps") }

func (d *demo) killDaemon(ctx context.Context) error {
	d.say("daemon %d, containers: %s", d.daemon.pid(), d.pidText())
	if err := d.daemon.kill(); err != nil {
		return err
	}
	for _, name := range containers {
		if _, err := os.Stat("/proc/" + d.pids[name]); err != nil {
			return fmt.Errorf("container %s has ended with the daemon: %w", name, err)
		}
	}
	d.say("the daemon is gone, the containers are still there")
	if err := d.get(ctx, "http://"+d.address()+"/"); err != nil {
		return err
	}
	return d.watchLog()
}

// watchLog sees the log grow without the daemon.
func (d *demo) watchLog() error {
	before, err := d.countLog()
	if err != nil {
		return err
	}
	time.Sleep(time.Second)
	now, err := d.countLog()
	if err != nil {
		return err
	}
	if now <= before {
		return fmt.Errorf("container %s has logged nothing while the daemon was away", ask)
	}
	d.say("container %s has logged %d lines meanwhile", ask, now-before)
	return nil
}

func (d *demo) restartDaemon(ctx context.Context) error {
	if err := d.startDaemon(ctx); err != nil {
		return err
	}
	if err := d.readPIDs(ctx); err != nil {
		return err
	}
	d.say("containers: %s, as before", d.pidText())
	if err := d.berth(ctx, "ps"); err != nil {
		return err
	}
	return d.berth(ctx, "logs", "--tail", "2", ask)
}

// countLog counts the lines of a container's log without asking the daemon.
func (d *demo) countLog() (int, error) {
	files, err := filepath.Glob(d.pods + "/*/logs/" + ask + "/0.log")
	if err != nil || len(files) != 1 {
		return 0, fmt.Errorf("log of container %s: %d files, %w", ask, len(files), err)
	}
	data, err := os.ReadFile(files[0])
	return bytes.Count(data, []byte{'\n'}), err
}

func (d *demo) remove(ctx context.Context) error {
	for _, args := range [][]string{{"stop", "-t", "1", podName}, {"rm", podName}, {"rmi", d.image()}, {"pods"}, {"images"}} {
		if err := d.berth(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// freePort is a port that nobody listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("look for a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

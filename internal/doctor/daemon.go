// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// slow is how old an operation is that gets a mention.
const slow = 30 * time.Second

func (d *Doctor) checkConfig(_ context.Context, r report) {
	if d.ConfigError != nil {
		r.fail("correct it and see `berth config check`; a running daemon goes on with what it had", "the configuration cannot be used: %v", d.ConfigError)
		return
	}
	r.ok("the configuration can be used")
}

func (d *Doctor) checkSocket(ctx context.Context, r report) {
	path := d.Config.Socket
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.fail("start the daemon (`systemctl start berth` or `berth serve`), or say with --socket where it is", "there is no socket at %s", path)
		return
	case err != nil:
		r.fail("run this as root", "socket %s: %v", path, err)
		return
	case info.Mode()&fs.ModeSocket == 0:
		r.fail("move the file away and start the daemon", "%s is not a socket", path)
		return
	}
	if mode := info.Mode().Perm(); mode&0o007 != 0 {
		r.add(Fail, "chmod 0660 "+path+": whoever can write to it is root on this node", "socket %s can be used by everybody (mode %04o)", path, mode).
			fix = func() error { return os.Chmod(path, 0o660) }
	}
	client, err := d.Connect(ctx)
	if err != nil {
		r.fail("start the daemon, or restart it if it runs: its log says why it does not serve", "nobody answers at %s: %v", path, err)
		return
	}
	version, err := client.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		r.fail("see the daemon's log (`journalctl -u berth`); SIGQUIT makes it write what it is doing, systemd then starts it again, and pods stay",
			"the daemon at %s does not answer: %v", path, status.Convert(err).Message())
		return
	}
	d.client = client
	if version.GetRuntimeName() != "berth" {
		r.fail("say with --socket where Berth's is", "%s belongs to %s", path, version.GetRuntimeName())
		return
	}
	r.ok("Berth %s serves CRI %s at %s", version.GetRuntimeVersion(), version.GetRuntimeApiVersion(), path)
}

func (d *Doctor) checkStatus(ctx context.Context, r report) {
	if d.client == nil {
		return // checkSocket has told why
	}
	st, err := d.client.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		r.fail("see the daemon's log", "the daemon does not tell its status: %v", status.Convert(err).Message())
		return
	}
	d.info = st.GetInfo()
	for _, c := range st.GetStatus().GetConditions() {
		switch {
		case c.GetStatus():
			r.ok("%s", c.GetType())
		case c.GetType() == runtimeapi.NetworkReady:
			r.fail("pods without host network cannot start: see the findings on the network below", "%s is false: %s", c.GetType(), c.GetMessage())
		case c.GetType() == runtimeapi.RuntimeReady:
			r.fail("see the daemon's log", "%s is false: %s", c.GetType(), c.GetMessage())
		default:
			r.warn("see the daemon's log", "%s is false: %s %s", c.GetType(), c.GetReason(), c.GetMessage())
		}
	}
}

// Operation is a request in flight, as the daemon's verbose status tells it under "operations".
type Operation struct {
	Method  string  `json:"method"`
	Object  string  `json:"object,omitempty"`
	Seconds float64 `json:"seconds"`
}

func (d *Doctor) checkOperations(_ context.Context, r report) {
	raw := d.info["operations"]
	if raw == "" {
		return
	}
	var all []Operation
	if err := json.Unmarshal([]byte(raw), &all); err != nil {
		r.warn("use the `berth` that belongs to the daemon", "the daemon's operations cannot be read: %v", err)
		return
	}
	hung := 0
	for _, op := range all {
		if age := time.Duration(op.Seconds * float64(time.Second)); age > slow {
			hung++
			r.warn("the daemon's log names the stage that it hangs in when the caller's patience ends; a network plugin, a registry or a process that the "+
				"kernel does not let go of are the usual causes", "%s %s has been running for %s", op.Method, op.Object, age.Round(time.Second))
		}
	}
	if hung == 0 {
		r.ok("%d operations are in flight, none for longer than %s", len(all), slow)
	}
}

// checkLeftOver compares what is pinned and recorded on disk with the pods that the daemon knows.
func (d *Doctor) checkLeftOver(ctx context.Context, r report) {
	if d.client == nil {
		return
	}
	list, err := d.client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		code := status.Code(err)
		if code != codes.Unimplemented {
			r.fail("see the daemon's log", "pods cannot be listed: %v", status.Convert(err).Message())
		}
		return
	}
	known := make(map[string]bool, len(list.GetItems()))
	for _, p := range list.GetItems() {
		known[p.GetId()] = true
	}
	aside, err := filepath.Glob(filepath.Join(d.Config.Root, "quarantine", "*"))
	if err == nil && len(aside) > 0 {
		r.warn("look at them, then delete them: what they held is released", "%d unreadable records are set aside in %s", len(aside), filepath.Join(d.Config.Root, "quarantine"))
	}
	orphans := d.orphans(known)
	for _, o := range orphans {
		r.warn("restart the daemon: it sweeps what no pod owns (pods stay)", "%s belongs to no pod", o)
	}
	if len(orphans) == 0 {
		r.ok("%d pods, and nothing on the machine that belongs to none of them", len(known))
	}
}

// young is how fresh something may be without a pod: it is being made or taken away.
const young = time.Minute

// orphans are state folders and pinned network namespaces of pods that nobody knows.
func (d *Doctor) orphans(known map[string]bool) []string {
	const prefix = "berth-"
	var all []string
	look := func(pattern, prefix string) {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return // only a malformed pattern is an error
		}
		for _, p := range paths {
			info, err := os.Lstat(p)
			if err == nil && !known[filepath.Base(p)[len(prefix):]] && time.Since(info.ModTime()) > young {
				all = append(all, p)
			}
		}
	}
	look(filepath.Join(d.Config.State, "pods", "*"), "")
	look(filepath.Join(d.Config.Root, "pods", "*"), "")
	look(filepath.Join(d.Config.Network.NetnsDir, prefix+"*"), prefix)
	return all
}

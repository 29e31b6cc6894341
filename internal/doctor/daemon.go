// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/config"
)

// slow is how old an operation is that gets a mention.
const slow = 30 * time.Second

func (d *Doctor) checkConfig(_ context.Context, r report) {
	if d.ConfigError != nil {
		r.fail("correct it and see `berth config check`; a running daemon goes on with what it had", "the configuration cannot be used: %v", d.ConfigError)
		return
	}
	broken, ignored := config.OnMachine(d.Config, d.Origins)
	broken = slices.DeleteFunc(broken, func(p config.Problem) bool { // checkRuntimes tells of programs
		return strings.HasPrefix(p.Key, "runtimes.") || strings.HasPrefix(p.Key, "shim.")
	})
	for _, p := range broken {
		r.fail("put it there, or correct the configuration: the daemon does not start without it, or lets no image in", "the configuration names what is not here: %v", p)
	}
	for _, p := range ignored {
		r.warn("put it there, or correct the configuration: the daemon does without it", "the configuration names what is not here: %v", p)
	}
	if len(broken)+len(ignored) == 0 {
		r.ok("the configuration can be used")
	}
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
	if errors.Is(err, fs.ErrPermission) {
		r.fail("run this as root, or as somebody in the socket's group", "you may not use the socket %s", path)
		return
	}
	if err != nil {
		r.fail("start the daemon, or restart it if it runs: its log says why it does not serve", "nobody answers at %s: %v", path, err)
		return
	}
	version, err := client.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		r.fail("see the daemon's log (`journalctl -u berth`); SIGQUIT makes it write what it is doing, systemd then starts it again, and pods stay",
			"the daemon at %s does not answer%s", path, silence(err))
		return
	}
	d.client, d.running = client, version.GetRuntimeVersion()
	if version.GetRuntimeName() != "berth" {
		r.fail("say with --socket where Berth's is", "%s belongs to %s", path, version.GetRuntimeName())
		return
	}
	r.ok("Berth %s serves CRI %s at %s", version.GetRuntimeVersion(), version.GetRuntimeApiVersion(), path)
}

// silence words why an answer is missing.
func silence(err error) string {
	if status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf(" within %s: it hangs, or is stopped", checkTime)
	}
	return ": " + status.Convert(err).Message()
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

// Operation is a request in flight, as the daemon's verbose status tells it under "operations", or work on a pod, under "work", which goes on when
// the caller's patience has ended.
type Operation struct {
	Method  string  `json:"method"`
	Object  string  `json:"object,omitempty"`
	Seconds float64 `json:"seconds"`
	// Stage is what the work hangs in, with its age.
	Stage string `json:"stage,omitempty"`
}

func (o Operation) age() time.Duration { return time.Duration(o.Seconds * float64(time.Second)) }

// operations reads one of the lists of the verbose status; false: the daemon has none, or one that a finding tells of.
func (d *Doctor) operations(r report, key string) (all []Operation, ok bool) {
	raw := d.info[key]
	if raw == "" {
		return nil, false
	}
	if err := json.Unmarshal([]byte(raw), &all); err != nil {
		r.warn("use the `berth` that belongs to the daemon", "the daemon's %s cannot be read: %v", key, err)
		return nil, false
	}
	return all, true
}

func (d *Doctor) checkOperations(_ context.Context, r report) {
	calls, ok := d.operations(r, "operations")
	work, _ := d.operations(r, "work") // an earlier daemon has none
	if !ok {
		return
	}
	hung := 0
	at := map[string]bool{} // methods whose delay is explained
	for _, w := range work {
		if w.age() <= slow {
			continue
		}
		hung++
		at[w.Method] = true
		stage := "between two stages"
		if w.Stage != "" {
			stage = "it is in stage " + w.Stage
		}
		r.warn(remedy(w.Stage), "%s of %s has been running for %s: %s", w.Method, w.Object, w.age().Round(time.Second), stage)
	}
	for _, op := range calls {
		if op.age() > slow && !at[op.Method] {
			hung++
			r.warn("a registry, a network plugin or a process that the kernel does not let go of are the usual causes: see the daemon's log",
				"%s %s has been running for %s", op.Method, op.Object, op.age().Round(time.Second))
		}
	}
	if hung == 0 {
		r.ok("%d operations are in flight, none for longer than %s", len(calls), slow)
	}
}

// remedies tell what to look at, by the stage that comes first.
var remedies = []struct{ stage, do string }{
	{"network", "a network plugin does not end: see which one runs (`ps axf`, below berth serve) and its log; `berth doctor --network-test` tries it with a scratch namespace"},
	{"task", "the OCI runtime does not end, or the container's processes do not: see `ps axf` for state D, and shim.log in the pod's state folder"},
	{"pause", "the OCI runtime does not end: see shim.log in the pod's state folder"},
	{"rootfs", "a mount does not end: see the kernel's log (dmesg) for trouble of the disk"},
	{"shim", "the pod's shim does not answer: see shim.log in the pod's state folder; SIGUSR1 makes it write what it is doing there"},
	{"volume", "the volume's file system does not answer, or giving all of its files a label takes long: look at what serves it, a CSI driver or an NFS server; `umount -f` ends who waits for one that is dead"},
	{"log folder", "the disk with the pods' logs does not answer: see the kernel's log (dmesg)"},
	{"NRI plugins", "a plugin does not answer: the daemon's log names it; [nri] request_timeout is how long it may take"},
	{"cgroup", "the kernel does not let go of a process in the pod's cgroup: see `ps axf` for state D"},
}

func remedy(stage string) string {
	for _, r := range remedies {
		if strings.HasPrefix(stage, r.stage+" ") {
			return r.do
		}
	}
	return "see the daemon's log; /debug/pprof/goroutine?debug=2 of the debug endpoint tells where it waits"
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/transcript"
)

type outcome struct {
	code     int
	out, err string
}

// berthIn runs one command line with that standard input.
func berthIn(ctx context.Context, in string, args ...string) outcome {
	var out, errs transcript.Text
	code := New(Options{Version: "0.9", In: strings.NewReader(in), Out: &out, Err: &errs}).Run(ctx, args)
	return outcome{code, out.String(), errs.String()}
}

func (f *fakeCRI) berth(t *testing.T, args ...string) outcome {
	t.Helper()
	return berthIn(t.Context(), "", append([]string{"--socket", "unix://" + f.socket}, args...)...)
}

// populated is a runtime with two pods, four containers and two images.
func populated(t *testing.T) *fakeCRI {
	f := newFake(t)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addPod("b1", "front", runtimeapi.PodSandboxState_SANDBOX_READY)
	f.addPod("b2", "back", runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	f.addContainer("d1", "b1", "web", runtimeapi.ContainerState_CONTAINER_RUNNING)
	f.addContainer("d2", "b1", "side", runtimeapi.ContainerState_CONTAINER_EXITED).ExitCode = 3
	f.addContainer("d3", "b2", "side", runtimeapi.ContainerState_CONTAINER_EXITED)
	f.images = []*runtimeapi.Image{
		{Id: "sha256:" + id("e1"), RepoTags: []string{"docker.io/library/busybox:1"}, RepoDigests: []string{"docker.io/library/busybox@sha256:" + id("f1")}, Size: 4_400_000},
		{Id: "sha256:" + id("e2"), RepoDigests: []string{"ghcr.io/x/y@sha256:" + id("f2")}, Size: 99},
	}
	return f
}

func TestTables(t *testing.T) {
	f := populated(t)
	for _, c := range []struct{ args, want string }{
		{"pods", "POD ID          CREATED       STATE      NAME    NAMESPACE   ATTEMPT   RUNTIME\n" +
			"b100000000000   3 hours ago   Ready      front   default     0         (default)\n" +
			"b200000000000   3 hours ago   NotReady   back    default     0         (default)\n"},
		{"pods --state notready -q", id("b2") + "\n"},
		{"pods --name ^fro -q", id("b1") + "\n"},
		{"pods --label app=back -q", id("b2") + "\n"},
		{"pods --id b2 -q", id("b2") + "\n"},
		{"ps", "CONTAINER       IMAGE                         CREATED         STATE     NAME   ATTEMPT   POD ID          POD\n" +
			"d100000000000   docker.io/library/busybox:1   2 minutes ago   Running   web    0         b100000000000   front\n"},
		{"ps -q", id("d1") + "\n"},
		{"ps -a -q --pod back", id("d3") + "\n"},
		{"ps -a -q --name side", id("d2") + "\n" + id("d3") + "\n"},
		{"ps -q --state exited", id("d2") + "\n" + id("d3") + "\n"},
		{"images", "IMAGE                       TAG      IMAGE ID        SIZE\n" +
			"docker.io/library/busybox   1        e100000000000   4.4MB\n" +
			"ghcr.io/x/y                 <none>   e200000000000   99B\n"},
		{"images -q", "sha256:" + id("e1") + "\nsha256:" + id("e2") + "\n"},
		{"version", "CLIENT   berth   0.9"},
	} {
		t.Run(c.args, func(t *testing.T) {
			got := f.berth(t, strings.Fields(c.args)...)
			if got.code != 0 || got.err != "" || !strings.HasPrefix(got.out, c.want) || c.args != "version" && got.out != c.want {
				t.Errorf("exit code %d, stderr %q, got\n%s\nwant\n%s", got.code, got.err, got.out, c.want)
			}
		})
	}
}

func TestJSONIsTheCRIsAnswer(t *testing.T) {
	f := populated(t)
	for args, path := range map[string][]string{
		"pods -o json": {"items", "0", "metadata", "name", "front"}, "ps -o json": {"containers", "0", "podSandboxId", id("b1")},
		"images -o json": {"images", "0", "size", "4400000"}, "inspect web": {"status", "state", "CONTAINER_RUNNING"},
		"inspect front": {"status", "network", "ip", "10.1.0.7"}, "inspect docker.io/library/busybox:1": {"status", "id", "sha256:" + id("e1")},
		"inspect e1": {"status", "id", "sha256:" + id("e1")}, "info -o json": {"config", "root", "/var/lib/berth"},
	} {
		got := f.berth(t, strings.Fields(args)...)
		var v any
		if err := json.Unmarshal([]byte(got.out), &v); err != nil {
			t.Errorf("%s: %v: %+v", args, err, got)
			continue
		}
		for _, key := range path[:len(path)-1] {
			if key == "0" {
				v = v.([]any)[0]
			} else {
				v = v.(map[string]any)[key]
			}
		}
		if v != path[len(path)-1] {
			t.Errorf("%s: %v is %v", args, path, v)
		}
	}
	if got := f.berth(t, "inspect", "web", "-o", "yaml"); !strings.Contains(got.out, "\n  logPath: \"\"\n") {
		t.Errorf("yaml: %+v", got)
	}
}

func TestErrors(t *testing.T) {
	f := populated(t)
	for _, c := range []struct{ args, want string }{
		{"inspect nobody", `pod, container or image "nobody": not found`},
		{"stop nobody", `pod or container "nobody": not found`},
		{"logs front", `container "front": not found`},
		{"logs side", `"side" is ambiguous: container front/side (d200000000000), container back/side (d300000000000)`},
		{"stop d", `"d" is ambiguous: container front/web (d100000000000), container front/side (d200000000000), container back/side (d300000000000)`},
		{"logs web", "container web (d100000000000) has no log: it was made without a log path"},
		{"rm web", "container web (d100000000000) is running: stop it first, or use --force"},
		{"exec back/side ls", "exec in container side (d300000000000): it is not running"},
		{"exec --sync -it web sh", "exec --sync: has no standard input and no terminal: leave out -i and -t"},
		{"exec --transport carrier-pigeon web sh", `--transport "carrier-pigeon": is neither spdy nor websocket`},
		{"checkpoint back/side x", "checkpoint container side (d300000000000): it is not running"},
		{"checkpoint --pod back x", "checkpoint pod back (b200000000000): no container of it is running"},
		{"checkpoint web", "checkpoint takes a container and a file, or with --pod a pod and a folder: see `berth checkpoint --help`"},
		{"attach back/side", "attach to container side (d300000000000): it is not running"},
		{"port-forward front 99999", `port "99999": is not in 1 to 65535`},
		{"port-forward front x:80", `local port "x": is not in 0 to 65535`},
		{"port-forward front", "port-forward takes a pod and its ports: see `berth port-forward --help`"},
		{"exec web", "exec takes a container and a command: see `berth exec --help`"},
		{"stats", "stats: "},
		{"pods -o xml", `output "xml" is not one of table, wide, json, yaml`},
		{"pods --state up", `--state "up" is not one of ready, notready`},
		{"ps --label x", `--label "x": must be KEY=VALUE`},
		{"pull", "pull: no image given: see `berth pull --help`"},
		{"logs", "logs: no container given: see `berth logs --help`"},
		{"run", "run: no manifest given: see `berth run --help`"},
		{"pull x --creds-stdin", "credentials must be USER:PASSWORD"},
		{"rmi nothing", `image "nothing": not found`},
		{"stopp front extra", `pod "extra": not found`},
		{"help pots", `unknown command "pots": did you mean pods`},
		{"help config nope", "unknown command \"nope\": berth config has check, default, show"},
		{"config chekc", `unknown command "chekc": did you mean check`},
		{"foo", "unknown command \"foo\": see `berth --help`"},
		{"containers", `unknown command "containers": did you mean ps`},
		{"completion klingon", "unknown command \"klingon\": berth completion has bash, fish, powershell, zsh"},
		{"logs --tail x web", `invalid argument "x" for "--tail" flag: is no whole number`},
		{"pots", `unknown command "pots": did you mean pods`},
		{"pods --frob", "unknown flag: --frob: see `berth pods --help`"},
		{"run /nowhere/pod.yaml", "/nowhere/pod.yaml: no such file or directory"},
	} {
		t.Run(c.args, func(t *testing.T) {
			got := f.berth(t, strings.Fields(c.args)...)
			if got.code != 1 || got.out != "" || !strings.HasPrefix(got.err, "berth: "+c.want) {
				t.Errorf("exit code %d, stdout %q, stderr\n%s\nwant\n%s", got.code, got.out, got.err, c.want)
			}
		})
	}
	if calls := f.history(); len(calls) > 0 {
		t.Errorf("errors have changed something: %q", calls)
	}
}

// Who checks a change before a restart must hear of all that would keep the daemon from starting.
func TestConfigCheckLooksForWhatTheFileNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte("version = 1\n[hooks]\ndirs = [\"/nowhere\"]\n[qos]\nblockio_config = \"/nowhere/io.yaml\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	warning := "berth: warning: " + file + ":3: hooks.dirs: /nowhere: no such file or directory\n"
	got := berthIn(t.Context(), "", "config", "check", file)
	if want := warning + file + ":5: qos.blockio_config: /nowhere/io.yaml: no such file or directory\n"; got.code != 1 || got.out != "" || got.err != want {
		t.Errorf("got %+v, want %s", got, want)
	}
	if got := berthIn(t.Context(), "", "config", "check", "--anywhere", file); got.code != 0 || got.err != "" || !strings.HasPrefix(got.out, "the configuration is valid") {
		t.Errorf("for another machine: %+v", got)
	}
}

func TestRuntimesErrorIsPrintedAsItIs(t *testing.T) {
	f := populated(t)
	f.fail["ListPodSandbox"] = status.Error(codes.Internal, "disk is on fire")
	if got, want := f.berth(t, "pods"), (outcome{1, "", "berth: list pods: disk is on fire\n"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestNobodyAtTheSocket(t *testing.T) {
	dir := t.TempDir()
	gone, file := filepath.Join(dir, "gone.sock"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "stale.sock")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	const hint = "is the daemon running? start it with `berth serve`"
	for socket, want := range map[string]string{
		gone:                             "cannot reach berth at " + gone + ": there is no such socket: " + hint,
		"unix://" + gone:                 "cannot reach berth at " + gone + ": there is no such socket: " + hint,
		filepath.Join(dir, "stale.sock"): "cannot reach berth at " + filepath.Join(dir, "stale.sock") + ": nobody listens there: " + hint,
		file:                             "cannot reach berth at " + file + ": it is not a socket that can be connected to: say which one with --socket",
		dir:                              "cannot reach berth at " + dir + ": it is not a socket that can be connected to: say which one with --socket",
		"tcp://1.2.3.4:5":                `socket "tcp://1.2.3.4:5": only unix sockets can be used: /path or unix:///path`,
	} {
		if got := berthIn(t.Context(), "", "--socket", socket, "pods"); got.code != 1 || got.err != "berth: "+want+"\n" {
			t.Errorf("%s: got %+v, want %s", socket, got, want)
		}
	}
	t.Setenv("BERTH_SOCKET", gone)
	if got := berthIn(t.Context(), "", "ps"); !strings.Contains(got.err, gone) {
		t.Errorf("BERTH_SOCKET is not used: %+v", got)
	}
}

func TestChanges(t *testing.T) {
	for _, c := range []struct {
		args, in string
		calls    []string
	}{
		{"stop front -t 7", "", []string{"stop web in 7s", "stop pod front"}},
		{"stop web", "", []string{"stop web in 10s"}},
		{"rm back", "", []string{"remove pod back"}},
		{"rm -f front", "", []string{"stop pod front", "remove pod front"}},
		{"rm d2", "", []string{"remove side/0"}},
		{"rm -f web", "", []string{"stop web in 0s", "remove web/0"}},
		{"rmi docker.io/library/busybox:1", "", []string{"remove image docker.io/library/busybox:1"}},
		{"rmi e2", "", []string{"remove image sha256:" + id("e2")}},
		{"pull docker.io/library/alpine --creds-stdin", "me:se:cret\n", []string{"pull docker.io/library/alpine"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			f := populated(t)
			args := append([]string{"--socket", f.socket}, strings.Fields(c.args)...)
			if strings.HasPrefix(c.args, "rm ") {
				args = append(args, "--pods-dir", t.TempDir())
			}
			got := berthIn(t.Context(), c.in, args...)
			if calls := f.history(); got.code != 0 || !slices.Equal(calls, c.calls) {
				t.Errorf("%+v: got %q, want %q", got, calls, c.calls)
			}
			if c.in != "" && (f.auth.GetUsername() != "me" || f.auth.GetPassword() != "se:cret") {
				t.Errorf("credentials are %v", f.auth)
			}
		})
	}
}

// Whoever removes one name of two loses the other only if they say so.
func TestANameTakesOnlyThatNameAway(t *testing.T) {
	const one, two = "docker.io/library/busybox:1", "docker.io/library/mine:1"
	for _, c := range []struct {
		args  string
		ours  bool
		calls []string
		says  string
	}{
		{"rmi " + two, true, []string{"untag " + two}, "removed the name " + two + "; image e100000000000 is still " + one},
		{"images rm " + one + " " + two, true, []string{"untag " + one, "untag " + two}, "is still " + two + "\nremoved image " + two},
		{"rmi e1", true, []string{"remove image sha256:" + id("e1")}, "removed image " + one + ", " + two},
		{"rmi docker.io/library/busybox@sha256:" + id("f1"), true, []string{"remove image sha256:" + id("e1")}, "removed image " + one + ", " + two},
		{"rmi " + two, false, nil, "takes no name alone, and the image is also " + one},
	} {
		f := populated(t)
		f.ours = c.ours
		f.images[0].RepoTags = []string{one, two}
		got := f.berth(t, strings.Fields(c.args)...)
		if calls := f.history(); (got.code == 0) != (c.calls != nil) || !slices.Equal(calls, c.calls) || !strings.Contains(got.out+got.err, c.says) {
			t.Errorf("%s: %+v, called %q, want %q and %s", c.args, got, calls, c.calls, c.says)
		}
	}
}

func TestExecHandsOnOutputAndExitCode(t *testing.T) {
	f := populated(t)
	f.exec = func(r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
		if r.ContainerId != id("d1") || !slices.Equal(r.Cmd, []string{"ls", "-t", "/x"}) || r.Timeout != 5 {
			return nil, errors.New("wrong request: " + r.String())
		}
		return &runtimeapi.ExecSyncResponse{Stdout: []byte("out\n"), Stderr: []byte("ls: /x\n"), ExitCode: 17}, nil
	}
	want := outcome{17, "out\n", "ls: /x\n"}
	for _, timeout := range []string{"5s", "5", "4500ms"} {
		if got := f.berth(t, "exec", "--sync", "--timeout", timeout, "front/web", "ls", "-t", "/x"); got != want {
			t.Errorf("--timeout %s: got %+v, want %+v", timeout, got, want)
		}
	}
	for _, timeout := range []string{"-1", "x", "-3s", "99999999999"} {
		if got := f.berth(t, "exec", "--timeout", timeout, "web", "ls"); got.code != 1 || !strings.Contains(got.err, "--timeout") {
			t.Errorf("--timeout %s: %+v", timeout, got)
		}
	}
}

func TestLogs(t *testing.T) {
	f := populated(t)
	log := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(log, []byte("2026-01-02T15:04:05Z stdout P one \n2026-01-02T15:04:06Z stderr F oops\n2026-01-02T15:04:07Z stdout F two\n"+
		"2026-01-02T15:04:08Z stdout F three\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.containers[1].LogPath = log
	for args, want := range map[string]outcome{
		"logs d2":                     {0, "one two\nthree\n", "oops\n"},
		"logs -f d2":                  {0, "one two\nthree\n", "oops\n"},
		"logs --tail 1 d2":            {0, "three\n", ""},
		"logs -t --tail 1 front/side": {0, "2026-01-02T15:04:08Z three\n", ""},
	} {
		if got := f.berth(t, strings.Fields(args)...); got != want {
			t.Errorf("%s: got %+v, want %+v", args, got, want)
		}
	}
}

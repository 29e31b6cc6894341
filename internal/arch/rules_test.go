// SPDX-License-Identifier: Apache-2.0

package arch

// module is the import path that all of the project's packages begin with.
const module = "github.com/berth-run/berth/"

// floor is one package (with the packages below its path) and how high it stands. It may import itself and lower floors.
type floor struct {
	path  string
	level int
	// only, if set, are all the project's packages that it may import: for what stands beside the house, not in it.
	only []string
	why  string
}

const (
	shimWhy = "berth-shim runs once per pod: it stays tiny and knows nothing of the daemon"
	testWhy = "tests and their helpers may use everything; nothing that ships may use them"
)

// floors are the floors of ARCHITECTURE.md. A package without a floor fails the test: place it here first.
var floors = []floor{
	{path: "internal/linux", level: 0, why: "the one door to syscalls knows nobody"},
	{path: "internal/step", level: 1, why: "the roll-back engine knows no object that it rolls back"},
	{path: "internal/record", level: 1, why: "records are bytes with a version; what they mean is their owner's"},
	{path: "internal/shimapi", level: 1, why: "the protocol is shared by the daemon and the shim, so it belongs to neither"},
	{path: "internal/imageapi", level: 1, why: "the protocol is shared by the daemon and the command line, so it belongs to neither"},
	{path: "internal/telemetry", level: 1, why: "every daemon package logs, so logging knows none of them"},
	{path: "internal/spec", level: 2, why: "it is pure: host facts come in as a struct"},
	{path: "internal/filter", level: 2, why: "it is pure"},
	{path: "internal/names", level: 2, why: "it is pure"},
	{path: "internal/image", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/runtime", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/network", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/nri", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/cdi", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/hooksd", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/qos", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/stats", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/checkpoint", level: 3, why: "capabilities are libraries that do not know each other: pod combines them"},
	{path: "internal/pod", level: 4, why: "the domain knows no API that it is served through"},
	{path: "internal/cri", level: 5, why: "an API validates, calls the domain and converts; nothing else"},
	{path: "internal/debug", level: 5, why: "it shows the domain and is known by the daemon only"},
	{path: "internal/config", level: 6, only: []string{}, why: "configuration is plain data: the command line reads it without linking the daemon"},
	{path: "internal/daemon", level: 7, why: "the only place that knows all parts"},
	{path: "internal/cli", level: 8, only: []string{"internal/config", "internal/daemon", "internal/demo", "internal/doctor", "internal/imageapi"},
		why: "the command line is a CRI client like any other; only `serve` reaches the daemon"},
	{path: "internal/doctor", level: 7, why: "it looks at the machine where the daemon does not start, and asks the daemon over the socket"},
	{path: "internal/demo", level: 8, only: []string{"internal/config", "internal/linux/iptables"}, why: "the demo shows what a user can do: over the socket; it looks at the machine itself"},
	{path: "internal/shim", level: 2, only: []string{"internal/shimapi", "internal/record", "internal/linux"}, why: shimWhy},
	{path: "internal/arch", level: 9, only: []string{}, why: "it has only tests"},
	{path: "cmd/berth", level: 9, only: []string{"internal/cli"}, why: "a main package only starts"},
	{path: "cmd/berth-shim", level: 9, only: []string{"internal/shim", "internal/shimapi", "internal/linux"}, why: shimWhy},
	{path: "cmd/containerd-shim-berth-v1", level: 9, only: []string{"internal/shim"}, why: shimWhy},
	{path: "test", level: 10, why: testWhy},
}

// private are packages that not even every higher floor may import.
var private = []door{
	{lib: module + "internal/shim", by: []string{"cmd/berth-shim", "cmd/containerd-shim-berth-v1", "test"}, why: "the daemon speaks to the shim over its sockets"},
	{lib: module + "internal/daemon", by: []string{"internal/cli", "test"}, why: "a daemon is started, not called"},
}

// door is a library and the only packages (with those below them) that may import it.
type door struct {
	lib string
	by  []string
	why string
}

// doors are the library boundaries. The longest lib that an import begins with decides. Tests and test/ may import what they like.
var doors = []door{
	{"golang.org/x/sys/unix", []string{"internal/linux"}, "one door to the kernel: a syscall that is wrong is looked for in one place"},
	{"github.com/opencontainers/cgroups", []string{"internal/linux"}, "cgroup v1, v2 and systemd are told apart in one place"},
	{"github.com/coreos/go-systemd/v22/dbus", []string{"internal/linux"}, "cgroup v1, v2 and systemd are told apart in one place"},
	{"github.com/vishvananda/netlink", []string{"internal/linux", "internal/network"}, "the kernel's network is changed by CNI and by what brings loopback up"},
	{"github.com/containerd/containerd/v2", []string{"internal/image"}, "containerd is a library for images here, never a daemon inside ours"},
	{"github.com/containerd/containerd/v2/client", nil, "it talks to a running containerd, and there is none"},
	{"github.com/containerd/containerd/v2/core/runtime/v2", nil, "it keeps tasks in containerd's own state; we speak the shim protocol ourselves"},
	{"github.com/containerd/plugin", nil, "parts are built in daemon, in the open; no registry hands them out"},
	{"github.com/containerd/containerd/api/services", nil, "they are containerd's own API"},
	{"github.com/containerd/containerd/api/services/snapshots", []string{"internal/image"}, "remote snapshotters are asked by whom layers belong to"},
	{"github.com/containerd/continuity", []string{"internal/image"}, "only what fills volumes from images copies trees of files"},
	{"github.com/erofs/go-erofs", []string{"internal/image"}, "layers' blobs are written and read in one place"},
	{"github.com/sigstore", []string{"internal/image/trust"}, "what a signature is worth is decided in one place"},
	{"github.com/containernetworking/cni", []string{"internal/network"}, "CNI's types change with its specification: one package follows them"},
	{"github.com/containerd/nri", []string{"internal/nri"}, "NRI's types change with its protocol: one package follows them"},
	{"github.com/checkpoint-restore", []string{"internal/checkpoint"}, "the form of archives that others read is known in one place"},
	{"k8s.io/cri-streaming", []string{"internal/cri/stream"}, "streaming sessions have one owner"},
	{"k8s.io/streaming", []string{"internal/cri/stream"}, "streaming sessions have one owner"},
	{"k8s.io/klog", []string{"internal/cri/stream"}, "the log is slog's; stream turns the lines of the streaming libraries into ours"},
	{"github.com/gorilla/websocket", []string{"internal/cri/stream"}, "streaming sessions have one owner"},
	{"k8s.io/client-go", []string{"internal/cli"}, "the daemon talks to no API server; the command line uses its exec and port-forward clients"},
	{"tags.cncf.io/container-device-interface", []string{"internal/cdi"}, "CDI edits a spec in one place"},
	{"github.com/opencontainers/runtime-tools", nil, "its setters hide which part of a spec they touch"},
	{"github.com/opencontainers/runtime-spec", []string{"internal/spec", "internal/nri", "internal/cdi", "internal/qos", "internal/hooksd", "internal/shim"},
		"the OCI spec is made by spec, adjusted by nri and cdi, read by shim"},
	{"github.com/opencontainers/selinux", []string{"internal/linux/selinux"}, "it keeps the levels that are taken in global variables: one package counts who has them"},
	{"github.com/moby/profiles/apparmor", []string{"internal/linux"}, "profiles are loaded into the kernel in one place"},
	{"github.com/moby/profiles/seccomp", []string{"internal/spec"}, "the default profile depends on the spec's own capabilities"},
	{"github.com/intel/goresctrl", []string{"internal/qos"}, "it keeps its classes in global variables: one package sets them"},
	{"go.etcd.io/bbolt", []string{"internal/image"}, "only containerd's metadata wants it; our own records are files"},
	{"github.com/pelletier/go-toml/v2", []string{"internal/config"}, "there is one configuration file and one reader"},
	{"github.com/spf13/cobra", []string{"internal/cli", "cmd/berth"}, "the command line is a client"},
	{"sigs.k8s.io/yaml", []string{"internal/cli", "internal/demo", "internal/doctor"}, "the daemon reads no YAML"},
	{"k8s.io/api", []string{"internal/cli", "internal/demo"}, "the CRI is what the daemon knows of Kubernetes"},
	{"github.com/google/go-containerregistry", []string{"internal/cli", "internal/demo"}, "it serves registries for demo and tests; images are pulled with containerd's libraries"},
	{"github.com/prometheus", []string{"internal/debug"}, "metrics have one registry; what is measured is told through small interfaces"},
	{"go.opentelemetry.io", []string{"internal/telemetry"}, "spans are begun through one small function, which costs nothing where tracing is off"},
	{"github.com/sirupsen/logrus", nil, "the log is slog's"},
	{"github.com/containerd/log", []string{"internal/image"}, "the log is slog's; image turns the lines of containerd's libraries into ours, without their secrets"},
	{"github.com/pkg/errors", nil, "errors wrap with %w"},
}

// ban is a library that must not be reached from a package in any number of steps.
type ban struct {
	from string
	lib  string
	// but are exceptions: packages of lib that may be reached.
	but []string
	why string
}

// fatShim says what a library of the wrong kind costs in the shim.
const fatShim = "every pod pays for it: berth-shim's target is 1.0 MB of own memory"

// bans are the libraries that must not be linked.
var bans = []ban{
	{from: "cmd/berth-shim", lib: "google.golang.org/grpc", why: fatShim, but: []string{
		// What ttrpc itself needs for its error codes.
		"google.golang.org/grpc/codes", "google.golang.org/grpc/status", "google.golang.org/grpc/connectivity", "google.golang.org/grpc/grpclog",
		"google.golang.org/grpc/serviceconfig", "google.golang.org/grpc/internal", "google.golang.org/grpc/grpclog/internal", "google.golang.org/grpc/internal/status",
	}},
	{from: "cmd/berth-shim", lib: "net/http", why: fatShim},
	{from: "cmd/berth-shim", lib: module + "internal/shim/bootstrap", why: fatShim},
	{from: "cmd/containerd-shim-berth-v1", lib: "google.golang.org", why: "containerd starts one for each container, or pod"},
	{from: "cmd/containerd-shim-berth-v1", lib: "net/http", why: "containerd starts one for each container, or pod"},
	{from: "cmd/berth-shim", lib: "go.opentelemetry.io", why: fatShim},
	{from: "cmd/berth-shim", lib: "github.com/spf13/cobra", why: fatShim},
	{from: "cmd/berth-shim", lib: "k8s.io", why: fatShim},
	{from: "cmd/berth-shim", lib: "sigs.k8s.io", why: fatShim},
	{from: "cmd/berth-shim", lib: "go.yaml.in", why: fatShim},
	{from: "cmd/berth-shim", lib: "gopkg.in/yaml.v2", why: fatShim},
	{from: "cmd/berth-shim", lib: "gopkg.in/yaml.v3", why: fatShim},
	{from: "cmd/berth-shim", lib: "github.com/goccy/go-yaml", why: fatShim},
	{from: "cmd/berth-shim", lib: "github.com/xeipuuv/gojsonschema", why: fatShim},
	{from: "cmd/berth-shim", lib: "github.com/santhosh-tekuri/jsonschema", why: fatShim},
	{from: "cmd/berth-shim", lib: "github.com/google/jsonschema-go", why: fatShim},
	{from: "", lib: "github.com/containerd/containerd/api/runtime/task/v3",
		why: "internal/shimapi/task registers the same protobuf file: a program with both dies at its start"},
	{from: "cmd/berth", lib: module + "test", why: testWhy},
	{from: "cmd/berth-shim", lib: module + "test", why: testWhy},
}

// badNames are package names that say nothing about what a package gives.
var badNames = []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "lib"}

const (
	maxFunctionLines = 60
	maxFileLines     = 500
)

// longFiles and longFunctions are exceptions, with their reasons. One that is not needed any more fails the test.
var (
	longFiles     = map[string]string{}
	longFunctions = map[string]string{}
)

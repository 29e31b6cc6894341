// SPDX-License-Identifier: Apache-2.0

// Package config reads Berth's one TOML file and its drop-ins into plain data: defaults, strict checks, and where each value came
// from. It builds nothing and knows no other package; daemon turns a Config into each package's own Config, and the command line
// reads the socket's place from it.
package config

import (
	"path/filepath"
	"strings"
	"time"
)

// Version is the version of the file format that this Berth reads.
const Version = 1

// File is where the configuration is when no --config is given; it may be missing. The drop-ins are the *.toml files of the folder
// config.d beside it.
const File = "/etc/berth/config.toml"

// MaxSyncOutput is the most that exec.sync_output_limit may be: the limit that the CRI's other implementations settled on
// after unlimited answers had let a container take the daemon's memory.
const MaxSyncOutput = 16 << 20

// Config is the whole configuration. It is data: once Load has returned it, nobody changes it.
type Config struct {
	Version        int
	Root           string
	State          string
	Socket         string
	SocketGroup    string
	DefaultRuntime string
	// DeviceOwnership gives a container's devices to its run_as_user and run_as_group.
	DeviceOwnership bool
	// SELinux labels pods where the kernel has SELinux and its policy labels for containers.
	SELinux bool

	Log      Log
	Network  Network
	Registry Registry
	Images   Images
	// Snapshotters are remote ones, that images.snapshotter may name.
	Snapshotters map[string]*Snapshotter
	Runtimes     map[string]*Runtime
	Shim         Shim
	Cgroup       Cgroup
	Exec         Exec
	Streaming    Streaming
	Metrics      Metrics
	Tracing      Tracing
	NRI          NRI
	CDI          CDI
	Hooks        Hooks
	QoS          QoS
}

// Log says what the daemon logs to its standard error.
type Log struct {
	Level  string
	Format string
}

// Network says where CNI's configurations and plugins are.
type Network struct {
	ConfDir    string
	BinDirs    []string
	NetnsDir   string
	AddTimeout time.Duration
	DelTimeout time.Duration
}

// Registry says how images are fetched.
type Registry struct {
	ConfigPath             string
	MaxConcurrentDownloads int
	// MaxPerRegistry bounds downloads from one registry; 0: no bound of its own.
	MaxPerRegistry int
	// LayerConnections is how many free downloads one large layer may use.
	LayerConnections int
	StallTimeout     time.Duration
	// CredentialFiles are in the form of docker's config.json.
	CredentialFiles []string
}

// Images says how the node keeps images.
type Images struct {
	// Snapshotter is the form in which new layers are kept: "auto", "erofs" or "overlayfs", or the name of one of Snapshotters.
	Snapshotter string
	// KeepLayers keeps compressed layers after they are unpacked.
	KeepLayers bool
	// Sync makes a pull wait until the disk has all of the image.
	Sync bool
	// Pinned are references, or their beginnings with a * at the end, of images that the kubelet must not collect.
	Pinned []string
	// Socket is a second one, for the ImageService alone; empty: none.
	Socket string
	// SignaturePolicy is a file in the form of containers-policy.json(5); empty: none.
	SignaturePolicy string
	// FSVerity has the kernel guard layers' EROFS files.
	FSVerity bool
	// UnpackTimeout bounds the unpacking of one layer.
	UnpackTimeout time.Duration
}

// Snapshotter is a remote snapshotter: a daemon that serves containerd's snapshots API.
type Snapshotter struct {
	// Address is its unix socket.
	Address string
	// Timeout bounds each of its answers.
	Timeout time.Duration
}

// ConfigPaths is ConfigPath as the list of folders that it is.
func (r Registry) ConfigPaths() []string {
	return strings.FieldsFunc(r.ConfigPath, func(c rune) bool { return c == ':' })
}

// Runtime is one runtime handler.
type Runtime struct {
	// Type is how the runtime is driven: "oci" is a program with runc's command line, "shim" one that speaks containerd's shim protocol.
	Type string
	// Path is the program; empty: bin/NAME beside berth, then PATH.
	Path string
	// Root is the program's own state folder.
	Root string
	// PrivilegedWithoutHostDevices: privileged containers get the devices that they ask for and no others.
	PrivilegedWithoutHostDevices bool
	// PodAnnotations and ContainerAnnotations are patterns of the keys that the program gets to see.
	PodAnnotations, ContainerAnnotations []string
	// Options come first on the program's command line.
	Options []string
	// SandboxContainer: "always", "never", or "auto", which is always for shims.
	SandboxContainer string
	// Privileged: whether privileged containers are taken.
	Privileged bool
	// Rlimits are limits of its containers, NAME=SOFT:HARD.
	Rlimits []string
	// Snapshotter is the form of its containers' layers: "erofs" or "overlayfs"; "auto": that which they have.
	Snapshotter string
	// CgroupDriver says who makes its containers' cgroups: "cgroupfs", "systemd", or "auto", as Cgroup.Driver.
	CgroupDriver string
	// Shim is the runtime's name, as io.containerd.kata.v2, which names its program; for type "shim" without a Path.
	Shim string
	// ShimConfig is the configuration file that a shim is told of, ShimBinary the OCI runtime that io.containerd.runc.v2 is told to run.
	ShimConfig, ShimBinary string
}

// Shim says where berth-shim is.
type Shim struct {
	// Path is the program; empty: beside berth, then PATH.
	Path string
}

// Cgroup says who makes the pods' cgroups and where.
type Cgroup struct {
	Driver string
	Parent string
}

// EffectiveDriver is the driver with "auto" decided: systemd where systemd runs the machine, else cgroupfs.
func (c Cgroup) EffectiveDriver(systemd bool) string {
	switch {
	case c.Driver != "auto":
		return c.Driver
	case systemd:
		return "systemd"
	}
	return "cgroupfs"
}

// Exec limits ExecSync.
type Exec struct {
	SyncOutputLimit int
}

// Streaming says where and how exec, attach and port-forward are served.
type Streaming struct {
	Address         string
	Port            int
	CertFile        string
	KeyFile         string
	ClientCAFile    string
	IdleTimeout     time.Duration
	CreationTimeout time.Duration
	MaxSessions     int
}

// Metrics says where Prometheus' metrics are served; an empty address: nowhere.
type Metrics struct {
	Address      string
	CertFile     string
	KeyFile      string
	ClientCAFile string
	// Debug serves profiles, state, operations in flight and the log level there, too.
	Debug bool
}

// Tracing says where OpenTelemetry spans are sent; an empty endpoint: they are not made.
type Tracing struct {
	// Endpoint is the HOST:PORT of an OTLP collector (gRPC).
	Endpoint string
	// SamplingRatePerMillion is for requests whose caller does not say whether they are traced.
	SamplingRatePerMillion int
	// Insecure is without TLS; CAFile holds who may sign the collector's certificate, empty: whom the system trusts.
	Insecure bool
	CAFile   string
}

// Hooks says where OCI hooks are described.
type Hooks struct {
	// Dirs are hooks directories; those of a later one count more. None: no hooks.
	Dirs []string
}

// CDI says where devices of the Container Device Interface are described, and who may name them.
type CDI struct {
	SpecDirs []string
	// Annotations: not only the CRI's field but also annotations cdi.k8s.io/… name devices.
	Annotations bool
}

// QoS names files with classes that pods choose by annotation; empty: none.
type QoS struct{ BlockIO, RDT string }

// NRI says where NRI plugins come from, and what is demanded of them.
type NRI struct {
	Enable bool
	// Socket is where plugins connect; empty: they cannot.
	Socket string
	// PluginDir holds plugins that are started with the daemon, PluginConfigDir their configurations.
	PluginDir       string
	PluginConfigDir string
	// RegistrationTimeout and RequestTimeout bound how long a plugin may take to register and to answer.
	RegistrationTimeout time.Duration
	RequestTimeout      time.Duration
	// RequiredPlugins must have their say in each creation of a container, outside of RequiredExempt namespaces.
	RequiredPlugins []string
	RequiredExempt  []string
	// TolerateMissing is the key of the annotation by which pods go on without required plugins; empty: none.
	TolerateMissing string
	// Reject is what no plugin may adjust.
	Reject []string
}

// Defaults is the configuration without any file.
func Defaults() *Config {
	c := base()
	derive(c, nil)
	return c
}

// base is Defaults before the values that follow from others are filled in.
func base() *Config {
	return &Config{
		Version:        Version,
		Root:           "/var/lib/berth",
		State:          "/run/berth",
		DefaultRuntime: "runc",
		Log:            Log{Level: "info", Format: "text"},
		Network: Network{
			ConfDir:    "/etc/cni/net.d",
			BinDirs:    []string{"/opt/cni/bin", "/usr/lib/cni"},
			NetnsDir:   "/run/netns",
			AddTimeout: 60 * time.Second,
			DelTimeout: 60 * time.Second,
		},
		Registry: Registry{
			ConfigPath:             "/etc/berth/certs.d",
			MaxConcurrentDownloads: 4,
			LayerConnections:       4,
			CredentialFiles:        []string{},
			StallTimeout:           60 * time.Second,
		},
		SELinux:      true,
		Images:       Images{Snapshotter: "auto", Sync: true, Pinned: []string{}, UnpackTimeout: time.Hour},
		Snapshotters: map[string]*Snapshotter{},
		Runtimes:     map[string]*Runtime{"runc": newRuntime()},
		Cgroup:       Cgroup{Driver: "auto", Parent: "berth"},
		Exec:         Exec{SyncOutputLimit: MaxSyncOutput},
		Streaming:    Streaming{Address: "127.0.0.1", IdleTimeout: 4 * time.Hour, CreationTimeout: 30 * time.Second, MaxSessions: 1000},
		Hooks:        Hooks{Dirs: []string{}},
		CDI:          CDI{SpecDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		NRI: NRI{
			Socket:              "/var/run/nri/nri.sock",
			PluginDir:           "/opt/nri/plugins",
			PluginConfigDir:     "/etc/nri/conf.d",
			RegistrationTimeout: 5 * time.Second,
			RequestTimeout:      5 * time.Second,
			RequiredPlugins:     []string{},
			RequiredExempt:      []string{},
			Reject:              []string{},
		},
	}
}

// derive fills in what follows from other values, and says so in o where it is given.
func derive(c *Config, o Origins) {
	follow := func(key string, field *string, value string) {
		if *field != "" {
			return
		}
		*field = value
		if state, set := o["state"]; set && state != fromDefault {
			o[key] = "state: " + state
		} else if o != nil {
			o[key] = fromDefault
		}
	}
	follow("socket", &c.Socket, filepath.Join(c.State, "berth.sock"))
	for name, r := range c.Runtimes {
		follow("runtimes."+name+".root", &r.Root, filepath.Join(c.State, name))
	}
}

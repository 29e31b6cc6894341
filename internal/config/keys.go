// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// anyName stands for the free part of a key: the name of a runtime or snapshotter.
const anyName = "*"

// key is one line of the file: what it is called, what it means, where its value is kept and which values it takes.
type key struct {
	path string
	// doc is the comment of the default file: meaning, unit, what an empty value does.
	doc string
	// at is the address of the value; name is what stands for anyName in the path.
	at    func(c *Config, name string) any
	check func(v any) error
	// reload: a running daemon takes a new value on SIGHUP.
	reload bool
}

// keys is the file's format, in the order of the default file. Every table's keys stand together.
var keys = []key{
	{path: "version", doc: "Version of this format. Required in every file.",
		at: func(c *Config, _ string) any { return &c.Version }, check: between(Version, Version)},
	{path: "root", doc: "Folder for what outlives a reboot: images, records, writable layers.",
		at: func(c *Config, _ string) any { return &c.Root }, check: folder},
	{path: "state", doc: "Folder for what a reboot clears: sockets, namespaces, bundles.",
		at: func(c *Config, _ string) any { return &c.State }, check: folder},
	{path: "socket", doc: "Unix socket of the CRI server. Unset: berth.sock in the state folder.",
		at: func(c *Config, _ string) any { return &c.Socket }, check: socket},
	{path: "socket_group", doc: "Group, by name or number, that may use the socket (mode 0660). Empty: root's group.",
		at: func(c *Config, _ string) any { return &c.SocketGroup }, check: word},
	{path: "default_runtime", doc: "The [runtimes] table for pods that name no runtime handler.",
		at: func(c *Config, _ string) any { return &c.DefaultRuntime }, check: handler},
	{path: "device_ownership_from_security_context", doc: "Give a container's devices to its run_as_user and run_as_group; false: their owners are as on the host.",
		at: func(c *Config, _ string) any { return &c.DeviceOwnership }, check: anything},
	{path: "selinux", doc: "Label pods and their files where the kernel has SELinux and its policy has labels for containers; false: never.",
		at: func(c *Config, _ string) any { return &c.SELinux }, check: anything},

	{path: "log.level", doc: "The least that is logged: debug, info, warn or error.", reload: true,
		at: func(c *Config, _ string) any { return &c.Log.Level }, check: oneOf("debug", "info", "warn", "error")},
	{path: "log.format", doc: "Form of the lines on standard error: text or json.", reload: true,
		at: func(c *Config, _ string) any { return &c.Log.Format }, check: oneOf("text", "json")},

	{path: "network.conf_dir", doc: "Folder with the CNI configurations; the first in name order is used, changes are noticed.",
		at: func(c *Config, _ string) any { return &c.Network.ConfDir }, check: folder},
	{path: "network.bin_dirs", doc: "Folders that are searched for CNI plugins, in this order; bin/cni beside berth comes after them.",
		at: func(c *Config, _ string) any { return &c.Network.BinDirs }, check: folders},
	{path: "network.netns_dir", doc: "Folder where the pods' network namespaces are pinned. CNI daemons look in /run/netns.",
		at: func(c *Config, _ string) any { return &c.Network.NetnsDir }, check: folder},
	{path: "network.add_timeout", doc: "How long the CNI plugins may take to connect one pod.",
		at: func(c *Config, _ string) any { return &c.Network.AddTimeout }, check: lasting(time.Second, time.Hour)},
	{path: "network.del_timeout", doc: "How long the CNI plugins may take to disconnect one pod.",
		at: func(c *Config, _ string) any { return &c.Network.DelTimeout }, check: lasting(time.Second, time.Hour)},

	{path: "registry.config_path", doc: "Folder with one hosts.toml folder per registry, in containerd's format; several are parted by colons.", reload: true,
		at: func(c *Config, _ string) any { return &c.Registry.ConfigPath }, check: folderPath},
	{path: "registry.max_concurrent_downloads", doc: "Layers, and parts of large ones, that the node fetches at the same time (1 to 64).",
		at: func(c *Config, _ string) any { return &c.Registry.MaxConcurrentDownloads }, check: between(1, 64)},
	{path: "registry.max_downloads_per_registry", doc: "The same for one registry and its mirrors, so that a slow one leaves some to the others. 0: no limit of its own.",
		at: func(c *Config, _ string) any { return &c.Registry.MaxPerRegistry }, check: between(0, 64)},
	{path: "registry.connections_per_layer", doc: "Downloads that one layer of 24 MiB or more may use, in parts of 8 MiB, while nobody else needs them (1 to 8). 1: no parts.",
		at: func(c *Config, _ string) any { return &c.Registry.LayerConnections }, check: between(1, 8)},
	{path: "registry.credential_files", doc: "Files as docker's config.json (auths, credHelpers, credsStore), for pulls that bring no credentials; read for each pull.",
		at: func(c *Config, _ string) any { return &c.Registry.CredentialFiles }, check: folders},
	{path: "registry.stall_timeout", doc: "A download that brings no byte for this long is given up and tried again.",
		at: func(c *Config, _ string) any { return &c.Registry.StallTimeout }, check: lasting(time.Second, time.Hour)},

	{path: "images.snapshotter", doc: "How layers are kept that are pulled from now on. erofs: one EROFS file each; overlayfs: folders; auto: erofs where the kernel mounts such files (Linux 6.12); NAME: by a remote snapshotter, of which a table [snapshotters.NAME] says the address.",
		at: func(c *Config, _ string) any { return &c.Images.Snapshotter }, check: handler},
	{path: "images.keep_layers", doc: "Keep compressed layers after they are unpacked: export is exact then, and an image takes up to half as much space again.",
		at: func(c *Config, _ string) any { return &c.Images.KeepLayers }, check: anything},
	{path: "images.sync", doc: "Wait until the disk has all of an image before it is used; false: quicker, but a power cut can leave empty files in it.",
		at: func(c *Config, _ string) any { return &c.Images.Sync }, check: anything},
	{path: "images.fs_verity", doc: "Have the kernel guard the EROFS files of layers pulled from then on (fs-verity): nobody can write to them, and each block is checked when it is read. Berth does not start where the kernel or the file system of root cannot.",
		at: func(c *Config, _ string) any { return &c.Images.FSVerity }, check: anything},
	{path: "images.signature_policy", doc: "Which images must be signed by whom: a file as /etc/containers/policy.json; see docs/signatures.md. SIGHUP reads it anew. Empty: none must.",
		at: func(c *Config, _ string) any { return &c.Images.SignaturePolicy }, check: optional(folder)},
	{path: "images.unpack_timeout", doc: "How long one layer may take to be unpacked; the network has registry.stall_timeout.",
		at: func(c *Config, _ string) any { return &c.Images.UnpackTimeout }, check: lasting(time.Minute, 24*time.Hour)},
	{path: "images.pinned", doc: "Images that the kubelet must not collect: whole references, or patterns with *, as \"registry.k8s.io/pause:*\".",
		at: func(c *Config, _ string) any { return &c.Images.Pinned }, check: patterns},
	{path: "images.socket", doc: "A second unix socket, for the CRI's ImageService alone; mode and group as the first's. Empty: none.",
		at: func(c *Config, _ string) any { return &c.Images.Socket }, check: optional(socket)},

	{path: "snapshotters.*.address", doc: "Unix socket of a remote snapshotter (stargz, SOCI, nydus), which serves containerd's snapshots API; see docs/artifacts-and-snapshotters.md.",
		at: func(c *Config, name string) any { return &c.remote(name).Address }, check: socket},
	{path: "snapshotters.*.timeout", doc: "How long it may take for an answer. Pulls of its images fail then; nothing else waits for it.",
		at: func(c *Config, name string) any { return &c.remote(name).Timeout }, check: lasting(time.Second, 10*time.Minute)},

	{path: "runtimes.*.type", doc: "How the runtime is driven. oci: a program with runc's command line; shim: one that speaks containerd's shim protocol.",
		at: func(c *Config, name string) any { return &c.runtime(name).Type }, check: oneOf("oci", "shim")},
	{path: "runtimes.*.path", doc: "The runtime program, or the shim's. Empty: looked for by its name beside berth, then in PATH.",
		at: func(c *Config, name string) any { return &c.runtime(name).Path }, check: optional(folder)},
	{path: "runtimes.*.root", doc: "The runtime's own state folder. Unset: a folder of its name in the state folder.",
		at: func(c *Config, name string) any { return &c.runtime(name).Root }, check: folder},
	{path: "runtimes.*.privileged_without_host_devices", doc: "Privileged containers get only the devices that they ask for, not all of the host's.",
		at: func(c *Config, name string) any { return &c.runtime(name).PrivilegedWithoutHostDevices }, check: anything},
	{path: "runtimes.*.pod_annotations", doc: "Annotations of pods that the runtime program gets to see, as patterns such as \"io.katacontainers.*\".",
		at: func(c *Config, name string) any { return &c.runtime(name).PodAnnotations }, check: annotationKeys},
	{path: "runtimes.*.container_annotations", doc: "The same for annotations of containers.",
		at: func(c *Config, name string) any { return &c.runtime(name).ContainerAnnotations }, check: annotationKeys},
	{path: "runtimes.*.options", doc: "Options that come first on the command line of a runtime of type oci, as in [\"--debug\"].",
		at: func(c *Config, name string) any { return &c.runtime(name).Options }, check: anything},
	{path: "runtimes.*.sandbox_container", doc: "Whether a pod gets a container of its own, which the others join: always, never, or auto (always for type shim).",
		at: func(c *Config, name string) any { return &c.runtime(name).SandboxContainer }, check: oneOf("auto", "always", "never")},
	{path: "runtimes.*.privileged", doc: "Whether privileged containers are taken.",
		at: func(c *Config, name string) any { return &c.runtime(name).Privileged }, check: anything},
	{path: "runtimes.*.rlimits", doc: "Limits of its containers, as in [\"nofile=1024:524288\"] (soft, hard). Unset ones are the daemon's own.",
		at: func(c *Config, name string) any { return &c.runtime(name).Rlimits }, check: rlimits},
	{path: "runtimes.*.snapshotter", doc: "How the layers of its containers' images are kept: erofs or overlayfs, made on demand where an image is kept otherwise; auto: as images.snapshotter had it.",
		at: func(c *Config, name string) any { return &c.runtime(name).Snapshotter }, check: oneOf("auto", "erofs", "overlayfs")},
	{path: "runtimes.*.cgroup_driver", doc: "Who makes its containers' cgroups: cgroupfs (the runtime itself, also below systemd's slices), systemd, or auto (as cgroup.driver, which says who makes the pods').",
		at: func(c *Config, name string) any { return &c.runtime(name).CgroupDriver }, check: oneOf("auto", "cgroupfs", "systemd")},
	{path: "runtimes.*.shim", doc: "For type shim without a path: the runtime's name, as io.containerd.kata.v2, which stands for containerd-shim-kata-v2.",
		at: func(c *Config, name string) any { return &c.runtime(name).Shim }, check: optional(shimName)},
	{path: "runtimes.*.shim_config", doc: "For type shim: the configuration file that the shim is told of. Empty: its own default.",
		at: func(c *Config, name string) any { return &c.runtime(name).ShimConfig }, check: optional(folder)},
	{path: "runtimes.*.shim_binary", doc: "For type shim and io.containerd.runc.v2: the OCI runtime that it is told to run. Empty: its own default.",
		at: func(c *Config, name string) any { return &c.runtime(name).ShimBinary }, check: optional(folder)},

	{path: "shim.path", doc: "The berth-shim program. Empty: beside berth, then in PATH.",
		at: func(c *Config, _ string) any { return &c.Shim.Path }, check: optional(folder)},

	{path: "cgroup.driver", doc: "Who makes cgroups: cgroupfs, systemd, or auto (systemd where it runs the machine). The kubelet asks for it.",
		at: func(c *Config, _ string) any { return &c.Cgroup.Driver }, check: oneOf("auto", "cgroupfs", "systemd")},
	{path: "cgroup.parent", doc: "The cgroup of pods whose request names no parent.",
		at: func(c *Config, _ string) any { return &c.Cgroup.Parent }, check: cgroup},

	{path: "exec.sync_output_limit", doc: "Bytes of each output stream that an ExecSync answer keeps (1 to 16777216); the rest is dropped.",
		at: func(c *Config, _ string) any { return &c.Exec.SyncOutputLimit }, check: between(1, MaxSyncOutput)},

	{path: "streaming.address", doc: "IP address that exec, attach and port-forward are served on; the kubelet connects to it.",
		at: func(c *Config, _ string) any { return &c.Streaming.Address }, check: address},
	{path: "streaming.port", doc: "TCP port there (1 to 65535). 0: any free one.",
		at: func(c *Config, _ string) any { return &c.Streaming.Port }, check: between(0, 65535)},
	{path: "streaming.cert_file", doc: "Certificate (PEM), which makes it TLS; read anew when it changes. Empty: no TLS, for loopback addresses only.",
		at: func(c *Config, _ string) any { return &c.Streaming.CertFile }, check: optional(folder)},
	{path: "streaming.key_file", doc: "Key of the certificate (PEM).",
		at: func(c *Config, _ string) any { return &c.Streaming.KeyFile }, check: optional(folder)},
	{path: "streaming.client_ca_file", doc: "CAs (PEM), one of which must have signed a client's certificate. Empty: the URL's token is enough.",
		at: func(c *Config, _ string) any { return &c.Streaming.ClientCAFile }, check: optional(folder)},
	{path: "streaming.idle_timeout", doc: "A session in which nothing is sent for this long is ended.",
		at: func(c *Config, _ string) any { return &c.Streaming.IdleTimeout }, check: lasting(time.Second, 30*24*time.Hour)},
	{path: "streaming.creation_timeout", doc: "How long a client may take to open a session's streams.",
		at: func(c *Config, _ string) any { return &c.Streaming.CreationTimeout }, check: lasting(time.Second, time.Hour)},
	{path: "streaming.max_sessions", doc: "Sessions at the same time, and URLs that wait for their client (1 to 100000).",
		at: func(c *Config, _ string) any { return &c.Streaming.MaxSessions }, check: between(1, 100000)},

	{path: "metrics.address", doc: "Where metrics are served over HTTP: IP:PORT, or unix:///PATH for root only. Empty: nowhere.",
		at: func(c *Config, _ string) any { return &c.Metrics.Address }, check: optional(metricsAddress)},
	{path: "metrics.cert_file", doc: "Certificate (PEM), which makes it TLS; read for each connection. Empty: no TLS, for loopback addresses and sockets only.",
		at: func(c *Config, _ string) any { return &c.Metrics.CertFile }, check: optional(folder)},
	{path: "metrics.key_file", doc: "Key of the certificate (PEM).",
		at: func(c *Config, _ string) any { return &c.Metrics.KeyFile }, check: optional(folder)},
	{path: "metrics.client_ca_file", doc: "CAs (PEM), one of which must have signed a client's certificate. Empty: anyone may read.",
		at: func(c *Config, _ string) any { return &c.Metrics.ClientCAFile }, check: optional(folder)},
	{path: "metrics.debug", doc: "Also serve profiles, state, operations in flight and the log level; needs a unix socket or metrics.client_ca_file.",
		at: func(c *Config, _ string) any { return &c.Metrics.Debug }, check: anything},

	{path: "tracing.endpoint", doc: "HOST:PORT of an OpenTelemetry collector (OTLP over gRPC, usually port 4317) that spans are sent to. Empty: no traces.",
		at: func(c *Config, _ string) any { return &c.Tracing.Endpoint }, check: optional(hostPort)},
	{path: "tracing.sampling_rate_per_million", doc: "Requests in a million that are traced where the caller does not say (0 to 1000000); what the kubelet samples always is.",
		at: func(c *Config, _ string) any { return &c.Tracing.SamplingRatePerMillion }, check: between(0, 1_000_000)},
	{path: "tracing.insecure", doc: "Speak to the collector without TLS.",
		at: func(c *Config, _ string) any { return &c.Tracing.Insecure }, check: anything},
	{path: "tracing.ca_file", doc: "CAs (PEM), one of which must have signed the collector's certificate. Empty: those that the system trusts.",
		at: func(c *Config, _ string) any { return &c.Tracing.CAFile }, check: optional(folder)},

	{path: "hooks.dirs", doc: "Folders with OCI hooks (schemas 1.0.0 and 0.1.0, as for CRI-O and podman), as [\"/etc/containers/oci/hooks.d\"]; a file replaces an earlier folder's. Empty: no hooks.",
		at: func(c *Config, _ string) any { return &c.Hooks.Dirs }, check: folders},

	{path: "cdi.spec_dirs", doc: "Folders with descriptions of CDI devices; those of a later one count more. They may be missing.",
		at: func(c *Config, _ string) any { return &c.CDI.SpecDirs }, check: folders},
	{path: "cdi.annotations", doc: "Whether annotations cdi.k8s.io/* name CDI devices too, as kubelets before 1.28 need it: whoever makes a pod can then.",
		at: func(c *Config, _ string) any { return &c.CDI.Annotations }, check: anything},

	{path: "qos.blockio_config", doc: "File with classes of block I/O in goresctrl's format, which pods choose by annotation. Empty: none.",
		at: func(c *Config, _ string) any { return &c.QoS.BlockIO }, check: optional(folder)},
	{path: "qos.rdt_config", doc: "File with classes of CPU cache and memory bandwidth in goresctrl's format. Empty: none.",
		at: func(c *Config, _ string) any { return &c.QoS.RDT }, check: optional(folder)},

	{path: "nri.enable", doc: "Whether NRI plugins are started and may connect.",
		at: func(c *Config, _ string) any { return &c.NRI.Enable }, check: anything},
	{path: "nri.socket", doc: "Unix socket for NRI plugins, for root only. Empty: none may connect.",
		at: func(c *Config, _ string) any { return &c.NRI.Socket }, check: optional(socket)},
	{path: "nri.plugin_dir", doc: "Folder with NRI plugins to start with the daemon, named like 10-name. It may be missing.",
		at: func(c *Config, _ string) any { return &c.NRI.PluginDir }, check: folder},
	{path: "nri.plugin_config_dir", doc: "Folder with their configurations, 10-name.conf or name.conf. It may be missing.",
		at: func(c *Config, _ string) any { return &c.NRI.PluginConfigDir }, check: folder},
	{path: "nri.registration_timeout", doc: "How long a new plugin may take to register.",
		at: func(c *Config, _ string) any { return &c.NRI.RegistrationTimeout }, check: lasting(100*time.Millisecond, time.Minute)},
	{path: "nri.request_timeout", doc: "How long a plugin may take to answer; then it is dropped, and the request goes on without it.",
		at: func(c *Config, _ string) any { return &c.NRI.RequestTimeout }, check: lasting(100*time.Millisecond, time.Minute)},
	{path: "nri.required_plugins", doc: "Plugins, as name or 10-name, without whose answer no container is created.",
		at: func(c *Config, _ string) any { return &c.NRI.RequiredPlugins }, check: names},
	{path: "nri.required_exempt_namespaces", doc: "Namespaces whose pods do not need the required plugins: the one that those run in, for example.",
		at: func(c *Config, _ string) any { return &c.NRI.RequiredExempt }, check: names},
	{path: "nri.tolerate_missing_annotation", doc: "Annotation (KEY, KEY/pod, KEY/container.NAME) by which a pod with the value true does without required plugins. Who may write annotations goes round them, then. Empty: nobody.",
		at: func(c *Config, _ string) any { return &c.NRI.TolerateMissing }, check: optional(word)},
	{path: "nri.reject", doc: "What no plugin may adjust: hooks, namespaces, sysctls, seccomp_runtime_default, seccomp_unconfined, seccomp_localhost.",
		at: func(c *Config, _ string) any { return &c.NRI.Reject }, check: eachOf("hooks", "namespaces", "sysctls", "seccomp_runtime_default", "seccomp_unconfined", "seccomp_localhost")},
}

func newRuntime() *Runtime {
	return &Runtime{Type: "oci", PodAnnotations: []string{}, ContainerAnnotations: []string{}, Options: []string{}, SandboxContainer: "auto", Privileged: true,
		Rlimits: []string{}, Snapshotter: "auto", CgroupDriver: "auto"}
}

// runtime is the table of that name, made with a runtime's defaults if it is new.
func (c *Config) runtime(name string) *Runtime {
	r := c.Runtimes[name]
	if r == nil {
		r = newRuntime()
		c.Runtimes[name] = r
	}
	return r
}

// remote is the table of the snapshotter of that name, made with its defaults if it is new.
func (c *Config) remote(name string) *Snapshotter {
	s := c.Snapshotters[name]
	if s == nil {
		s = &Snapshotter{Timeout: 30 * time.Second}
		c.Snapshotters[name] = s
	}
	return s
}

// free are the names that stand for anyName in a key, and add makes one.
func (c *Config) free(table string) []string {
	if table == "snapshotters" {
		return slices.Sorted(maps.Keys(c.Snapshotters))
	}
	return slices.Sorted(maps.Keys(c.Runtimes))
}

func (c *Config) add(table, name string) {
	if table == "snapshotters" {
		c.remote(name)
	} else {
		c.runtime(name)
	}
}

// field is a key of one Config: a runtime's key stands once for each runtime.
type field struct {
	key
	name string
	ptr  any
}

// table and leaf part a field's name: [table] leaf = value.
func (f field) table() string {
	table, _ := cutLast(f.name)
	return table
}

func (f field) leaf() string {
	_, leaf := cutLast(f.name)
	return leaf
}

// fields are all keys of c in the default file's order, the runtimes and snapshotters in name order.
func (c *Config) fields() []field {
	var all []field
	for i := 0; i < len(keys); i++ {
		if !strings.Contains(keys[i].path, anyName) {
			all = append(all, field{keys[i], keys[i].path, keys[i].at(c, "")})
			continue
		}
		table, _, _ := strings.Cut(keys[i].path, ".")
		block := i
		for block < len(keys) && strings.HasPrefix(keys[block].path, table+"."+anyName) {
			block++
		}
		for _, name := range c.free(table) {
			for _, k := range keys[i:block] {
				all = append(all, field{k, strings.Replace(k.path, anyName, name, 1), k.at(c, name)})
			}
		}
		i = block - 1
	}
	return all
}

// find is the key at path and what stands for anyName in it; table tells a path that has keys below it.
func find(path []string) (found *key, name string, table bool) {
	for i, k := range keys {
		want := strings.Split(k.path, ".")
		if len(path) > len(want) {
			continue
		}
		matched, free := true, ""
		for j, part := range path {
			if want[j] == anyName {
				free = part
			} else if want[j] != part {
				matched = false
				break
			}
		}
		if matched && len(path) < len(want) {
			return nil, free, true
		}
		if matched {
			return &keys[i], free, false
		}
	}
	return nil, "", false
}

func cutLast(name string) (before, last string) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

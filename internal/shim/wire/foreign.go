// SPDX-License-Identifier: Apache-2.0

package wire

// BootstrapParams is what a foreign shim's `start` reads (containerd.runtime.bootstrap.v1).
type BootstrapParams struct {
	InstanceID        string
	Namespace         string
	ContainerdVersion string
	TTRPCAddress      string
	GRPCAddress       string
	ContainerdBinary  string
	Extensions        []Extension
	SocketDir         string
}

func (m *BootstrapParams) fields(c *codec) {
	c.string(1, &m.InstanceID)
	c.string(2, &m.Namespace)
	c.string(4, &m.ContainerdVersion)
	c.string(5, &m.TTRPCAddress)
	c.string(6, &m.GRPCAddress)
	c.string(7, &m.ContainerdBinary)
	list(c, 8, &m.Extensions)
	c.string(9, &m.SocketDir)
}

// Extension carries a runtime's own options.
type Extension struct{ Value Any }

func (m *Extension) fields(c *codec) { c.message(1, &m.Value) }

// BootstrapResult is what it answers.
type BootstrapResult struct {
	Version  int32
	Address  string
	Protocol string
}

func (m *BootstrapResult) fields(c *codec) {
	c.int32(1, &m.Version)
	c.string(2, &m.Address)
	c.string(3, &m.Protocol)
}

// RuntimeInfo is what a shim's -info tells (containerd.types).
type RuntimeInfo struct {
	Name     string
	Version  RuntimeVersion
	Options  Any
	Features Any
}

func (m *RuntimeInfo) fields(c *codec) {
	c.string(1, &m.Name)
	c.optional(2, &m.Version)
	c.optional(3, &m.Options)
	c.optional(4, &m.Features)
}

// RuntimeVersion is a part of RuntimeInfo.
type RuntimeVersion struct{ Version string }

func (m *RuntimeVersion) fields(c *codec) { c.string(1, &m.Version) }

// RuncOptions is containerd.runc.v1.Options, for shims that drive an OCI runtime's binary.
type RuncOptions struct {
	NoPivotRoot   bool
	NoNewKeyring  bool
	ShimCgroup    string
	IOUID, IOGID  uint32
	BinaryName    string
	Root          string
	SystemdCgroup bool
}

func (m *RuncOptions) fields(c *codec) {
	c.bool(1, &m.NoPivotRoot)
	c.bool(2, &m.NoNewKeyring)
	c.string(3, &m.ShimCgroup)
	c.uint32(4, &m.IOUID)
	c.uint32(5, &m.IOGID)
	c.string(6, &m.BinaryName)
	c.string(7, &m.Root)
	c.bool(9, &m.SystemdCgroup)
}

// RuntimeOptions is runtimeoptions.v1.Options, for all others.
type RuntimeOptions struct {
	ConfigPath string
	ConfigBody []byte
}

func (m *RuntimeOptions) fields(c *codec) {
	c.string(2, &m.ConfigPath)
	c.bytes(3, &m.ConfigBody)
}

// ExecProcessRequest is Task v3's: it makes a process that Start then starts.
type ExecProcessRequest struct {
	ID       string
	ExecID   string
	Terminal bool
	Stdin    string
	Stdout   string
	Stderr   string
	Spec     Any
}

func (m *ExecProcessRequest) fields(c *codec) {
	c.string(1, &m.ID)
	c.string(2, &m.ExecID)
	c.bool(3, &m.Terminal)
	c.string(4, &m.Stdin)
	c.string(5, &m.Stdout)
	c.string(6, &m.Stderr)
	c.message(7, &m.Spec)
}

// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
)

// OnMachine says what a Config names that this machine has not, or has as something else. With a problem in broken the daemon does not start, or takes
// no image; one in ignored is of something that the daemon does without. Both have their file and line, by origins.
//
// It only looks: a file may change until the daemon reads it, and whether a policy says what it should only its reader knows.
func OnMachine(c *Config, origins Origins) (broken, ignored Problems) {
	add := func(to *Problems, key string, err error) {
		if err == nil {
			return
		}
		p := Problem{Key: key, Text: err.Error()}
		p.File, p.Line = origin(origins[key])
		*to = append(*to, p)
	}
	add(&broken, "socket_group", group(c.SocketGroup))
	add(&broken, "shim.path", program(c.Shim.Path))
	for _, name := range c.free("runtimes") {
		add(&broken, "runtimes."+name+".path", c.Runtimes[name].here(name))
	}
	add(&broken, "images.signature_policy", file(c.Images.SignaturePolicy))
	server := func(table, cert, key, ca string) {
		certErr, keyErr := pair(cert, key)
		add(&broken, table+".cert_file", certErr)
		add(&broken, table+".key_file", keyErr)
		add(&broken, table+".client_ca_file", authorities(ca))
	}
	server("streaming", c.Streaming.CertFile, c.Streaming.KeyFile, c.Streaming.ClientCAFile)
	if c.Metrics.Address != "" {
		server("metrics", c.Metrics.CertFile, c.Metrics.KeyFile, c.Metrics.ClientCAFile)
	}
	if c.Tracing.Endpoint != "" {
		add(&broken, "tracing.ca_file", authorities(c.Tracing.CAFile))
	}
	add(&broken, "qos.blockio_config", file(c.QoS.BlockIO))
	add(&broken, "qos.rdt_config", file(c.QoS.RDT))
	for _, dir := range c.Hooks.Dirs {
		add(&ignored, "hooks.dirs", directory(dir))
	}
	for _, name := range c.Registry.CredentialFiles {
		add(&ignored, "registry.credential_files", file(name))
	}
	return broken, ignored
}

// here tells whether the handler's program is there. Handler runc is in every configuration: where its program is to be looked for, no file says a word.
func (r *Runtime) here(name string) error {
	if r.Path != "" || name == "runc" && r.Type == "oci" {
		return program(r.Path)
	}
	_, err := r.Find(name)
	return err
}

// Find is the handler's program: the one that is configured, else what Program finds by the handler's or the shim's name.
func (r *Runtime) Find(handler string) (string, error) {
	name := handler
	if r.Type == "shim" && r.Shim != "" {
		var err error
		if name, err = ShimProgram(r.Shim); err != nil {
			return "", fmt.Errorf("shim: %w", err)
		}
	}
	return Program(r.Path, name)
}

// Program is where a program is: path, or if that is empty name in the folder of this program, else in PATH.
func Program(path, name string) (string, error) {
	if path != "" {
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside this program nor on PATH; install it or set its path: %w", name, err)
	}
	return path, nil
}

// about is err without the name of the operation, which is ours.
func about(path string, err error) error {
	var perr *fs.PathError
	if errors.As(err, &perr) {
		err = perr.Err
	}
	return fmt.Errorf("%s: %w", path, err)
}

func stat(path, want string, is func(fs.FileInfo) bool) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return about(path, err)
	}
	if !is(info) {
		return fmt.Errorf("%s is %s", path, want)
	}
	return nil
}

func program(path string) error {
	return stat(path, "no program that can be run", func(i fs.FileInfo) bool { return i.Mode().IsRegular() && i.Mode()&0o111 != 0 })
}

func file(path string) error {
	return stat(path, "no file", func(i fs.FileInfo) bool { return i.Mode().IsRegular() })
}

func directory(path string) error { return stat(path, "no folder", fs.FileInfo.IsDir) }

func group(name string) error {
	if _, err := strconv.Atoi(name); name == "" || err == nil {
		return nil
	}
	if _, err := user.LookupGroup(name); err != nil {
		return fmt.Errorf("there is no group %q on this machine", name)
	}
	return nil
}

// pair tells what is wrong with a certificate and with its key, or that they do not belong to each other.
func pair(cert, key string) (certErr, keyErr error) {
	if cert == "" {
		return nil, nil
	}
	certErr, keyErr = file(cert), file(key)
	if certErr == nil && keyErr == nil {
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			certErr = fmt.Errorf("%s with the key %s: %w", cert, key, err)
		}
	}
	return certErr, keyErr
}

func authorities(path string) error {
	if path == "" {
		return nil
	}
	if err := file(path); err != nil {
		return err
	}
	data, err := readBounded(path)
	if err != nil {
		return about(path, err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(data) {
		return fmt.Errorf("%s holds no certificate (PEM)", path)
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/config"
	"github.com/berth-run/berth/internal/doctor"
)

// maxPart bounds each part of a support bundle.
const maxPart = 16 << 20

func (c *CLI) debugCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Help those who help you: dump",
		Args:  c.noCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var file string
	dump := &cobra.Command{
		Use:   "dump",
		Short: "Write a support bundle (tar.gz): what doctor says, configuration, state and logs, without secrets",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				file = "berth-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			return c.dump(cmd, file)
		},
	}
	dump.Flags().StringVarP(&file, "file", "f", "", "where to write it, - for standard output (default berth-TIME.tar.gz)")
	cmd.AddCommand(dump)
	return cmd
}

// part is one file of a bundle.
type part struct {
	name string
	make func(context.Context) ([]byte, error)
}

func (c *CLI) dump(cmd *cobra.Command, file string) (err error) {
	var d doctor.Doctor
	if err := c.prepareDoctor(&d); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if file != "-" {
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return fmt.Errorf("support bundle: %w", err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		out = f
	}
	zipped := gzip.NewWriter(out)
	archive := tar.NewWriter(zipped)
	for _, p := range c.parts(&d) {
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
		data, err := p.make(ctx)
		cancel()
		if err != nil { // what is missing is said in its place
			p.name, data = p.name+".error", []byte(err.Error()+"\n")
		}
		data = redact(data[:min(len(data), maxPart)])
		head := &tar.Header{Name: "berth/" + p.name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Now(), Typeflag: tar.TypeReg}
		if err := archive.WriteHeader(head); err != nil {
			return fmt.Errorf("support bundle: %w", err)
		}
		if _, err := archive.Write(data); err != nil {
			return fmt.Errorf("support bundle: %w", err)
		}
	}
	if err := errors.Join(archive.Close(), zipped.Close()); err != nil {
		return fmt.Errorf("support bundle: %w", err)
	}
	if file != "-" {
		fmt.Fprintln(cmd.OutOrStdout(), file)
	}
	return nil
}

func (c *CLI) parts(d *doctor.Doctor) []part {
	ask := func(f func(context.Context, runtimeapi.RuntimeServiceClient) (any, error)) func(context.Context) ([]byte, error) {
		return func(ctx context.Context) ([]byte, error) {
			client, err := d.Connect(ctx)
			if err != nil {
				return nil, err
			}
			answer, err := f(ctx, client)
			if err != nil {
				return nil, err
			}
			return json.MarshalIndent(answer, "", "  ")
		}
	}
	parts := []part{
		{"doctor.json", func(ctx context.Context) ([]byte, error) { return json.MarshalIndent(d.Run(ctx), "", "  ") }},
		{"config.json", func(context.Context) ([]byte, error) {
			cfg, origins, err := config.Load(config.Options{File: c.config})
			if err != nil {
				return nil, err
			}
			return json.MarshalIndent(config.Entries(cfg, origins), "", "  ")
		}},
		{"status.json", ask(func(ctx context.Context, r runtimeapi.RuntimeServiceClient) (any, error) {
			return r.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
		})},
		{"pods.json", ask(func(ctx context.Context, r runtimeapi.RuntimeServiceClient) (any, error) {
			return r.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		})},
		{"containers.json", ask(func(ctx context.Context, r runtimeapi.RuntimeServiceClient) (any, error) {
			return r.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		})},
		{"journal.txt", tool("journalctl", "--no-pager", "-u", "berth", "-n", "20000")},
		{"iptables.txt", tool("iptables-save")},
		{"processes.txt", tool("ps", "-eo", "pid,ppid,stat,etime,rss,comm")},
		{"network.txt", tool("ip", "-d", "address")},
	}
	for _, file := range []string{"/proc/self/mountinfo", "/proc/meminfo", "/proc/version", "/proc/cmdline", "/proc/cgroups", "/etc/os-release"} {
		parts = append(parts, part{"host/" + filepath.Base(file), func(context.Context) ([]byte, error) { return os.ReadFile(file) }})
	}
	confs, _ := filepath.Glob(filepath.Join(d.Config.Network.ConfDir, "*.conf*")) // an error is one of the pattern
	for _, file := range confs {
		parts = append(parts, part{"cni/" + filepath.Base(file), func(context.Context) ([]byte, error) { return readPart(file) }})
	}
	return parts
}

func readPart(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxPart))
}

// tool runs a program of the machine; that it is missing is said in the bundle.
func tool(name string, args ...string) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%s: %w: %.4000s", name, err, out.String())
		}
		return out.Bytes(), nil
	}
}

// telling are words in the names of secrets.
const telling = `(?:passw(?:or)?d|secret|token|authorization|auth|credential|private[_-]?key|api[_-]?key)`

// secret finds values behind names that tell of secrets, in JSON, TOML, YAML, command lines and logs.
var secret = regexp.MustCompile(`(?i)("?[\w.-]*` + telling + `[\w.-]*"?\s*[:=]\s*)("(?:[^"\\]|\\.)*"|(?:basic|bearer)\s+\S+|[^\s,;"}]+)`)

// pair finds them where name and value are members of their own, as in lists of environment variables; quoted and quotedPair both in JSON within a JSON
// string, as in kubectl's annotation of the last applied configuration.
var (
	pair       = regexp.MustCompile(`(?i)("(?:name|key)"\s*:\s*"[^"]*` + telling + `[^"]*"\s*,\s*"value"\s*:\s*)"(?:[^"\\]|\\.)*"`)
	quoted     = regexp.MustCompile(`(?i)(\\"[\w.-]*` + telling + `[\w.-]*\\"\s*:\s*\\")(?:[^"\\]|\\\\\\?.)*`)
	quotedPair = regexp.MustCompile(`(?i)(\\"(?:name|key)\\"\s*:\s*\\"[^"\\]*` + telling + `[^"\\]*\\"\s*,\s*\\"value\\"\s*:\s*\\")(?:[^"\\]|\\\\\\?.)*`)
)

// userInfo finds credentials in URLs.
var userInfo = regexp.MustCompile(`([a-z][a-z0-9+.-]*://)[^/\s"@]+@`)

func redact(data []byte) []byte {
	data = quoted.ReplaceAll(data, []byte("${1}REDACTED"))
	data = quotedPair.ReplaceAll(data, []byte("${1}REDACTED"))
	data = pair.ReplaceAll(data, []byte(`${1}"REDACTED"`))
	data = secret.ReplaceAll(data, []byte(`${1}"REDACTED"`))
	return userInfo.ReplaceAll(data, []byte("${1}REDACTED@"))
}

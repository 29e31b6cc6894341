// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// maxSocket is what sockaddr_un.sun_path holds beside its ending NUL.
const maxSocket = 107

// handlerName is what the Kubernetes API accepts as a RuntimeClass's handler.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func oneOf(allowed ...string) func(any) error {
	return func(v any) error {
		s := v.(string)
		for _, a := range allowed {
			if s == a {
				return nil
			}
		}
		if len(allowed) == 1 {
			return fmt.Errorf("%q is not known: only %q is", s, allowed[0])
		}
		return fmt.Errorf("%q is not one of %s%s", s, strings.Join(allowed, ", "), didYouMean(s, allowed))
	}
}

func between(low, high int) func(any) error {
	return func(v any) error {
		if n := v.(int); n < low || n > high {
			return fmt.Errorf("%d is out of range: %d to %d", n, low, high)
		}
		return nil
	}
}

func lasting(low, high time.Duration) func(any) error {
	return func(v any) error {
		if d := v.(time.Duration); d < low || d > high {
			return fmt.Errorf("%s is out of range: %s to %s", shortDuration(d), shortDuration(low), shortDuration(high))
		}
		return nil
	}
}

// folder accepts an absolute path. Not one that names the same place in two ways: paths are compared with those in /proc.
func folder(v any) error {
	s := v.(string)
	switch {
	case s == "":
		return errors.New("must not be empty")
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("%q has a NUL byte", s)
	case !filepath.IsAbs(s):
		return fmt.Errorf("%q is not an absolute path", s)
	case filepath.Clean(s) != s:
		return fmt.Errorf("%q is not a clean path: write %q", s, filepath.Clean(s))
	case s == "/":
		return errors.New(`"/" cannot be it`)
	}
	return nil
}

func optional(check func(any) error) func(any) error {
	return func(v any) error {
		if v.(string) == "" {
			return nil
		}
		return check(v)
	}
}

func folders(v any) error {
	for _, s := range v.([]string) {
		if err := folder(s); err != nil {
			return err
		}
	}
	return nil
}

// folderPath accepts folders parted by colons, or none.
func folderPath(v any) error {
	return folders(Registry{ConfigPath: v.(string)}.ConfigPaths())
}

func socket(v any) error {
	if err := folder(v); err != nil {
		return err
	}
	if n := len(v.(string)); n > maxSocket {
		return fmt.Errorf("%q is too long for a socket: %d bytes, at most %d", v, n, maxSocket)
	}
	return nil
}

func anything(any) error { return nil }

// address accepts what can be both listened on and connected to.
func address(v any) error {
	s := v.(string)
	ip, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not an IP address", s)
	case ip.IsUnspecified():
		return fmt.Errorf("%q is no address to connect to: write the node's own", s)
	}
	return nil
}

func word(v any) error {
	if s := v.(string); strings.ContainsAny(s, " \t\r\n:\x00") {
		return fmt.Errorf("%q is not a name", s)
	}
	return nil
}

// annotationKeys accepts keys with wildcards, as path.Match has them.
func annotationKeys(v any) error {
	for _, p := range v.([]string) {
		if _, err := path.Match(p, ""); err != nil || p == "" || strings.ContainsAny(p, " \t\r\n\x00") {
			return fmt.Errorf("%q is not a pattern of annotation keys", p)
		}
	}
	return nil
}

func handler(v any) error {
	if s := v.(string); !handlerName.MatchString(s) {
		return fmt.Errorf("%q is not a runtime handler's name: lower-case letters, digits and -, at most 63", s)
	}
	return nil
}

func cgroup(v any) error {
	s := v.(string)
	if s == "" || strings.ContainsAny(s, "\x00\n") || filepath.Clean("/"+s) != "/"+strings.TrimPrefix(s, "/") || s == "/" {
		return fmt.Errorf("%q is not a cgroup's path", s)
	}
	return nil
}

// names accepts a list of words.
func names(v any) error {
	for _, s := range v.([]string) {
		if s == "" {
			return errors.New("a name must not be empty")
		}
		if err := word(s); err != nil {
			return err
		}
	}
	return nil
}

// patterns accepts a list of references with wildcards in path.Match's form.
func patterns(v any) error {
	for _, s := range v.([]string) {
		if s == "" || strings.ContainsAny(s, " \t\r\n\x00") {
			return fmt.Errorf("%q is not a reference", s)
		}
		if _, err := path.Match(s, ""); err != nil {
			return fmt.Errorf("%q is not a pattern: %w", s, err)
		}
	}
	return nil
}

func eachOf(allowed ...string) func(any) error {
	return func(v any) error {
		for _, s := range v.([]string) {
			if err := oneOf(allowed...)(s); err != nil {
				return err
			}
		}
		return nil
	}
}

// Validate says what is wrong with c: every value by its key's rule, then the values together. It looks at nothing but c.
func Validate(c *Config) Problems {
	var found Problems
	for _, f := range c.fields() {
		if err := f.check(value(f.ptr)); err != nil {
			found = append(found, Problem{Key: f.name, Text: err.Error()})
		}
	}
	for name := range c.Runtimes {
		if err := handler(name); err != nil {
			found = append(found, Problem{Key: "runtimes." + name, Text: err.Error()})
		}
	}
	return append(append(found, validateTogether(c)...), validateHandlers(c)...)
}

// validateTogether checks what no key can tell alone.
func validateTogether(c *Config) Problems {
	var found Problems
	found = append(found, validateSnapshotters(c)...)
	if c.Runtimes[c.DefaultRuntime] == nil {
		var known []string
		for name := range c.Runtimes {
			known = append(known, name)
		}
		found = append(found, Problem{Key: "default_runtime",
			Text: fmt.Sprintf("there is no [runtimes.%s]%s", c.DefaultRuntime, didYouMean(c.DefaultRuntime, known))})
	}
	// One inside the other would let the sweep of one eat the other.
	if inside(c.Root, c.State) || inside(c.State, c.Root) {
		found = append(found, Problem{Key: "state", Text: fmt.Sprintf("%q and root %q must not be one inside the other", c.State, c.Root)})
	}
	if len(c.NRI.RequiredPlugins) > 0 && !c.NRI.Enable {
		found = append(found, Problem{Key: "nri.required_plugins", Text: "are required, but nri.enable is false"})
	}
	if c.Tracing.Insecure && c.Tracing.CAFile != "" {
		found = append(found, Problem{Key: "tracing.ca_file", Text: "makes no sense with tracing.insecure"})
	}
	return append(append(found, validateStreaming(c.Streaming)...), validateMetrics(c.Metrics)...)
}

// hostPort takes what can be dialled.
func hostPort(v any) error {
	host, port, err := net.SplitHostPort(v.(string))
	if err != nil || host == "" || strings.ContainsAny(host, "/ \t\r\n\x00") {
		return fmt.Errorf("%q is not HOST:PORT", v)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q has no port from 1 to 65535", v)
	}
	return nil
}

const unixPrefix = "unix://"

// metricsAddress takes IP:PORT or unix:///path.
func metricsAddress(v any) error {
	s := v.(string)
	if path, ok := strings.CutPrefix(s, unixPrefix); ok {
		return socket(path)
	}
	if _, err := netip.ParseAddrPort(s); err != nil {
		return fmt.Errorf("%q is neither IP:PORT nor unix:///PATH", s)
	}
	return nil
}

// validateMetrics keeps metrics from strangers, and what is for debugging from everybody but root.
func validateMetrics(m Metrics) Problems {
	var found Problems
	onSocket := strings.HasPrefix(m.Address, unixPrefix)
	switch at, err := netip.ParseAddrPort(m.Address); {
	case (m.CertFile == "") != (m.KeyFile == ""):
		found = append(found, Problem{Key: "metrics.cert_file", Text: "and metrics.key_file go together"})
	case m.CertFile == "" && m.ClientCAFile != "":
		found = append(found, Problem{Key: "metrics.client_ca_file", Text: "needs metrics.cert_file and metrics.key_file"})
	case m.CertFile != "" && onSocket:
		found = append(found, Problem{Key: "metrics.cert_file", Text: "makes no sense with a unix socket"})
	case m.CertFile == "" && err == nil && !at.Addr().IsLoopback():
		found = append(found, Problem{Key: "metrics.address", Text: fmt.Sprintf("%q is not a loopback address: set metrics.cert_file and metrics.key_file", m.Address)})
	}
	if m.Debug && !onSocket && m.ClientCAFile == "" {
		found = append(found, Problem{Key: "metrics.debug", Text: "needs a unix socket as metrics.address, or metrics.client_ca_file: else every user of the node could read the daemon's memory"})
	}
	return found
}

// validateStreaming keeps streams that anybody can read off the network.
func validateStreaming(s Streaming) Problems {
	var found Problems
	switch ip, err := netip.ParseAddr(s.Address); {
	case s.CertFile != "" && s.KeyFile == "":
		found = append(found, Problem{Key: "streaming.key_file", Text: "is missing: streaming.cert_file is set"})
	case s.CertFile == "" && s.KeyFile != "":
		found = append(found, Problem{Key: "streaming.cert_file", Text: "is missing: streaming.key_file is set"})
	case s.CertFile == "" && s.ClientCAFile != "":
		found = append(found, Problem{Key: "streaming.client_ca_file", Text: "needs streaming.cert_file and streaming.key_file"})
	case s.CertFile == "" && err == nil && !ip.IsLoopback():
		found = append(found, Problem{Key: "streaming.address", Text: fmt.Sprintf("%q is not a loopback address: set streaming.cert_file and streaming.key_file", s.Address)})
	}
	return found
}

func inside(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

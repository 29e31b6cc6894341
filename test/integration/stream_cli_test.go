// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
)

// berth is the command line, connected to the test's daemon.
func berth(k *kubelet.Kubelet, args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(k.D.Spec.Bin, "berth"), append([]string{"--socket", k.D.Socket}, args...)...)
}

func exitCodeOf(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

func TestCommandLineStreams(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("cli"))
	interactive := k.Shell("main", `trap 'exit 0' TERM; while read line; do echo got $line; done`)
	interactive.Stdin = true
	c := p.Start(interactive)
	for _, transport := range []string{"spdy", "websocket"} {
		var out, errOut bytes.Buffer
		cmd := berth(k, "exec", "--transport", transport, "-i", c.ID, "sh", "-c", "cat; echo bad >&2; exit 9")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("from here\n"), &out, &errOut
		equal(t, transport+": exec's code", exitCodeOf(cmd.Run()), 9)
		equal(t, transport+": exec's output", out.String(), "from here\n")
		equal(t, transport+": exec's error output", errOut.String(), "bad\n")

		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		errOut.Reset()
		cmd = berth(k, "exec", "--transport", transport, c.ID, "yes") // which would not end by itself
		cmd.Stdout, cmd.Stderr = full, &errOut
		equal(t, transport+": exec's code when its output is lost", exitCodeOf(cmd.Run()), 1)
		contains(t, transport+": exec's output is lost", errOut.String(), "write /dev/stdout: no space left on device")
		full.Close()

		cmd = berth(k, "attach", "--transport", transport, "-i", c.ID)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var attached buffer
		cmd.Stdout = &attached
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in, "typed")
		attached.await(t, "got typed\n")
		in.Close()
		equal(t, transport+": attach's code", exitCodeOf(cmd.Wait()), 0)

		port := serveInPod(t, p, "127.0.0.1", echo)
		cmd = berth(k, "port-forward", "--transport", transport, "--address", "127.0.0.1", p.ID, fmt.Sprintf("0:%d", port))
		var said buffer
		cmd.Stdout = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said.await(t, "Forwarding from 127.0.0.1:")
		local, _, _ := strings.Cut(strings.TrimPrefix(said.String(), "Forwarding from "), " ")
		conn, err := net.Dial("tcp", local)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "there and back")
		conn.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(conn); err != nil || string(got) != "there and back" {
			t.Errorf("%s: port-forward: %q, %v", transport, got, err)
		}
		conn.Close()
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
	}
}

// A success would have a script go on with half of what it wanted.
func TestASessionWhoseDaemonIsGoneIsNoSuccess(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	c := k.RunPod(k.PodConfig("cut")).Start(k.Forever("main"))
	type session struct {
		cmd      *exec.Cmd
		out, err buffer
	}
	var all []*session
	for _, transport := range []string{"spdy", "websocket"} {
		s := &session{cmd: berth(k, "exec", "--transport", transport, c.ID, "sh", "-c", "echo on; sleep 1000")}
		s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.err
		if err := s.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		s.out.await(t, "on\n")
		all = append(all, s)
	}
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		equal(t, "exit code of "+strings.Join(s.cmd.Args, " "), exitCodeOf(s.cmd.Wait()), 1)
		contains(t, "error", s.err.String(), "the connection to the daemon was lost")
	}
	if err := k.D.Launch(k.Ctx()); err != nil {
		t.Fatal(err)
	}
}

// selfSigned writes a certificate for the loopback address with a serial number, and its key.
func selfSigned(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"server.pem": {Type: "CERTIFICATE", Bytes: cert}, "server.key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStreamsOverTLS(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	dir := t.TempDir()
	selfSigned(t, dir, 1)
	ca := filepath.Join(dir, "server.pem")
	k := node(t, daemon.Spec{Config: fmt.Sprintf("\n[streaming]\ncert_file = %q\nkey_file = %q\n", ca, filepath.Join(dir, "server.key"))})
	c := k.RunPod(k.PodConfig("tls")).Start(k.Forever("main"))
	for i := range 2 {
		for _, transport := range []string{"spdy", "websocket"} {
			out, err := berth(k, "exec", "--transport", transport, "--tls-ca", ca, c.ID, "echo", "safe").Output()
			if err != nil || string(out) != "safe\n" {
				t.Errorf("certificate %d, %s: %q, %v", i+1, transport, out, err)
			}
		}
		time.Sleep(20 * time.Millisecond) // another mtime
		selfSigned(t, dir, 2)
	}
	out, err := berth(k, "exec", c.ID, "echo", "safe").CombinedOutput()
	if err == nil {
		t.Error("a certificate that nobody knows was accepted")
	}
	contains(t, "error", string(out), "certificate")
}

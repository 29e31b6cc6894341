// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
)

func TestVariablesMayHaveAnyBytes(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("bytes"))
	spec := k.Forever("main")
	spec.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
	spec.Linux.SecurityContext.ReadonlyRootfs = true
	spec.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
	spec.Linux.SecurityContext.NoNewPrivs = true
	spec.Envs = []*cri.KeyValue{{Key: "BINARY", Value: []byte{0xff, 0xfe, '\n', 0x80}}, {Key: "TEXT", Value: []byte("a b")},
		{Key: "LONG", Value: []byte(strings.Repeat("\xff", 100000))}}
	c := p.Start(spec)
	equal(t, "bytes of an exec", c.Exec(`printf "%s" "$BINARY" | od -An -tx1`), "ff fe 0a 80")
	equal(t, "text of an exec", c.Exec(`echo "$TEXT ${#LONG}"`), "a b 100000")
	equal(t, "bytes of init", c.Exec(`tr "\\0" "@" </proc/1/environ | tr -d "\n" | od -An -tx1 -v | tr -d " \n" | grep -c 42494e4152593dfffe8040`), "1")
	equal(t, "what carried them", c.Exec("env | grep -c BERTH || true"), "0")
	equal(t, "program of init", c.Exec("tr '\\0' ' ' </proc/1/cmdline | cut -c1-5"), "sh -c")
	equal(t, "privileges", c.Exec("grep -c 'CapEff:.0000000000000000' /proc/1/status; id -u"), "1\n1000")

	absent := k.ContainerConfig("absent", "no-such-program")
	absent.Envs = spec.Envs[:1]
	s := p.Start(absent).WaitExit()
	equal(t, "exit code of a program that is not there", s.ExitCode, 127)
}

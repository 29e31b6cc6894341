// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// variables are an environment: each name once, at the place where it was first set. With service links a container has tens of
// thousands of them, so names are looked up, not searched for.
type variables struct {
	pairs []string
	at    map[string]int
}

func (v *variables) set(name, value string) {
	pair := name + "=" + value
	if i, found := v.at[name]; found {
		v.pairs[i] = pair
		return
	}
	v.at[name] = len(v.pairs)
	v.pairs = append(v.pairs, pair)
}

// environment is the image's, overridden by the container's. PATH, HOSTNAME, HOME and TERM are set where nobody else does.
func environment(in Input) ([]string, error) {
	v := variables{at: map[string]int{}}
	v.set("PATH", defaultPath)
	if in.Container.GetTty() {
		v.set("TERM", "xterm")
	}
	if name := hostname(in); name != "" {
		v.set("HOSTNAME", name)
	}
	if in.User.Home != "" {
		v.set("HOME", in.User.Home)
	}
	for _, pair := range in.Image.Env {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			continue // no variable: other runtimes run such images, and so must we
		}
		if strings.ContainsRune(pair, 0) {
			return nil, invalid("environment of the image", "%q has a NUL", name)
		}
		v.set(name, value)
	}
	for i, kv := range in.Container.GetEnvs() {
		if err := validEnv(i, kv); err != nil {
			return nil, err
		}
		v.set(kv.GetKey(), string(kv.GetValue()))
	}
	return v.pairs, nil
}

// hostname is the pod's, which is the node's own in the host's network.
func hostname(in Input) string {
	if in.Sandbox.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		return cmp.Or(in.Host.Hostname, in.Sandbox.GetHostname())
	}
	return in.Sandbox.GetHostname()
}

// validEnv never tells a value: it may be a secret.
func validEnv(i int, kv *runtimeapi.KeyValue) error {
	field := fmt.Sprintf("envs[%d]", i)
	switch {
	case kv.GetKey() == "":
		return invalid(field, "the key is empty")
	case strings.ContainsAny(kv.GetKey(), "=\x00"):
		return invalid(field, "key %q has a character that no key can have", kv.GetKey())
	case bytes.IndexByte(kv.GetValue(), 0) >= 0:
		return invalid(field, "the value of %s has a NUL", kv.GetKey())
	}
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package handlers

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/kubelet"
)

// ociProgram is the OCI runtime of a handler, which has a `features` command of its own.
func (h handler) ociProgram() string {
	switch {
	case h.gvisor:
		return filepath.Join(binDir, "gvisor/runsc")
	case h.name == "crun":
		return h.programs[0]
	}
	return filepath.Join(binDir, "runc")
}

// saysOfItself is what the program's own `features` tells.
func (h handler) saysOfItself(t *testing.T) (recursiveReadOnly, userNamespaces bool) {
	t.Helper()
	out, err := exec.Command(h.ociProgram(), "features").Output()
	if err != nil {
		t.Fatal(err)
	}
	var says struct {
		MountOptions []string
		Linux        struct {
			Namespaces      []string
			MountExtensions struct{ IDMap struct{ Enabled bool } }
		}
	}
	if err := json.Unmarshal(out, &says); err != nil {
		t.Fatal(err)
	}
	// gVisor means those that it makes itself; it enters none, and a pod's is there before its sandbox.
	return slices.Contains(says.MountOptions, "rro"), !h.gvisor && slices.Contains(says.Linux.Namespaces, "user") && says.Linux.MountExtensions.IDMap.Enabled
}

// TestFeaturesAreTheRuntimesOwn: Status has what the program tells, and what it tells is so.
func TestFeaturesAreTheRuntimesOwn(t *testing.T) {
	each(t, func(t *testing.T, h handler) {
		k := node(t, h)
		r, err := k.D.Runtime.Status(k.Ctx(), &cri.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		reported := map[string]*cri.RuntimeHandlerFeatures{}
		for _, one := range r.RuntimeHandlers {
			reported[one.Name] = one.Features
		}
		got, standard := reported[h.name], reported[""]
		if got == nil || standard == nil {
			t.Fatalf("handlers: %v", r.RuntimeHandlers)
		}
		readOnly, users := h.saysOfItself(t)
		users = users && standard.UserNamespaces // what the machine cannot, none can
		if got.RecursiveReadOnlyMounts != readOnly || got.UserNamespaces != users {
			t.Errorf("reported are %v; the program says: recursive read-only mounts %v, user namespaces %v", got, readOnly, users)
		}
		t.Run("recursive read-only mounts", func(t *testing.T) { tryReadOnly(t, k, readOnly) })
		t.Run("user namespaces", func(t *testing.T) { tryUserNamespace(t, k, users) })
	})
}

func tryReadOnly(t *testing.T, k *kubelet.Kubelet, can bool) {
	p := k.RunPod(k.PodConfig("readonly"))
	config := k.Forever("main")
	config.Mounts = []*cri.Mount{{HostPath: t.TempDir(), ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true}}
	if !can {
		_, err := p.TryCreate(config)
		kubelet.WantError(t, err, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "recursive")
		return
	}
	if got := p.Start(config).Exec("touch /rro/x 2>/dev/null || echo refused"); got != "refused" {
		t.Errorf("writing to it: %q", got)
	}
}

func tryUserNamespace(t *testing.T, k *kubelet.Kubelet, can bool) {
	const host = 1 << 20
	mapped := func(o *cri.NamespaceOption) {
		mapping := []*cri.IDMapping{{HostId: host, Length: 65536}}
		o.UsernsOptions = &cri.UserNamespace{Uids: mapping, Gids: mapping}
	}
	config := k.PodConfig("mapped")
	mapped(config.Linux.SecurityContext.NamespaceOptions)
	if !can {
		_, err := k.TryRunPod(config)
		kubelet.WantError(t, err, []codes.Code{codes.InvalidArgument, codes.FailedPrecondition}, "user namespace")
		return
	}
	main := k.Forever("main")
	mapped(main.Linux.SecurityContext.NamespaceOptions)
	c := k.RunPod(config).Start(main)
	if got := strings.Join(strings.Fields(c.Exec("cat /proc/self/uid_map")), " "); got != fmt.Sprintf("0 %d 65536", host) {
		t.Errorf("mapping %q", got)
	}
}

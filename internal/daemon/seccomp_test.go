// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/pod"
)

func TestSeccompProfilesAreReadBoundedOrAnError(t *testing.T) {
	dir := t.TempDir()
	largest := bytes.Repeat([]byte(" "), maxProfile)
	for name, data := range map[string][]byte{"good": []byte("{}"), "largest": largest, "larger": append(largest, ' ')} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		profile *runtimeapi.SecurityProfile
		size    int
		err     string
	}{
		"none":           {nil, 0, ""},
		"unconfined":     {&runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, 0, ""},
		"good":           {local(dir + "/good"), 2, ""},
		"largest":        {local(dir + "/largest"), maxProfile, ""},
		"a byte more":    {local(dir + "/larger"), 0, "more than 1048576 bytes"},
		"missing":        {local(dir + "/none"), 0, "no such file"},
		"fifo":           {local(dir + "/fifo"), 0, "want a file"},
		"folder":         {local(dir), 0, "want a file"},
		"nothing":        {local(""), 0, "is empty"},
		"climbs":         {local("../../../etc/passwd"), 0, "leads out of /var/lib/kubelet/seccomp"},
		"is relative":    {local("no/such.json"), 0, "/var/lib/kubelet/seccomp/no/such.json"},
		"device, no end": {local("/dev/zero"), 0, "want a file"},
	} {
		p, err := seccompProfile(c.profile)
		switch {
		case c.err == "" && (err != nil || len(p.JSON) != c.size || p.Default):
			t.Errorf("%s: %d bytes, %v", name, len(p.JSON), err)
		case c.err != "" && (!errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), "localhost_ref")):
			t.Errorf("%s: %v", name, err)
		}
	}
	if p, err := seccompProfile(&runtimeapi.SecurityProfile{}); err != nil || !p.Default {
		t.Errorf("the default: %+v, %v", p, err)
	}
}

func local(ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
}

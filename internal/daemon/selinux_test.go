// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/linux/selinux"
	"github.com/berth-run/berth/internal/pod"
)

func TestVolumesAreRelabelledWhereThereAreLabels(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, label string
		want        error
	}{{dir, "", nil}, {"/etc", "", nil}, {"/etc", "u:r:t:s0", pod.ErrInvalid}, {"/proc/sys", "u:r:t:s0", nil}} {
		if err := relabelSource(c.path, c.label); !errors.Is(err, c.want) || c.want != nil && !strings.HasPrefix(err.Error(), "selinux_relabel: ") {
			t.Errorf("%s as %q: %v", c.path, c.label, err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for attributes of the name space security")
	}
	if err := relabelSource(dir, "u:r:t:s0:c1,c2"); err != nil {
		t.Error(err)
	}
	if err := selinux.Relabel(dir, "u:r:t:s0:c1,c2"); err != nil {
		t.Error(err)
	}
}

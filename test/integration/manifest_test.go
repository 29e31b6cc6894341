// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/berth-run/berth/test/daemon"
)

// manifestScript says what the pod has: who it is on the host, what its volumes hold, and what it cannot write to.
const manifestScript = `read inside host size < /proc/self/uid_map; echo "root is not the host's: $([ $host -ge 65536 ] && echo yes), $size users"
touch /data/mine && echo "owner $(stat -c %u /data/mine), hosts of $(stat -c %u /etc/hosts)"
cat /model/weights; echo
touch /model/x 2>/dev/null || echo the model is read-only
touch /strict/below/x 2>/dev/null || echo what is mounted below is read-only too`

func TestAManifestMayHaveItsOwnUsersAndMountImages(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := node(t, daemon.Spec{})
	ref, _ := artifact(t, k, "manifest")
	top := volume(t, k, "top", 0, syscall.MS_PRIVATE)
	if err := os.Mkdir(top+"/below", 0o777); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", top+"/below", "tmpfs", 0, "mode=777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(top+"/below", syscall.MNT_DETACH) })
	pods := filepath.Join(k.D.Dir, "run-pods")
	cmd := berth(k, "run", "--pods-dir", pods, "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own-users"}, "spec": {
  "restartPolicy": "Never", "hostUsers": false,
  "volumes": [{"name": "data", "emptyDir": {}}, {"name": "model", "image": {"reference": %q, "pullPolicy": "Never"}}, {"name": "top", "hostPath": {"path": %q}}],
  "containers": [{"name": "a", "image": %q, "imagePullPolicy": "Never", "command": ["sh", "-c", %q], "volumeMounts": [
    {"name": "data", "mountPath": "/data"}, {"name": "model", "mountPath": "/model", "subPath": "models"},
    {"name": "top", "mountPath": "/strict", "readOnly": true, "recursiveReadOnly": "Enabled"}]}]}}`, ref, top, ref, manifestScript))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := `a | root is not the host's: yes, 65536 users
a | owner 0, hosts of 0
a | weights of manifest
a | the model is read-only
a | what is mounted below is read-only too
`
	equal(t, "what the pod says", string(out), want)
	if left, err := filepath.Glob(pods + "/*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/registry"
	"github.com/berth-run/berth/test/snapshotter"
)

// layered pushes an image of two layers, of which the snapshotter has the first.
func layered(t *testing.T, r *snapshotter.Server, name string) string {
	t.Helper()
	base, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	base.File("base", []byte(name), 0o644)
	var own registry.Tree
	own.File("who", []byte(name), 0o644)
	im := registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{base, own}})
	layers, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	first, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	r.Has(first.String(), func() (io.ReadCloser, error) { return layers[0].Compressed() })
	ref, _ := images.MustPush(t, name+":1", im)
	return ref
}

func TestPodsRunFromARemoteSnapshotter(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	r := snapshotter.Start(t, "overlayfs", t.TempDir())
	k := node(t, daemon.Spec{Config: fmt.Sprintf("\n[images]\nsnapshotter = \"lazy\"\n\n[snapshotters.lazy]\naddress = %q\ntimeout = \"20s\"\n", r.Address)})
	before := len(r.Snapshots(t))
	ref := layered(t, r, "remote")
	id := k.Pull(ref)
	p := k.RunPod(k.PodConfig("remote"))
	spec := k.Forever("main")
	spec.Image.Image = id
	spec.Mounts = []*cri.Mount{imageMount("/v", ref, "")}
	c := p.Start(spec)
	equal(t, "the image and a volume of it", c.Exec("cat /who /v/who; echo mine > /who; cat /who"), "remoteremotemine")

	// The daemon starts beside a snapshotter that hangs, and what runs runs on.
	r.Fail(snapshotter.Hang)
	if err := k.D.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := k.D.Restart(k.Ctx()); err != nil {
		t.Fatal(err)
	}
	equal(t, "after a crash", c.Exec("cat /who /v/who"), "mine\nremote")
	info, err := k.D.Images.ImageFsInfo(k.Ctx(), &cri.ImageFsInfoRequest{})
	if err != nil || len(info.ImageFilesystems) != 1 {
		t.Errorf("%v, %v", info, err)
	}
	r.Fail(func(context.Context, string) error { return errors.New("out of order") })
	second := k.Forever("second")
	second.Image.Image = id
	_, err = p.TryCreate(second)
	wantError(t, err, []codes.Code{codes.Unavailable}, "snapshotter lazy", "out of order")

	r.Fail(nil)
	again := k.Forever("third")
	again.Image.Image = id
	d := p.Start(again)
	equal(t, "once it answers", d.Exec("cat /who"), "remote")
	if _, err := k.D.Images.RemoveImage(k.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	equal(t, "after the image's removal", d.Exec("cat /who"), "remote")
	d.Remove()
	c.Remove()
	for begin := time.Now(); len(r.Snapshots(t)) > before; time.Sleep(100 * time.Millisecond) {
		if time.Since(begin) > 2*time.Minute { // a collection that the fault cut off is tried again within one
			t.Fatalf("the snapshotter still has %v", r.Snapshots(t))
		}
	}
}

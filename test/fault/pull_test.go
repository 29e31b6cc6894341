// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// A pull writes few records and many bytes: it is killed where the registry has sent so many of them,
// and at random times after the last one, while layers are unpacked and the image is committed.
func TestAKillDuringAPullLosesNothing(t *testing.T) {
	t.Parallel()
	busybox, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	reg := registry.Start(t)
	const files = 1500
	im := registry.MustBuild(t, registry.Spec{
		Layers: []registry.Tree{busybox, registry.Files("data", files, 4000, 1)},
		Config: v1.Config{Cmd: []string{"sh", "-c", "find /data -type f -size 4000c | wc -l; cat /data/*/* | md5sum"}},
	})
	ref, _ := reg.MustPush(t, "killed:1", im)
	layers, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	size, err := layers[1].Size()
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, daemon.Spec{})
	want := r.contentOf(ref) // undisturbed
	r.forget(ref)

	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	type moment struct {
		name, match string
		bytes       int
		later       time.Duration
	}
	moments := []moment{
		{"before the manifest", "/manifests/", 0, 0},
		{"before the layer", digest.String(), 0, 0},
		{"before the last byte", digest.String(), int(size) - 1, 0},
	}
	for range 5 {
		n := random.IntN(int(size))
		moments = append(moments, moment{fmt.Sprintf("after %d bytes", n), digest.String(), n, 0})
		later := time.Duration(random.IntN(400)) * time.Millisecond
		moments = append(moments, moment{fmt.Sprintf("%s after the last byte", later), digest.String(), int(size), later})
	}
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			own := *r.Kubelet
			own.T = t
			r := &rig{&own, r.points}
			r.restart("")
			var killed sync.WaitGroup
			killed.Add(1)
			kill := sync.OnceFunc(func() { r.D.Kill(); killed.Done() })
			heal := reg.Inject(registry.Fault{Match: m.match, Times: 1, Do: registry.After(m.bytes, func() {
				if m.later == 0 {
					kill()
				} else {
					time.AfterFunc(m.later, kill)
				}
			}, false)})
			_, err := r.D.Images.PullImage(r.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
			if err == nil && m.later == 0 {
				t.Error("the pull succeeded without its last bytes")
			}
			heal()
			killed.Wait()
			r.restart("")
			status, err := r.D.Images.ImageStatus(r.Ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
			if im := kubelet.Must(r.Kubelet, status, err).Image; im != nil {
				t.Log("the image was complete")
			}
			if got := r.contentOf(ref); got != want {
				t.Errorf("content after the kill is\n%s, want\n%s", got, want)
			}
			r.forget(ref)
			if t.Failed() {
				t.Logf("log:\n%s", r.D.LogTail(30))
			}
		})
	}
}

// contentOf pulls the image and returns what its command prints.
func (r *rig) contentOf(ref string) string {
	r.T.Helper()
	p := r.RunPod(r.PodConfig("content"))
	spec := r.ContainerConfig("main")
	spec.Image.Image = r.Pull(ref)
	c := p.Start(spec)
	if s := c.WaitExit(); s.ExitCode != 0 {
		r.T.Errorf("exit code %d", s.ExitCode)
	}
	out := c.Output("stdout")
	p.Remove()
	return out
}

// forget removes the image, after which nothing of its content may be left.
func (r *rig) forget(ref string) {
	r.T.Helper()
	if _, err := r.D.Images.RemoveImage(r.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		r.T.Fatal(err)
	}
	kubelet.Eventually(r.T, 10*time.Second, func() string {
		if left := r.D.ImageFiles(); len(left) > 0 {
			return fmt.Sprintf("%d files of images are left, such as %s", len(left), left[0])
		}
		return ""
	})
}

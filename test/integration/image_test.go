// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/test/daemon"
	"github.com/berth-run/berth/test/kubelet"
	"github.com/berth-run/berth/test/registry"
)

// small is an image of its own for each name: one file in one layer.
func small(t *testing.T, name string, spec registry.Spec) v1.Image {
	t.Helper()
	var tree registry.Tree
	tree.File("name", []byte(name), 0o644)
	spec.Layers = append([]registry.Tree{tree}, spec.Layers...)
	return registry.MustBuild(t, spec)
}

func imageStatus(k *kubelet.Kubelet, ref string) *cri.Image {
	k.T.Helper()
	r, err := k.D.Images.ImageStatus(k.Ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	return kubelet.Must(k, r, err).Image
}

func removeImage(k *kubelet.Kubelet, ref string) {
	k.T.Helper()
	if _, err := k.D.Images.RemoveImage(k.Ctx(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
		k.T.Fatal(err)
	}
}

func TestEachKindOfImageRuns(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{})
	tree, err := registry.BusyboxTree()
	if err != nil {
		t.Fatal(err)
	}
	layers := []registry.Tree{tree}
	mine := registry.MustBuild(t, registry.Spec{Layers: layers, Arch: runtime.GOARCH})
	index, err := registry.Index(registry.MustBuild(t, registry.Spec{Layers: layers, Arch: "s390x"}), mine)
	if err != nil {
		t.Fatal(err)
	}
	whiteout, upper := registry.Tree{}, registry.Tree{}
	whiteout.File("etc/.wh.group", nil, 0o644)
	whiteout.Dir("var/", 0o700)
	upper.File("etc/added", []byte("by layer 3"), 0o644)
	p := k.RunPod(k.PodConfig("kinds"))
	for name, image := range map[string]any{
		"oci-gzip":  registry.MustBuild(t, registry.Spec{Layers: layers}),
		"oci-zstd":  registry.MustBuild(t, registry.Spec{Layers: layers, Zstd: true}),
		"oci-plain": registry.MustBuild(t, registry.Spec{Layers: layers, Raw: true}),
		"docker":    registry.MustBuild(t, registry.Spec{Layers: layers, Docker: true}),
		"index":     index,
		"layered":   registry.MustBuild(t, registry.Spec{Layers: append(layers, whiteout, upper)}),
	} {
		ref, _ := images.MustPush(t, "kinds/"+name+":1", image)
		spec := k.Shell(name, "cat /etc/passwd /etc/added; ls /etc/group; stat -c %a /var")
		spec.Image.Image = k.Pull(ref)
		c := p.Start(spec)
		c.WaitExit()
		contains(t, name, c.Output("stdout"), "root:x:0:0")
		if name == "layered" {
			contains(t, name, c.Output("stdout"), "by layer 3", "700")
			contains(t, name, c.Output("stderr"), "/etc/group: No such file")
		}
	}
}

func TestAnImageIsKnownByItsNames(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{NoNetwork: true})
	im := small(t, "names", registry.Spec{Config: v1.Config{User: "1234:5"}})
	tag, byDigest := images.MustPush(t, "names:a", im)
	other, _ := images.MustPush(t, "names:b", im)
	config, err := im.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if got := imageStatus(k, tag); got != nil {
		t.Errorf("status before the pull: %v", got)
	}
	equal(t, "ID is the config's digest", k.Pull(tag), config.String())
	equal(t, "ID of the other tag", k.Pull(other), config.String())
	equal(t, "ID by digest", k.Pull(byDigest), config.String())
	for _, ref := range []string{tag, other, byDigest, config.String(), config.Hex, config.Hex[:12]} {
		s := imageStatus(k, ref)
		if s == nil {
			t.Errorf("no status of %s", ref)
			continue
		}
		sameSet(t, "tags of "+ref, s.RepoTags, []string{tag, other})
		sameSet(t, "digests of "+ref, s.RepoDigests, []string{byDigest})
		equal(t, "id of "+ref, s.Id, config.String())
		equal(t, "uid of "+ref, s.GetUid().GetValue(), 1234)
		equal(t, "pinned", s.Pinned, false)
		if s.Size == 0 {
			t.Error("size is 0: a kubelet refuses that")
		}
	}
	v, err := k.D.Images.ImageStatus(k.Ctx(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: tag}, Verbose: true})
	if kubelet.Must(k, v, err).Info["info"] == "" {
		t.Error("verbose status has no info")
	}
	list := func(filter *cri.ImageFilter) []string {
		r, err := k.D.Images.ListImages(k.Ctx(), &cri.ListImagesRequest{Filter: filter})
		var ids []string
		for _, i := range kubelet.Must(k, r, err).Images {
			ids = append(ids, i.Id)
		}
		return ids
	}
	sameSet(t, "list", list(nil), []string{config.String()})
	sameSet(t, "list by tag", list(&cri.ImageFilter{Image: &cri.ImageSpec{Image: tag}}), []string{config.String()})
	if !onContainerd() { // which ignores the filter
		sameSet(t, "list of another", list(&cri.ImageFilter{Image: &cri.ImageSpec{Image: "127.0.0.1:1/none:1"}}), nil)
	}
	removeImage(k, config.String())
	removeImage(k, config.String())
	for _, ref := range []string{tag, other, byDigest, config.String()} {
		if s := imageStatus(k, ref); s != nil {
			t.Errorf("%s is still there: %v", ref, s)
		}
	}
}

func TestATagThatMovesLeavesTheOldImage(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{NoNetwork: true})
	tag, oldDigest := images.MustPush(t, "moving:latest", small(t, "old", registry.Spec{}))
	old := k.Pull(tag)
	_, newDigest := images.MustPush(t, "moving:latest", small(t, "new", registry.Spec{}))
	fresh := k.Pull(strings.TrimSuffix(tag, ":latest")) // latest is what no tag means
	if fresh == old {
		t.Fatal("the second pull brought the first image")
	}
	sameSet(t, "tags of the new", imageStatus(k, fresh).RepoTags, []string{tag})
	sameSet(t, "digests of the new", imageStatus(k, fresh).RepoDigests, []string{newDigest})
	s := imageStatus(k, old)
	if s == nil || len(s.RepoTags) != 0 {
		t.Fatalf("the old image is %v", s)
	}
	sameSet(t, "digests of the old", s.RepoDigests, []string{oldDigest})
}

func TestImageFsInfoCountsWhatImagesUse(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{NoNetwork: true})
	used := func() uint64 {
		r, err := k.D.Images.ImageFsInfo(k.Ctx(), &cri.ImageFsInfoRequest{})
		list := kubelet.Must(k, r, err).ImageFilesystems
		if len(list) == 0 {
			t.Fatal("no image file system")
		}
		if _, err := os.Stat(list[0].GetFsId().GetMountpoint()); err != nil {
			t.Errorf("mount point: %v", err)
		}
		if list[0].Timestamp == 0 || list[0].UsedBytes == nil || list[0].InodesUsed == nil {
			t.Errorf("info is %v", list[0])
		}
		return list[0].UsedBytes.Value
	}
	before := used()
	ref, _ := images.MustPush(t, "fsinfo:1", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{registry.Files("data", 40, 100000, 1)}}))
	id := k.Pull(ref)
	limit := 15 * time.Second // containerd counts every ten seconds
	kubelet.Eventually(t, limit, func() string {
		if now := used(); now < before+4000000 {
			return fmt.Sprintf("used %d, %d before the pull of 4 MB", now, before)
		}
		return ""
	})
	removeImage(k, id)
	kubelet.Eventually(t, limit, func() string {
		if now := used(); now > before+1000000 {
			return fmt.Sprintf("used %d after the removal, %d before", now, before)
		}
		return ""
	})
}

func TestContentThatNoImageNeedsIsCollected(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	k := start(t, daemon.Spec{NoNetwork: true})
	base := registry.Files("base", 20, 1000, 2)
	a, _ := images.MustPush(t, "gc:a", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{base, registry.Files("a", 20, 1000, 3)}}))
	b, _ := images.MustPush(t, "gc:b", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{base, registry.Files("b", 20, 1000, 4)}}))
	count := func(name string) (n int) {
		filepath.WalkDir(k.D.Root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasPrefix(d.Name(), name) {
				n++
			}
			return nil
		})
		return n
	}
	k.Pull(a)
	k.Pull(b)
	layers := func() int { return count("f000")/20 + count("layer.erofs") } // folders of files, or files
	if n := layers(); n != 3 {
		t.Fatalf("%d layers are unpacked, want 3", n)
	}
	removeImage(k, a)
	kubelet.Eventually(t, 10*time.Second, func() string {
		if n := layers(); n != 2 {
			return fmt.Sprintf("%d layers are left, want those 2 that b needs", n)
		}
		return ""
	})
	removeImage(k, b)
	kubelet.Eventually(t, 10*time.Second, func() string {
		if left := k.D.ImageFiles(); len(left) != 0 {
			return fmt.Sprintf("%d files are left, such as %s", len(left), left[0])
		}
		return ""
	})
}

func TestRemovingAnImageInUseLeavesItsContainerRunning(t *testing.T) {
	t.Parallel()
	k := node(t, daemon.Spec{})
	p := k.RunPod(k.PodConfig("used"))
	c := p.Start(k.Forever("main"))
	removeImage(k, k.Image)
	if s := imageStatus(k, busyboxRef); s != nil {
		t.Errorf("image is still listed: %v", s)
	}
	c.Exec("ls -l /bin/busybox && echo more >/written && cat /written")
	if err := k.D.Restart(k.Ctx()); err != nil && !onContainerd() {
		t.Fatal(err)
	}
	c.Exec("ls /bin/wget")
	equal(t, "state", c.Status().State, cri.ContainerState_CONTAINER_RUNNING)
	equal(t, "image ID", c.Status().ImageId, k.Image)
	equal(t, "pulled again", k.Pull(busyboxRef), k.Image)
}

func TestCredentialsAreSentAsTheKubeletGivesThem(t *testing.T) {
	t.Parallel()
	reg := registry.Start(t)
	ref, _ := reg.MustPush(t, "private/app:1", small(t, "private", registry.Spec{}))
	k := start(t, daemon.Spec{NoNetwork: true})
	pull := func(auth *cri.AuthConfig) error {
		_, err := k.D.Images.PullImage(k.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}, Auth: auth})
		return err
	}
	pair := base64.StdEncoding.EncodeToString([]byte("bob:s3cret:x"))
	for name, c := range map[string]struct {
		server registry.Auth
		auth   *cri.AuthConfig
		denied bool
	}{
		"none":           {server: registry.Auth{}, denied: true},
		"basic":          {server: registry.Auth{}, auth: &cri.AuthConfig{Username: "bob", Password: "s3cret:x"}},
		"basic, encoded": {server: registry.Auth{}, auth: &cri.AuthConfig{Auth: pair}},
		"basic, for another server": {server: registry.Auth{}, denied: true,
			auth: &cri.AuthConfig{Username: "bob", Password: "s3cret:x", ServerAddress: "https://other.example.com"}},
		"wrong password":       {server: registry.Auth{}, auth: &cri.AuthConfig{Username: "bob", Password: "no"}, denied: true},
		"bearer":               {server: registry.Auth{Bearer: true}, auth: &cri.AuthConfig{Username: "bob", Password: "s3cret:x"}},
		"bearer, no password":  {server: registry.Auth{Bearer: true}, denied: true},
		"identity token":       {server: registry.Auth{Bearer: true, IdentityToken: "tok"}, auth: &cri.AuthConfig{IdentityToken: "tok"}},
		"wrong identity token": {server: registry.Auth{Bearer: true, IdentityToken: "tok"}, auth: &cri.AuthConfig{IdentityToken: "old"}, denied: true},
	} {
		c.server.Username, c.server.Password = "bob", "s3cret:x"
		reg.SetAuth(&c.server)
		err := pull(c.auth)
		if c.denied {
			wantError(t, err, []codes.Code{codes.Unauthenticated, codes.PermissionDenied, codes.Unknown}, ref)
			if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), pair)) {
				t.Errorf("%s: the error tells the password: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		removeImage(k, ref)
	}
	if log := k.D.Log(); strings.Contains(log, "s3cret") || strings.Contains(log, pair) {
		t.Error("the daemon's log tells the password")
	}
}

func TestHostsTOMLSendsPullsToAMirror(t *testing.T) {
	t.Parallel()
	k := start(t, daemon.Spec{NoNetwork: true})
	mirror := registry.Start(t)
	mirror.MustPush(t, "library/app:1", small(t, "mirrored", registry.Spec{}))
	dir := filepath.Join(k.D.CertsDir, "docker.io")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("server = \"https://registry.invalid\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.Host)
	if err := os.WriteFile(dir+"/hosts.toml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	k.Pull("app:1")
	s := imageStatus(k, "docker.io/library/app:1")
	if s == nil {
		t.Fatal("no image")
	}
	sameSet(t, "tags", s.RepoTags, []string{"docker.io/library/app:1"})
}

func TestPullsOfOneLayerShareItsDownload(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	reg := registry.Start(t)
	shared := registry.Files("shared", 50, 20000, 5)
	var refs []string
	for i := range 4 {
		ref, _ := reg.MustPush(t, fmt.Sprintf("shared/%d:1", i), registry.MustBuild(t, registry.Spec{
			Layers: []registry.Tree{shared}, Config: v1.Config{Labels: map[string]string{"i": fmt.Sprint(i)}}}))
		refs = append(refs, ref, ref) // each image twice, too
	}
	reg.Inject(registry.Fault{Match: "GET /v2/shared", Do: registry.Stall(200 * time.Millisecond)})
	k := start(t, daemon.Spec{NoNetwork: true})
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			if _, err := k.D.Images.PullImage(k.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
				t.Errorf("pull %s: %v", ref, err)
			}
		})
	}
	wg.Wait()
	im := registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{shared}})
	layers, err := im.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	for i := range 4 {
		n += reg.Requests(fmt.Sprintf("GET /v2/shared/%d/blobs/%s", i, digest))
	}
	equal(t, "downloads of the shared layer", n, 1)
}

func TestPullsSurviveARegistryThatRecovers(t *testing.T) {
	t.Parallel()
	reg := registry.Start(t)
	k := start(t, daemon.Spec{NoNetwork: true})
	im := registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{registry.Files("d", 20, 20000, 6)}})
	for i, f := range []registry.Fault{
		{Match: "/manifests/", Times: 2, Do: registry.Status(500, 0)},
		{Match: "GET /v2/flaky3/blobs/", Times: 2, Do: registry.Status(503, 0)},
		{Match: "/manifests/", Times: 1, Do: registry.Status(429, 1)},
		{Match: "GET /v2/flaky5/blobs/", Times: 1, Do: registry.Reset(70000)},
		{Match: "GET /v2/flaky6/blobs/", Times: 1, Do: registry.Reset(0)},
	} {
		ref, _ := reg.MustPush(t, fmt.Sprintf("flaky%d:1", i+2), im)
		heal := reg.Inject(f)
		begin := time.Now()
		_, err := k.D.Images.PullImage(k.Ctx(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		heal()
		if err != nil {
			if !onContainerd() {
				t.Errorf("pull through fault %d: %v", i, err)
			}
			continue
		}
		if i == 2 && time.Since(begin) < 900*time.Millisecond && !onContainerd() {
			t.Error("Retry-After was not waited for")
		}
		removeImage(k, ref)
	}
}

func TestAPullGoesOnForTheCallerThatStays(t *testing.T) {
	t.Parallel()
	berthOnly(t)
	reg := registry.Start(t)
	ref, _ := reg.MustPush(t, "slow:1", registry.MustBuild(t, registry.Spec{Layers: []registry.Tree{registry.Files("d", 20, 20000, 8)}}))
	k := start(t, daemon.Spec{NoNetwork: true})
	reg.Inject(registry.Fault{Match: "/blobs/", Times: 1, Do: registry.Stall(700 * time.Millisecond)})
	pull := func(ctx context.Context) error {
		_, err := k.D.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
		return err
	}
	impatient, cancel := context.WithTimeout(k.Ctx(), 200*time.Millisecond)
	defer cancel()
	gone := make(chan error, 1)
	go func() { gone <- pull(impatient) }()
	time.Sleep(50 * time.Millisecond)
	equal(t, "the caller that stays", pull(k.Ctx()), nil)
	wantError(t, <-gone, []codes.Code{codes.DeadlineExceeded})
	if !slices.Contains(imageStatus(k, ref).GetRepoTags(), ref) {
		t.Error("no image")
	}
}

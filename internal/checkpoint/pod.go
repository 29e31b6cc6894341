// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"

	"github.com/berth-run/berth/internal/linux/fsys"
)

// Errors of checkpoints of pods.
var (
	// ErrForeign: it was not made by this node, or was changed since.
	ErrForeign = errors.New("not a checkpoint of this node")
	// ErrNone: there is none.
	ErrNone = errors.New("no checkpoint of a pod")
)

// Names in the folder of a pod's checkpoint. The parts of each container are in a folder that has its number for a name.
const (
	manifestName = "manifest.json"
	sealName     = "manifest.hmac"
	// SharedMemory has the files of the pod's /dev/shm: an OCI layer, not compressed.
	SharedMemory = "shm.tar"
)

const (
	podVersion = 1
	// maxManifest bounds the manifest, in bytes; it names each file of CRIU's.
	maxManifest = 16 << 20
)

// Pod is the checkpoint of a pod. What it says is true of a checkpoint that OpenPod has taken: the node itself has written it.
type Pod struct {
	Version int       `json:"version"`
	Made    time.Time `json:"made"`
	// Handler is the name of the pod's runtime handler; Config its CRI PodSandboxConfig, in protobuf's JSON.
	Handler    string          `json:"handler"`
	Config     json.RawMessage `json:"config"`
	Containers []Container     `json:"containers"`
	// SharedMemory: there is such a file.
	SharedMemory bool `json:"shared_memory"`
	// Files are all there are, by their paths in the folder.
	Files map[string]File `json:"files"`

	folder string
}

// Container is one of a pod's checkpoint, the n-th of which has its parts in PartsOf(n).
type Container struct {
	Name string `json:"name"`
	// Config is its CRI ContainerConfig, in protobuf's JSON; ImageID the image that it was made of.
	Config  json.RawMessage `json:"config"`
	ImageID string          `json:"image_id"`
}

// File is what one must be.
type File struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// PartsOf is the folder, in that of the checkpoint, that has CRIU's folder of images and RootfsDiff of the n-th container.
func PartsOf(n int) string { return strconv.Itoa(n) }

// Seal completes a checkpoint whose files are in folder, and has all of it outlive a power cut.
func (p Pod) Seal(ctx context.Context, folder string, key Key) error {
	if err := p.seal(ctx, folder, key); err != nil {
		return fmt.Errorf("seal checkpoint: %w", err)
	}
	return nil
}

func (p Pod) seal(ctx context.Context, folder string, key Key) (err error) {
	p.Version, p.Files = podVersion, map[string]File{}
	for n := range p.Containers {
		if err := p.add(ctx, folder, path.Join(PartsOf(n), RootfsDiff)); err != nil {
			return err
		}
		images := path.Join(PartsOf(n), metadata.CheckpointDirectory)
		names, err := imagesIn(filepath.Join(folder, images))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := p.add(ctx, folder, path.Join(images, name)); err != nil {
				return err
			}
		}
		for _, dir := range []string{images, PartsOf(n)} {
			if err := fsys.SyncFolder(filepath.Join(folder, dir)); err != nil {
				return err
			}
		}
	}
	if p.SharedMemory {
		if err := p.add(ctx, folder, SharedMemory); err != nil {
			return err
		}
	}
	manifest, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(manifest) > maxManifest {
		return fmt.Errorf("the manifest of %d files has %d bytes, more than %d", len(p.Files), len(manifest), maxManifest)
	}
	for name, data := range map[string][]byte{manifestName: manifest, sealName: key.seal(manifest)} {
		if err := (fsys.Write{Path: filepath.Join(folder, name), Temp: filepath.Join(folder, name+".new"), Data: data, Perm: 0o600, Sync: true}).Atomic(); err != nil {
			return err
		}
	}
	return nil
}

// add notes what a file is.
func (p Pod) add(ctx context.Context, folder, name string) error {
	f, _, err := openFile(filepath.Join(folder, name))
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, fsys.Until{Ctx: ctx, Reader: f})
	if err == nil {
		err = f.Sync()
	}
	p.Files[name] = File{Size: size, SHA256: hex.EncodeToString(sum.Sum(nil))}
	return err
}

// OpenPod reads the checkpoint in folder, of which nothing is changed. Errors: ErrNone, ErrForeign.
func OpenPod(folder string, key Key) (*Pod, error) {
	manifest, err := fsys.ReadFile(filepath.Join(folder, manifestName), maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no %s: %w", folder, manifestName, ErrNone)
	} else if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	seal, err := fsys.ReadFile(filepath.Join(folder, sealName), sha256.Size)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || !hmac.Equal(seal, key.seal(manifest)) {
		return nil, fmt.Errorf("%s: %s does not go with %s (a checkpoint is restored by the node that made it, as it made it): %w", folder, sealName, manifestName, ErrForeign)
	}
	p := &Pod{}
	if err := json.Unmarshal(manifest, p); err != nil {
		return nil, fmt.Errorf("%s: %s: %w: %w", folder, manifestName, ErrForeign, err)
	}
	if p.Version != podVersion {
		return nil, fmt.Errorf("%s is of version %d, and this Berth restores version %d: %w", folder, p.Version, podVersion, ErrForeign)
	}
	p.folder = folder
	return p, nil
}

// Open opens a file of the checkpoint. Its end is only told to who has read what it must be: until then nothing of it may be relied on. ErrForeign.
func (p *Pod) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	want, ok := p.Files[name]
	if !ok {
		return nil, fmt.Errorf("%s has no %s: %w", p.folder, name, ErrForeign)
	}
	f, err := fsys.OpenInRoot(p.folder, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is no file any more: %w", filepath.Join(p.folder, name), ErrForeign), err, f.Close())
	}
	return &checked{Until: fsys.Until{Ctx: ctx, Reader: f}, name: filepath.Join(p.folder, name), file: f, sum: sha256.New(), want: want}, nil
}

// CopyImages copies CRIU's images of the n-th container into a folder of the caller's, in one of the name that the OCI runtime is told. ErrForeign.
func (p *Pod) CopyImages(ctx context.Context, n int, to string) error {
	images := path.Join(PartsOf(n), metadata.CheckpointDirectory)
	if err := os.MkdirAll(filepath.Join(to, metadata.CheckpointDirectory), 0o700); err != nil {
		return fmt.Errorf("copy checkpoint: %w", err)
	}
	for name := range p.Files {
		if base, ok := strings.CutPrefix(name, images+"/"); ok {
			if err := p.copy(ctx, name, filepath.Join(to, metadata.CheckpointDirectory, path.Base(base))); err != nil {
				return fmt.Errorf("copy checkpoint: %w", err)
			}
		}
	}
	return nil
}

func (p *Pod) copy(ctx context.Context, name, to string) error {
	from, err := p.Open(ctx, name)
	if err != nil {
		return err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// DiscardPod removes what Seal, or what went before it, has put into a folder, which stays. It is idempotent.
func DiscardPod(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".new")
		_, notParts := strconv.ParseUint(name, 10, 16)
		if notParts == nil || name == manifestName || name == sealName || name == SharedMemory {
			err = errors.Join(err, os.RemoveAll(filepath.Join(folder, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("discard checkpoint: %w", err)
	}
	return nil
}

// checked is a file that must be what it is said to be.
type checked struct {
	fsys.Until
	name string
	file *os.File
	sum  hash.Hash
	want File
	read int64
}

func (c *checked) Read(b []byte) (int, error) {
	n, err := c.Until.Read(b)
	c.sum.Write(b[:n])
	c.read += int64(n)
	if c.read > c.want.Size || errors.Is(err, io.EOF) && (c.read < c.want.Size || hex.EncodeToString(c.sum.Sum(nil)) != c.want.SHA256) {
		return 0, fmt.Errorf("%s was changed since: %w", c.name, ErrForeign)
	}
	return n, err
}

func (c *checked) Close() error { return c.file.Close() }

// ForgetIPC takes the System V IPC objects out of CRIU's images in a folder: they are the pod's, and another container has brought them along. What CRIU finds no
// image of it does not make.
func ForgetIPC(folder string) error {
	for _, kind := range []string{"shm", "msg", "sem"} {
		images, err := filepath.Glob(filepath.Join(folder, metadata.CheckpointDirectory, "ipcns-"+kind+"-*.img"))
		for _, name := range images {
			err = errors.Join(err, os.Remove(name))
		}
		if err != nil {
			return fmt.Errorf("forget IPC objects: %w", err)
		}
	}
	return nil
}

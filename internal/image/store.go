// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sync/semaphore"

	"github.com/berth-run/berth/internal/image/registry"
	"github.com/berth-run/berth/internal/linux/host"
)

const (
	// namespace is where all of ours is in containerd's metadata; there is no other.
	namespace = "berth"
	overlayfs = "overlayfs"
	erofsForm = "erofs"
	// contentDir holds blobs and downloads.
	contentDir = "content"
	userAgent  = "berth"
	// lockTime is how long Open waits for a daemon that is just ending.
	lockTime = 5 * time.Second
	// maxUnpacks bounds layers that are unpacked at once: more would only wait for the same disk.
	maxUnpacks = 4
)

// ownForms are the snapshotters that are no remote ones.
var ownForms = []string{"", "auto", erofsForm, overlayfs}

// Config says where the store is and how it pulls.
type Config struct {
	// Root holds content, metadata and snapshots; Rootfs the writable layers of containers. Both on one file system.
	Root, Rootfs string
	// CertsDirs hold hosts.toml folders in containerd's format; the first that knows a host counts.
	CertsDirs []string
	// MaxConcurrentDownloads bounds downloads of the whole node.
	MaxConcurrentDownloads int
	// StallTimeout is how long a download may bring next to nothing before it is begun again where it stopped.
	StallTimeout time.Duration
	// MaxPerRegistry bounds downloads from one registry; 0: only MaxConcurrentDownloads does.
	MaxPerRegistry int
	// LayerConnections is how many of these downloads a single large layer may use while they are free; at most 1: layers are not fetched in parts.
	LayerConnections int
	// CredentialFiles are asked for the credentials of pulls that bring none: docker's config.json with auths, credHelpers and credsStore.
	CredentialFiles []string
	// PolicyFile is the signature policy, in the form of containers-policy.json(5); empty: everything is let in.
	PolicyFile string
	// UnpackTimeout bounds the unpacking of one layer; 0: nothing does.
	UnpackTimeout time.Duration
	// KeepLayers keeps compressed layers after they are unpacked. Nothing here needs them, and they take up to half of the space.
	KeepLayers bool
	// SkipSync records images without waiting for the disk: quicker, but a power cut can leave empty files in them.
	SkipSync bool
	// Snapshotter is the form in which new layers are kept: "erofs", "overlayfs", or "auto", which is "erofs" where the kernel can.
	// It may also name one of Remotes, which then has the layers of images that are pulled.
	Snapshotter string
	Remotes     []Remote
	// Handlers are the snapshotters, "erofs" or "overlayfs", of the runtime handlers that want one of their own.
	Handlers map[string]string
	// FSVerity has the kernel guard the EROFS files of new layers. Where it cannot, Open fails.
	FSVerity bool
	// Pulled and Collected, if set, are told of each pull and collection. They must not block.
	Pulled    func(PullReport)
	Collected func(took time.Duration, err error)
	// wantsRoom has layers mounted as kernels before Linux 6.15 want it; for tests.
	wantsRoom bool
	// Pinned are full references of images that the kubelet must not collect; a * at the end stands for anything.
	Pinned []string
}

// Validate is pure.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.Rootfs):
		return errors.New("image store: folders must be absolute")
	case strings.ContainsAny(c.Root+c.Rootfs, ",:\\"):
		return errors.New("image store: overlayfs takes no folder with a comma, colon or backslash")
	case c.MaxConcurrentDownloads < 1:
		return errors.New("image store: at least one download at a time is needed")
	case !slices.Contains(ownForms, c.Snapshotter) && !slices.ContainsFunc(c.Remotes, func(r Remote) bool { return r.Name == c.Snapshotter }):
		return fmt.Errorf("image store: snapshotter %q is none of auto, erofs, overlayfs, nor a remote one", c.Snapshotter)
	case c.StallTimeout <= 0:
		return errors.New("image store: the stall timeout must be positive")
	}
	for _, r := range c.Remotes {
		if r.Name == "" || slices.Contains(ownForms, r.Name) || strings.Contains(r.Name, remoteParted) || !filepath.IsAbs(r.Address) || r.Timeout <= 0 {
			return fmt.Errorf("image store: remote snapshotter %q: a name of its own, an absolute address and a timeout are needed", r.Name)
		}
	}
	for handler, form := range c.Handlers {
		if form != erofsForm && form != overlayfs {
			return fmt.Errorf("image store: snapshotter %q of runtime handler %s is none of erofs, overlayfs", form, handler)
		}
	}
	for _, p := range c.Pinned {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("image store: pinned image %q: %w", p, err)
		}
	}
	return nil
}

// Store is the node's images. Its methods may be called from any goroutine.
type Store struct {
	cfg      Config
	log      *slog.Logger
	registry *registry.Client

	bolt      *bolt.DB
	db        *metadata.DB
	content   content.Store
	blobs     content.Store // below the metadata
	images    images.Store
	leases    leases.Manager
	snapshots snapshots.Snapshotter
	// raw is the snapshotter below the metadata, closed at the end.
	raw      snapshots.Snapshotter
	remotes  map[string]*remoteSnapshotter
	platform platforms.MatchComparer

	certsDirs          atomic.Pointer[[]string]
	downloads, unpacks *semaphore.Weighted
	// followers bounds layers that are unpacked while they come; those that wait have no place in unpacks.
	followers    *semaphore.Weighted
	locks        keyLocks
	consuming    consuming
	flights      flights
	guard        guard
	abandonAfter time.Duration
	resumePause  time.Duration // before a download that broke goes on
	index        atomic.Pointer[index]
	used         atomic.Pointer[usage]
	options      []string // of every overlay mount
	unmapped     error    // why layers cannot be mapped into a user namespace

	// erofs: new layers become EROFS files. lowers are those that are mounted.
	erofs  bool
	lowers lowers
	empty  *os.File // the folder emptyName

	life            context.Context
	end             context.CancelFunc
	work            sync.WaitGroup
	trashDone       chan struct{}
	gcSoon, trashed chan struct{}

	refill    sync.Mutex // orders rebuilds of the index; held while metadata is read, by no reader
	described map[digest.Digest]*Image
	counting  sync.Mutex // orders counts
	sizes     map[string]usage

	mu        sync.Mutex // guards what follows
	chains    map[string]*chain
	users     map[string][]string // container ID → chain IDs
	undeleted []leases.Lease      // see dropLease
}

// Open opens the store, takes stock, and removes what an earlier life left half-done. The lock of the database makes a
// second opener fail within seconds. A store that cannot be read is set aside, so that the node pulls anew rather than not at all.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s, err := open(ctx, cfg, log)
	if isBroken(err) {
		log.Error("image store is broken and set aside; images will be pulled anew", "root", cfg.Root, "error", err)
		if err = setAside(cfg.Root); err == nil {
			s, err = open(ctx, cfg, log)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", cfg.Root, err)
	}
	for _, r := range s.remotes {
		r.ready.Store(true)
	}
	s.work.Go(s.collectGarbage)
	go func() {
		defer close(s.trashDone)
		s.emptyTrash()
	}()
	s.collectSoon()
	return s, nil
}

func open(ctx context.Context, cfg Config, log *slog.Logger) (_ *Store, err error) {
	s := &Store{cfg: cfg, log: log, registry: registry.New(registry.Config{StallTimeout: cfg.StallTimeout, UserAgent: userAgent,
		MaxPerRegistry: cfg.MaxPerRegistry, CredentialFiles: cfg.CredentialFiles}, log),
		platform: platforms.Default(), downloads: semaphore.NewWeighted(int64(cfg.MaxConcurrentDownloads)),
		unpacks: semaphore.NewWeighted(int64(min(runtime.NumCPU(), maxUnpacks))), followers: semaphore.NewWeighted(maxUnpacks), abandonAfter: abandonAfter, resumePause: resumePause, sizes: map[string]usage{},
		chains: map[string]*chain{}, users: map[string][]string{}, gcSoon: make(chan struct{}, 1), trashed: make(chan struct{}, 1), trashDone: make(chan struct{})}
	s.SetCertsDirs(cfg.CertsDirs)
	s.guard.file = cfg.PolicyFile
	listenTo(log)
	s.life, s.end = context.WithCancel(context.Background())
	defer func() {
		if p := recover(); p != nil { // how bbolt tells of pages that it cannot read
			err = brokenError{fmt.Errorf("%v", p)}
		}
		if err != nil {
			close(s.trashDone)
			err = errors.Join(err, s.Close())
		}
	}()
	if err := s.guard.load(); err != nil { // the containers that run need the store all the same
		log.Error("no image is let in until the signature policy can be read; SIGHUP tries again", "error", err)
	}
	if err := s.makeFolders(); err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{
		s.openDatabases, s.sweepPulls, s.refresh, s.adoptRootfses,
		func(ctx context.Context) error { return s.count(scoped(ctx)) }, func(context.Context) error { return s.probeOverlay() },
		func(context.Context) error { return s.verityCheck() },
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Store) trash() string { return filepath.Join(s.cfg.Root, trashName) }

// makeFolders makes what only root may enter, whatever the umask (CVE-2024-25621).
func (s *Store) makeFolders() error {
	for _, dir := range []string{s.cfg.Root, s.cfg.Rootfs, s.trash(), s.links(), filepath.Join(s.links(), emptyName)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return err
		}
	}
	var err error
	s.empty, err = os.Open(filepath.Join(s.links(), emptyName))
	return err
}

// ownBucket is beside containerd's in the database.
var ownBucket, bootKey = []byte("berth"), []byte("boot")

// boots are the machine's boot ID that was noted, empty if none was, and that of now.
func (s *Store) boots() (before, now string, err error) {
	if now, err = host.BootID(); err != nil {
		return "", "", err
	}
	err = s.bolt.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(ownBucket); b != nil {
			before = string(b.Get(bootKey))
		}
		return nil
	})
	return before, now, err
}

func (s *Store) noteBoot(now string) error {
	return s.bolt.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(ownBucket)
		if err != nil {
			return err
		}
		return b.Put(bootKey, []byte(now))
	})
}

func (s *Store) openDatabases(ctx context.Context) error {
	blobs, err := openBlobs(filepath.Join(s.cfg.Root, contentDir))
	if err != nil {
		return err
	}
	s.blobs = blobs
	dir := filepath.Join(s.cfg.Root, overlayfs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// Without the list of free pages in the file there is less to write, and less to be broken by a power cut.
	lean := func(o *bolt.Options) error {
		o.NoFreelistSync, o.FreelistType, o.Timeout = true, bolt.FreelistMapType, lockTime
		return nil
	}
	books, err := storage.NewMetaStore(filepath.Join(dir, "metadata.db"), lean)
	if err != nil {
		return err
	}
	if s.raw, err = overlay.NewSnapshotter(dir, overlay.WithMetaStore(books), overlay.WithUpperdirLabel, overlay.AsynchronousRemove); err != nil {
		return err
	}
	// The snapshotter opens its database with the first use: better now, where an error can be told. A new one has nothing to walk.
	if err := s.raw.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("snapshots: %w", err)
	}
	options := *bolt.DefaultOptions
	if err := lean(&options); err != nil {
		return err
	}
	if s.bolt, err = bolt.Open(filepath.Join(s.cfg.Root, "metadata.db"), 0o600, &options); err != nil {
		return fmt.Errorf("metadata.db: %w", err)
	}
	all, err := s.connectRemotes()
	if err != nil {
		return err
	}
	all[overlayfs] = s.raw
	s.db = metadata.NewDB(s.bolt, s.blobs, all)
	if err := s.db.Init(ctx); err != nil {
		return fmt.Errorf("metadata.db: %w", err)
	}
	s.content, s.images, s.leases = s.db.ContentStore(), metadata.NewImageStore(s.db), metadata.NewLeaseManager(s.db)
	s.snapshots = s.db.Snapshotter(overlayfs)
	for name, r := range s.remotes {
		r.snapshots = s.db.Snapshotter(name)
	}
	return nil
}

type brokenError struct{ error }

func isBroken(err error) bool {
	var panicked brokenError
	return errors.As(err, &panicked) || errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch)
}

const brokenPrefix = "broken-"

// setAside moves everything in root into a folder of its own: containers that run still have their layers from there. What was set aside
// before goes to the trash.
func setAside(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	aside := filepath.Join(root, brokenPrefix+time.Now().UTC().Format("20060102T150405.000000000"))
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		to := filepath.Join(aside, e.Name())
		switch {
		case e.Name() == trashName:
			continue
		case strings.HasPrefix(e.Name(), brokenPrefix):
			to = filepath.Join(root, trashName, e.Name())
		}
		if err := os.Rename(filepath.Join(root, e.Name()), to); err != nil {
			return err
		}
	}
	return nil
}

// closeTime is how long Close waits for a folder of the trash that is being deleted; the next life goes on with it.
const closeTime = 200 * time.Millisecond

// Close ends pulls in flight, which the next life resumes, and closes the databases. Mounted root file systems stay.
func (s *Store) Close() error {
	s.flights.mu.Lock() // none takes off any more
	s.end()
	s.flights.mu.Unlock()
	s.flights.wg.Wait()
	s.work.Wait()
	select {
	case <-s.trashDone:
	case <-time.After(closeTime):
	}
	var errs []error
	if s.bolt != nil {
		errs = append(errs, s.bolt.Close())
	}
	if s.raw != nil {
		errs = append(errs, s.raw.Close())
	}
	errs = append(errs, s.closeRemotes(), s.lowers.closeAll(), s.lowers.room.Close())
	if s.empty != nil {
		errs = append(errs, ignore(s.empty.Close(), os.ErrClosed))
	}
	return errors.Join(errs...)
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

// SetCertsDirs replaces the folders of hosts.toml for the pulls that begin from now on.
func (s *Store) SetCertsDirs(dirs []string) { s.certsDirs.Store(&dirs) }

func scoped(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, namespace) }

// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"
)

const (
	// namespace is where all of ours is in containerd's metadata; there is no other.
	namespace = "berth"
	overlayfs = "overlayfs"
)

// Config says where the store is and how it pulls.
type Config struct {
	// Root holds content, metadata and snapshots; Rootfs the writable layers of containers. Both on one file system.
	Root, Rootfs string
	// CertsDirs hold hosts.toml folders in containerd's format; the first that knows a host counts.
	CertsDirs []string
	// MaxConcurrentDownloads bounds layer downloads of the whole node.
	MaxConcurrentDownloads int
	// StallTimeout is how long a download may stay without a byte before it is begun again where it stopped.
	StallTimeout time.Duration
}

// Validate is pure.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.Root) || !filepath.IsAbs(c.Rootfs):
		return errors.New("image store: folders must be absolute")
	case c.MaxConcurrentDownloads < 1:
		return errors.New("image store: at least one download at a time is needed")
	case c.StallTimeout <= 0:
		return errors.New("image store: the stall timeout must be positive")
	}
	return nil
}

// Store is the node's images. Its methods may be called from any goroutine.
type Store struct {
	cfg Config
	log *slog.Logger

	bolt      *bolt.DB
	db        *metadata.DB
	content   content.Store
	images    images.Store
	leases    leases.Manager
	snapshots snapshots.Snapshotter
	// raw is the snapshotter below the metadata, closed at the end.
	raw      snapshots.Snapshotter
	platform platforms.MatchComparer

	certsDirs atomic.Pointer[[]string]
	downloads *semaphore.Weighted
	locks     keyLocks
	flights   flights
	index     atomic.Pointer[index]

	life   context.Context
	end    context.CancelFunc
	work   sync.WaitGroup
	refill sync.Mutex // orders rebuilds of the index
	sizes  map[string]usage

	gcSoon chan struct{}

	mu     sync.Mutex // guards chains and users
	chains map[string]*chain
	users  map[string]string // container ID → chain ID
}

// Open opens the store, takes stock, and removes what an earlier life left half-done. The lock of the database makes a
// second opener fail within five seconds.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for _, dir := range []string{cfg.Root, cfg.Rootfs, filepath.Join(cfg.Root, trashName)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	s := &Store{cfg: cfg, log: log, platform: platforms.Default(), downloads: semaphore.NewWeighted(int64(cfg.MaxConcurrentDownloads)),
		sizes: map[string]usage{}, chains: map[string]*chain{}, users: map[string]string{}, gcSoon: make(chan struct{}, 1)}
	s.SetCertsDirs(cfg.CertsDirs)
	quiet(log)
	s.life, s.end = context.WithCancel(context.Background())
	err := s.openDatabases(ctx)
	if err == nil {
		err = s.refresh(ctx)
	}
	if err == nil {
		err = s.adoptRootfses(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open image store %s: %w", cfg.Root, err), s.Close())
	}
	s.work.Go(s.collectGarbage)
	s.collectSoon()
	return s, nil
}

func (s *Store) openDatabases(ctx context.Context) error {
	blobs, err := local.NewStore(filepath.Join(s.cfg.Root, "content"))
	if err != nil {
		return err
	}
	if s.raw, err = overlay.NewSnapshotter(filepath.Join(s.cfg.Root, overlayfs)); err != nil {
		return err
	}
	// The snapshotter opens its database with the first use: better now, where an error can be told. A new one has nothing to walk.
	if err := s.raw.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("snapshots: %w", err)
	}
	s.bolt, err = bolt.Open(filepath.Join(s.cfg.Root, "metadata.db"), 0o600, &bolt.Options{Timeout: 5 * time.Second})
	if err != nil {
		return fmt.Errorf("metadata.db: %w", err)
	}
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{overlayfs: s.raw})
	if err := s.db.Init(ctx); err != nil {
		return fmt.Errorf("metadata.db: %w", err)
	}
	s.content, s.images, s.leases = s.db.ContentStore(), metadata.NewImageStore(s.db), metadata.NewLeaseManager(s.db)
	s.snapshots = s.db.Snapshotter(overlayfs)
	return nil
}

// Close ends pulls in flight, which the next life resumes, and closes the databases. Mounted root file systems stay.
func (s *Store) Close() error {
	s.end()
	s.flights.wait()
	s.work.Wait()
	var errs []error
	if s.bolt != nil {
		errs = append(errs, s.bolt.Close())
	}
	if s.raw != nil {
		errs = append(errs, s.raw.Close())
	}
	return errors.Join(errs...)
}

// SetCertsDirs replaces the folders of hosts.toml for the pulls that begin from now on.
func (s *Store) SetCertsDirs(dirs []string) { s.certsDirs.Store(&dirs) }

func scoped(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, namespace) }

// keyLocks lets one party at a time work on a key, and the others wait with a context.
type keyLocks struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	free  chan struct{}
	users int
}

// Lock implements containerd's duplication suppressor: what one pull downloads or unpacks, the others wait for.
func (k *keyLocks) Lock(ctx context.Context, key string) error {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyLock{free: make(chan struct{}, 1)}
		l.free <- struct{}{}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	select {
	case <-l.free:
		return nil
	case <-ctx.Done():
		k.leave(key, l)
		return context.Cause(ctx)
	}
}

// Unlock implements containerd's duplication suppressor.
func (k *keyLocks) Unlock(key string) {
	k.mu.Lock()
	l := k.locks[key]
	k.mu.Unlock()
	l.free <- struct{}{}
	k.leave(key, l)
}

func (k *keyLocks) leave(key string, l *keyLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, key)
	}
}

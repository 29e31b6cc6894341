// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// pullLease keeps what a pull has fetched from the collector; after a crash it lasts long enough for the next try
	// to go on from there, then the collector takes it.
	pullLease = time.Hour
	// abandonAfter is how long a pull goes on when nobody waits for it any more: a kubelet that lost patience comes back.
	abandonAfter = 10 * time.Minute
	// leaseKey labels a lease with the pull that it belongs to.
	leaseKey    = "berth.pull"
	maxManifest = 8 << 20
	maxLayers   = 1024
	maxDepth    = 3 // of indexes in indexes
)

// flights joins pulls of the same image with the same credentials.
type flights struct {
	mu  sync.Mutex
	all map[string]*flight
	wg  sync.WaitGroup
}

type flight struct {
	done    chan struct{}
	image   Image
	err     error
	waiting int
	cancel  context.CancelCauseFunc
	timer   *time.Timer // runs while nobody waits
}

func (f *flights) wait() { f.wg.Wait() }

var errAbandoned = errors.New("nobody waited for the pull any more")

// Pull fetches and unpacks an image and returns it. Pulls of the same image join; the end of ctx ends the waiting, and the pull
// only after a while in which nobody came back for it. What a broken pull has fetched is used by the next one.
func (s *Store) Pull(ctx context.Context, r PullRequest) (Image, error) {
	name, err := normalize(r.Ref)
	if err != nil {
		return Image{}, err
	}
	f, err := s.join(name, r.Auth)
	if err != nil {
		return Image{}, err
	}
	select {
	case <-f.done:
		s.leave(f)
		return f.image, f.err
	case <-ctx.Done():
		s.leave(f)
		return Image{}, fmt.Errorf("pull image %s: still in progress; the work goes on and a retry joins it: %w", name, context.Cause(ctx))
	}
}

func flightKey(name reference.Named, a *Auth) string {
	raw, _ := json.Marshal(a) // a struct of strings cannot fail
	sum := sha256.Sum256(append([]byte(name.String()+"\x00"), raw...))
	return hex.EncodeToString(sum[:])
}

func (s *Store) join(name reference.Named, a *Auth) (*flight, error) {
	if s.life.Err() != nil {
		return nil, fmt.Errorf("pull image %s: the image store is closed: %w", name, ErrUnavailable)
	}
	key := flightKey(name, a)
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if s.flights.all == nil {
		s.flights.all = map[string]*flight{}
	}
	f := s.flights.all[key]
	if f == nil {
		ctx, cancel := context.WithCancelCause(s.life)
		f = &flight{done: make(chan struct{}), cancel: cancel}
		s.flights.all[key] = f
		s.flights.wg.Go(func() {
			image, err := s.pull(ctx, name, a)
			s.flights.mu.Lock()
			f.image, f.err = image, err
			delete(s.flights.all, key)
			s.flights.mu.Unlock()
			cancel(nil)
			close(f.done)
		})
	}
	if f.waiting++; f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	return f, nil
}

func (s *Store) leave(f *flight) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if f.waiting--; f.waiting == 0 {
		f.timer = time.AfterFunc(abandonAfter, func() { f.cancel(errAbandoned) })
	}
}

func (s *Store) pull(ctx context.Context, name reference.Named, a *Auth) (Image, error) {
	ctx, cancel := context.WithCancel(scoped(ctx))
	defer cancel()
	begin := time.Now()
	key := flightKey(name, a)
	lease, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(pullLease), leases.WithLabel(leaseKey, key))
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", name, err)
	}
	ctx = leases.WithLease(ctx, lease.ID)
	im, err := s.fetch(ctx, name, a)
	// What earlier tries of the same pull had fetched, this one's lease has taken over as far as it came.
	keep := ""
	if err != nil {
		keep = lease.ID // the next try goes on from what is there
	}
	s.dropLeases(context.WithoutCancel(ctx), key, keep)
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", name, classify(err))
	}
	s.collectSoon()
	s.log.Info("image is pulled", "image", name.String(), "id", im.ID, "bytes", im.Size, "took", time.Since(begin))
	return im, nil
}

// dropLeases ends the leases of one pull's tries, but for the one to keep.
func (s *Store) dropLeases(ctx context.Context, key, keep string) {
	all, err := s.leases.List(ctx)
	for _, l := range all {
		if l.Labels[leaseKey] == key && l.ID != keep {
			err = errors.Join(err, ignoreNotFound(s.leases.Delete(ctx, l)))
		}
	}
	if err != nil && s.life.Err() == nil {
		s.log.Warn("end leases of pull", "error", err)
	}
}

func (s *Store) fetch(ctx context.Context, name reference.Named, a *Auth) (Image, error) {
	var stalls atomic.Int64
	resolver, done, err := s.resolver(ctx, name, a, &stalls)
	if err != nil {
		return Image{}, err
	}
	defer done()
	im, err := s.fetchFrom(ctx, resolver, name)
	if n := stalls.Load(); err != nil && n > 0 {
		err = fmt.Errorf("%w (%d times no byte came from the registry for %s)", err, n, s.cfg.StallTimeout)
	}
	return im, err
}

func (s *Store) fetchFrom(ctx context.Context, resolver remotes.Resolver, name reference.Named) (Image, error) {
	_, target, err := resolver.Resolve(ctx, name.String())
	if err != nil {
		return Image{}, fmt.Errorf("resolve: %w", err)
	}
	if target.MediaType == images.MediaTypeDockerSchema1Manifest {
		return Image{}, fmt.Errorf("manifest is of Docker's schema 1, which was retired in 2019; push the image again: %w", ErrUnsupported)
	}
	fetcher, err := resolver.Fetcher(ctx, name.String())
	if err != nil {
		return Image{}, err
	}
	if err := s.fetchAndUnpack(ctx, fetcher, target); err != nil {
		return Image{}, err
	}
	if _, err := s.describe(ctx, target); err != nil {
		return Image{}, err
	}
	if err := s.name(ctx, name, target); err != nil {
		return Image{}, err
	}
	if err := s.refresh(ctx); err != nil {
		return Image{}, err
	}
	return s.Status(reference.TrimNamed(name).String() + "@" + target.Digest.String())
}

// fetchAndUnpack gets what is missing of an image. The manifest of this node's platform is picked by children, so the unpacker asks
// for no platform again: images whose configuration names none are common enough, and are taken as made for this one.
func (s *Store) fetchAndUnpack(ctx context.Context, fetcher remotes.Fetcher, target ocispec.Descriptor) error {
	unpacker, err := unpack.NewUnpacker(ctx, s.content, unpack.WithLimiter(s.downloads), unpack.WithDuplicationSuppressor(&s.locks),
		unpack.WithUnpackPlatform(unpack.Platform{Platform: platforms.All, SnapshotterKey: overlayfs, Snapshotter: s.snapshots,
			Applier: apply.NewFileSystemApplier(s.content)}))
	if err != nil {
		return err
	}
	children := images.SetChildrenMappedLabels(s.content, images.HandlerFunc(s.children), images.ChildGCLabels)
	handler := images.Handlers(bounded(), fetchHandler(s, fetcher), children)
	derr := images.Dispatch(ctx, unpacker.Unpack(handler), nil, target)
	_, uerr := unpacker.Wait()
	if uerr != nil && (derr == nil || errors.Is(derr, context.Canceled)) {
		return fmt.Errorf("unpack: %w", uerr)
	}
	return derr
}

// children picks this node's platform out of an index and refuses manifests that no honest image has.
func (s *Store) children(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	list := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(s.content), s.platform), s.platform, 1)
	all, err := list(ctx, desc)
	if err != nil {
		return nil, err
	}
	if len(all) > maxLayers {
		return nil, fmt.Errorf("manifest %s: %d layers, more than %d: %w", desc.Digest, len(all), maxLayers, ErrUnsupported)
	}
	if images.IsIndexType(desc.MediaType) && len(all) == 0 {
		return nil, fmt.Errorf("index %s: has no image for this node's platform: %w", desc.Digest, ErrUnsupported)
	}
	return all, nil
}

// bounded refuses what is too large or too deep before it is fetched.
func bounded() images.HandlerFunc {
	var mu sync.Mutex
	indexes := 0
	return func(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !images.IsLayerType(desc.MediaType) && desc.Size > maxManifest {
			return nil, fmt.Errorf("%s %s: %d bytes, more than %d: %w", desc.MediaType, desc.Digest, desc.Size, maxManifest, ErrUnsupported)
		}
		mu.Lock()
		defer mu.Unlock()
		if images.IsIndexType(desc.MediaType) {
			if indexes++; indexes > maxDepth {
				return nil, fmt.Errorf("index %s: %d indexes in one another: %w", desc.Digest, indexes, ErrUnsupported)
			}
		}
		return nil, nil
	}
}

// fetchHandler names the object in every error.
func fetchHandler(s *Store, fetcher remotes.Fetcher) images.HandlerFunc {
	fetch := remotes.FetchHandler(s.content, fetcher)
	return func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		what := "manifest"
		switch {
		case images.IsLayerType(desc.MediaType):
			what = "layer"
		case images.IsConfigType(desc.MediaType):
			what = "configuration"
		}
		all, err := fetch(ctx, desc)
		if worthless(err) {
			// What is there of it cannot be continued: it is wrong, or the registry knows no ranges. Once more, from the start.
			if aerr := s.content.Abort(ctx, remotes.MakeRefKey(ctx, desc)); aerr != nil && !errdefs.IsNotFound(aerr) {
				return nil, fmt.Errorf("drop broken download of %s %s: %w", what, desc.Digest, aerr)
			}
			all, err = fetch(ctx, desc)
		}
		if err != nil {
			if worthless(err) {
				err = errors.Join(err, ignoreNotFound(s.content.Abort(ctx, remotes.MakeRefKey(ctx, desc))))
			}
			return nil, fmt.Errorf("fetch %s %s: %w", what, desc.Digest, err)
		}
		return all, nil
	}
}

// worthless tells whether what was downloaded so far is in the way of the next try.
func worthless(err error) bool {
	var status remoteserrors.ErrUnexpectedStatus
	return errdefs.IsFailedPrecondition(err) || errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// name gives the image its references: by digest, and by tag where it was asked for by one.
func (s *Store) name(ctx context.Context, name reference.Named, target ocispec.Descriptor) error {
	refs := []string{reference.TrimNamed(name).String() + "@" + target.Digest.String()}
	if _, tagged := name.(reference.Tagged); tagged {
		refs = append(refs, name.String())
	}
	for _, ref := range refs {
		im := images.Image{Name: ref, Target: target}
		_, err := s.images.Create(ctx, im)
		if errdefs.IsAlreadyExists(err) {
			_, err = s.images.Update(ctx, im, "target")
		}
		if err != nil {
			return fmt.Errorf("record %s: %w", ref, err)
		}
	}
	return nil
}

// classify gives an error of a pull the class that a caller can act on, and keeps its text free of secrets.
func classify(err error) error {
	var status remoteserrors.ErrUnexpectedStatus
	class := error(nil)
	switch {
	case errors.Is(err, ErrUnsupported), errors.Is(err, ErrCorrupt), errors.Is(err, ErrUnauthorized), errors.Is(err, ErrUnavailable):
	case errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden), errors.Is(err, docker.ErrInvalidAuthorization):
		class = ErrUnauthorized
	case errors.As(err, &status) && status.StatusCode == http.StatusNotFound, errdefs.IsNotFound(err):
		class = ErrNotFound
	case errors.As(err, &status) && (status.StatusCode == http.StatusTooManyRequests || status.StatusCode >= http.StatusInternalServerError), isNetwork(err):
		class = ErrUnavailable
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	case errdefs.IsFailedPrecondition(err), isCompression(err):
		class = ErrCorrupt
	}
	err = redacted{err}
	if class != nil {
		return fmt.Errorf("%w: %w", class, err)
	}
	return err
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

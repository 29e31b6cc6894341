// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	bolt "go.etcd.io/bbolt"
)

const (
	// pullPrefix and resumePrefix tell the leases of pulls in flight from those that keep what broken pulls have left.
	pullPrefix, resumePrefix = "pull-", "resume-"
	// extractPrefix begins the names of snapshots that a layer is being unpacked into.
	extractPrefix = "extract-"
	// resumeTime is how long the collector leaves alone what a broken pull has fetched, so that the next try goes on from there. A
	// kubelet tries again within five minutes.
	resumeTime = 15 * time.Minute
)

// purpose is the part of a lease's name that tells which image it is for.
func purpose(name reference.Named) string {
	sum := sha256.Sum256([]byte(name.String()))
	return hex.EncodeToString(sum[:16]) + "-"
}

// endPull gives what the pull holds to the image, or keeps it for a while if there is none.
func (s *Store) endPull(ctx context.Context, name reference.Named, l leases.Lease, failed error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if failed != nil && !outOfSpace(failed) { // on a full disk nothing is kept for the next try: others may want the space
		if err := s.keep(ctx, l); err != nil {
			return errors.Join(err, s.dropLease(ctx, l))
		}
		return nil
	}
	all, err := s.leases.List(ctx)
	errs := []error{err, s.dropLease(ctx, l)}
	for _, earlier := range all { // what broken pulls of the same image have left is of no more use
		if strings.HasPrefix(earlier.ID, resumePrefix+purpose(name)) {
			errs = append(errs, s.dropLease(ctx, earlier))
		}
	}
	return errors.Join(errs...)
}

// dropLease deletes a lease. What cannot be deleted, on a full disk for example, would hold for a day what nobody wants: collections try again.
func (s *Store) dropLease(ctx context.Context, l leases.Lease) error {
	err := s.leases.Delete(ctx, l)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	s.mu.Lock()
	if !slices.ContainsFunc(s.undeleted, func(known leases.Lease) bool { return known.ID == l.ID }) {
		s.undeleted = append(s.undeleted, l)
	}
	s.mu.Unlock()
	s.collectAfter(remindTime)
	return fmt.Errorf("delete lease %s: %w", l.ID, err)
}

// dropAgain tries once more what dropLease could not.
func (s *Store) dropAgain(ctx context.Context) error {
	s.mu.Lock()
	all := s.undeleted
	s.undeleted = nil
	s.mu.Unlock()
	var errs []error
	for _, l := range all {
		errs = append(errs, s.dropLease(ctx, l))
	}
	return errors.Join(errs...)
}

// keep replaces a pull's lease by one that runs out soon.
func (s *Store) keep(ctx context.Context, l leases.Lease) error {
	held, err := s.leases.ListResources(ctx, l)
	if err != nil {
		return err
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		if len(held) > 0 {
			next, err := s.leases.Create(ctx, leases.WithID(resumePrefix+strings.TrimPrefix(l.ID, pullPrefix)), leases.WithExpiration(resumeTime))
			if err != nil {
				return err
			}
			for _, r := range held {
				if err := s.leases.AddResource(ctx, next, r); err != nil {
					return err
				}
			}
		}
		return s.leases.Delete(ctx, l)
	})
	if err == nil && len(held) > 0 {
		s.collectAfter(resumeTime + time.Second)
	}
	return err
}

// sweepIngests removes downloads that the content store itself cannot find any more, and so never collects: a crash came while their
// folder was made, or between the move of the finished blob and the removal of the rest.
func (s *Store) sweepIngests() error {
	dir := filepath.Join(s.cfg.Root, contentDir, "ingest")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("downloads of an earlier life: %w", err)
	}
	for _, e := range entries {
		for _, part := range []string{"ref", "data", "startedat", "updatedat"} {
			if _, err := os.Lstat(filepath.Join(dir, e.Name(), part)); err == nil {
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("half a download of an earlier life: %w", err)
			}
			break
		}
	}
	return nil
}

// sweepPulls handles what the pulls of an earlier life have left. After a crash of the daemon, blobs and whole layers are kept for the next
// try. After a crash of the machine nothing is: unpacked files are not on disk for sure before the image is recorded. That the machine was started
// anew is noted when all of it is gone: a start that fails on the way there is followed by one that begins again.
func (s *Store) sweepPulls(ctx context.Context) error {
	ctx = scoped(ctx)
	before, now, err := s.boots()
	if err != nil {
		return fmt.Errorf("boot ID: %w", err)
	}
	rebooted := before != "" && before != now
	if err := s.sweepLeases(ctx, rebooted); err != nil {
		return err
	}
	if err := errors.Join(s.sweepIngests(), s.sweepExtractions(ctx)); err != nil {
		return err
	}
	if rebooted {
		// Before any pull builds on a layer that nothing vouches for.
		if _, err := s.db.GarbageCollect(ctx); err != nil {
			return fmt.Errorf("collect what the last boot has left: %w", err)
		}
	}
	if before == now {
		return nil
	}
	if err := s.noteBoot(now); err != nil {
		return fmt.Errorf("boot ID: %w", err)
	}
	return nil
}

// sweepLeases: imports are not taken up again.
func (s *Store) sweepLeases(ctx context.Context, rebooted bool) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, l := range all {
		switch {
		case strings.HasPrefix(l.ID, importPrefix), rebooted && (strings.HasPrefix(l.ID, pullPrefix) || strings.HasPrefix(l.ID, resumePrefix)):
			err = s.leases.Delete(ctx, l)
		case strings.HasPrefix(l.ID, pullPrefix):
			err = s.keep(ctx, l)
		case strings.HasPrefix(l.ID, resumePrefix):
			s.collectAfter(resumeTime + time.Second)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("lease %s of an earlier life: %w", l.ID, err)
		}
	}
	return nil
}

// sweepExtractions removes half-unpacked layers.
func (s *Store) sweepExtractions(ctx context.Context) error {
	var half []string
	err := s.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive && strings.HasPrefix(info.Name, extractPrefix) {
			half = append(half, info.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	var errs []error
	for _, key := range half {
		if err := s.snapshots.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("half-unpacked layer %s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}

// hold adds a resource to the pull's lease. Only after that is it safe to look whether it is there.
func (p *puller) hold(ctx context.Context, kind, id string) error {
	return p.s.leases.AddResource(ctx, p.lease, leases.Resource{Type: kind, ID: id})
}

// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-run/berth/internal/image/layer"
)

// follows tells whether a layer may be unpacked while it comes: it is of no use once it is unpacked, so it need not become a blob.
func (u *unpacking) follows(desc ocispec.Descriptor) bool {
	return u.consumes(desc) && desc.Digest.Validate() == nil && desc.Digest.Algorithm() == digest.Canonical
}

// follow fetches a layer and unpacks it while it comes. Nothing of it is committed before its digest and its content's are verified. When it is
// not done, and there is no error, the layer is to be fetched first and then unpacked: it is here, is not to be followed, or did not come as it
// should.
func (u *unpacking) follow(ctx context.Context, i int, t *tries) (done bool, err error) {
	desc := u.t.layers[i]
	if !u.follows(desc) {
		return false, nil
	}
	key := blobPrefix + desc.Digest.String()
	if err := u.s.locks.Lock(ctx, key); err != nil {
		return false, err
	}
	a := u.s.newArrival(desc, u.progress, t)
	a.atEnd = func() { u.s.locks.Unlock(key) }
	if here, err := u.here(ctx, desc); here || err != nil {
		return false, errors.Join(err, a.close(ctx, true))
	}
	fetching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		a.end(u.layerStage(fetching, "fetch layer", desc, func(ctx context.Context) error { return u.receive(ctx, a, t) }))
	}()
	u.arriving[i] = a
	err = u.unpackArriving(ctx, i, a)
	u.arriving[i] = nil
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, layer.ErrCorrupt) { // else what came may not be what was promised: its end will tell
		stop(errUnread)
	}
	<-a.ended
	if cause := context.Cause(fetching); a.err != nil && !errors.Is(cause, errUnread) {
		err = a.err
	}
	// Nothing is kept of what begins at its start again, of what is whole and no layer, and on a full disk.
	useless := errors.Is(a.err, errAfresh) || outOfSpace(err) || a.err == nil && (errors.Is(err, layer.ErrCorrupt) || errors.Is(err, ErrCorrupt))
	again := errors.Is(a.err, errAfresh) || errors.Is(err, layer.ErrTooManyFiles)
	if cerr := a.close(ctx, !useless); cerr != nil || !again {
		return false, errors.Join(err, cerr)
	}
	return false, nil
}

// unpackArriving unpacks a layer from when its download begins; when too many others do that, from when all of it is here.
func (u *unpacking) unpackArriving(ctx context.Context, i int, a *arrival) error {
	select {
	case <-a.begun:
	case <-a.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if u.s.followers.TryAcquire(1) {
		unlock := a.atEnd
		a.atEnd = func() {
			u.s.followers.Release(1)
			unlock()
		}
	} else if err := a.result(ctx); err != nil {
		return err
	}
	return u.layerStage(ctx, "unpack layer", a.desc, func(ctx context.Context) error { return u.extract(ctx, i) })
}

// arrived waits until a layer that was unpacked while it came is verified, and drops what came. Nobody who waits for the layer's blob must wait
// for the layers below.
func (u *unpacking) arrived(ctx context.Context, i int) error {
	a := u.arriving[i]
	if a == nil {
		return nil
	}
	if err := a.result(ctx); err != nil {
		return err
	}
	return a.close(ctx, false)
}

// receive has a layer come.
func (u *unpacking) receive(ctx context.Context, a *arrival, t *tries) error {
	return u.connected(ctx, func() error {
		if err := a.open(ctx); errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("%w: %w", errAfresh, err)
		} else if err != nil {
			return err
		}
		u.progress.expect(t, a.desc.Size-a.here)
		return u.try(ctx, a.desc, t, func() (int64, error) {
			before := a.here
			err := u.receiveRest(ctx, a)
			return a.here - before, err
		})
	})
}

func (u *unpacking) receiveRest(ctx context.Context, a *arrival) error {
	if a.here == a.desc.Size {
		return a.check()
	}
	r, err := u.session.FetchParts(ctx, a.desc, u.s.cfg.LayerConnections, u.session.Share(u.s.downloads))
	if err != nil {
		return err
	}
	defer r.Close()
	return a.take(r)
}

// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
)

// ingestPath is where the content store keeps a download, which it tells nobody.
type ingestPath struct{ dir string }

type ingestPathKey struct{}

// blobStore is the content store of files, which tells writers where their file is.
type blobStore struct {
	fileStore

	root string
}

// fileStore is what the content store of files can. The collector finds by their names alone the downloads that a full disk has left without a
// date, and would leave there what only content.Store can find.
type fileStore interface {
	content.Store
	WalkStatusRefs(ctx context.Context, f func(ref string) error) error
}

func openBlobs(root string) (*blobStore, error) {
	files, err := local.NewStore(root)
	if err != nil {
		return nil, err
	}
	all, ok := files.(fileStore)
	if !ok {
		return nil, errors.New("containerd's content store does not list its downloads by name")
	}
	return &blobStore{fileStore: all, root: root}, nil
}

func (s *blobStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if at, ok := ctx.Value(ingestPathKey{}).(*ingestPath); ok {
		var all content.WriterOpts
		for _, opt := range opts {
			if err := opt(&all); err != nil {
				return nil, err
			}
		}
		at.dir = filepath.Join(s.root, "ingest", digest.FromString(all.Ref).Encoded())
	}
	return s.fileStore.Writer(ctx, opts...)
}

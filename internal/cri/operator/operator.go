// SPDX-License-Identifier: Apache-2.0

// Package operator serves berth.v1.Images, beside the CRI and on its socket: what operators do with a node's images and the CRI has no word for.
// Like package cri it converts and calls the domain; daemon registers it.
package operator

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/imageapi/imagepb"
	"github.com/berth-run/berth/internal/pod"
)

// Images is what the service needs. Implementation: image.Store.
type Images interface {
	Pull(ctx context.Context, r image.PullRequest) (image.Image, error)
	Check(ctx context.Context, r image.CheckRequest) (image.CheckResult, error)
	Prune(ctx context.Context, r image.PruneRequest) ([]image.Pruned, error)
	// Tag returns the name in full.
	Tag(ctx context.Context, ref, name string) (image.Image, string, error)
	// Untag returns the image with the tags that are left, and the name in full.
	Untag(ctx context.Context, name string) (image.Image, string, error)
	Import(ctx context.Context, r io.Reader, name string) ([]image.Image, error)
	Export(ctx context.Context, w io.Writer, refs []string) error
}

// Server implements berth.v1.Images.
type Server struct {
	imagepb.UnimplementedImagesServer
	images Images
	inUse  func() map[string]bool
}

// New makes a Server. inUse lists the IDs of images that containers have.
func New(images Images, inUse func() map[string]bool) *Server {
	return &Server{images: images, inUse: inUse}
}

// Pull implements berth.v1.Images.
func (s *Server) Pull(r *imagepb.PullRequest, out grpc.ServerStreamingServer[imagepb.PullResponse]) error {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return fmt.Errorf("pull image: image.image is empty: %w", pod.ErrInvalid)
	}
	var rate rate
	send := sender[imagepb.PullResponse]{out: out}
	var last *imagepb.PullResponse
	im, err := s.images.Pull(out.Context(), image.PullRequest{Ref: ref, Auth: auth(r.GetAuth()), Progress: func(p image.Progress) {
		last = &imagepb.PullResponse{Phase: p.Stage, Bytes: p.Bytes, Total: p.Total, BytesPerSecond: rate.add(p.Bytes),
			Unpacked: int32(p.Unpacked), Layers: int32(p.Layers)}
		send.send(last)
	}})
	if err != nil {
		return err
	}
	if last == nil {
		last = &imagepb.PullResponse{}
	}
	last.ImageId = im.ID
	send.send(last)
	return send.err
}

func auth(a *runtimeapi.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken()}
}

// sender keeps the first error: the work that reports does not end with who listens.
type sender[T any] struct {
	out grpc.ServerStreamingServer[T]
	err error
}

func (s *sender[T]) send(m *T) {
	if s.err == nil {
		s.err = s.out.Send(m)
	}
}

// Check implements berth.v1.Images.
func (s *Server) Check(r *imagepb.CheckRequest, out grpc.ServerStreamingServer[imagepb.CheckResponse]) error {
	send := sender[imagepb.CheckResponse]{out: out}
	var every throttle
	got, err := s.images.Check(out.Context(), image.CheckRequest{
		Repair: r.GetRepair(),
		Damaged: func(d image.Damage) {
			send.send(&imagepb.CheckResponse{What: &imagepb.CheckResponse_Damage{Damage: &imagepb.Damage{Kind: d.Kind, Object: d.Object, Reason: d.Reason.Error(),
				Images: d.Images, Quarantined: d.Quarantined}}})
		},
		Repaired: func(ref string, err error) {
			m := &imagepb.Repair{Image: ref}
			if err != nil {
				m.Error = err.Error()
			}
			send.send(&imagepb.CheckResponse{What: &imagepb.CheckResponse_Repair{Repair: m}})
		},
		Progress: func(read, total int64) {
			if every.now() {
				send.send(&imagepb.CheckResponse{What: &imagepb.CheckResponse_Progress{Progress: &imagepb.CheckProgress{Bytes: read, Total: total}}})
			}
		},
	})
	if err != nil {
		return err
	}
	send.send(&imagepb.CheckResponse{What: &imagepb.CheckResponse_Summary{Summary: &imagepb.CheckSummary{Images: int32(got.Images), Blobs: int32(got.Blobs),
		Layers: int32(got.Layers), UncheckedLayers: int32(got.Unchecked), Bytes: got.Bytes, Damaged: int32(got.Damaged), Repaired: int32(got.Repaired)}}})
	return send.err
}

// Prune implements berth.v1.Images.
func (s *Server) Prune(ctx context.Context, r *imagepb.PruneRequest) (*imagepb.PruneResponse, error) {
	all, err := s.images.Prune(ctx, image.PruneRequest{InUse: s.inUse, DryRun: r.GetDryRun()})
	if err != nil {
		return nil, err
	}
	out := &imagepb.PruneResponse{}
	for _, p := range all {
		out.Images = append(out.Images, &imagepb.PrunedImage{Id: p.ID, Names: names(p.Image), Bytes: p.Bytes})
	}
	return out, nil
}

// names are an image's tags, or its digests if it has none.
func names(im image.Image) []string {
	if len(im.RepoTags) > 0 {
		return im.RepoTags
	}
	return im.RepoDigests
}

// Tag implements berth.v1.Images.
func (s *Server) Tag(ctx context.Context, r *imagepb.TagRequest) (*imagepb.TagResponse, error) {
	for field, value := range map[string]string{"image": r.GetImage(), "name": r.GetName()} {
		if value == "" {
			return nil, fmt.Errorf("tag image: %s is empty: %w", field, pod.ErrInvalid)
		}
	}
	im, name, err := s.images.Tag(ctx, r.GetImage(), r.GetName())
	if err != nil {
		return nil, err
	}
	return &imagepb.TagResponse{ImageId: im.ID, Name: name}, nil
}

// Untag implements berth.v1.Images.
func (s *Server) Untag(ctx context.Context, r *imagepb.UntagRequest) (*imagepb.UntagResponse, error) {
	if r.GetName() == "" {
		return nil, fmt.Errorf("untag image: name is empty: %w", pod.ErrInvalid)
	}
	im, name, err := s.images.Untag(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	return &imagepb.UntagResponse{ImageId: im.ID, Name: name, Left: im.RepoTags}, nil
}

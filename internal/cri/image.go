// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/image"
	"github.com/berth-run/berth/internal/pod"
)

// PullImage implements ImageService. The answer is the image's ID: the kubelet keys its pull records by it.
func (s *Server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("pull image: image.image is empty: %w", pod.ErrInvalid)
	}
	if err := s.c.Pods.CheckHandler(r.GetImage().GetRuntimeHandler()); err != nil {
		return nil, fmt.Errorf("pull image %s: image.runtime_handler: %w", ref, err)
	}
	im, err := s.c.Images.Pull(ctx, image.PullRequest{Ref: ref, Auth: auth(r.GetAuth()), Handler: r.GetImage().GetRuntimeHandler()})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: im.ID}, nil
}

func auth(a *runtimeapi.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken()}
}

// ListImages implements ImageService.
func (s *Server) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: s.listImages(r.GetFilter())}, nil
}

func (s *Server) listImages(f *runtimeapi.ImageFilter) (out []*runtimeapi.Image) {
	if want := f.GetImage().GetImage(); want != "" {
		if im, err := s.c.Images.Status(want); err == nil {
			out = append(out, criImage(im))
		}
		return out // an image that is not there, or a reference that cannot be one, matches nothing
	}
	for _, im := range s.c.Images.List() {
		out = append(out, criImage(im))
	}
	return out
}

// ImageStatus implements ImageService; an absent image is an empty answer.
func (s *Server) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("image status: image.image is empty: %w", pod.ErrInvalid)
	}
	im, err := s.c.Images.Status(ref)
	if isNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	} else if err != nil {
		return nil, err
	}
	out := &runtimeapi.ImageStatusResponse{Image: criImage(im)}
	if r.GetVerbose() {
		info, err := s.c.Images.Info(ctx, im.ID)
		if err != nil {
			return nil, err
		}
		if out.Info, err = verbose(info); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// RemoveImage implements ImageService.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := r.GetImage().GetImage()
	if ref == "" {
		return nil, fmt.Errorf("remove image: image.image is empty: %w", pod.ErrInvalid)
	}
	return &runtimeapi.RemoveImageResponse{}, s.c.Images.Remove(ctx, ref)
}

// ImageFsInfo implements ImageService. Images and writable layers share one file system.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	info, err := s.c.Images.FSInfo(ctx)
	if err != nil {
		return nil, err
	}
	fs := []*runtimeapi.FilesystemUsage{{Timestamp: info.Timestamp.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: info.Mountpoint},
		UsedBytes: &runtimeapi.UInt64Value{Value: uint64(info.UsedBytes)}, InodesUsed: &runtimeapi.UInt64Value{Value: uint64(info.InodesUsed)}}}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: fs, ContainerFilesystems: fs}, nil
}

func criImage(im image.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{Id: im.ID, RepoTags: im.RepoTags, RepoDigests: im.RepoDigests, Size: uint64(im.Size), Username: im.Username, Pinned: im.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: im.ID}}
	if im.UID != nil {
		out.Uid = &runtimeapi.Int64Value{Value: *im.UID}
	}
	return out
}

// SPDX-License-Identifier: Apache-2.0

package podrun

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/cli/manifest"
)

// pullAll fetches the images before anything is made, each once.
func (r *run) pullAll(ctx context.Context) error {
	for _, im := range r.Pod.Images() {
		if err := r.image(ctx, im); err != nil {
			return err
		}
	}
	return nil
}

// image makes an image be there.
func (r *run) image(ctx context.Context, im manifest.Image) error {
	if r.images[im.Reference] != nil {
		return nil
	}
	have, err := r.imageStatus(ctx, im.Reference)
	if err != nil {
		return err
	}
	always, implied := im.PullAlways()
	switch {
	case have != nil && !always:
		r.images[im.Reference] = have
		return nil
	case have == nil && im.PullNever():
		return fmt.Errorf("%s: image %s is not here, and its pull policy is Never", im.User, im.Reference)
	}
	if err := r.Pull(ctx, im.Reference); err != nil {
		if have == nil || !implied || ctx.Err() != nil {
			return err
		}
		r.Note("%v; the image that is here is used", err)
		r.images[im.Reference] = have
		return nil
	}
	if have, err = r.imageStatus(ctx, im.Reference); err != nil {
		return err
	}
	if have == nil {
		return fmt.Errorf("%s: image %s was pulled and is gone", im.User, im.Reference)
	}
	r.images[im.Reference] = have
	return nil
}

func (r *run) imageStatus(ctx context.Context, ref string) (*runtimeapi.Image, error) {
	rpc, cancel := r.Client.Read(ctx)
	defer cancel()
	answer, err := r.Client.Images.ImageStatus(rpc, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return answer.GetImage(), r.Client.Error("image "+ref, err)
}

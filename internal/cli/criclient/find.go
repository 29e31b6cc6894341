// SPDX-License-Identifier: Apache-2.0

package criclient

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrNotFound: nothing is called that.
var ErrNotFound = errors.New("not found")

// Object is a pod or a container that was found; the other one is nil.
type Object struct {
	Pod       *runtimeapi.PodSandbox
	Container *runtimeapi.Container
}

// ID is the object's ID.
func (o Object) ID() string {
	if o.Pod != nil {
		return o.Pod.GetId()
	}
	return o.Container.GetId()
}

func (o Object) String() string {
	if o.Pod != nil {
		return "pod " + o.Pod.GetMetadata().GetName() + " (" + Short(o.Pod.GetId()) + ")"
	}
	return "container " + o.Container.GetMetadata().GetName() + " (" + Short(o.Container.GetId()) + ")"
}

// Short is an ID as tables show it.
func Short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 13)]
}

// Kinds are what is looked for.
type Kinds struct{ Pods, Containers bool }

// Lists are all pods and containers at one moment, as far as they were asked for.
type Lists struct {
	Pods       []*runtimeapi.PodSandbox
	Containers []*runtimeapi.Container
}

// Lists asks for all pods, and for all containers if containers are looked for.
func (c *Client) Lists(ctx context.Context, k Kinds) (Lists, error) {
	ctx, cancel := c.Read(ctx)
	defer cancel()
	var all Lists
	pods, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return Lists{}, c.Error("list pods", err)
	}
	all.Pods = pods.GetItems()
	if !k.Containers {
		return all, nil
	}
	containers, err := c.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return Lists{}, c.Error("list containers", err)
	}
	all.Containers = containers.GetContainers()
	return all, nil
}

// Pod is the pod of that ID, nil if there is none.
func (l Lists) Pod(id string) *runtimeapi.PodSandbox {
	for _, p := range l.Pods {
		if p.GetId() == id {
			return p
		}
	}
	return nil
}

// Of are the containers of a pod.
func (l Lists) Of(pod string) []*runtimeapi.Container {
	return slices.DeleteFunc(slices.Clone(l.Containers), func(c *runtimeapi.Container) bool { return c.GetPodSandboxId() != pod })
}

// Find is the one object that the word names: by its whole ID, else by name (pods also NAMESPACE/NAME, containers also POD/NAME),
// else by the beginning of its ID. Of several attempts of the same thing the newest counts.
func (l Lists) Find(word string, k Kinds) (Object, error) {
	if word == "" {
		return Object{}, errors.New("an empty name names nothing")
	}
	for _, match := range []func(string, Kinds) []Object{l.byID, l.byName, l.byPrefix} {
		found := match(word, k)
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return Object{}, l.ambiguous(word, found)
		}
	}
	return Object{}, fmt.Errorf("%s %q: %w", k, word, ErrNotFound)
}

func (k Kinds) String() string {
	switch {
	case k.Pods && k.Containers:
		return "pod or container"
	case k.Pods:
		return "pod"
	}
	return "container"
}

func (l Lists) pick(k Kinds, pod func(*runtimeapi.PodSandbox) bool, container func(*runtimeapi.Container) bool) []Object {
	var found []Object
	for _, p := range l.Pods {
		if k.Pods && pod(p) {
			found = append(found, Object{Pod: p})
		}
	}
	for _, c := range l.Containers {
		if k.Containers && container(c) {
			found = append(found, Object{Container: c})
		}
	}
	return found
}

func (l Lists) byID(word string, k Kinds) []Object {
	return l.pick(k, func(p *runtimeapi.PodSandbox) bool { return p.GetId() == word }, func(c *runtimeapi.Container) bool { return c.GetId() == word })
}

func (l Lists) byPrefix(word string, k Kinds) []Object {
	return l.pick(k, func(p *runtimeapi.PodSandbox) bool { return strings.HasPrefix(p.GetId(), word) },
		func(c *runtimeapi.Container) bool { return strings.HasPrefix(c.GetId(), word) })
}

func (l Lists) byName(word string, k Kinds) []Object {
	found := l.pick(k, func(p *runtimeapi.PodSandbox) bool {
		m := p.GetMetadata()
		return m.GetName() == word || m.GetNamespace()+"/"+m.GetName() == word
	}, func(c *runtimeapi.Container) bool {
		name := c.GetMetadata().GetName()
		return name == word || l.Pod(c.GetPodSandboxId()).GetMetadata().GetName()+"/"+name == word
	})
	return newest(found)
}

// newest leaves of each pod, and of each container of one pod, the attempt that was made last.
func newest(found []Object) []Object {
	at := map[string]int{}
	var kept []Object
	for _, o := range found {
		key := "container\x00" + o.Container.GetPodSandboxId() + "\x00" + o.Container.GetMetadata().GetName()
		if o.Pod != nil {
			key = "pod\x00" + o.Pod.GetMetadata().GetUid() + "\x00" + o.Pod.GetMetadata().GetNamespace() + "\x00" + o.Pod.GetMetadata().GetName()
		}
		i, seen := at[key]
		switch {
		case !seen:
			at[key] = len(kept)
			kept = append(kept, o)
		case created(o) > created(kept[i]):
			kept[i] = o
		}
	}
	return kept
}

func created(o Object) int64 { return max(o.Pod.GetCreatedAt(), o.Container.GetCreatedAt()) }

// ambiguous names what was found in words that find it.
func (l Lists) ambiguous(word string, found []Object) error {
	names := make([]string, 0, len(found))
	for _, o := range found[:min(len(found), 5)] {
		if m := o.Pod.GetMetadata(); o.Pod != nil {
			names = append(names, fmt.Sprintf("pod %s/%s (%s)", m.GetNamespace(), m.GetName(), Short(o.ID())))
			continue
		}
		pod := l.Pod(o.Container.GetPodSandboxId()).GetMetadata()
		names = append(names, fmt.Sprintf("container %s/%s (%s)", pod.GetName(), o.Container.GetMetadata().GetName(), Short(o.ID())))
	}
	if len(found) > len(names) {
		names = append(names, fmt.Sprintf("%d more", len(found)-len(names)))
	}
	return fmt.Errorf("%q is ambiguous: %s", word, strings.Join(names, ", "))
}

// Image is the image that the word names: what the runtime knows under it, else the one whose ID begins with it.
func (c *Client) Image(ctx context.Context, word string) (*runtimeapi.Image, error) {
	ctx, cancel := c.Read(ctx)
	defer cancel()
	st, statusErr := c.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: word}})
	if im := st.GetImage(); im != nil {
		return im, nil
	}
	list, err := c.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, c.Error("list images", err)
	}
	prefix := strings.TrimPrefix(word, "sha256:")
	var found []*runtimeapi.Image
	for _, im := range list.GetImages() {
		if prefix != "" && strings.HasPrefix(strings.TrimPrefix(im.GetId(), "sha256:"), prefix) {
			found = append(found, im)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fmt.Errorf("image %q is ambiguous: %d images have an ID that begins so", word, len(found))
	case statusErr != nil:
		return nil, c.Error("image "+word, statusErr)
	}
	return nil, fmt.Errorf("image %q: %w", word, ErrNotFound)
}

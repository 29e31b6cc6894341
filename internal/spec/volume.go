// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Volume is an anonymous volume: a folder of the container's own, mounted where its image says VOLUME.
type Volume struct{ Destination, Source string }

// ownPlaces are file systems that every container gets from the runtime: no image can put a volume there.
var ownPlaces = []string{"/proc", "/sys", "/dev"}

// maxVolumes bounds what an image can make a node set up.
const maxVolumes = 64

// ImageVolumes are the places where a container gets an anonymous volume, shallowest first: what the image's VOLUME entries name, but for what
// the CRI mounts there or on a folder above. As in containerd; whoever removes the container removes them, too.
func ImageVolumes(entries []string, asked []*runtimeapi.Mount) ([]string, error) {
	var places []string
	for _, e := range entries {
		at := path.Join("/", e)
		hidden := slices.ContainsFunc(asked, func(m *runtimeapi.Mount) bool { return atOrBelow(at, path.Clean(m.GetContainerPath())) })
		if at == "/" || hidden || slices.ContainsFunc(ownPlaces, func(own string) bool { return atOrBelow(at, own) }) {
			continue
		}
		if strings.ContainsRune(at, 0) {
			return nil, invalid("volumes of the image", "%q has a NUL", at)
		}
		places = append(places, at)
	}
	slices.SortFunc(places, func(a, b string) int {
		if d := strings.Count(a, "/") - strings.Count(b, "/"); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	if places = slices.Compact(places); len(places) > maxVolumes {
		return nil, invalid("volumes of the image", "there are %d, a container can have %d", len(places), maxVolumes)
	}
	return places, nil
}

func anonymousVolumes(all []Volume) []specs.Mount {
	var out []specs.Mount
	for _, v := range all {
		out = append(out, specs.Mount{Destination: v.Destination, Type: "bind", Source: v.Source, Options: []string{"rbind", "rprivate"}})
	}
	return out
}

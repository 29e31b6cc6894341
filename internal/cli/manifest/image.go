// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Image is one that the pod needs, for a container or as a volume.
type Image struct {
	// User is who needs it: "container web", "volume data".
	User, Reference string
	policy          corev1.PullPolicy
}

// Images are those of the init containers, of the others, and of the volumes.
func (p *Pod) Images() []Image {
	var all []Image
	for _, c := range p.all() {
		all = append(all, Image{"container " + c.Name, c.Image, c.ImagePullPolicy})
	}
	for _, v := range p.Spec.Volumes {
		if v.Image != nil {
			all = append(all, Image{"volume " + v.Name, v.Image.Reference, v.Image.PullPolicy})
		}
	}
	return all
}

// impliedAlways is Always because nothing else was said of an image without a fixed tag.
const impliedAlways corev1.PullPolicy = "Always (implied)"

// PullAlways tells whether the image is pulled even if it is there; implied, that the manifest did not say so.
func (im Image) PullAlways() (always, implied bool) {
	implied = im.policy == impliedAlways
	return implied || im.policy == corev1.PullAlways, implied
}

// PullNever tells that the image must be there already.
func (im Image) PullNever() bool { return im.policy == corev1.PullNever }

func defaultPolicy(said corev1.PullPolicy, ref string) corev1.PullPolicy {
	switch {
	case said != "":
		return said
	case latest(ref):
		return impliedAlways
	}
	return corev1.PullIfNotPresent
}

func validPolicy(policy corev1.PullPolicy) error {
	switch policy {
	case corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever, impliedAlways:
		return nil
	}
	return fmt.Errorf("%q is not one of Always, IfNotPresent, Never", policy)
}

// latest tells that a reference has no tag and no digest, or the tag latest.
func latest(ref string) bool {
	if strings.Contains(ref, "@") {
		return false
	}
	name := ref[strings.LastIndexByte(ref, '/')+1:]
	_, tag, tagged := strings.Cut(name, ":")
	return !tagged || tag == "latest"
}

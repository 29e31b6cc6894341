// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"regexp"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const appArmorField = "linux.security_context.apparmor"

// appArmorProfile is the name of the profile that confines the container, empty for none. A named profile on a node without
// AppArmor is an error: the container would run without the protection that its owner counts on. The default one is not.
func appArmorProfile(sc *runtimeapi.LinuxContainerSecurityContext, host Host) (string, error) {
	if sc.GetPrivileged() { // CRI: AppArmor confinement is not applied
		return "", nil
	}
	p, err := AskedAppArmor(sc)
	if err != nil {
		return "", err
	}
	switch {
	case p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		return "", nil
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost && host.AppArmor:
		return p.GetLocalhostRef(), nil
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		return "", invalid(appArmorField, "profile %q: this node's kernel has no AppArmor", p.GetLocalhostRef())
	case !host.AppArmor:
		return "", nil
	case host.AppArmorDefault == "" && p != nil:
		return "", invalid(appArmorField, "the default profile is not loaded on this node")
	}
	return host.AppArmorDefault, nil
}

// AskedAppArmor reads the field and, where it is not set, the deprecated one. nil: nothing is asked for. ErrInvalid.
func AskedAppArmor(sc *runtimeapi.LinuxContainerSecurityContext) (*runtimeapi.SecurityProfile, error) {
	p := sc.GetApparmor()
	if p == nil {
		name := sc.GetApparmorProfile() //nolint:staticcheck // deprecated, and still the only one that some clients set
		ref, local := strings.CutPrefix(name, "localhost/")
		switch {
		case name == "" || name == "runtime/default":
			return nil, nil
		case name == "unconfined":
			return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
		case !local:
			return nil, invalid("linux.security_context.apparmor_profile", "%q is neither runtime/default nor unconfined nor localhost/…", name)
		}
		p = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	if err := validProfile(appArmorField, p); err != nil {
		return nil, err
	}
	// The CRI validation suite sends the prefix of the deprecated field in this one, and containerd takes both.
	if ref, ok := strings.CutPrefix(p.GetLocalhostRef(), "localhost/"); ok && ref != "" {
		p = &runtimeapi.SecurityProfile{ProfileType: p.GetProfileType(), LocalhostRef: ref}
	}
	return p, nil
}

func validProfile(field string, p *runtimeapi.SecurityProfile) error {
	_, known := runtimeapi.SecurityProfile_ProfileType_name[int32(p.GetProfileType())]
	local := p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
	switch {
	case !known:
		return invalid(field+".profile_type", "%d is unknown", p.GetProfileType())
	case local && p.GetLocalhostRef() == "":
		return invalid(field+".localhost_ref", "is empty, profile_type Localhost wants one")
	case !local && p.GetLocalhostRef() != "":
		return invalid(field+".localhost_ref", "%q is set, but profile_type is %s", p.GetLocalhostRef(), p.GetProfileType())
	}
	return oneLine(field+".localhost_ref", p.GetLocalhostRef())
}

var (
	labelPart  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)
	labelLevel = regexp.MustCompile(`^s[0-9]+(:c[0-9]+([.,]c[0-9]+)*)?(-s[0-9]+(:c[0-9]+([.,]c[0-9]+)*)?)?$`)
)

// maxLabel is the longest part of an SELinux label that makes sense; the kernel reads one page.
const maxLabel = 256

// validSELinux: nothing can add parts to a label. Whether the policy has it is for the kernel to say, and without SELinux it says nothing.
func validSELinux(field string, o *runtimeapi.SELinuxOption) error {
	for _, part := range []struct {
		name, value string
		form        *regexp.Regexp
	}{{"user", o.GetUser(), labelPart}, {"role", o.GetRole(), labelPart}, {"type", o.GetType(), labelPart}, {"level", o.GetLevel(), labelLevel}} {
		if part.value != "" && (len(part.value) > maxLabel || !part.form.MatchString(part.value)) {
			return invalid(field+".selinux_options."+part.name, "%.300q is none", part.value)
		}
	}
	return nil
}

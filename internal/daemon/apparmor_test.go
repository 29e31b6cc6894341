// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/apparmor"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/spec"
)

// fakeProfiles has the profiles named; err is what loading the default one ends with.
type fakeProfiles struct {
	loaded map[string]bool
	err    error
}

func (f fakeProfiles) Loaded(name string) (bool, error) { return f.loaded[name], nil }

func (f fakeProfiles) EnsureDefault() error {
	if f.err == nil {
		f.loaded[apparmor.DefaultName] = true
	}
	return f.err
}

func (f fakeProfiles) Reload() error { return f.EnsureDefault() }

func TestAppArmorProfilesAreLoadedOrAnErrorOfWhoAsked(t *testing.T) {
	profile := func(kind runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.LinuxContainerSecurityContext {
		return &runtimeapi.LinuxContainerSecurityContext{Apparmor: &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}}
	}
	nothing := &runtimeapi.LinuxContainerSecurityContext{}
	for name, c := range map[string]struct {
		sc     *runtimeapi.LinuxContainerSecurityContext
		broken bool
		set    string
		class  error
	}{
		"nobody asked":            {nothing, false, apparmor.DefaultName, nil},
		"nobody asked, no parser": {nothing, true, "", nil},
		"default":                 {profile(runtimeapi.SecurityProfile_RuntimeDefault, ""), false, apparmor.DefaultName, nil},
		"default, no parser":      {profile(runtimeapi.SecurityProfile_RuntimeDefault, ""), true, "", pod.ErrState},
		"unconfined, no parser":   {profile(runtimeapi.SecurityProfile_Unconfined, ""), true, "", nil},
		"local":                   {profile(runtimeapi.SecurityProfile_Localhost, "mine"), true, "", nil},
		"local, not loaded":       {profile(runtimeapi.SecurityProfile_Localhost, "yours"), false, "", pod.ErrInvalid},
		"privileged":              {&runtimeapi.LinuxContainerSecurityContext{Privileged: true}, false, "", nil},
	} {
		m := specMaker{host: spec.Host{AppArmor: true}, profiles: fakeProfiles{loaded: map[string]bool{"mine": true}}}
		if c.broken {
			m.profiles = fakeProfiles{loaded: map[string]bool{"mine": true}, err: apparmor.ErrNoParser}
		}
		var in spec.Input
		if err := m.appArmor(&in, c.sc); !errors.Is(err, c.class) || in.Host.AppArmorDefault != c.set {
			t.Errorf("%s: %q, %v", name, in.Host.AppArmorDefault, err)
		} else if c.class != nil && !strings.Contains(err.Error(), "linux.security_context.apparmor") {
			t.Errorf("%s: %v does not name the field", name, err)
		}
	}
}

func TestStatusTellsWhetherTheDefaultProfileIsLoaded(t *testing.T) {
	if c := (specMaker{}).conditions(); c != nil {
		t.Errorf("a node without AppArmor has %v", c)
	}
	f := fakeProfiles{loaded: map[string]bool{}}
	m := specMaker{host: spec.Host{AppArmor: true}, profiles: f}
	if c := m.conditions(); len(c) != 1 || c[0].Type != "AppArmorReady" || c[0].Reason == "" || c[0].Message == "" {
		t.Errorf("not loaded: %v", c)
	}
	if err := m.loadProfile(); err != nil {
		t.Fatal(err)
	}
	if c := m.conditions(); len(c) != 1 || c[0].Reason != "" {
		t.Errorf("loaded: %v", c)
	}
}

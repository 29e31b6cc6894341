// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"path"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/host"
	"github.com/berth-run/berth/internal/pod"
	"github.com/berth-run/berth/internal/spec"
)

// addDevices looks up the devices that the container asks for and, where it is privileged, those of the host: as they are now, since disks
// and others come and go while the daemon runs.
func (m specMaker) addDevices(in *spec.Input, r pod.SpecRequest) error {
	sc := r.Container.GetLinux().GetSecurityContext()
	asked, err := requestedDevices(r.Container.GetDevices())
	if err != nil {
		return err
	}
	if m.deviceOwnership {
		own(asked, sc)
	}
	in.Devices, in.WithoutHostDevices = asked, m.handlers[r.Handler].withoutHostDevices
	if !sc.GetPrivileged() || in.WithoutHostDevices {
		return nil
	}
	all, err := host.Devices()
	if err != nil {
		return err
	}
	for _, d := range all {
		in.HostDevices = append(in.HostDevices, specDevice(d))
	}
	return nil
}

// requestedDevices resolves what the CRI asks for. A folder, as device plugins for sound and graphics name them, stands for all devices in
// it. Of two devices on one place the later one counts.
func requestedDevices(asked []*runtimeapi.Device) ([]spec.Device, error) {
	var all []spec.Device
	at := map[string]int{}
	for i, d := range asked {
		found, err := host.DevicesAt(d.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("devices[%d]: host_path: %w: %w", i, pod.ErrInvalid, err)
		}
		for _, f := range found {
			out := specDevice(f)
			out.Path, out.Access = path.Join(d.GetContainerPath(), f.Path[len(d.GetHostPath()):]), d.GetPermissions()
			if earlier, taken := at[out.Path]; taken {
				all[earlier] = out
				continue
			}
			at[out.Path] = len(all)
			all = append(all, out)
		}
	}
	return all, nil
}

// own gives devices to the user and the group that the security context names as containerd and CRI-O do with a key of the same
// name: without it a container that is not root needs the host's group IDs of its devices.
func own(devices []spec.Device, sc *runtimeapi.LinuxContainerSecurityContext) {
	for i := range devices {
		if u := sc.GetRunAsUser(); u != nil {
			devices[i].UID = uint32(u.GetValue()) // in range: ValidateContainer has looked
		}
		if g := sc.GetRunAsGroup(); g != nil {
			devices[i].GID = uint32(g.GetValue())
		}
	}
}

func specDevice(d host.Device) spec.Device {
	return spec.Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, Mode: d.Mode, UID: d.UID, GID: d.GID, Access: "rwm"}
}

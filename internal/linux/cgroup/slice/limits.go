// SPDX-License-Identifier: Apache-2.0

package slice

import (
	"context"
	"fmt"
	"math"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"github.com/berth-run/berth/internal/linux/cgroup"
)

// SetLimits tells systemd the slice's limits, those that are not zero, until the next boot. Without that, systemd would put back its own at the next
// reload. It is idempotent. unified: the host has cgroup v2, where systemd's properties have other names. CPU sets are the
// kernel's alone here: systemd 243 and older have no property for them.
func (m *Manager) SetLimits(ctx context.Context, name string, l cgroup.Limits, unified bool) error {
	if _, err := cgroup.ExpandSlice(name); err != nil {
		return fmt.Errorf("set limits of slice: %w", err)
	}
	list := limitProperties(l, unified)
	if len(list) == 0 {
		return nil
	}
	c, err := m.connection(ctx)
	if err != nil {
		return fmt.Errorf("set limits of slice %s: %w", name, err)
	}
	if err := c.SetUnitPropertiesContext(ctx, name, true, list...); err != nil {
		return fmt.Errorf("set limits of slice %s: %w", name, err)
	}
	return nil
}

func limitProperties(l cgroup.Limits, unified bool) []systemd.Property {
	var list []systemd.Property
	add := func(name string, value uint64) {
		list = append(list, systemd.Property{Name: name, Value: dbus.MakeVariant(value)})
	}
	if l.CPUShares > 0 && unified {
		add("CPUWeight", cgroup.Weight(l.CPUShares))
	} else if l.CPUShares > 0 {
		add("CPUShares", uint64(l.CPUShares))
	}
	if l.CPUPeriod > 0 {
		add("CPUQuotaPeriodUSec", uint64(l.CPUPeriod))
	}
	if l.CPUQuota != 0 {
		add("CPUQuotaPerSecUSec", perSecond(l.CPUQuota, l.CPUPeriod))
	}
	switch {
	case l.Memory != 0 && unified:
		add("MemoryMax", bytes(l.Memory))
	case l.Memory != 0:
		add("MemoryLimit", bytes(l.Memory))
	}
	if l.Swap != 0 && l.Memory != 0 && unified {
		if l.Swap < 0 || l.Memory < 0 {
			add("MemorySwapMax", math.MaxUint64)
		} else {
			add("MemorySwapMax", uint64(max(l.Swap-l.Memory, 0)))
		}
	}
	return list
}

// perSecond is a quota as systemd counts it, rounded up to a hundredth of a CPU: it refuses to write anything finer.
func perSecond(quota, period int64) uint64 {
	const hundredth, defaultPeriod = 10000, 100000
	if quota < 0 {
		return math.MaxUint64
	}
	if period <= 0 {
		period = defaultPeriod
	}
	n := uint64(quota) * 1000000 / uint64(period)
	return (n + hundredth - 1) / hundredth * hundredth
}

// bytes is a size as systemd has it; the largest number is no limit.
func bytes(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}

// SPDX-License-Identifier: Apache-2.0

package output

import (
	"fmt"
	"time"
)

// Ago is how long a moment in nanoseconds lies back, in words; 0 is never.
func Ago(nanoseconds int64, now time.Time) string {
	if nanoseconds <= 0 {
		return ""
	}
	d := now.Sub(time.Unix(0, nanoseconds))
	for _, step := range []struct {
		below, unit time.Duration
		one, many   string
	}{
		{time.Second, 0, "less than a second ago", ""},
		{time.Minute, time.Second, "1 second ago", "%d seconds ago"},
		{time.Hour, time.Minute, "1 minute ago", "%d minutes ago"},
		{48 * time.Hour, time.Hour, "1 hour ago", "%d hours ago"},
		{14 * 24 * time.Hour, 24 * time.Hour, "", "%d days ago"},
		{60 * 24 * time.Hour, 7 * 24 * time.Hour, "", "%d weeks ago"},
		{2 * 365 * 24 * time.Hour, 30 * 24 * time.Hour, "", "%d months ago"},
	} {
		if d >= step.below {
			continue
		}
		if step.unit == 0 || d < 2*step.unit && step.one != "" {
			return step.one
		}
		return fmt.Sprintf(step.many, d/step.unit)
	}
	return fmt.Sprintf("%d years ago", d/(365*24*time.Hour))
}

// Size is a number of bytes as registries count them, in powers of ten.
func Size(bytes uint64) string {
	return scaled(float64(bytes), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"})
}

// Memory is a number of bytes as kernels count them, in powers of two.
func Memory(bytes uint64) string {
	return scaled(float64(bytes), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"})
}

func scaled(v, base float64, units []string) string {
	i := 0
	for v >= base && i < len(units)-1 {
		v /= base
		i++
	}
	if v >= 100 { // %.3g would turn 1000 into 1e+03
		return fmt.Sprintf("%.0f%s", v, units[i])
	}
	return fmt.Sprintf("%.3g%s", v, units[i])
}

// Took is a duration with as many digits as matter.
func Took(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

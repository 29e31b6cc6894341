// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/berth-run/berth/test/daemon"
)

// table collects samples and prints them.
type table struct {
	kinds []daemon.Kind

	mu      sync.Mutex // guards what follows
	metrics []string   // in the order of their first sample
	samples map[string]map[daemon.Kind][]float64
}

func newTable(kinds []daemon.Kind) *table {
	return &table{kinds: kinds, samples: map[string]map[daemon.Kind][]float64{}}
}

func (t *table) add(kind daemon.Kind, metric string, value float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.samples[metric] == nil {
		t.samples[metric] = map[daemon.Kind][]float64{}
		t.metrics = append(t.metrics, metric)
	}
	t.samples[metric][kind] = append(t.samples[metric][kind], value)
}

// percentile is the nearest rank.
func percentile(samples []float64, p float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

// number prints three significant digits, and no fraction from 100 on.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// counts is how many samples each runtime has: one number where all have as many.
func (t *table) counts(of map[daemon.Kind][]float64) string {
	var all []string
	for _, k := range t.kinds {
		all = append(all, strconv.Itoa(len(of[k])))
	}
	if len(slices.Compact(slices.Clone(all))) == 1 {
		return all[0]
	}
	return strings.Join(all, ", ")
}

// print writes the table: p50 and p95 of each runtime, and the ratio of each p50 to the last runtime's.
func (t *table) print(w io.Writer, p plan) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return fmt.Errorf("read kernel release: %w", err)
	}
	fmt.Fprintf(&b, "Linux %s, %d CPUs; %d rounds in turn; milliseconds where no unit is named.\n\n",
		strings.TrimSpace(string(kernel)), runtime.NumCPU(), p.rounds)
	last := t.kinds[len(t.kinds)-1]
	fmt.Fprint(&b, "| figure | samples |")
	rule := "| --- | ---: |"
	for _, k := range t.kinds {
		fmt.Fprintf(&b, " %s p50 | p95 |", k)
		rule += " ---: | ---: |"
	}
	for _, k := range t.kinds[:len(t.kinds)-1] {
		fmt.Fprintf(&b, " %s : %s |", k, last)
		rule += " ---: |"
	}
	fmt.Fprintf(&b, "\n%s\n", rule)
	for _, m := range t.metrics {
		of := t.samples[m]
		fmt.Fprintf(&b, "| %s | %s |", m, t.counts(of))
		for _, k := range t.kinds {
			if len(of[k]) == 0 {
				b.WriteString(" – | – |")
				continue
			}
			fmt.Fprintf(&b, " %s | %s |", number(percentile(of[k], 0.5)), number(percentile(of[k], 0.95)))
		}
		for _, k := range t.kinds[:len(t.kinds)-1] {
			ratio := "–"
			if len(of[k]) > 0 && len(of[last]) > 0 && percentile(of[last], 0.5) > 0 {
				ratio = fmt.Sprintf("%.2f", percentile(of[k], 0.5)/percentile(of[last], 0.5))
			}
			fmt.Fprintf(&b, " %s |", ratio)
		}
		b.WriteByte('\n')
	}
	_, err = io.WriteString(w, b.String())
	return err
}

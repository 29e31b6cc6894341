// SPDX-License-Identifier: Apache-2.0

package cadvisor

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/linux/cgroup/usage"
	"github.com/berth-run/berth/internal/linux/netns"
	"github.com/berth-run/berth/internal/stats"
)

// wanted are what a kubelet 1.37 had from cAdvisor (cri-tools pkg/validate/pod.go; the bursts are in cAdvisor 0.56).
const wanted = `container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total
container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes container_fs_reads_bytes_total
container_fs_reads_total container_fs_usage_bytes container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes
container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_failcnt container_memory_failures_total
container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss container_memory_swap
container_memory_usage_bytes container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total
container_network_receive_packets_dropped_total container_network_receive_packets_total container_network_transmit_bytes_total
container_network_transmit_errors_total container_network_transmit_packets_dropped_total container_network_transmit_packets_total
container_oom_events_total container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total
container_pressure_memory_waiting_seconds_total container_processes container_sockets container_spec_cpu_period container_spec_cpu_quota
container_spec_cpu_shares container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
container_start_time_seconds container_threads container_threads_max container_ulimits_soft container_cpu_cfs_burst_periods_total container_cpu_cfs_burst_seconds_total`

func known(v uint64) usage.Counter { return usage.Counter{Value: v, Known: true} }

// full has a value for everything, each another one.
func full() *Object {
	psi := func(n uint64) *usage.PSI {
		return &usage.PSI{Some: usage.Pressure{Total: n * 1e9}, Full: usage.Pressure{Total: n*1e9 + 1e9}}
	}
	d := stats.Detail{Path: "/kubepods/pod1/c1", Devices: []string{"/dev/sda"}}
	d.CPU, d.User, d.System = known(10_900_000_000), known(7_000_000_000), known(3_000_000_000)
	d.Memory, d.InactiveFile, d.RSS, d.Swap, d.PageFaults, d.MajorFaults = known(1000), known(300), known(400), known(5), known(60), known(7)
	d.OwnPageFaults, d.OwnMajorFaults = known(59), known(6)
	d.CPUPressure, d.MemoryPressure, d.IOPressure = psi(11), psi(21), psi(31)
	d.Periods, d.ThrottledPeriods, d.Throttled = known(40), known(41), known(42_000_000_000)
	d.Bursts, d.Burst = known(43), known(44_000_000_000)
	d.Cache, d.Kernel, d.Mapped, d.MaxUsage, d.ActiveFile, d.FailCount, d.OOMKills = known(71), known(72), known(73), known(74), known(75), known(76), known(77)
	d.IO = []usage.Device{{Major: 8, Minor: 1, ReadBytes: 81, WriteBytes: 82, Reads: 83, Writes: 84, Bytes: map[string]uint64{"Read": 81, "Write": 82}}}
	d.HugeTLB = []usage.HugePages{{Size: "2MB", Used: 91, MaxUsage: known(92)}}
	d.Limits = usage.Limits{Shares: known(101), Period: known(102), Quota: known(103), Memory: known(104), Swap: known(usage.Unlimited), MemoryReservation: known(106)}
	d.Detail.Tasks, d.TasksMax = known(111), known(usage.Unlimited)
	return &Object{Labels: Labels{"c", "/kubepods/pod1/c1", "busybox:1", "c1", "ns", "p"}, Now: time.Unix(200, 0), Started: time.Unix(100, 0), Detail: &d,
		Processes: &stats.Processes{Count: 121, Files: 122, Sockets: 123, MaxFiles: known(124)},
		FS:        &FS{Device: "/dev/sda1", Capacity: 131, Inodes: 132, InodesFree: 133, Layer: &stats.Layer{Bytes: 134}},
		Network:   []netns.Interface{{Name: "eth0", RxBytes: 141, RxPackets: 142, RxErrors: 143, RxDropped: 144, TxBytes: 145, TxPackets: 146, TxErrors: 147, TxDropped: 148}}}
}

func TestEveryMetricIsDescribedAndHasItsLabels(t *testing.T) {
	described := map[string]*runtimeapi.MetricDescriptor{}
	for _, d := range Descriptors() {
		if described[d.GetName()] != nil || d.GetHelp() == "" {
			t.Errorf("%s is described twice or without help", d.GetName())
		}
		described[d.GetName()] = d
	}
	for _, name := range strings.Fields(wanted) {
		if described[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	given := map[string]bool{}
	for _, m := range Metrics(full()) {
		given[m.GetName()] = true
		d := described[m.GetName()]
		if len(m.GetLabelValues()) != len(d.GetLabelKeys()) {
			t.Errorf("%s: labels %v for %v", m.GetName(), m.GetLabelValues(), d.GetLabelKeys())
		}
		if m.GetTimestamp() != 0 {
			t.Errorf("%s has a timestamp though it is of the moment", m.GetName())
		}
		counts := strings.HasSuffix(m.GetName(), "_total") && m.GetName() != "container_fs_inodes_total" || m.GetName() == "container_memory_failcnt"
		if counts != (m.GetMetricType() == counterType) {
			t.Errorf("%s is a %v", m.GetName(), m.GetMetricType())
		}
	}
	for name := range described {
		if !given[name] {
			t.Errorf("%s is described but never given", name)
		}
	}
}

func TestValuesAndLabelsAreCAdvisors(t *testing.T) {
	keys := map[string][]string{}
	for _, d := range Descriptors() {
		keys[d.GetName()] = d.GetLabelKeys()
	}
	got := map[string]uint64{}
	for _, m := range Metrics(full()) {
		name := m.GetName()
		for i, key := range keys[m.GetName()][len(labelKeys):] {
			name += " " + key + "=" + m.GetLabelValues()[len(labelKeys)+i]
		}
		got[strings.TrimPrefix(name, "container_")] = m.GetValue().GetValue()
	}
	want := map[string]uint64{"last_seen": 200, "start_time_seconds": 100, "oom_events_total": 77, "cpu_user_seconds_total": 7, "cpu_system_seconds_total": 3,
		"cpu_usage_seconds_total cpu=total": 10, "cpu_cfs_periods_total": 40, "cpu_cfs_throttled_periods_total": 41, "cpu_cfs_throttled_seconds_total": 42,
		"cpu_cfs_burst_periods_total": 43, "cpu_cfs_burst_seconds_total": 44,
		"memory_cache": 71, "memory_rss": 400, "memory_kernel_usage": 72, "memory_mapped_file": 73, "memory_swap": 5, "memory_failcnt": 76,
		"memory_usage_bytes": 1000, "memory_max_usage_bytes": 74, "memory_working_set_bytes": 700, "memory_total_active_file_bytes": 75,
		"memory_total_inactive_file_bytes": 300, "memory_failures_total failure_type=pgfault scope=container": 59,
		"memory_failures_total failure_type=pgmajfault scope=container": 6, "memory_failures_total failure_type=pgfault scope=hierarchy": 60,
		"memory_failures_total failure_type=pgmajfault scope=hierarchy": 7, "hugetlb_usage_bytes pagesize=2MB": 91, "hugetlb_max_usage_bytes pagesize=2MB": 92,
		"fs_inodes_free device=/dev/sda1": 133, "fs_inodes_total device=/dev/sda1": 132, "fs_limit_bytes device=/dev/sda1": 131,
		"fs_usage_bytes device=/dev/sda1": 134, "fs_reads_bytes_total device=/dev/sda": 81, "fs_writes_bytes_total device=/dev/sda": 82,
		"fs_reads_total device=/dev/sda": 83, "fs_writes_total device=/dev/sda": 84,
		"blkio_device_usage_total device=/dev/sda major=8 minor=1 operation=Read":  81,
		"blkio_device_usage_total device=/dev/sda major=8 minor=1 operation=Write": 82,
		"network_receive_bytes_total interface=eth0":                               141, "network_receive_packets_total interface=eth0": 142,
		"network_receive_errors_total interface=eth0": 143, "network_receive_packets_dropped_total interface=eth0": 144,
		"network_transmit_bytes_total interface=eth0": 145, "network_transmit_packets_total interface=eth0": 146,
		"network_transmit_errors_total interface=eth0": 147, "network_transmit_packets_dropped_total interface=eth0": 148,
		"processes": 121, "file_descriptors": 122, "sockets": 123, "threads": 111, "threads_max": 0, "ulimits_soft ulimit=max_open_files": 124,
		"pressure_cpu_waiting_seconds_total": 11, "pressure_cpu_stalled_seconds_total": 12, "pressure_memory_waiting_seconds_total": 21,
		"pressure_memory_stalled_seconds_total": 22, "pressure_io_waiting_seconds_total": 31, "pressure_io_stalled_seconds_total": 32,
		"spec_cpu_shares": 101, "spec_cpu_period": 102, "spec_cpu_quota": 103, "spec_memory_limit_bytes": 104, "spec_memory_swap_limit_bytes": 0,
		"spec_memory_reservation_limit_bytes": 106}
	if !reflect.DeepEqual(got, want) {
		for k := range want {
			if got[k] != want[k] {
				t.Errorf("%s: got %d, want %d", k, got[k], want[k])
			}
		}
		for k := range got {
			if _, ok := want[k]; !ok {
				t.Errorf("unexpected %s", k)
			}
		}
	}
	m := Metrics(full())[0]
	if want := []string{"c", "/kubepods/pod1/c1", "busybox:1", "c1", "ns", "p"}; !slices.Equal(m.GetLabelValues(), want) {
		t.Errorf("got %v", m.GetLabelValues())
	}
}

func TestWhatIsNotKnownIsLeftOut(t *testing.T) {
	var names []string
	for _, m := range Metrics(&Object{Now: time.Unix(1, 0), Started: time.Unix(1, 0)}) {
		names = append(names, m.GetName())
	}
	if !slices.Equal(names, []string{"container_last_seen", "container_start_time_seconds"}) {
		t.Errorf("got %v", names)
	}
	o := full()
	o.Detail.Limits.Quota = known(usage.Unlimited)
	for _, m := range Metrics(o) {
		if strings.Contains(m.GetName(), "cfs") || strings.Contains(m.GetName(), "quota") {
			t.Errorf("%s without a quota", m.GetName())
		}
	}
}

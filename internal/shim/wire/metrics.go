// SPDX-License-Identifier: Apache-2.0

package wire

// StatsResponse is what a container uses, as one of the two below.
type StatsResponse struct{ Stats Any }

func (m *StatsResponse) fields(c *codec) { c.message(1, &m.Stats) }

// numbers are fields 1, 2, 3 … of one message, all of them uint64.
type numbers []uint64

func (m numbers) fields(c *codec) {
	for i := range m {
		c.uint64(i+1, &m[i])
	}
}

// MetricsV1 is io.containerd.cgroups.v1.Metrics, as far as clients look at it.
type MetricsV1 struct {
	PIDs, PIDLimit uint64
	// In nanoseconds.
	CPUTotal, CPUKernel, CPUUser         uint64
	Periods, ThrottledPeriods, Throttled uint64
	// In bytes; those below the line are from memory.stat and count what is in cgroups below, too.
	Memory, Swap, Kernel MemoryEntry

	Cache, RSS, MappedFile, InactiveFile, ActiveFile uint64
	PageFaults, MajorFaults                          uint64
	OOMKills                                         uint64
	IOBytes, IOs                                     []IOEntryV1
}

// MemoryEntry is one of v1's kinds of memory.
type MemoryEntry struct{ Limit, Usage, Max, FailCount uint64 }

func (m *MemoryEntry) fields(c *codec) {
	c.uint64(1, &m.Limit)
	c.uint64(2, &m.Usage)
	c.uint64(3, &m.Max)
	c.uint64(4, &m.FailCount)
}

// IOEntryV1 is one counter of a block device.
type IOEntryV1 struct {
	Operation           string
	Major, Minor, Value uint64
}

func (m *IOEntryV1) fields(c *codec) {
	c.string(1, &m.Operation)
	c.uint64(3, &m.Major)
	c.uint64(4, &m.Minor)
	c.uint64(5, &m.Value)
}

// fields only writes.
func (m *MetricsV1) fields(c *codec) {
	c.message(2, numbers{m.PIDs, m.PIDLimit})
	c.message(3, &nested{{1, numbers{m.CPUTotal, m.CPUKernel, m.CPUUser}}, {2, numbers{m.Periods, m.ThrottledPeriods, m.Throttled}}})
	c.message(4, &memoryV1{m})
	c.message(5, &ioV1{m})
	c.message(9, numbers{0, 0, m.OOMKills})
}

// nested are messages in a message.
type nested []struct {
	number  int
	message Message
}

func (m *nested) fields(c *codec) {
	for _, n := range *m {
		c.message(n.number, n.message)
	}
}

type memoryV1 struct{ *MetricsV1 }

func (m *memoryV1) fields(c *codec) {
	for _, own := range []int{1, 18} { // without and with the cgroups below
		c.uint64(own, &m.Cache)
		c.uint64(own+1, &m.RSS)
		c.uint64(own+3, &m.MappedFile)
		c.uint64(own+8, &m.PageFaults)
		c.uint64(own+9, &m.MajorFaults)
		c.uint64(own+12, &m.InactiveFile)
		c.uint64(own+13, &m.ActiveFile)
	}
	c.message(33, &m.Memory)
	c.message(34, &m.Swap)
	c.message(35, &m.Kernel)
}

type ioV1 struct{ *MetricsV1 }

func (m *ioV1) fields(c *codec) {
	list(c, 1, &m.IOBytes)
	list(c, 2, &m.IOs)
}

// MetricsV2 is io.containerd.cgroups.v2.Metrics, as far as clients look at it.
type MetricsV2 struct {
	PIDs, PIDLimit uint64
	// In microseconds.
	CPU, CPUUser, CPUSystem              uint64
	Periods, ThrottledPeriods, Throttled uint64
	// In bytes.
	Anon, File, FileMapped, InactiveFile, ActiveFile uint64
	PageFaults, MajorFaults                          uint64
	Memory, MemoryLimit, Swap, SwapLimit, MaxUsage   uint64
	OOMKills                                         uint64
	IO                                               []IOEntryV2
}

// IOEntryV2 are the counters of a block device.
type IOEntryV2 struct{ Major, Minor, ReadBytes, WriteBytes, Reads, Writes uint64 }

func (m *IOEntryV2) fields(c *codec) {
	for i, v := range []*uint64{&m.Major, &m.Minor, &m.ReadBytes, &m.WriteBytes, &m.Reads, &m.Writes} {
		c.uint64(i+1, v)
	}
}

// fields only writes.
func (m *MetricsV2) fields(c *codec) {
	c.message(1, numbers{m.PIDs, m.PIDLimit})
	c.message(2, numbers{m.CPU, m.CPUUser, m.CPUSystem, m.Periods, m.ThrottledPeriods, m.Throttled})
	c.message(4, &memoryV2{m})
	c.message(6, &ioV2{m})
	c.message(8, numbers{0, 0, 0, 0, m.OOMKills})
}

type memoryV2 struct{ *MetricsV2 }

func (m *memoryV2) fields(c *codec) {
	c.uint64(1, &m.Anon)
	c.uint64(2, &m.File)
	c.uint64(7, &m.FileMapped)
	c.uint64(13, &m.InactiveFile)
	c.uint64(14, &m.ActiveFile)
	c.uint64(18, &m.PageFaults)
	c.uint64(19, &m.MajorFaults)
	for i, v := range []*uint64{&m.Memory, &m.MemoryLimit, &m.Swap, &m.SwapLimit, &m.MaxUsage} {
		c.uint64(32+i, v)
	}
}

type ioV2 struct{ *MetricsV2 }

func (m *ioV2) fields(c *codec) { list(c, 1, &m.IO) }

// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
)

func TestAPodHasItsContainersResourcesAndTheOverhead(t *testing.T) {
	for name, c := range map[string]struct{ containers, overhead, want *res }{
		"nothing":        {nil, nil, &res{}},
		"no overhead":    {&res{CpuShares: 100, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 10, CpusetCpus: "0"}, nil, &res{CpuShares: 100, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 10, CpusetCpus: "0"}},
		"both":           {&res{CpuShares: 100, MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &res{CpuShares: 5, MemoryLimitInBytes: 7}, &res{CpuShares: 105, MemoryLimitInBytes: 17, MemorySwapLimitInBytes: 17}},
		"other period":   {&res{CpuQuota: 50000, CpuPeriod: 100000}, &res{CpuQuota: 1000, CpuPeriod: 10000}, &res{CpuQuota: 60000, CpuPeriod: 100000}},
		"no limit stays": {&res{CpuQuota: -1, MemoryLimitInBytes: -1}, &res{CpuQuota: 1000, MemoryLimitInBytes: 5}, &res{CpuQuota: -1, MemoryLimitInBytes: -1}},
		"overhead alone": {nil, &res{CpuShares: 5, MemoryLimitInBytes: 7}, &res{}},
		"too much":       {&res{MemoryLimitInBytes: math.MaxInt64 - 1}, &res{MemoryLimitInBytes: 100}, &res{MemoryLimitInBytes: -1}},
	} {
		got, err := PodResources(c.containers, c.overhead)
		if err != nil || !proto.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v; want %v", name, got, err, c.want)
		}
	}
	for name, bad := range map[string]*res{"shares": {CpuShares: -1}, "cpus": {CpusetCpus: "0\n"}, "swap": {MemorySwapLimitInBytes: 5}} {
		if _, err := PodResources(bad, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := PodResources(nil, bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("overhead %s: %v", name, err)
		}
	}
}

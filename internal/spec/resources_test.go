// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type res = runtimeapi.LinuxContainerResources

func TestUpdatesLeaveAloneWhatTheyDoNotName(t *testing.T) {
	for name, c := range map[string]struct {
		old, update, merged *res
		oci                 string
	}{
		"nothing before": {nil, &res{CpuShares: 2}, &res{CpuShares: 2}, `{"cpu":{"shares":2}}`},
		"nothing new":    {&res{CpuShares: 2, CpusetCpus: "0"}, nil, &res{CpuShares: 2, CpusetCpus: "0"}, `{"cpu":{"shares":2,"cpus":"0"}}`},
		"one field":      {&res{CpuShares: 2, CpuQuota: 5000}, &res{CpuQuota: -1}, &res{CpuShares: 2, CpuQuota: -1}, `{"cpu":{"shares":2,"quota":-1}}`},
		"no swap follows the memory": {&res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &res{MemoryLimitInBytes: 20},
			&res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 20}, `{"memory":{"limit":20,"swap":20}}`},
		"no word about swap is none": {&res{MemoryLimitInBytes: 10}, &res{MemoryLimitInBytes: 20}, &res{MemoryLimitInBytes: 20}, `{"memory":{"limit":20,"swap":20}}`},
		"swap that is allowed stays": {&res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 30}, &res{MemoryLimitInBytes: 20},
			&res{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 30}, `{"memory":{"limit":20,"swap":30}}`},
		"unified is merged": {&res{Unified: map[string]string{"memory.low": "1", "memory.high": "2"}}, &res{Unified: map[string]string{"memory.high": "3"}},
			&res{Unified: map[string]string{"memory.low": "1", "memory.high": "3"}}, `{"unified":{"memory.high":"3","memory.low":"1"}}`},
		"huge pages": {nil, &res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1}}},
			&res{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB", Limit: 1}}}, `{"hugepageLimits":[{"pageSize":"1GB","limit":1}]}`},
	} {
		before := proto.Clone(c.old)
		oci, merged, err := UpdateResources(c.old, c.update)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		raw, err := json.Marshal(oci)
		if err != nil || string(raw) != c.oci || !proto.Equal(merged, c.merged) {
			t.Errorf("%s: %s, %v; want %s, %v; %v", name, raw, merged, c.oci, c.merged, err)
		}
		if c.old != nil && !proto.Equal(before, c.old) {
			t.Errorf("%s: what was in force was changed", name)
		}
	}
}

func TestResourcesThatTheKernelWouldRefuse(t *testing.T) {
	for name, r := range map[string]*res{
		"shares": {CpuShares: -1}, "period": {CpuPeriod: 999}, "long period": {CpuPeriod: 1000001}, "quota": {CpuQuota: 999}, "memory": {MemoryLimitInBytes: -2},
		"swap": {MemorySwapLimitInBytes: -2}, "cpus": {CpusetCpus: "0-"}, "cpus with more": {CpusetCpus: "0\n1"}, "mems": {CpusetMems: "all"},
		"score": {OomScoreAdj: -1001}, "high score": {OomScoreAdj: 1001},
		"page": {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "../2MB", Limit: 1}}},
		"path": {Unified: map[string]string{"../../memory.max": "1"}}, "path below": {Unified: map[string]string{"memory./max": "1"}}, "no controller": {Unified: map[string]string{"max": "1"}},
		"NUL": {Unified: map[string]string{"memory.max": "1\x00"}}, "swap alone": {MemorySwapLimitInBytes: 10}, "swap below memory": {MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 10},
	} {
		if _, _, err := UpdateResources(nil, r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		in := ordinaryInput()
		in.Host.CgroupV2, in.Container.Linux.Resources = true, r
		if _, err := Generate(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := UpdateResources(&res{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 30}, &res{MemoryLimitInBytes: 40}); !errors.Is(err, ErrInvalid) {
		t.Errorf("memory above the swap limit in force: %v", err)
	}
}

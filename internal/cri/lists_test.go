// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAListIsStreamedInMessagesThatFit(t *testing.T) {
	items := func(n, size int) (all []*runtimeapi.Container) {
		for i := range n {
			all = append(all, &runtimeapi.Container{Id: fmt.Sprint(i), Labels: map[string]string{"l": strings.Repeat("x", size)}})
		}
		return all
	}
	for name, c := range map[string]struct{ n, size, messages int }{
		"nothing":                 {0, 0, 0},
		"one":                     {1, 0, 1},
		"a full message":          {chunkItems, 0, 1},
		"one more":                {chunkItems + 1, 0, 2},
		"twenty thousand":         {20_000, 500, 20},
		"large ones":              {10, chunkBytes/2 + 1, 10},
		"one larger than allowed": {1, 2 * chunkBytes, 1},
	} {
		all, messages := items(c.n, c.size), 0
		var got []*runtimeapi.Container
		err := send(all, func(some []*runtimeapi.Container) error {
			messages++
			if m := (&runtimeapi.StreamContainersResponse{Containers: some}); len(some) == 0 || len(some) > chunkItems || len(some) > 1 && proto.Size(m) > 2*chunkBytes {
				t.Errorf("%s: %d items, %d bytes in one message", name, len(some), proto.Size(m))
			}
			got = append(got, some...)
			return nil
		})
		if err != nil || messages != c.messages || len(got) != c.n {
			t.Errorf("%s: %d items in %d messages, %v", name, len(got), messages, err)
		}
		for i := range got {
			if got[i] != all[i] {
				t.Fatalf("%s: item %d is another", name, i)
			}
		}
	}
	broken := errors.New("gone")
	if err := send(items(3, 0), func([]*runtimeapi.Container) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

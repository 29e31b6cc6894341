// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// maxComplaints bounds what is kept.
const maxComplaints = 500

// KeepComplaints keeps what client-go prints of connections that break: the tests break many, and check what their own ends see. show prints the
// last of it, for a run that has failed.
func KeepComplaints() (show func(io.Writer)) {
	var mu sync.Mutex
	var lines []string
	utilruntime.ErrorHandlers = []utilruntime.ErrorHandler{func(_ context.Context, err error, message string, facts ...any) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, fmt.Sprintf("%s client-go: %s: %v %v", time.Now().Format("15:04:05.000"), message, err, facts))
		if len(lines) > maxComplaints {
			lines = slices.Delete(lines, 0, len(lines)-maxComplaints)
		}
	}}
	return func(w io.Writer) {
		mu.Lock()
		defer mu.Unlock()
		for _, line := range lines {
			fmt.Fprintln(w, line)
		}
	}
}

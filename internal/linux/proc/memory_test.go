// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"os"
	"runtime"
	"testing"
)

func TestOwnMemoryGrowsWithWhatIsUsed(t *testing.T) {
	before, err := OwnMemory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const more = 64 << 20
	b := make([]byte, more)
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 1
	}
	after, err := OwnMemory(os.Getpid())
	runtime.KeepAlive(b)
	if err != nil || before == 0 || after < before+more/2 {
		t.Errorf("%d, then %d bytes, %v", before, after, err)
	}
	if _, err := OwnMemory(1 << 30); err == nil {
		t.Error("a process that is not there has memory")
	}
}

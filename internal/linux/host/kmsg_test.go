// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestWhatIsADenial(t *testing.T) {
	const line = "audit: type=1326 audit(1763731200.123:45): auid=4294967295 uid=0 gid=0 ses=4294967295 pid=7 comm=\"x\" exe=\"/x\" sig=31 arch=c000003e syscall=39 compat=0 ip=0x1 code=CODE\n"
	for record, want := range map[string]bool{
		"5,1,2,-;" + strings.Replace(line, "CODE", "0x80000000", 1):  true,
		"5,1,2,-;" + strings.Replace(line, "CODE", "0x0", 1):         true,
		"5,1,2,-;" + strings.Replace(line, "CODE", "0x50001", 1):     true,
		"5,1,2,-;" + strings.Replace(line, "CODE", "0x7ffc0000", 1):  false,
		"5,1,2,-;" + strings.Replace(line, "CODE", "zz", 1):          false,
		"12,1,2,-;" + strings.Replace(line, "CODE", "0x80000000", 1): false,
		"5,1,2,-;audit: type=1400 apparmor=DENIED code=0x0":          false,
		"audit: type=1326 code=0x0":                                  false,
		"":                                                           false,
	} {
		if got := isDenial(record); got != want {
			t.Errorf("%q: %v", record, got)
		}
	}
}

func TestDenialsReadsTheKernelsLog(t *testing.T) {
	d, err := OpenDenials()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel's log cannot be read here:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Count(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

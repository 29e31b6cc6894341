// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestAddressesAreRestored(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces are made by root only")
	}
	pin := filepath.Join(t.TempDir(), "net")
	if err := Create(Request{Pins: map[Kind]string{Net: pin}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(pin); err != nil {
			t.Error(err)
		}
	})
	want := []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24"), netip.MustParsePrefix("fd00::3/64")}
	for range 2 { // again is no error
		if err := RestoreAddresses(pin, "lo", want); err != nil {
			t.Fatal(err)
		}
	}
	err := Do(pin, func() error {
		all, err := net.InterfaceAddrs()
		for _, w := range want {
			if !slices.ContainsFunc(all, func(a net.Addr) bool { return a.String() == w.String() }) {
				t.Errorf("%s is not among %v", w, all)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := RestoreAddresses(pin, "nosuch0", want); err != nil {
		t.Errorf("an interface that is gone: %v", err)
	}
	if err := RestoreAddresses(pin, "lo", []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("10.9.9.9"), 33)}); err == nil {
		t.Error("a prefix of 33 bits was taken")
	}
}

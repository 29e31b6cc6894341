// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0
  eth0: 18446744073709551615      11    1    2    0     0          0         0     200      12    3    4    0     0       0          0
 a:b-c: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
`

func TestInterfacesAreParsed(t *testing.T) {
	got, err := parseInterfaces([]byte(netDev))
	want := []Interface{{Name: "lo", RxBytes: 100, RxPackets: 2, TxBytes: 100, TxPackets: 2},
		{"eth0", 1<<64 - 1, 11, 1, 2, 200, 12, 3, 4}, {"a:b-c", 1, 2, 3, 4, 9, 10, 11, 12}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"eth0: 1 2 3\n", "eth0: x 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"} {
		if _, err := parseInterfaces([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzInterfaces(f *testing.F) {
	f.Add([]byte(netDev))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = parseInterfaces(data) })
}

func TestInterfacesOfAPinnedNamespace(t *testing.T) {
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
	if err := Do(pin, send); err != nil {
		t.Fatal(err)
	}
	c := CountersOf(pin)
	defer c.Drop()
	var before Interface
	for round := range 3 { // entered, held, and after Close
		got, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(got, func(i Interface) bool { return i.Name == "lo" })
		if i < 0 || got[i].RxBytes < 1000 || got[i].RxBytes > 100_000 || got[i].TxPackets <= before.TxPackets {
			t.Errorf("round %d: got %+v, before %+v", round, got, before)
		}
		before = got[i]
		if err := Do(pin, send); err != nil {
			t.Fatal(err)
		}
		if round == 1 {
			c.Close()
		}
	}
	for _, dropped := range []bool{false, true} {
		if dropped {
			c.Drop()
		}
		if _, err := c.Read(); err != nil || c.open == dropped {
			t.Errorf("dropped: %v, open: %v, %v", dropped, c.open, err)
		}
	}
	if _, err := CountersOf(filepath.Join(t.TempDir(), "none")).Read(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// send sends something to oneself.
func send() error {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.WriteTo(make([]byte, 1000), c.LocalAddr())
	return err
}

// SPDX-License-Identifier: Apache-2.0

package userns

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var mapping = Mapping{Range{65536, 4096}, Range{131072, 70000}}

func TestANamespaceHasItsMappingAndOwnsTheOthers(t *testing.T) {
	err := With(mapping, unix.CLONE_NEWNET, func(pid int) error {
		dir := "/proc/" + strconv.Itoa(pid)
		for file, want := range map[string]string{"uid_map": "0 65536 4096", "gid_map": "0 131072 70000"} {
			data, err := os.ReadFile(dir + "/" + file)
			if got := strings.Join(strings.Fields(string(data)), " "); err != nil || got != want {
				t.Errorf("%s: %q, %v", file, got, err)
			}
		}
		if data, err := os.ReadFile(dir + "/setgroups"); err != nil || strings.TrimSpace(string(data)) != "allow" {
			t.Errorf("setgroups: %q, %v", data, err)
		}
		net, err := os.Open(dir + "/ns/net")
		if err != nil {
			return err
		}
		defer net.Close()
		owner, err := unix.IoctlRetInt(int(net.Fd()), unix.NS_GET_USERNS)
		if err != nil {
			return err
		}
		defer unix.Close(owner)
		var theirs, its unix.Stat_t
		if err := errors.Join(unix.Fstat(owner, &its), unix.Stat(dir+"/ns/user", &theirs)); err != nil {
			return err
		}
		if its.Ino != theirs.Ino {
			t.Error("another user namespace owns the network namespace")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheProcessIsGoneAfterwards(t *testing.T) {
	var pids sync.Map
	boom := errors.New("boom")
	var all sync.WaitGroup
	for range 8 { // at once, on threads of their own
		all.Go(func() {
			err := With(mapping, 0, func(pid int) error {
				pids.Store(pid, true)
				if state := stopped(pid); !strings.Contains(state, ") t ") {
					t.Errorf("it is not stopped: %.60s", state)
				}
				return boom
			})
			if !errors.Is(err, boom) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	pids.Range(func(pid, _ any) bool {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid.(int))); err == nil {
			t.Errorf("process %d is left", pid)
		}
		return true
	})
}

// stopped waits until the process has come to its stop, which is at the end of its execve.
func stopped(pid int) string {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		state, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || !strings.Contains(string(state), ") R ") || time.Now().After(end) {
			return string(state)
		}
	}
}

func TestAFileKeepsTheNamespace(t *testing.T) {
	f, err := Open(mapping)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWUSER {
		t.Errorf("%x, %v", kind, err)
	}
	if _, err := Open(Mapping{}); err == nil {
		t.Error("an empty mapping was taken")
	}
}

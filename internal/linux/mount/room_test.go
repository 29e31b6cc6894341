// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const roomOf = "BERTH_TEST_ROOM_OF"

func TestMain(m *testing.M) {
	if dir := os.Getenv(roomOf); dir != "" {
		if err := dwell(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// dwell mounts an overlay over a layer that is in a room, and lives until its input ends.
func dwell(dir string) error {
	room, err := OpenRoom(dir)
	if err != nil {
		return err
	}
	blob, err := ErofsLayer(dir+"/b", room)
	if err != nil {
		return err
	}
	o := Overlay{Mounts: []*Layer{blob}, Room: room, Upper: dir + "/u", Work: dir + "/w", Options: []string{"volatile"}}
	if err := o.On(dir + "/at"); err != nil {
		return err
	}
	fmt.Println("mounted")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// TestARoomGoesWithItsProcess kills one that has layers mounted: an overlay over them stays, and nothing else keeps the mount on which they lie.
func TestARoomGoesWithItsProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mustMount(t, Mount{Source: t.TempDir(), Options: []string{"bind"}}, dir)
	blob, err := os.ReadFile(emptyBlob(t))
	if err := errors.Join(err, os.WriteFile(dir+"/b", blob, 0o600), os.Mkdir(dir+"/u", 0o700), os.Mkdir(dir+"/w", 0o700), os.Mkdir(dir+"/at", 0o700)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), roomOf+"="+dir), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadFull(out, make([]byte, len("mounted\n")))
	if err := errors.Join(err, cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("it ended before it was killed")
	}
	if points, err := Below(dir); err != nil || strings.Join(points, " ") != dir+" "+dir+"/at" {
		t.Errorf("mounts %q, %v", points, err)
	}
	if got := owner(t, dir+"/at/only-c"); got != 7 {
		t.Errorf("the overlay's file belongs to %d", got)
	}
	if err := Detach(dir + "/at"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the kernel takes the namespace apart in the background
		err := unix.Unmount(dir, 0)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the mount is still in use: %v", err)
		}
	}
}

// TestManyAtOnceInARoom has layers come and go, and mapped overlays made, side by side.
func TestManyAtOnceInARoom(t *testing.T) {
	dir, file := t.TempDir(), emptyBlob(t)
	room := roomFor(t, true, dir)
	ns := mappedNS(t)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 8 {
				if err := useOnce(room, file, filepath.Join(dir, fmt.Sprintf("%d-%d", i, j)), ns); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	var left []os.DirEntry
	err := room.do(func() (err error) { left, err = os.ReadDir("/"); return err })
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), "layer") {
			t.Errorf("the place %s is left", e.Name())
		}
	}
}

func useOnce(room *Room, file, dir, ns string) error {
	for _, sub := range []string{"u", "w", "at"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	blob, err := ErofsLayer(file, room)
	if err != nil {
		return err
	}
	o := Overlay{Mounts: []*Layer{blob}, Room: room, UserNS: ns, Upper: dir + "/u", Work: dir + "/w", Options: []string{"volatile"}}
	if err := errors.Join(o.On(dir+"/at"), blob.Close()); err != nil {
		return err
	}
	_, err = os.Stat(dir + "/at/only-c")
	return errors.Join(err, Detach(dir+"/at"))
}

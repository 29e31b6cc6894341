// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/berth-run/berth/internal/image/erofs"
	"github.com/berth-run/berth/internal/linux/mount"
)

// lowers are the layers of which root file systems are made, each mounted once however many images and containers have it. The mounts are in
// no mount namespace, or in one of the daemon's own: what the daemon leaves when it dies is nothing, and containers that run keep what they stand on. A later life
// mounts a layer anew for those that it starts.
type lowers struct {
	room *mount.Room // for kernels that want one; set before anything is opened

	mu  sync.Mutex
	all map[string]*lower // by the snapshot's folder
	// old are layers that were damaged and have another file by now; who has them keeps them.
	old map[*lower]struct{}
}

// lower is one layer, open.
type lower struct {
	folder string
	mu     sync.Mutex // guards layer; held while it is mounted
	layer  *mount.Layer
	users  int // guarded by lowers.mu
}

// open opens layers, topmost first. Each call wants one of close.
func (l *lowers) open(folders []string) (_ []*lower, err error) {
	var out []*lower
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close(out))
		}
	}()
	for _, folder := range folders {
		one := l.take(folder)
		out = append(out, one)
		if err := one.mount(l.room); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (l *lowers) take(folder string) *lower {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.all = map[string]*lower{}
	}
	one := l.all[folder]
	if one == nil {
		one = &lower{folder: folder}
		l.all[folder] = one
	}
	one.users++
	return one
}

// forget has the layer mounted anew for whoever opens it next.
func (l *lowers) forget(folder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.all[folder]
	if one == nil {
		return
	}
	delete(l.all, folder)
	if l.old == nil {
		l.old = map[*lower]struct{}{}
	}
	l.old[one] = struct{}{}
}

func (l *lower) mount(room *mount.Room) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.layer != nil {
		return nil
	}
	l.layer, err = openLayer(l.folder, room)
	return err
}

// damagedError tells which layer the kernel does not mount.
type damagedError struct {
	folder string
	reason error
}

func (d *damagedError) Error() string {
	return fmt.Sprintf("layer %s: %v: pull the image again: %v", d.folder, ErrCorrupt, d.reason)
}

func (d *damagedError) Unwrap() []error { return []error{ErrCorrupt, d.reason} }

// openLayer opens a layer of either form.
func openLayer(folder string, room *mount.Room) (*mount.Layer, error) {
	size, err := blobSize(folder)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		f, err := os.OpenFile(folder, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return mount.FolderLayer(f), nil
	}
	if err := checkHead(folder); err != nil {
		return nil, err
	}
	l, err := mount.ErofsLayer(blobOf(folder), room)
	if errors.Is(err, syscall.EUCLEAN) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EIO) { // the kernel mounts such files: chooseForm has tried
		err = &damagedError{folder, err}
	}
	return l, err
}

// checkHead looks at the beginning and the length of a blob: the kernel mounts one that is cut, and would find out with the first file behind
// the cut.
func checkHead(folder string) error {
	f, err := os.Open(blobOf(folder))
	if err != nil {
		return err
	}
	defer f.Close()
	err = checkGuard(folder)
	if err == nil {
		err = erofs.VerifyHead(f)
	}
	if errors.Is(err, erofs.ErrDamaged) || errors.Is(err, syscall.EIO) {
		err = &damagedError{folder, err}
	}
	return err
}

// close gives layers back.
func (l *lowers) close(all []*lower) error {
	var errs []error
	for _, one := range all {
		l.mu.Lock()
		one.users--
		last := one.users == 0
		if last && l.all[one.folder] == one {
			delete(l.all, one.folder)
		}
		if last {
			delete(l.old, one)
		}
		l.mu.Unlock()
		if last && one.layer != nil {
			errs = append(errs, one.layer.Close())
		}
	}
	return errors.Join(errs...)
}

// closeAll closes what is open, whoever uses it: overlays that are mounted keep their layers.
func (l *lowers) closeAll() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, one := range slices.AppendSeq(slices.Collect(maps.Values(l.all)), maps.Keys(l.old)) {
		if one.layer != nil {
			errs = append(errs, one.layer.Close())
		}
	}
	l.all, l.old = nil, nil
	return errors.Join(errs...)
}

// hasBlobs tells whether one of the layers is an EROFS file.
func hasBlobs(folders []string) (bool, error) {
	for _, folder := range folders {
		if size, err := blobSize(folder); err != nil || size > 0 {
			return size > 0, err
		}
	}
	return false, nil
}

// openRoom makes a place for layers where this kernel wants that they have one; dir is for trying.
func (s *Store) openRoom(dir string) {
	wants := mount.TakesOpenLayers(filepath.Join(dir, "lower"), filepath.Join(dir, "at"))
	if wants == nil && !s.cfg.wantsRoom {
		return
	}
	room, err := mount.OpenRoom(s.cfg.Root, s.cfg.Rootfs)
	if err != nil {
		s.log.Info("layers that are mounted cannot be laid over each other", "error", errors.Join(wants, err))
		return
	}
	s.lowers.room = room
}

// chooseForm decides in which form new layers are kept; dir is for trying.
func (s *Store) chooseForm(dir string) error {
	wants := ""
	for _, handler := range slices.Sorted(maps.Keys(s.cfg.Handlers)) {
		if s.cfg.Handlers[handler] == erofsForm {
			wants = " of runtime handler " + handler
		}
	}
	if s.cfg.Snapshotter == overlayfs && wants == "" {
		return nil
	}
	err := probeEROFS(dir, s.lowers.room)
	if err != nil && (s.cfg.Snapshotter == erofsForm || wants != "") {
		return fmt.Errorf("snapshotter %s%s: %w", erofsForm, wants, err)
	}
	if err != nil {
		s.log.Info("this kernel mounts no EROFS files; layers are kept as folders", "error", err)
	}
	s.erofs = err == nil && s.cfg.Snapshotter != overlayfs
	return nil
}

// probeEROFS tries whether this kernel mounts EROFS files and overlays over them.
func probeEROFS(dir string, room *mount.Room) (err error) {
	for _, sub := range []string{"upper2", "work2", "at2"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	file := filepath.Join(dir, blobName)
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = erofs.NewWriter(f).Close(&erofs.Inode{Mode: syscall.S_IFDIR | 0o755})
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	m, err := mount.ErofsLayer(file, room)
	if err != nil {
		return err
	}
	defer m.Close()
	at := filepath.Join(dir, "at2")
	o := mount.Overlay{Mounts: []*mount.Layer{m}, Room: room, Upper: filepath.Join(dir, "upper2"), Work: filepath.Join(dir, "work2")}
	if err := o.On(at); err != nil {
		return err
	}
	return mount.DetachOverlay(at)
}

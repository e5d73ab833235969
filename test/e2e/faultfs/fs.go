//go:build linux

package faultfs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// FS is the mounted directory.
type FS struct {
	dir   string         // immutable: where it is mounted
	fd    int            // immutable: /dev/fuse
	files []*File        // immutable: node rootNode+1+i is files[i]
	names map[string]int // immutable: index of files
	ended chan struct{}  // closed when the test ends: what waits gives up
	wg    sync.WaitGroup // the loop that takes requests, and the requests
}

// Usable says why files cannot be mounted here; nil when they can.
func Usable() error {
	if os.Geteuid() != 0 {
		return errors.New("faultfs: needs root for mount")
	}
	fd, err := openDevice()
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func openDevice() (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("faultfs: open /dev/fuse: %w", err)
	}
	return fd, nil
}

// Mount shows images, paths by name, until the test ends. Their sizes are those of now.
func Mount(t testing.TB, images map[string]string) *FS {
	t.Helper()
	fs, err := mount(t.TempDir(), images)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.close(); err != nil {
			t.Error(err)
		}
	})
	return fs
}

// File is the file of that name. There must be one.
func (fs *FS) File(name string) *File { return fs.files[fs.names[name]] }

func mount(dir string, images map[string]string) (*FS, error) {
	fs := &FS{dir: dir, names: make(map[string]int), ended: make(chan struct{})}
	for _, name := range slices.Sorted(maps.Keys(images)) {
		f, err := openFile(filepath.Join(dir, name), images[name], fs.ended)
		if err != nil {
			return nil, errors.Join(err, fs.closeFiles())
		}
		fs.names[name] = len(fs.files)
		fs.files = append(fs.files, f)
	}
	var err error
	if fs.fd, err = openDevice(); err != nil {
		return nil, errors.Join(err, fs.closeFiles())
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", fs.fd, unix.S_IFDIR)
	if err := unix.Mount("faultfs", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, options); err != nil {
		return nil, errors.Join(fmt.Errorf("faultfs: mount at %s: %w", dir, err), unix.Close(fs.fd), fs.closeFiles())
	}
	fs.wg.Go(fs.serve)
	if err := fs.refusePoll(); err != nil {
		return nil, errors.Join(err, fs.close())
	}
	return fs, nil
}

// refusePoll polls a file once. Our answer, that there is no such operation, holds for the whole
// mount: when the Go runtime of this process opens a file it would ask again, inside epoll_ctl and on
// a thread that the garbage collector waits for, which the answer would wait for.
func (fs *FS) refusePoll() error {
	if len(fs.files) == 0 {
		return nil
	}
	path := fs.files[0].path
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("faultfs: open %s: %w", path, err)
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return errors.Join(err, unix.Close(fd))
}

// close answers what waits and unmounts, also while files are open: MNT_FORCE aborts the connection,
// after which the kernel itself refuses what is still asked, and serve ends.
func (fs *FS) close() error {
	close(fs.ended)
	err := unix.Unmount(fs.dir, unix.MNT_FORCE|unix.MNT_DETACH)
	if err != nil {
		return fmt.Errorf("faultfs: unmount %s: %w", fs.dir, err) // serve still runs and needs all that is open
	}
	fs.wg.Wait()
	return errors.Join(unix.Close(fs.fd), fs.closeFiles())
}

func (fs *FS) closeFiles() error {
	var errs []error
	for _, f := range fs.files {
		errs = append(errs, f.image.Close())
	}
	return errors.Join(errs...)
}

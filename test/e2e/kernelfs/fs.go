//go:build linux

package kernelfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MinDevice is the smallest device, in bytes, that mkfs.btrfs 6.2 takes for every profile.
const MinDevice = 128 << 20

// Options tells Make what to make. The zero value is one device of MinDevice bytes with mkfs's
// own choices.
type Options struct {
	Devices    int      // 0 means 1
	DeviceSize int64    // bytes of each device, 0 means MinDevice
	Data       string   // mkfs -d, empty: mkfs chooses
	Metadata   string   // mkfs -m
	Nodesize   int      // mkfs -n, bytes; 0: 16384
	Sectorsize int      // mkfs -s, bytes; 0: 4096, whatever the page size
	Csum       string   // mkfs --csum
	Features   []string // mkfs -O, for example "^no-holes"
	Label      string   // mkfs -L
	Mixed      bool     // mkfs --mixed: data and metadata share block groups
}

// Args is the command line of mkfs.btrfs for o, without the program's name and the devices.
func (o Options) Args() []string {
	args := []string{"-q"}
	add := func(flag, value string) {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	add("-L", o.Label)
	add("-d", o.Data)
	add("-m", o.Metadata)
	if o.Sectorsize == 0 {
		o.Sectorsize = 4096
	}
	add("-s", fmt.Sprint(o.Sectorsize))
	if o.Nodesize != 0 {
		add("-n", fmt.Sprint(o.Nodesize))
	}
	add("--csum", o.Csum)
	add("-O", strings.Join(o.Features, ","))
	if o.Mixed {
		args = append(args, "--mixed")
	}
	return args
}

// FS is one btrfs filesystem on loop devices. It is not for concurrent use.
type FS struct {
	dir    string
	disks  []disk
	mounts []string
}

// disk is an image file and the loop device over it; loop is nil while detached.
type disk struct {
	image string
	loop  *loop
}

// Make creates the image files disk0.img, disk1.img … in dir, attaches loop devices and runs
// mkfs.btrfs. The images stay when the FS is closed; dir is the caller's to remove.
func Make(ctx context.Context, dir string, o Options) (*FS, error) {
	if o.Devices == 0 {
		o.Devices = 1
	}
	if o.DeviceSize == 0 {
		o.DeviceSize = MinDevice
	}
	f := &FS{dir: dir}
	for range o.Devices {
		if _, err := f.newDisk(o.DeviceSize); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if _, err := run(ctx, "mkfs.btrfs", append(o.Args(), f.Loops()...)...); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Attach opens the filesystem that stands in image files. Mount points are made in dir. The
// images change unless every mount is read-only.
func Attach(dir string, images []string) (*FS, error) {
	f := &FS{dir: dir}
	for _, image := range images {
		f.disks = append(f.disks, disk{image: image})
		if err := f.attach(len(f.disks) - 1); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// Images returns the paths of the image files in the order in which they were added.
func (f *FS) Images() []string {
	var list []string
	for _, d := range f.disks {
		list = append(list, d.image)
	}
	return list
}

// Loops returns the loop devices in the order of Images.
func (f *FS) Loops() []string {
	var list []string
	for _, d := range f.disks {
		list = append(list, d.loop.path)
	}
	return list
}

// Mount mounts the filesystem at a new directory and returns it. options are those of mount(8)
// that btrfs itself knows, and "ro"; the devices are added. Of seeds and sprouts it is the last sprout.
func (f *FS) Mount(options ...string) (string, error) {
	mnt, err := os.MkdirTemp(f.dir, "mnt")
	if err != nil {
		return "", err
	}
	var flags uintptr
	var data []string
	for _, d := range f.disks {
		data = append(data, "device="+d.loop.path)
	}
	for _, o := range options {
		switch o {
		case "":
		case "ro":
			flags |= unix.MS_RDONLY
		default:
			data = append(data, o)
		}
	}
	if err := unix.Mount(f.last(), mnt, "btrfs", flags, strings.Join(data, ",")); err != nil {
		return "", errors.Join(
			fmt.Errorf("mount %s at %s (%s): %w", f.last(), mnt, strings.Join(data, ","), err),
			os.Remove(mnt))
	}
	f.mounts = append(f.mounts, mnt)
	return mnt, nil
}

// Unmount unmounts every mount of f, the last first.
func (f *FS) Unmount() error {
	for len(f.mounts) > 0 {
		last := len(f.mounts) - 1
		if err := unmount(f.mounts[last]); err != nil {
			return err
		}
		f.mounts = f.mounts[:last]
	}
	return nil
}

// unmount waits a while for whoever else looks at a new mount (udev, a file indexer).
func unmount(mnt string) error {
	const attempts = 50
	for i := 1; ; i++ {
		err := unix.Unmount(mnt, 0)
		if err == nil {
			return os.Remove(mnt)
		}
		if err != unix.EBUSY || i == attempts {
			return fmt.Errorf("unmount %s: %w", mnt, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Close unmounts, makes the kernel forget the devices and detaches them. The image files stay.
// It goes on after an error, and may be called again.
func (f *FS) Close() error {
	errs := []error{f.Unmount()}
	for i := range f.disks {
		errs = append(errs, f.detach(i))
	}
	return errors.Join(errs...)
}

// AddDevice adds a new image of size bytes to the filesystem mounted at mnt. Its devid is the
// highest one plus 1.
func (f *FS) AddDevice(ctx context.Context, mnt string, size int64) error {
	i, err := f.newDisk(size)
	if err != nil {
		return err
	}
	_, err = run(ctx, "btrfs", "device", "add", "-f", f.disks[i].loop.path, mnt)
	return err
}

// RemoveDevice moves all data off image index i (of Images) and takes it out of the filesystem
// mounted at mnt; its image file is deleted and later indices move down by one.
func (f *FS) RemoveDevice(ctx context.Context, mnt string, i int) error {
	if _, err := run(ctx, "btrfs", "device", "remove", f.disks[i].loop.path, mnt); err != nil {
		return err
	}
	if err := f.detach(i); err != nil {
		return err
	}
	image := f.disks[i].image
	f.disks = append(f.disks[:i], f.disks[i+1:]...)
	return os.Remove(image)
}

// newDisk makes a sparse image file, attaches it and returns its index.
func (f *FS) newDisk(size int64) (int, error) {
	image := ""
	for n := len(f.disks); ; n++ { // after a removal the next number may be in use
		image = filepath.Join(f.dir, fmt.Sprintf("disk%d.img", n))
		file, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if err := errors.Join(file.Truncate(size), file.Close()); err != nil {
			return 0, err
		}
		break
	}
	f.disks = append(f.disks, disk{image: image})
	i := len(f.disks) - 1
	return i, f.attach(i)
}

func (f *FS) attach(i int) error {
	l, err := attachLoop(f.disks[i].image, 0)
	if err != nil {
		return err
	}
	f.disks[i].loop = l
	return nil
}

// detach does not take a context: it must also run after one was cancelled.
func (f *FS) detach(i int) error {
	l := f.disks[i].loop
	if l == nil {
		return nil
	}
	// The kernel remembers scanned devices by name, and the name soon belongs to another image.
	// It refuses for a device that it never scanned, which is as good.
	_, _ = run(context.Background(), "btrfs", "device", "scan", "--forget", l.path)
	f.disks[i].loop = nil
	return l.close()
}

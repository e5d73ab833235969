//go:build linux

package kernelfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Other ways than mkfs.btrfs on empty devices in which a filesystem comes about.

// Convert makes disk0.img of size bytes in dir, an ext4 that fill writes to, and turns it into a btrfs
// in place (btrfs-convert), which needs 128 MiB at least. The ext4 stays readable in the file
// ext2_saved/image.
func Convert(ctx context.Context, dir string, size int64, label string, fill func(t *Tree) error, c Content) (*FS, error) {
	f := &FS{dir: dir}
	if _, err := f.newDisk(size); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.convert(ctx, label, fill, c); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *FS) convert(ctx context.Context, label string, fill func(t *Tree) error, c Content) error {
	loop := f.disks[0].loop.path
	if _, err := run(ctx, "mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "1024", "-O", "^has_journal", loop); err != nil {
		return err
	}
	mnt, err := os.MkdirTemp(f.dir, "ext4")
	if err != nil {
		return err
	}
	if err := unix.Mount(loop, mnt, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount ext4 %s: %w", loop, err)
	}
	f.mounts = append(f.mounts, mnt)
	t := NewTree(ctx, mnt, c)
	if err := errors.Join(fill(t), t.Err(), f.Unmount()); err != nil {
		return err
	}
	if _, err := run(ctx, "btrfs-convert", "--no-progress", loop); err != nil {
		return err
	}
	_, err = run(ctx, "btrfs", "filesystem", "label", loop, label) // btrfs-convert 6.2 takes --label and forgets it
	return err
}

// Rootdir makes dir/disk0.img, a filesystem that mkfs.btrfs fills from the directory source. Neither
// loop devices nor the kernel's consent are needed, so that it may have any sectorsize.
func Rootdir(ctx context.Context, dir string, o Options, source string) (image string, err error) {
	image = filepath.Join(dir, "disk0.img")
	size := o.DeviceSize
	if size == 0 {
		size = MinDevice
	}
	file, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	if err := errors.Join(file.Truncate(size), file.Close()); err != nil {
		return "", err
	}
	_, err = run(ctx, "mkfs.btrfs", append(o.Args(), "--rootdir", source, image)...)
	return image, err
}

// Tune unmounts the filesystem and changes it with btrfstune.
func (f *FS) Tune(ctx context.Context, args ...string) error {
	if err := f.Unmount(); err != nil {
		return err
	}
	_, err := run(ctx, "btrfstune", append(args, f.last())...)
	return err
}

// Sprout unmounts the filesystem, makes a seed of it, and grows a new filesystem from it on a new
// device of size bytes, which it returns mounted and writable.
func (f *FS) Sprout(ctx context.Context, size int64) (mnt string, err error) {
	if err := f.Tune(ctx, "-S", "1"); err != nil {
		return "", err
	}
	if mnt, err = f.Mount("ro"); err != nil {
		return "", err
	}
	if err := f.AddDevice(ctx, mnt, size); err != nil {
		return "", err
	}
	if err := unix.Mount("", mnt, "", unix.MS_REMOUNT, ""); err != nil {
		return "", fmt.Errorf("remount %s writable: %w", mnt, err)
	}
	return mnt, nil
}

// last is the device that was added last: those before it may belong to seeds.
func (f *FS) last() string { return f.disks[len(f.disks)-1].loop.path }

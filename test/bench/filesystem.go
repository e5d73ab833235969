package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// fileName is the file that is served, in the root of the filesystem.
const fileName = "file"

// layout is a filesystem to make.
type layout struct {
	devices int    // 0: 1
	data    string // mkfs -d; empty: single
	csum    string // mkfs --csum; empty: crc32c
	mount   string // options while the file is written, for compression
	content content
	rewrite int // one of so many blocks of 4 KiB is written again by itself; 0: none
	missing int // devices that are taken away after the file is written
}

// filesystem is one that stands, mounted read-only.
type filesystem struct {
	fs    *kernelfs.FS
	dir   string
	mount string
	want  *book
	lay   layout
	slow  float64 // bytes a second of each device; 0: not slowed down
}

// build makes the filesystem in a new directory below dir, writes the file and mounts it again, read-only.
func build(ctx context.Context, dir string, lay layout, want *book, seed uint64) (f *filesystem, err error) {
	sub, err := os.MkdirTemp(dir, "fs")
	if err != nil {
		return nil, err
	}
	f = &filesystem{dir: sub, want: want, lay: lay}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	lay.devices = max(1, lay.devices)
	profile, metadata := lay.data, "raid1"
	switch {
	case lay.devices == 1:
		profile, metadata = "single", "single"
	case lay.devices > 3:
		metadata = "raid1c3" // two devices may be taken away
	}
	f.fs, err = kernelfs.Make(ctx, sub, kernelfs.Options{Devices: lay.devices, DeviceSize: deviceSize(len(want.bytes)), Data: profile, Metadata: metadata, Csum: lay.csum})
	if err != nil {
		return f, err
	}
	if err := f.write(seed); err != nil {
		return f, err
	}
	if err := f.takeAway(lay.missing); err != nil {
		return f, err
	}
	if err := f.directIO(); err != nil {
		return f, err
	}
	options := []string{"ro"}
	if lay.missing > 0 {
		options = append(options, "degraded")
	}
	f.mount, err = f.fs.Mount(options...)
	return f, err
}

// deviceSize is enough for a copy of the file, twice the blocks that are rewritten, and metadata. The images are sparse.
func deviceSize(file int) int64 { return int64(file)*7/4 + 512<<20 }

// write writes the file by the kernel.
func (f *filesystem) write(seed uint64) error {
	mnt, err := f.fs.Mount(f.lay.mount)
	if err != nil {
		return err
	}
	first, again := f.want.bytes, []int(nil)
	if f.lay.rewrite > 0 {
		first, again = spoil(first, f.lay.rewrite, seed)
	}
	path := filepath.Join(mnt, fileName)
	if err := os.WriteFile(path, first, 0o644); err != nil {
		return err
	}
	if err := writeBlocks(path, f.want.bytes, again); err != nil {
		return err
	}
	return f.fs.Unmount()
}

// spoil gives a copy of p in which one of n blocks is wrong, and these blocks in random order.
func spoil(p []byte, n int, seed uint64) ([]byte, []int) {
	p = append([]byte(nil), p...)
	rng := rand.New(rand.NewPCG(seed, 2))
	var blocks []int
	for i := range len(p) / kernelfs.BlockSize {
		if rng.IntN(n) == 0 {
			blocks = append(blocks, i)
			p[i*kernelfs.BlockSize+rng.IntN(kernelfs.BlockSize)] ^= 0xff
		}
	}
	rng.Shuffle(len(blocks), func(a, b int) { blocks[a], blocks[b] = blocks[b], blocks[a] })
	return p, blocks
}

// writeBlocks writes blocks with O_DIRECT, one write each, so that each becomes an extent of its own.
func writeBlocks(path string, p []byte, blocks []int) error {
	if len(blocks) == 0 {
		return nil
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsync(fd); err != nil {
		return err
	}
	for _, i := range blocks {
		at := i * kernelfs.BlockSize
		if _, err := unix.Pwrite(fd, p[at:at+kernelfs.BlockSize], int64(at)); err != nil {
			return fmt.Errorf("write block %d: %w", i, err)
		}
	}
	return nil
}

// takeAway goes on without the first n devices.
func (f *filesystem) takeAway(n int) error {
	if n == 0 {
		return nil
	}
	images := f.fs.Images()
	if err := f.fs.Close(); err != nil {
		return err
	}
	for _, image := range images[:n] {
		if err := os.Remove(image); err != nil {
			return err
		}
	}
	var err error
	f.fs, err = kernelfs.Attach(f.dir, images[n:])
	return err
}

// directIO lets the loop devices read their images past the page cache, where the images' filesystem can.
func (f *filesystem) directIO() error {
	for _, path := range f.fs.Loops() {
		d, err := os.Open(path)
		if err != nil {
			return err
		}
		_ = unix.IoctlSetInt(int(d.Fd()), unix.LOOP_SET_DIRECT_IO, 1) // through the page cache it is cold only at first
		if err := d.Close(); err != nil {
			return err
		}
	}
	return nil
}

// rate is what the devices deliver together in bytes a second; 0: what they can.
func (f *filesystem) rate() float64 { return f.slow * float64(len(f.fs.Loops())) }

// path is the file in the kernel's mount.
func (f *filesystem) path() string { return filepath.Join(f.mount, fileName) }

func (f *filesystem) close() error {
	var err error
	if f.fs != nil {
		err = f.fs.Close()
	}
	return errors.Join(err, os.RemoveAll(f.dir))
}

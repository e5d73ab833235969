//go:build linux

package golden

import (
	"context"
	"os"
	"path/filepath"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// Sample is the recipe of the filesystem that `btrexport sample` unpacks: a raid1 pair with a
// virtual machine's disk, files in every compression, a hole, a preallocated range, a reflink, a
// snapshot and a symbolic link into another subvolume.
func Sample() Spec {
	return Spec{
		Name: "sample", Note: "what `btrexport sample` unpacks", Seed: 2026,
		Options: kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1", Label: "sample"},
		Fill:    fillSample,
	}
}

func fillSample(ctx context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
	t.Subvolume("@images")
	t.Subvolume("@home")
	t.WriteString("@home/hello.txt", "Hello from an inline file: its bytes stand in the tree block itself.\n")
	t.Symlink("../@home/hello.txt", "@images/link")
	t.Plain("@images/plain.raw", 1_000_000)
	for _, algorithm := range []string{"zstd", "lzo", "zlib"} {
		compressed(t, "@images/"+algorithm+".raw", algorithm, 1_500_000)
	}
	t.Fallocate("@images/preallocated.raw", 0, 4<<20, false)
	t.WriteAt("@images/preallocated.raw", 1<<20, 64<<10)
	if err := t.Err(); err != nil {
		return err
	}
	if err := makeDisk(ctx, filepath.Join(t.Root(), "@images", "vm1.raw")); err != nil {
		return err
	}
	t.Sync()
	t.Clone("@images/vm1.raw", "@images/clone.raw")
	t.Snapshot("@images", "@images-snap", true)
	t.Sync()
	return t.Err()
}

// makeDisk makes a sparse file of 16 MiB that holds a small ext4 with one text file.
func makeDisk(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(16 << 20); err != nil {
		return err
	}
	content, err := os.MkdirTemp("", "sample")
	if err != nil {
		return err
	}
	defer os.RemoveAll(content)
	text := []byte("This file lives in an ext4, in a raw disk image, in a file of a btrfs.\n")
	if err := os.WriteFile(filepath.Join(content, "readme.txt"), text, 0o644); err != nil {
		return err
	}
	return command(ctx, "mkfs.ext4", "-q", "-F", "-L", "vm1", "-b", "1024", "-N", "64", "-O", "^has_journal", "-d", content, path)
}

//go:build linux

package golden

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// formatSpecs are healthy filesystems of rarer kinds.
func formatSpecs() []Spec {
	sector := func(name string, size int) Spec {
		return Spec{
			Name:    name,
			Note:    fmt.Sprintf("sectorsize and nodesize %d KiB, filled by mkfs from a directory, which the manifest describes: a kernel of 4 KiB pages does not mount it", size>>10),
			Options: kernelfs.Options{Data: "single", Metadata: "dup", Sectorsize: size, Nodesize: size},
			Rootdir: directory,
		}
	}
	return []Spec{
		{
			Name: "seed", Note: "devids 1 and 2, raid1, are a seed, devid 3 is its sprout: blocks of both, nodesize 4K",
			Options: kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1", Nodesize: 4096}, Fill: sprouts(1),
		},
		{
			Name: "seed-nested", Note: "devid 1 is the seed of devid 2, which is the seed of 3 and 4; nodesize 4K",
			Options: kernelfs.Options{Data: "single", Metadata: "single", Nodesize: 4096}, Fill: nested,
		},
		{
			Name: "metadata-uuid", Note: "the fsid was changed (btrfstune -m), tree blocks keep the old one",
			Options: kernelfs.Options{Data: "single", Metadata: "dup"}, Fill: newFSID,
		},
		{
			Name: "ext4", Note: "an ext4 that btrfs-convert turned into a btrfs, then written to; ext2_saved/image is the ext4",
			Ext4: ext4Content, Fill: afterConvert,
		},
		{
			Name: "quota", Note: "quota groups",
			Options: kernelfs.Options{Data: "single", Metadata: "dup"}, Fill: quota(false),
		},
		{
			Name: "simple-quota", Note: "simple quota groups (incompatible feature)",
			Options: kernelfs.Options{Data: "single", Metadata: "dup"}, Fill: quota(true),
		},
		{
			Name: "extref", Note: "an inode of 700 names in one directory, most of them extended references",
			Options: kernelfs.Options{Data: "single", Metadata: "dup"}, Fill: manyLinks,
		},
		sector("sector16k", 16<<10),
		sector("sector64k", 64<<10),
	}
}

// sprouts fills a filesystem, makes a seed of it, changes what sprouts from it, and so on.
func sprouts(levels int) fillFunc {
	return func(ctx context.Context, fs *kernelfs.FS, t *kernelfs.Tree) error {
		t.Zoo("zoo")
		t.ManyEntries("many", 200)
		for i := range levels {
			if err := t.Err(); err != nil {
				return err
			}
			mnt, err := fs.Sprout(ctx, kernelfs.MinDevice)
			if err != nil {
				return err
			}
			t.Move(mnt)
			t.Plain(fmt.Sprintf("only-in-sprout-%d", i), 300001)
			t.WriteAt("zoo/bookends", int64(60000+8192*i), 9000)
			t.WriteAt("zoo/nocow", int64(20000*i), 3000)
			t.Clone("zoo/shared-source", fmt.Sprintf("clone-%d", i))
			t.Remove(fmt.Sprintf("many/entry-%05d", 100+i))
			t.Sync()
		}
		return t.Err()
	}
}

func nested(ctx context.Context, fs *kernelfs.FS, t *kernelfs.Tree) error {
	if err := sprouts(2)(ctx, fs, t); err != nil {
		return err
	}
	if err := fs.AddDevice(ctx, t.Root(), kernelfs.MinDevice); err != nil {
		return err
	}
	t.Rows("rows", 2, 1)
	return t.Err()
}

func newFSID(ctx context.Context, fs *kernelfs.FS, t *kernelfs.Tree) error {
	t.Zoo("zoo")
	if err := t.Err(); err != nil {
		return err
	}
	if err := fs.Tune(ctx, "-m"); err != nil {
		return err
	}
	mnt, err := fs.Mount()
	if err != nil {
		return err
	}
	t.Move(mnt)
	t.WriteAt("zoo/bookends", 60000, 9000)
	t.Plain("after", 5000)
	return t.Err()
}

// ext4Content has nothing preallocated: of that, btrfs-convert 6.2 makes a tree that the kernel refuses.
func ext4Content(t *kernelfs.Tree) error {
	content(t)
	t.Sparse("sparse")
	t.Fragment("fragmented", 40, 1)
	return t.Err()
}

func afterConvert(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
	t.WriteAt("size-200001", 50000, 9000)
	t.Clone("size-1048581", "clone")
	t.Remove("size-65537")
	t.Zoo("zoo")
	return t.Err()
}

// directory is what mkfs.btrfs copies. It takes hard links and nodes, but no holes.
func directory(t *kernelfs.Tree) error {
	content(t)
	t.Sparse("sparse")
	return t.Err()
}

// content makes what every filesystem of Linux can hold.
func content(t *kernelfs.Tree) {
	for _, size := range []int64{0, 1, 100, 2048, 4095, 4096, 4097, 12000, 16383, 16384, 16385, 50000, 65535, 65536, 65537, 200001, 1<<20 + 5} {
		t.Plain(fmt.Sprintf("size-%d", size), size)
	}
	t.Dir("sub/deeper")
	t.Plain("sub/deeper/file", 70000)
	t.Link("size-12000", "sub/link")
	t.Node("fifo", unix.S_IFIFO|0o600, 0)
	t.Node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
	t.Chown("size-1", 1000, 1001)
	t.Chmod("size-1", 0o4751)
	t.Symlinks("symlinks")
	t.OddNames("names")
}

func quota(simple bool) fillFunc {
	return func(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
		t.Quota(simple)
		t.Subvolume("sub")
		t.Plain("sub/file", 300000)
		t.Snapshot("sub", "snap", false)
		t.WriteAt("snap/file", 100000, 5000)
		t.Zoo("zoo")
		return t.Err()
	}
}

func manyLinks(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
	t.Dir("links")
	t.Plain("links/file", 5000)
	for i := range 700 {
		t.Link("links/file", fmt.Sprintf("links/another-name-of-the-same-file-%03d", i))
	}
	t.Subvolume("links/sub")
	t.Plain("links/sub/file", 100)
	t.Zoo("zoo")
	return t.Err()
}

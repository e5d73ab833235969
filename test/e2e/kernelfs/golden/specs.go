//go:build linux

package golden

import (
	"context"
	"fmt"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

type fillFunc = func(ctx context.Context, fs *kernelfs.FS, t *kernelfs.Tree) error

// dupDevice is the size of a device for data and metadata in DUP, which mkfs wants larger.
const dupDevice = 256 << 20

// Specs lists every image of testdata/images. The place in the list is the seed of the content: a new
// recipe goes to the end.
func Specs() []Spec {
	var list []Spec
	list = append(list, plainSpecs()...)
	list = append(list, stripedSpecs()...)
	list = append(list, shapeSpecs()...)
	list = append(list, otherSpecs()...)
	list = append(list, formatSpecs()...)
	list = append(list, paritySpecs()...)
	for i := range list {
		list[i].Seed = uint64(i + 1)
		list[i].Options.Label = list[i].Name
	}
	return list
}

// zoo makes the file zoo over old garbage.
func zoo(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
	t.Dirty(4 << 20)
	t.Zoo("zoo")
	return t.Err()
}

// rows makes files of four rows of columns stripes at several places, and the zoo.
func rows(columns int) fillFunc {
	return func(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
		t.Rows("rows", 5, columns)
		t.Zoo("zoo")
		return t.Err()
	}
}

func plainSpecs() []Spec {
	return []Spec{
		{
			Name: "single", Note: "one device, all SINGLE, nodesize 16K; the file zoo over old garbage",
			Options: kernelfs.Options{Data: "single", Metadata: "single"}, Fill: zoo, Keep: true,
		},
		{
			Name: "dup", Note: "data and metadata DUP, nodesize 4K",
			Options: kernelfs.Options{Data: "dup", Metadata: "dup", Nodesize: 4096, DeviceSize: dupDevice}, Fill: zoo,
		},
		{
			Name: "dup64", Note: "data and metadata DUP, nodesize 64K",
			Options: kernelfs.Options{Data: "dup", Metadata: "dup", Nodesize: 65536, DeviceSize: dupDevice}, Fill: zoo,
		},
		{
			Name: "no-holes-off", Note: "holes are explicit extents (without the no-holes feature)",
			Options: kernelfs.Options{Data: "single", Metadata: "dup", Features: []string{"^no-holes"}}, Fill: zoo,
		},
		{
			Name: "mixed", Note: "data and metadata share block groups (mixed-bg), nodesize 4K",
			Options: kernelfs.Options{Data: "single", Metadata: "single", Mixed: true}, Fill: zoo,
		},
		{
			Name: "block-group-tree", Note: "block groups in a tree of their own; needs btrfs-progs 6.4 or later", Needs: "block-group-tree",
			Options: kernelfs.Options{Data: "single", Metadata: "dup", Features: []string{"block-group-tree"}}, Fill: zoo,
		},
		{
			Name: "namespaces", Note: "subvolumes, snapshots, links across them; the default subvolume is not the top level",
			Options: kernelfs.Options{Data: "single", Metadata: "dup"},
			Fill: func(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
				t.Namespaces()
				return t.Err()
			},
		},
		{
			Name: "huge", Note: "a sparse file with data on both sides of 4 GiB",
			Options: kernelfs.Options{Data: "single", Metadata: "dup"},
			Fill: func(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
				t.WriteAt("huge", 0, 5000)
				t.WriteAt("huge", 4<<30-5000, 20000)
				t.Truncate("huge", 4<<30+1<<20)
				return t.Err()
			},
		},
		{
			Name: "deep", Note: "nodesize 4K; a file of thousands of extents, a directory of thousands of names: trees of level 2 and more",
			Options: kernelfs.Options{Data: "single", Metadata: "single", Nodesize: 4096}, Fill: deep,
		},
	}
}

func deep(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
	t.Fragment("fragmented", 1500, 1)
	t.FragmentShared("fragmented", "shared", 1500, 6000, 2)
	t.ManyEntries("many", 3000)
	t.Zoo("zoo")
	return t.Err()
}

// stripedSpecs are the profiles over several devices.
func stripedSpecs() []Spec {
	type profile struct {
		name, data, metadata string
		devices, columns     int
	}
	var list []Spec
	for _, p := range []profile{
		{"raid0-2", "raid0", "raid0", 2, 2},
		{"raid0-3", "raid0", "raid0", 3, 3},
		{"raid1-2", "raid1", "raid1", 2, 2},
		{"raid1-3", "raid1", "raid1", 3, 2},
		{"raid1c3-4", "raid1c3", "raid1c3", 4, 2},
		{"raid1c4-5", "raid1c4", "raid1c4", 5, 2},
		{"raid10-4", "raid10", "raid10", 4, 2},
		{"raid10-5", "raid10", "raid10", 5, 2},
		{"raid10-6", "raid10", "raid10", 6, 3},
		{"raid0-raid1c3", "raid0", "raid1c3", 3, 3},
		{"raid10-raid1c4", "raid10", "raid1c4", 4, 2},
		{"raid0-1", "raid0", "raid0", 1, 1},
		{"raid10-2", "raid10", "raid10", 2, 1},
	} {
		s := Spec{
			Name:    p.name,
			Note:    fmt.Sprintf("data %s, metadata %s over %d devices; files of four full rows at five places", p.data, p.metadata, p.devices),
			Options: kernelfs.Options{Devices: p.devices, Data: p.data, Metadata: p.metadata},
			Fill:    rows(p.columns),
		}
		list = append(list, s)
	}
	return list
}

// shapeSpecs are filesystems whose devices or chunks changed during their life.
func shapeSpecs() []Spec {
	return []Spec{
		{
			Name: "devid-gap", Note: "raid0 over devids 1, 2, 3; 2 removed, 4 added: chunks of two and of three stripes",
			Options: kernelfs.Options{Devices: 3, Data: "raid0", Metadata: "raid1", DeviceSize: gapDevice}, Fill: devidGap,
		},
		{
			Name: "converted", Note: "data partly converted from raid0 to raid1: chunks of both profiles",
			Options: kernelfs.Options{Devices: 3, Data: "raid0", Metadata: "raid1", DeviceSize: gapDevice}, Fill: converted,
		},
	}
}

// gapDevice leaves room for new chunks while one device is taken out.
const gapDevice = 256 << 20

func devidGap(ctx context.Context, fs *kernelfs.FS, t *kernelfs.Tree) error {
	t.Rows("before", 5, 3)
	if err := t.Err(); err != nil {
		return err
	}
	if err := fs.RemoveDevice(ctx, t.Root(), 1); err != nil {
		return err
	}
	if err := fs.AddDevice(ctx, t.Root(), gapDevice); err != nil {
		return err
	}
	t.Rows("after", 5, 3)
	t.Zoo("zoo")
	return t.Err()
}

func converted(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
	t.Rows("rows", 6, 3)
	t.Balance("-dusage=0") // only chunks with data are left to choose from
	t.Balance("-dconvert=raid1,limit=1")
	t.Zoo("zoo")
	return t.Err()
}

// otherSpecs are the usual profiles with parity, a log tree, compression and the other checksums.
func otherSpecs() []Spec {
	small := func(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
		t.Plain("file", 300000)
		t.Plain("inline", 100)
		return t.Err()
	}
	list := []Spec{
		parity("raid5", "raid5", 3, 0, all),
		parity("raid6", "raid6", 4, 0, all),
		{
			Name: "log", Note: "copied while mounted after fsync: a log tree; the manifest is the state after its replay",
			Options: kernelfs.Options{Data: "single", Metadata: "dup"}, Mount: "commit=300", Crash: true, Fill: dirtyLog,
		},
	}
	for _, c := range []string{"zlib", "lzo", "zstd"} {
		list = append(list, Spec{
			Name: c, Note: "every file compressed with " + c,
			Options: kernelfs.Options{Data: "single", Metadata: "dup"}, Mount: "compress-force=" + c, Fill: zoo,
		})
	}
	for _, c := range []string{"xxhash", "sha256", "blake2"} {
		list = append(list, Spec{
			Name: c, Note: "checksums " + c,
			Options: kernelfs.Options{Data: "single", Metadata: "dup", Csum: c}, Fill: small,
		})
	}
	return list
}

func dirtyLog(_ context.Context, _ *kernelfs.FS, t *kernelfs.Tree) error {
	t.Plain("committed", 100000)
	t.Plain("renamed-from", 10)
	t.Sync()
	t.WriteAt("committed", 50000, 5000)
	t.Fsync("committed")
	t.Plain("only-in-log", 20000)
	t.Fsync("only-in-log")
	t.Rename("renamed-from", "renamed-to")
	t.Fsync("renamed-to")
	t.Plain("lost", 5000)
	return t.Err()
}

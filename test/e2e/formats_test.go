//go:build linux

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// formatsPerRound is how many filesystems TestFormats makes.
const formatsPerRound = 60

// Filesystems over the product of profiles, checksums, node sizes, features and compressions, several of
// these in one file: every name and every byte is what the kernel shows. Package fsread reads them, without a
// server in front, so that many can be tried.
func TestFormats(t *testing.T) {
	need(t, "mkfs.btrfs")
	for i := range formatsPerRound * rounds() {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			rng := chance(t)
			ctx := bounded(t)
			o, compressions := randomFormat(rng)
			t.Logf("mkfs.btrfs %s, compress-force %s", strings.Join(o.Args(), " "), strings.Join(compressions, " then "))
			k := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) { fillFormats(ctx, t, tree.Root(), rng, compressions) })
			f := openImages(ctx, t, rng, k.fs.Images())
			compareTree(ctx, t, f, k.view.Entries)
			for _, s := range k.choose(t, rng, 2, 1) {
				compareRanges(ctx, t, rng, f, s)
			}
		})
	}
}

// randomFormat draws a filesystem and the compressions that its files are written with.
func randomFormat(rng *rand.Rand) (kernelfs.Options, []string) {
	shapes := []struct {
		data    string
		devices int
	}{{"single", 1}, {"single", 1}, {"single", 2}, {"dup", 1}, {"raid0", 2}, {"raid0", 3}, {"raid1", 2}, {"raid1c3", 3}, {"raid1c4", 4}, {"raid10", 4}}
	s := shapes[rng.IntN(len(shapes))]
	o := randomOptions(rng, s.data, s.devices)
	o.Csum = []string{"crc32c", "xxhash", "sha256", "blake2"}[rng.IntN(4)]
	all := []string{"zlib", "lzo", "zstd", "zlib:1", "zstd:9", "none"}
	var c []string
	for range 1 + rng.IntN(3) {
		c = append(c, all[rng.IntN(len(all))])
	}
	return o, c
}

// fillFormats writes files that compress well, and a random tree that may not, under one compression after the
// other: most extents of some files are then of several kinds.
func fillFormats(ctx context.Context, t *testing.T, mnt string, rng *rand.Rand, compressions []string) {
	soft := kernelfs.NewTree(ctx, mnt, kernelfs.Content{Seed: 9})
	for i, c := range compressions {
		if err := unix.Mount("", mnt, "", unix.MS_REMOUNT, "compress-force="+c); err != nil {
			t.Fatalf("remount with compress-force=%s: %v", c, err)
		}
		if i == 0 {
			soft.Zoo("zoo")
			soft.Plain("big", 3<<20+rng.Int64N(100000))
			soft.Plain("cow", 600000)
			soft.Sync()
		}
		dir := fmt.Sprintf("random%d", i)
		soft.Dir(dir)
		random := kernelfs.NewTree(ctx, filepath.Join(mnt, dir), kernelfs.Content{Seed: uint64(i) + 2, Noise: rng.IntN(2) == 0})
		random.Random(rng.Uint64(), kernelfs.RandomOptions{Ops: 40, MaxFile: 1 << 20, Subvols: 2})
		for range 6 {
			soft.WriteAt("big", rng.Int64N(3<<20), 1+rng.Int64N(150000))
			soft.WriteAt("cow", rng.Int64N(600000), 1+rng.Int64N(5000))
			soft.Sync()
		}
		soft.CloneRanges("big", fmt.Sprintf("parts%d", i), []kernelfs.Range{{Src: 128<<10 + 4096, Dst: 0, Len: 40960}, {Src: 1 << 20, Dst: 81920, Len: 4096}})
		soft.Punch("big", rng.Int64N(2<<20), 1+rng.Int64N(200000))
		soft.Sync()
		if err := errors.Join(soft.Err(), random.Err()); err != nil {
			t.Fatal(err)
		}
	}
}

// openImages opens the filesystem in image files, given in any order, for the whole test.
func openImages(ctx context.Context, t *testing.T, rng *rand.Rand, images []string) *fsread.FS {
	t.Helper()
	var devs []volume.Device
	for _, i := range rng.Perm(len(images)) {
		q, err := devio.Open(images[i], devio.Options{Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		devs = append(devs, q)
	}
	f, err := fsread.Open(ctx, devs, fsread.Options{CacheBytes: int64(1 + rng.IntN(32<<20))})
	if err != nil {
		for _, d := range devs {
			_ = d.Close()
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// compareTree holds everything below the top level against the kernel's view.
func compareTree(ctx context.Context, t *testing.T, f *fsread.FS, want []fsreadtest.Entry) {
	t.Helper()
	top, err := f.SubvolumeByID(ctx, ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, e := range want {
		if err := compareEntry(ctx, top, e); err != nil {
			t.Errorf("%q: %v", e.Path, err)
		}
	}
	root, err := top.Root(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var count func(n *fsread.Node) error
	count = func(n *fsread.Node) error {
		names++
		if !n.IsDir() {
			return nil
		}
		return n.ReadDir(ctx, func(e fsread.Entry) error {
			c, err := e.Node(ctx)
			if err != nil {
				return err
			}
			return count(c)
		})
	}
	if err := count(root); err != nil || names != len(want) {
		t.Errorf("%d names, %v; the kernel shows %d", names, err, len(want))
	}
}

func compareEntry(ctx context.Context, top *fsread.Subvolume, e fsreadtest.Entry) error {
	n, err := top.ResolveLink(ctx, string(e.Path))
	if err != nil {
		return err
	}
	switch {
	case e.Type == "dir" != n.IsDir(), e.Type == "symlink" != (n.Mode()&fs.ModeSymlink != 0), e.Type == "file" != n.Mode().IsRegular():
		return fmt.Errorf("mode %v, want a %s", n.Mode(), e.Type)
	case e.Type == "symlink":
		target, err := n.Readlink(ctx)
		if err == nil && target != string(e.Target) {
			err = fmt.Errorf("target %q, want %q", target, e.Target)
		}
		return err
	case e.Type != "file":
		return nil
	}
	file, err := n.File()
	if err != nil {
		return err
	}
	if item := n.Item(); int64(file.Size()) != e.Size || uint64(item.NLink) != e.Nlink || n.Inode() != e.Ino {
		return fmt.Errorf("size %d nlink %d inode %d, want %d %d %d", file.Size(), item.NLink, n.Inode(), e.Size, e.Nlink, e.Ino)
	}
	if e.SHA256 == "" {
		return nil
	}
	b := make([]byte, file.Size())
	if _, err := file.ReadAt(ctx, b, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != e.SHA256 {
		return errors.New("content differs")
	}
	return nil
}

// compareRanges reads random unaligned ranges of a file.
func compareRanges(ctx context.Context, t *testing.T, rng *rand.Rand, f *fsread.FS, s served) {
	t.Helper()
	top, err := f.SubvolumeByID(ctx, ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	file, err := top.OpenFile(ctx, s.path)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if len(s.want) == 0 {
			return
		}
		off := rng.IntN(len(s.want))
		p := make([]byte, 1+rng.IntN(min(len(s.want)-off, 200000)))
		if _, err := file.ReadAt(ctx, p, uint64(off)); err != nil {
			t.Fatalf("%s offset %d length %d: %v", s.path, off, len(p), err)
		}
		if d := diff(p, s.want[off:off+len(p)]); d != "" {
			t.Fatalf("%s offset %d length %d: %s", s.path, off, len(p), d)
		}
	}
}

// sectorsPerRound is how many filesystems TestSectorSizes makes.
const sectorsPerRound = 12

// Filesystems with sectors larger than this kernel mounts, filled by mkfs from a directory, which is the truth.
func TestSectorSizes(t *testing.T) {
	need(t, "mkfs.btrfs")
	for i := range sectorsPerRound * rounds() {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			rng := chance(t)
			ctx := bounded(t)
			sector := 8192 << rng.IntN(4)
			o := kernelfs.Options{DeviceSize: 512 << 20, Data: []string{"single", "dup"}[rng.IntN(2)], Metadata: []string{"single", "dup"}[rng.IntN(2)],
				Sectorsize: sector, Nodesize: sector << rng.IntN(4), Csum: []string{"crc32c", "xxhash", "sha256", "blake2"}[rng.IntN(4)]}
			o.Nodesize = min(o.Nodesize, 65536)
			t.Logf("mkfs.btrfs %s", strings.Join(o.Args(), " "))
			source := t.TempDir()
			fillDirectory(ctx, t, source, rng)
			want, err := kernelfs.Directory(ctx, source)
			if err != nil {
				t.Fatal(err)
			}
			image, err := kernelfs.Rootdir(ctx, t.TempDir(), o, source)
			if err != nil {
				t.Fatal(err)
			}
			for i := range want {
				want[i].Ino += 256 // as mkfs numbers what it copies
			}
			compareTree(ctx, t, openImages(ctx, t, rng, []string{image}), want)
		})
	}
}

// fillDirectory writes files of all sizes around sectors and nodes.
func fillDirectory(ctx context.Context, t *testing.T, dir string, rng *rand.Rand) {
	t.Helper()
	tree := kernelfs.NewTree(ctx, dir, kernelfs.Content{Seed: rng.Uint64(), Noise: rng.IntN(2) == 0})
	tree.Dir("below")
	for i := range 60 {
		size := rng.Int64N(4096 << rng.IntN(9))
		if rng.IntN(3) == 0 {
			size = 4096<<rng.IntN(8) + rng.Int64N(3) - 1
		}
		tree.Plain(fmt.Sprintf("%s%d", []string{"file", "below/file"}[i%2], i), size)
	}
	tree.Symlink("../file0", "below/link")
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
}

//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// Reflinks, bookends, snapshots, snapshots that were written to or whose origin was, or which are gone: whether an
// extent is shared is what the kernel's FIEMAP says.
func TestSharing(t *testing.T) {
	need(t, "mkfs.btrfs")
	for _, c := range []struct {
		name string
		o    kernelfs.Options
		pre  func(*kernelfs.Tree)
	}{
		{name: "nodes of 16 KiB", o: kernelfs.Options{}},
		{name: "nodes of 4 KiB", o: kernelfs.Options{Nodesize: 4096}},
		{name: "no skinny metadata", o: kernelfs.Options{Nodesize: 4096, Features: []string{"^skinny-metadata", "^no-holes"}}},
		{name: "simple quota", o: kernelfs.Options{Nodesize: 4096}, pre: func(t *kernelfs.Tree) { t.Quota(true) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := chance(t)
			ctx := bounded(t)
			k := makeTruth(ctx, t, c.o, func(tree *kernelfs.Tree) {
				if c.pre != nil {
					c.pre(tree)
				}
				fillShared(tree, rng)
			})
			f := openImages(ctx, t, rng, k.fs.Images())
			shared, not := compareSharing(ctx, t, f, k)
			t.Logf("%d extents shared, %d not", shared, not)
			if shared == 0 || not == 0 {
				t.Error("only one of the two answers was tried")
			}
		})
	}
}

func fillShared(tree *kernelfs.Tree, rng *rand.Rand) {
	tree.Zoo("zoo")
	tree.Subvolume("sub")
	tree.Zoo("sub/zoo")
	for i := range 120 {
		tree.Plain(fmt.Sprintf("sub/f%d", i), 3000+rng.Int64N(20000))
	}
	tree.Fragment("sub/fragmented", 400, rng.Uint64())
	tree.Sync()
	tree.Snapshot("sub", "kept", true)
	write := func(root string) {
		for range 15 {
			tree.WriteAt(fmt.Sprintf("%s/f%d", root, rng.IntN(120)), rng.Int64N(3000), 1+rng.Int64N(9000))
		}
		for range 5 {
			tree.WriteAt(root+"/fragmented", 4096*rng.Int64N(400), 4096)
		}
		tree.Sync()
	}
	write("sub")
	tree.Snapshot("sub", "written", false)
	tree.Snapshot("sub", "gone", false)
	write("written")
	write("gone")
	write("sub")
	tree.DeleteSubvolume("gone")
	tree.WaitDeleted()
	write("sub")
	tree.Plain("self", 64<<10)
	tree.Sync()
	tree.CloneRanges("self", "self", []kernelfs.Range{{Src: 0, Dst: 128 << 10, Len: 32 << 10}})
	tree.Plain("passed-on", 64<<10)
	tree.Sync()
	tree.Clone("passed-on", "heir")
	tree.Remove("passed-on")
	tree.Plain("many-source", 4096)
	tree.Sync()
	for i := range 200 { // more back references than fit into one item
		tree.Clone("many-source", fmt.Sprintf("many-%d", i))
	}
	tree.Snapshot("sub", "last", false)
	tree.Plain("sub/after", 50000)
	tree.Sync()
}

// compareSharing holds every extent of every file against FIEMAP and counts the answers.
func compareSharing(ctx context.Context, t *testing.T, f *fsread.FS, k *truth) (shared, not int) {
	t.Helper()
	top, err := f.SubvolumeByID(ctx, ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range k.view.Entries {
		if e.Type != "file" {
			continue
		}
		file, err := top.OpenFile(ctx, "/"+string(e.Path))
		if err != nil {
			t.Error(err)
			continue
		}
		kernel, err := kernelfs.Fiemap(filepath.Join(k.mnt, string(e.Path)))
		if err != nil {
			t.Fatal(err)
		}
		any := false
		err = file.Sharing(ctx, func(s fsread.Segment, is bool) error {
			any = any || is
			if is {
				shared++
			} else {
				not++
			}
			return holdAgainst(kernel, e, s, is)
		})
		got, serr := file.Shared(ctx)
		if err := errors.Join(err, serr); err != nil {
			t.Errorf("%q: %v", e.Path, err)
		} else if got != any {
			t.Errorf("%q: shared %v, of its extents %v", e.Path, got, any)
		}
	}
	return shared, not
}

// holdAgainst looks for what the kernel says of a segment's first byte.
func holdAgainst(kernel []kernelfs.FileExtent, e fsreadtest.Entry, s fsread.Segment, shared bool) error {
	for _, x := range kernel {
		if x.Off <= s.Off && s.Off < x.Off+x.Len {
			if x.Shared != shared {
				return fmt.Errorf("inode %d offset %d length %d logical %d: shared %v, the kernel says %v", e.Ino, s.Off, s.Len, s.Extent.DiskBytenr, shared, x.Shared)
			}
			return nil
		}
	}
	return fmt.Errorf("inode %d offset %d: the kernel knows no extent there", e.Ino, s.Off)
}

package fsread

import (
	"errors"
	"slices"
	"testing"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

// TestSharedOfGoldenImages asks for files of which their makers have told what they share.
func TestSharedOfGoldenImages(t *testing.T) {
	for _, c := range []struct {
		image       string
		shared, not []string
	}{
		{"single", []string{"/zoo/shared-source", "/zoo/shared-whole", "/zoo/shared-range", "/zoo/shared-changed"},
			[]string{"/zoo/bookends", "/zoo/size-4096", "/zoo/size-100", "/zoo/size-0", "/zoo/prealloc-all", "/zoo/prealloc-written", "/zoo/sparse-all", "/zoo/nocow"}},
		{"zstd", []string{"/zoo/shared-source"}, []string{"/zoo/bookends", "/zoo/size-65537"}},
		{"deep", []string{"/shared", "/fragmented"}, []string{"/zoo/bookends"}},
		{"log", nil, []string{"/only-in-log"}},
	} {
		f := mustOpen(t, newRig(t, fsreadtest.Load(t, c.image)), Options{})
		top, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
		if err != nil {
			t.Fatal(err)
		}
		for want, paths := range map[bool][]string{true: c.shared, false: c.not} {
			for _, p := range paths {
				file, err := top.OpenFile(t.Context(), p)
				if err != nil {
					t.Error(err)
					continue
				}
				if got, err := file.Shared(t.Context()); got != want || err != nil {
					t.Errorf("%s%s: shared %v, error %v, want %v", c.image, p, got, err, want)
				}
			}
		}
	}
}

// shareItem puts the extent tree's item of the data of sharedFile.
func (b *builder) shareItem(refs uint64, inline ...ondisk.ExtentRef) {
	k := ondisk.Key{ObjectID: uint64(dataStart), Type: ondisk.TypeExtentItem, Offset: 64 << 10}
	b.replace(ondisk.TreeExtent, k.ObjectID, k.Type, k.Offset, ondisktest.ExtentItem(k, refs, ondisktest.ExtentData, inline...))
}

func (b *builder) shareRef(r ondisk.ExtentRef) {
	k, item := ondisktest.ExtentRef(dataStart, r)
	b.put(ondisk.TreeExtent, k.ObjectID, k.Type, k.Offset, item)
}

// sharedFile makes the file of one extent.
func sharedFile(t *testing.T) *builder {
	b := newBuilder(t)
	b.size(64<<10, 0)
	b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentRegular, DiskBytenr: dataStart, DiskNumBytes: 64 << 10, NumBytes: 64 << 10})
	b.data(dataStart, pattern(64<<10, 1), true)
	return b
}

// TestSharedByReferences covers what back references may say of one extent.
func TestSharedByReferences(t *testing.T) {
	own := ondisk.ExtentRef{Type: ondisk.TypeExtentDataRef, Root: ondisk.TreeFS, Inode: fileIno, Count: 1}
	twice, elsewhere, other, parent := own, own, own, ondisk.ExtentRef{Type: ondisk.TypeSharedDataRef, Parent: 1 << 20, Count: 1}
	twice.Count, elsewhere.Offset, other.Inode = 2, 1<<20, fileIno+1
	owner := ondisk.ExtentRef{Type: ondisk.TypeExtentOwnerRef, Root: ondisk.TreeFS}
	for _, c := range []struct {
		name   string
		make   func(b *builder)
		shared bool
		err    error
	}{
		{"its own", func(b *builder) { b.shareItem(1, own) }, false, nil},
		{"its own, by a key", func(b *builder) { b.shareItem(1); b.shareRef(own) }, false, nil},
		{"two parts of what was one", func(b *builder) { b.shareItem(2, twice) }, false, nil},
		{"another place of the file", func(b *builder) { b.shareItem(2, own, elsewhere) }, true, nil},
		{"another file", func(b *builder) { b.shareItem(2, own, other) }, true, nil},
		{"another file alone", func(b *builder) { b.shareItem(1, other) }, true, nil},
		{"another file, by a key", func(b *builder) { b.shareItem(2, own); b.shareRef(other) }, true, nil},
		{"a tree block", func(b *builder) { b.shareItem(1, parent) }, false, nil},
		{"two tree blocks", func(b *builder) { p := parent; p.Parent += 4096; b.shareItem(2, p); b.shareRef(parent) }, true, nil},
		{"an owner beside its own", func(b *builder) { b.shareItem(1, owner, own) }, false, nil},
		{"fewer references than told", func(b *builder) { b.shareItem(9, own) }, false, nil},
		{"a block group behind", func(b *builder) {
			b.shareItem(9, own)
			b.put(ondisk.TreeExtent, uint64(dataStart), ondisk.TypeBlockGroup, 8<<20, make([]byte, 24))
		}, false, nil},
		{"not in the extent tree", func(b *builder) { b.trees[ondisk.TreeExtent] = nil }, false, ondisk.ErrCorrupt},
		{"no extent tree", func(*builder) {}, false, ErrNotExist},
		{"a tree block where data are", func(b *builder) {
			k := ondisk.Key{ObjectID: uint64(dataStart), Type: ondisk.TypeExtentItem, Offset: 64 << 10}
			b.put(ondisk.TreeExtent, k.ObjectID, k.Type, k.Offset, ondisktest.ExtentItem(k, 0, ondisktest.ExtentTreeBlock))
		}, false, ondisk.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := sharedFile(t)
			c.make(b)
			got, err := b.file().Shared(t.Context())
			if got != c.shared || !errors.Is(err, c.err) || (err != nil) != (c.err != nil) {
				t.Errorf("got %v, %v, want %v, %v", got, err, c.shared, c.err)
			}
		})
	}
}

// TestSharedBySnapshot has a tree block above the file that a second tree refers to.
func TestSharedBySnapshot(t *testing.T) {
	own := ondisk.ExtentRef{Type: ondisk.TypeExtentDataRef, Root: ondisk.TreeFS, Inode: fileIno, Count: 1}
	for _, c := range []struct {
		name     string
		refs     uint64 // of every block of the subvolume's tree
		snapshot uint64 // generation of the last one; blocks are of 7
		skinny   bool
		none     bool // the extent tree does not know the blocks
		shared   bool
		err      error
	}{
		{"never", 1, 0, true, false, false, nil},
		{"before the blocks were written", 2, 6, true, false, false, nil},
		{"after", 2, 7, true, false, true, nil},
		{"after, and gone again", 1, 7, true, false, false, nil},
		{"after, without skinny metadata", 2, 7, false, false, true, nil},
		{"after, and nothing is known of the blocks", 2, 7, true, true, false, ondisk.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := sharedFile(t)
			b.shareItem(1, own)
			at, level := b.tree(ondisk.TreeFS)
			for block := chunkStart; block < b.next && !c.none; block += 4096 {
				k := ondisk.Key{ObjectID: uint64(block), Type: ondisk.TypeMetadataItem}
				if k.Offset = uint64(ondisk.Block(b.disk[block : block+4096]).Level()); !c.skinny {
					k.Type, k.Offset = ondisk.TypeExtentItem, 4096
				}
				b.put(ondisk.TreeExtent, k.ObjectID, k.Type, k.Offset, ondisktest.ExtentItem(k, c.refs, ondisktest.ExtentTreeBlock))
			}
			b.put(ondisk.TreeRoot, ondisk.TreeFS, ondisk.TypeRootItem, 0, ondisktest.RootItem(ondisk.RootItem{Generation: b.sb.Generation, DirID: 256,
				Bytenr: at, Level: level, Refs: 1, LastSnapshot: c.snapshot}))
			got, err := b.file().Shared(t.Context())
			if got != c.shared || !errors.Is(err, c.err) || (err != nil) != (c.err != nil) {
				t.Errorf("got %v, %v, want %v, %v", got, err, c.shared, c.err)
			}
		})
	}
}

// TestSharingOfDamagedTree tells which part of the answer is missing.
func TestSharingOfDamagedTree(t *testing.T) {
	b := sharedFile(t)
	b.shareItem(1)
	f := b.open()
	at := slices.IndexFunc(b.trees[ondisk.TreeRoot], func(i ondisktest.Item) bool { return i.Key.ObjectID == ondisk.TreeExtent })
	ri, err := ondisk.DecodeRootItem(b.trees[ondisk.TreeRoot][at].Data)
	if err != nil {
		t.Fatal(err)
	}
	clear(b.disk[ri.Bytenr : ri.Bytenr+4096])
	s, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	file, err := s.OpenFile(t.Context(), "/file")
	if err != nil {
		t.Fatal(err)
	}
	var block *btree.BlockError
	if _, err := file.Shared(t.Context()); !errors.As(err, &block) || block.Tree != ondisk.TreeExtent {
		t.Errorf("got %v, want a block of the extent tree", err)
	}
}

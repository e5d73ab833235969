package fsread

import (
	"context"
	"errors"
	"fmt"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// maxBlocksKnown bounds how many tree blocks a walk remembers to be shared or not.
const maxBlocksKnown = 1 << 16

// sharing finds out which extents of one file something else refers to as well, from the extent tree.
type sharing struct {
	f       *File
	extents btree.Tree
	cur     btree.Cursor
	blocks  map[ondisk.Logical]bool
	last    ondisk.Logical // the extent that was looked at last
	leaf    ondisk.Logical // which held the item
	answer  bool
}

// Sharing calls fn for every part of the file that lies in an extent on the disk, preallocated ones among them,
// and says whether that extent is shared, as the kernel's FIEMAP does (btrfs_is_data_extent_shared):
//
//   - it has more than one back reference, or one of another file or subvolume. Several extent items that are
//     left of one, as after a part of it was overwritten, are one back reference; the same extent at
//     another place of the same file is a second one.
//   - or a tree block on the way from the subvolume's root to the item has more than one reference: a snapshot
//     shares such blocks, and what is below them, until one of the two is written to.
//
// Of an extent two references are looked at and no more, a tree block once. Extents that only a log knows of
// are not shared. Errors: of fn, of ctx, *LayoutError, *btree.BlockError, ErrNotExist without an extent tree,
// ondisk.ErrCorrupt where the extent tree does not know an extent.
func (f *File) Sharing(ctx context.Context, fn func(s Segment, shared bool) error) error {
	ri, err := f.fs.rootItem(ctx, ondisk.TreeExtent)
	if err != nil {
		return fmt.Errorf("extent tree: %w", err)
	}
	sh := &sharing{f: f, blocks: make(map[ondisk.Logical]bool)}
	sh.extents = f.fs.reader.Tree(ondisk.TreeExtent, btree.Pointer{Logical: ri.Bytenr, Generation: ri.Generation, Level: ri.Level})
	return f.walk(ctx, 0, false, func(w *walker, seg Segment) error {
		if seg.Extent.DiskBytenr == 0 {
			return nil
		}
		shared, err := sh.shared(ctx, &seg.Extent, w.cur.Path())
		if err != nil {
			return fmt.Errorf("inode %d offset %d: %w", f.ino, seg.Off, err)
		}
		return fn(seg, shared)
	})
}

// shared says whether an extent is, whose item lies in the first block of path.
func (s *sharing) shared(ctx context.Context, x *ondisk.FileExtent, path []ondisk.Block) (bool, error) {
	leaf := ondisk.Logical(0)
	if len(path) > 0 {
		leaf = path[0].Bytenr()
	}
	if x.DiskBytenr == s.last && leaf == s.leaf {
		return s.answer, nil
	}
	shared, err := s.byRefs(ctx, x)
	if !shared && err == nil {
		shared, err = s.byPath(ctx, path)
	}
	s.last, s.leaf, s.answer = x.DiskBytenr, leaf, shared
	return shared, err
}

// byRefs looks for a second back reference of an extent, or one that is not the file's.
func (s *sharing) byRefs(ctx context.Context, x *ondisk.FileExtent) (bool, error) {
	k := ondisk.Key{ObjectID: uint64(x.DiskBytenr), Type: ondisk.TypeExtentItem, Offset: x.DiskNumBytes}
	ok, err := s.cur.Find(ctx, s.extents, k)
	if err != nil {
		return false, err
	}
	if !ok {
		if s.f.fs.logs.overlays[s.f.sv.id] != nil {
			return false, nil // the log's own, or written anew since: the last commit does not know it
		}
		return false, &ondisk.Error{Item: "extent tree", Detail: fmt.Sprintf("no item %s", k)}
	}
	item, err := ondisk.DecodeExtentItem(k, s.cur.Item())
	if err != nil {
		return false, err
	}
	refs := refCounter{f: s.f}
	for rest := item.Inline(); len(rest) > 0 && !refs.shared(); {
		var r ondisk.ExtentRef
		if r, rest, err = ondisk.NextExtentRef(rest); err != nil {
			return false, err
		}
		refs.add(&r)
	}
	for refs.items < item.Refs && !refs.shared() {
		more, err := s.cur.Next(ctx)
		if err != nil || !more || s.cur.Key().ObjectID != k.ObjectID {
			return false, err
		}
		if !s.cur.Key().IsExtentRef() {
			return false, nil // a block group starts here
		}
		r, err := ondisk.DecodeExtentRef(s.cur.Key(), s.cur.Item())
		if err != nil {
			return false, err
		}
		refs.add(&r)
	}
	return refs.shared(), nil
}

// refCounter counts the back references of an extent.
type refCounter struct {
	f       *File
	refs    int
	foreign bool
	items   uint64 // file extent items that they stand for
}

func (c *refCounter) add(r *ondisk.ExtentRef) {
	if r.Count == 0 {
		return
	}
	c.refs, c.items = c.refs+1, c.items+r.Count
	c.foreign = c.foreign || (r.Type == ondisk.TypeExtentDataRef && (r.Root != c.f.sv.id || r.Inode != c.f.ino))
}

func (c *refCounter) shared() bool { return c.refs > 1 || c.foreign }

// byPath looks for a tree block on a path that has more than one reference. One that was written after the last
// snapshot of its subvolume has one, and so have those above it (btrfs_block_can_be_shared).
func (s *sharing) byPath(ctx context.Context, path []ondisk.Block) (bool, error) {
	for _, b := range path {
		if b.Generation() > s.f.sv.root.LastSnapshot {
			return false, nil
		}
		shared, known := s.blocks[b.Bytenr()]
		if !known {
			var err error
			if shared, err = s.block(ctx, b); err != nil {
				return false, err
			}
			if len(s.blocks) == maxBlocksKnown {
				clear(s.blocks)
			}
			s.blocks[b.Bytenr()] = shared
		}
		if shared {
			return true, nil
		}
	}
	return false, nil
}

// block says whether a tree block has more than one reference.
func (s *sharing) block(ctx context.Context, b ondisk.Block) (bool, error) {
	k := ondisk.Key{ObjectID: uint64(b.Bytenr()), Type: ondisk.TypeMetadataItem, Offset: uint64(b.Level())}
	ok, err := s.cur.Find(ctx, s.extents, k)
	if !ok && err == nil {
		k.Type, k.Offset = ondisk.TypeExtentItem, uint64(len(b)) // as before skinny metadata
		ok, err = s.cur.Find(ctx, s.extents, k)
	}
	if err != nil {
		return false, err
	}
	if !ok {
		return false, &ondisk.Error{Item: "extent tree", Detail: fmt.Sprintf("no item of tree block %d", b.Bytenr())}
	}
	item, err := ondisk.DecodeExtentItem(k, s.cur.Item())
	return item.Refs > 1, err
}

// Shared says whether any extent of the file is shared: see Sharing.
func (f *File) Shared(ctx context.Context) (bool, error) {
	found := errors.New("found") // ends the walk
	err := f.Sharing(ctx, func(_ Segment, shared bool) error {
		if shared {
			return found
		}
		return nil
	})
	if err == found {
		return true, nil
	}
	return false, err
}

package logtree

import (
	"bytes"
	"context"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// replayExtent puts an extent over what the file has in its place.
func (r *replay) replayExtent(ctx context.Context, k ondisk.Key, item []byte) error {
	x, err := ondisk.DecodeFileExtent(item, k.Offset, r.SectorSize)
	if err != nil {
		return err
	}
	if _, ok, err := r.inode(ctx, k.ObjectID); !ok || err != nil {
		if err == nil {
			err = corrupt("inode %d does not exist", k.ObjectID)
		}
		return err
	}
	span := x.Span(r.SectorSize)
	if span == 0 {
		return corrupt("an extent without bytes")
	}
	old, ok, err := r.edit.Find(ctx, k)
	if err != nil || ok && bytes.Equal(old, item) {
		return err // nothing new, and its checksums are committed
	}
	if err := r.dropExtents(ctx, k.ObjectID, k.Offset, k.Offset+span); err != nil {
		return err
	}
	if x.Type != ondisk.ExtentInline && x.DiskBytenr == 0 && r.NoHoles {
		return nil
	}
	if err := r.edit.Put(k, item); err != nil {
		return err
	}
	return r.takeCsums(ctx, &x)
}

// dropExtents takes bytes [start, end) of a file away, both multiples of the sector or end 2^64-1: extents
// inside go, those that reach in from either side are cut.
func (r *replay) dropExtents(ctx context.Context, ino, start, end uint64) error {
	first := ondisk.Key{ObjectID: ino, Type: ondisk.TypeExtentData, Offset: start}
	last := ondisk.Key{ObjectID: ino, Type: ondisk.TypeExtentData, Offset: end - 1}
	k, item, ok, err := r.edit.Floor(ctx, last)
	if err != nil || !ok || k.ObjectID != ino || k.Type != ondisk.TypeExtentData {
		return err
	}
	// The last extent that starts in front of end may go on behind it. It may be the first one, too.
	tail, err := r.cutExtent(k, item, end, 0)
	if err != nil {
		return err
	}
	if start > 0 {
		before := first
		before.Offset--
		k, item, ok, err := r.edit.Floor(ctx, before)
		if err != nil {
			return err
		}
		if ok && k.ObjectID == ino && k.Type == ondisk.TypeExtentData {
			head, err := r.cutExtent(k, item, 0, start)
			if err != nil {
				return err
			}
			if head != nil {
				if err := r.edit.Put(k, head); err != nil {
					return err
				}
			}
		}
	}
	if err := r.edit.Delete(first, last); err != nil || tail == nil {
		return err
	}
	return r.edit.Put(ondisk.Key{ObjectID: ino, Type: ondisk.TypeExtentData, Offset: end}, tail)
}

// cutExtent gives the item of an extent that starts at from, if it starts in front of it, or that ends at
// to, if to is not 0; nil when it does not reach that far. Bytes held inline can't be cut.
//
// struct btrfs_file_extent_item: offset u64 @37, num_bytes u64 @45.
func (r *replay) cutExtent(k ondisk.Key, item []byte, from, to uint64) ([]byte, error) {
	x, err := ondisk.DecodeFileExtent(item, k.Offset, r.SectorSize)
	if err != nil {
		return nil, err
	}
	end := k.Offset + x.Span(r.SectorSize)
	if end <= max(from, to) {
		return nil, nil
	}
	if x.Type == ondisk.ExtentInline {
		return nil, corrupt("inode %d: inline bytes [0, %d) would be cut at %d", k.ObjectID, end, max(from, to))
	}
	item = bytes.Clone(item)
	if to != 0 {
		le.PutUint64(item[45:], to-k.Offset)
		return item, nil
	}
	if x.DiskBytenr != 0 {
		le.PutUint64(item[37:], x.Offset+(from-k.Offset))
	}
	le.PutUint64(item[45:], end-from)
	return item, nil
}

package logtree

import (
	"bytes"
	"context"
	"math"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// The file type bits of st_mode.
const (
	modeType    = 0o170000
	modeDir     = 0o040000
	modeRegular = 0o100000
)

func isDir(mode uint32) bool     { return mode&modeType == modeDir }
func isRegular(mode uint32) bool { return mode&modeType == modeRegular }

// replayInode is the first stage: every inode of the log exists afterwards, its directories have lost the
// names that the log says they lost, and its files end where they should.
func (r *replay) replayInode(ctx context.Context, k ondisk.Key, item []byte) error {
	if k.Type != ondisk.TypeInodeItem {
		return nil
	}
	if k.Offset != 0 {
		return corrupt("an inode at %d", k.Offset)
	}
	logged, err := ondisk.DecodeInodeItem(item)
	if err != nil {
		return err
	}
	if isDir(logged.Mode) {
		if err := r.replayDirDeletes(ctx, k.ObjectID); err != nil {
			return err
		}
	}
	if err := r.overwriteInode(ctx, k, logged, item); err != nil {
		return err
	}
	r.fix[k.ObjectID] = struct{}{}
	if isRegular(logged.Mode) {
		return r.truncate(ctx, k.ObjectID)
	}
	return nil
}

// overwriteInode puts the log's inode in the place of the subvolume's. A generation of 0 says that the log
// vouches for its existence, and if it has one for its size, but for nothing else.
func (r *replay) overwriteInode(ctx context.Context, k ondisk.Key, logged ondisk.InodeItem, item []byte) error {
	old, had, err := r.inode(ctx, k.ObjectID)
	if err != nil {
		return err
	}
	if had && logged.Generation == 0 {
		if !isRegular(logged.Mode) || !isRegular(old.Mode) || logged.Size == 0 {
			return nil
		}
		return r.changeInode(ctx, k.ObjectID, func(_ ondisk.InodeItem, item []byte) { setSize(item, logged.Size) })
	}
	item = bytes.Clone(item)
	setNBytes(item, old.NBytes) // the log has none
	if isDir(logged.Mode) {
		setSize(item, 0)
		if had && isDir(old.Mode) {
			setSize(item, old.Size) // it follows the names
		}
	}
	if logged.Generation == 0 {
		setGeneration(item, r.Generation+1)
	}
	return r.edit.Put(k, item)
}

// truncate drops what extents a file has behind its end: an fsync logs those in front of it.
func (r *replay) truncate(ctx context.Context, ino uint64) error {
	n, _, err := r.inode(ctx, ino)
	if err != nil {
		return err
	}
	if n.Size > math.MaxInt64 {
		return corrupt("inode %d has a size of %d bytes", ino, n.Size)
	}
	return r.dropExtents(ctx, ino, r.roundUp(n.Size), math.MaxUint64)
}

func (r *replay) roundUp(n uint64) uint64 {
	mask := uint64(r.SectorSize - 1)
	return (n + mask) &^ mask
}

// replayDirDeletes takes out of a directory what the log speaks for and does not have: its DIR_LOG_INDEX
// items are ranges of indexes of which it has every name.
func (r *replay) replayDirDeletes(ctx context.Context, dir uint64) error {
	if _, ok, err := r.inode(ctx, dir); !ok || err != nil {
		return err
	}
	next := uint64(0)
	return r.Log.All(ctx, ondisk.Key{ObjectID: dir, Type: ondisk.TypeDirLogIndex}, func(k ondisk.Key, item []byte) (bool, error) {
		if k.ObjectID != dir || k.Type != ondisk.TypeDirLogIndex {
			return false, nil
		}
		if len(item) != 8 { // struct btrfs_dir_log_item: end u64 @0
			return false, corrupt("%s has %d bytes, want 8", k, len(item))
		}
		end := le.Uint64(item)
		if first := max(k.Offset, next); first <= end {
			if err := r.unlinkRange(ctx, dir, first, end, true); err != nil {
				return false, err
			}
			next = end + 1
		}
		return next != 0, nil // 0: the last range went to the end of all indexes
	})
}

// unlinkRange takes the names of indexes from first to last, both inclusive, out of a directory; unlogged:
// only those that the log does not have.
func (r *replay) unlinkRange(ctx context.Context, dir, first, last uint64, unlogged bool) error {
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		k, item, ok, err := r.edit.From(ctx, ondisk.Key{ObjectID: dir, Type: ondisk.TypeDirIndex, Offset: first})
		if !ok || err != nil {
			return err
		}
		if k.ObjectID != dir || k.Type != ondisk.TypeDirIndex || k.Offset > last {
			return nil
		}
		if err := r.unlinkIndex(ctx, k, item, unlogged); err != nil {
			return err
		}
		if k.Offset == last {
			return nil
		}
		first = k.Offset + 1
	}
}

// unlinkIndex takes the name of one DIR_INDEX item away.
func (r *replay) unlinkIndex(ctx context.Context, k ondisk.Key, item []byte, unlogged bool) error {
	e, err := soleEntry(item)
	if err != nil {
		return err
	}
	if unlogged {
		logged, err := r.loggedIndex(ctx, k, e.Name)
		if logged || err != nil {
			return err
		}
	}
	return r.unlinkEntry(ctx, k.ObjectID, e)
}

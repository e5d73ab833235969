package logtree

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

var le = binary.LittleEndian

// Input is a subvolume and its log.
type Input struct {
	Tree btree.Tree // the subvolume at the last commit, without an overlay
	Log  btree.Tree // from btree.Reader.Log

	Generation uint64 // of the superblock; the log is of the next one
	SectorSize uint32 // bytes
	NodeSize   uint32 // bytes
	CsumSize   int    // bytes of a data checksum
	NoHoles    bool   // the feature NO_HOLES: a gap between extents is a hole
	MaxBytes   int64  // that the changes to the subvolume may take, and the checksums as much again
}

// Result is what the replay changes.
type Result struct {
	Overlay *btree.Overlay // over the subvolume's tree; nil: nothing
	Csums   []Csums        // for the checksum tree, see OverlayCsums
	Bytes   int64          // of memory that both take, roughly
}

// replay is the state of one.
type replay struct {
	Input
	edit *btree.Edit
	// fix holds the inodes whose links may have changed: the kernel's fixup directory.
	fix       map[uint64]struct{}
	csums     []Csums
	csumBytes int64
}

// Replay gives what the kernel's btrfs_recover_log_trees would change in one subvolume. Errors:
// ondisk.ErrCorrupt for a log that does not fit the subvolume, *btree.BlockError, *btree.TooLargeError.
func Replay(ctx context.Context, in Input) (*Result, error) {
	r := &replay{Input: in, edit: btree.NewEdit(in.Tree, in.MaxBytes), fix: make(map[uint64]struct{})}
	for _, stage := range []stage{r.replayInode, r.replayDirIndex, r.replayRest} {
		if err := r.walk(ctx, stage); err != nil {
			return nil, err
		}
	}
	if err := r.fixLinkCounts(ctx); err != nil {
		return nil, err
	}
	o := r.edit.Overlay()
	return &Result{Overlay: o, Csums: r.csums, Bytes: o.Bytes() + r.csumBytes}, nil
}

// stage replays an item of the log, if it is one of its kind.
type stage func(ctx context.Context, k ondisk.Key, item []byte) error

// walk gives a stage every item of the log in key order. An inode without links was unlinked, or never had
// a name: none of its items is replayed.
func (r *replay) walk(ctx context.Context, s stage) error {
	unlinked := false
	return r.Log.All(ctx, ondisk.Key{}, func(k ondisk.Key, item []byte) (bool, error) {
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		if k.Type == ondisk.TypeInodeItem {
			n, err := ondisk.DecodeInodeItem(item)
			if err != nil {
				return false, err
			}
			unlinked = n.NLink == 0
		}
		if unlinked {
			return true, nil
		}
		if err := s(ctx, k, item); err != nil {
			return false, fmt.Errorf("log item %s: %w", k, err)
		}
		return true, nil
	})
}

// replayRest is the last stage: names and extents of inodes.
func (r *replay) replayRest(ctx context.Context, k ondisk.Key, item []byte) error {
	switch k.Type {
	case ondisk.TypeInodeRef, ondisk.TypeInodeExtref:
		return r.replayRefs(ctx, k, item)
	case ondisk.TypeExtentData:
		return r.replayExtent(ctx, k, item)
	}
	return nil
}

// inode reads an inode as it is by now; false when there is none.
func (r *replay) inode(ctx context.Context, ino uint64) (ondisk.InodeItem, bool, error) {
	item, ok, err := r.edit.Find(ctx, inodeKey(ino))
	if !ok || err != nil {
		return ondisk.InodeItem{}, false, err
	}
	n, err := ondisk.DecodeInodeItem(item)
	return n, err == nil, err
}

func inodeKey(ino uint64) ondisk.Key { return ondisk.Key{ObjectID: ino, Type: ondisk.TypeInodeItem} }

// Fields of struct btrfs_inode_item: generation u64 @0, size u64 @16, nbytes u64 @24, nlink u32 @40.
func setGeneration(item []byte, v uint64) { le.PutUint64(item, v) }
func setSize(item []byte, v uint64)       { le.PutUint64(item[16:], v) }
func setNBytes(item []byte, v uint64)     { le.PutUint64(item[24:], v) }
func setNLink(item []byte, v uint32)      { le.PutUint32(item[40:], v) }

// changeInode lets f change a copy of an inode's item, which must exist.
func (r *replay) changeInode(ctx context.Context, ino uint64, f func(n ondisk.InodeItem, item []byte)) error {
	old, ok, err := r.edit.Find(ctx, inodeKey(ino))
	if err != nil {
		return err
	}
	if !ok {
		return corrupt("inode %d does not exist", ino)
	}
	n, err := ondisk.DecodeInodeItem(old)
	if err != nil {
		return err
	}
	item := bytes.Clone(old)
	f(n, item)
	if bytes.Equal(item, old) {
		return nil
	}
	return r.edit.Put(inodeKey(ino), item)
}

// fixLinkCounts counts the names of every inode whose names may have changed. A directory without a name
// is empty: what was in it loses a name in turn.
func (r *replay) fixLinkCounts(ctx context.Context) error {
	for len(r.fix) > 0 {
		inodes := slices.Sorted(maps.Keys(r.fix))
		clear(r.fix)
		for _, ino := range inodes {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := r.fixLinkCount(ctx, ino); err != nil {
				return fmt.Errorf("links of inode %d: %w", ino, err)
			}
		}
	}
	return nil
}

func (r *replay) fixLinkCount(ctx context.Context, ino uint64) error {
	links, err := r.countRefs(ctx, ino)
	if err != nil {
		return err
	}
	if links == 0 && ino == ondisk.FirstFree {
		return nil // the top directory needs no name
	}
	dir := false
	if err := r.changeInode(ctx, ino, func(n ondisk.InodeItem, item []byte) {
		dir = isDir(n.Mode)
		setNLink(item, links)
	}); err != nil {
		return err
	}
	if links > 0 || !dir {
		return nil
	}
	return r.unlinkRange(ctx, ino, 0, ^uint64(0), false)
}

func corrupt(format string, args ...any) error {
	return &ondisk.Error{Item: "log tree", Detail: fmt.Sprintf(format, args...)}
}

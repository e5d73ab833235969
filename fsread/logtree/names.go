package logtree

import (
	"bytes"
	"context"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// A name stands in three places: in the DIR_ITEM of its hash, in the DIR_INDEX of its index, and in an
// INODE_REF or INODE_EXTREF of the inode that it leads to. link and unlink change all three together.

// soleEntry decodes a DIR_INDEX item, which holds one name.
func soleEntry(item []byte) (ondisk.DirEntry, error) {
	e, rest, err := ondisk.NextDirEntry(item)
	if err == nil && len(rest) > 0 {
		err = corrupt("a directory index with more than one name")
	}
	return e, err
}

func dirItemKey(dir uint64, name []byte) ondisk.Key {
	return ondisk.Key{ObjectID: dir, Type: ondisk.TypeDirItem, Offset: ondisk.NameHash(name)}
}

func dirIndexKey(dir, index uint64) ondisk.Key {
	return ondisk.Key{ObjectID: dir, Type: ondisk.TypeDirIndex, Offset: index}
}

// loggedIndex says whether the log has that name at that index of a directory.
func (r *replay) loggedIndex(ctx context.Context, k ondisk.Key, name []byte) (bool, error) {
	var c btree.Cursor
	ok, err := c.Find(ctx, r.Log, k)
	if !ok || err != nil {
		return false, err
	}
	e, err := soleEntry(c.Item())
	return err == nil && bytes.Equal(e.Name, name), err
}

// lookup finds a name by its hash; nil when it is not there.
func (r *replay) lookup(ctx context.Context, dir uint64, name []byte) (*ondisk.DirEntry, error) {
	item, ok, err := r.edit.Find(ctx, dirItemKey(dir, name))
	if !ok || err != nil {
		return nil, err
	}
	for len(item) > 0 {
		var e ondisk.DirEntry
		if e, item, err = ondisk.NextDirEntry(item); err != nil {
			return nil, err
		}
		if bytes.Equal(e.Name, name) {
			return &e, nil
		}
	}
	return nil, nil
}

// lookupIndex finds a name by its index; nil when another one is there, or none.
func (r *replay) lookupIndex(ctx context.Context, dir, index uint64, name []byte) (*ondisk.DirEntry, error) {
	item, ok, err := r.edit.Find(ctx, dirIndexKey(dir, index))
	if !ok || err != nil {
		return nil, err
	}
	e, err := soleEntry(item)
	if err != nil || !bytes.Equal(e.Name, name) {
		return nil, err
	}
	return &e, nil
}

// replayDirIndex is the second stage: names that directories gained.
func (r *replay) replayDirIndex(ctx context.Context, k ondisk.Key, item []byte) error {
	if k.Type != ondisk.TypeDirIndex {
		return nil
	}
	e, err := soleEntry(item)
	if err != nil {
		return err
	}
	if e.Location.Type != ondisk.TypeInodeItem {
		return nil // a subvolume: its making, renaming and deleting are committed, never logged
	}
	dir, ino := k.ObjectID, e.Location.ObjectID
	_, exists, err := r.inode(ctx, ino)
	if err != nil {
		return err
	}
	byName, err := r.lookup(ctx, dir, e.Name)
	if err != nil {
		return err
	}
	named, err := r.settle(ctx, dir, byName, &e, exists)
	if err != nil {
		return err
	}
	byIndex, err := r.lookupIndex(ctx, dir, k.Offset, e.Name)
	if err != nil {
		return err
	}
	indexed, err := r.settle(ctx, dir, byIndex, &e, exists)
	if err != nil || named && indexed {
		return err
	}
	// A name that the log has among the inode's references is made with those, in the last stage.
	if logged, err := r.loggedRef(ctx, ino, dir, e.Name); logged || err != nil {
		return err
	}
	// One whose inode was not logged is left out, and one that stands at another index stays there.
	if !exists || named {
		return nil
	}
	if e.Type != ondisk.FileTypeDir {
		r.fix[ino] = struct{}{}
	}
	return r.linkNew(ctx, dir, ino, k.Offset, e.Name)
}

// settle compares the entry that the directory has with the log's. One that leads elsewhere makes room for
// it, unless the log's leads nowhere.
func (r *replay) settle(ctx context.Context, dir uint64, have, logged *ondisk.DirEntry, exists bool) (same bool, err error) {
	if have == nil {
		return false, nil
	}
	if have.Location == logged.Location && have.Type == logged.Type {
		return true, nil
	}
	if !exists {
		return false, nil
	}
	return false, r.unlinkEntry(ctx, dir, *have)
}

// unlinkEntry takes away a name as a directory has it.
func (r *replay) unlinkEntry(ctx context.Context, dir uint64, e ondisk.DirEntry) error {
	if e.Location.Type != ondisk.TypeInodeItem {
		return corrupt("name %q in directory %d is a subvolume's and would be removed", e.Name, dir)
	}
	return r.unlink(ctx, dir, e.Location.ObjectID, bytes.Clone(e.Name))
}

// unlink takes a name of an inode away. It must be there, in all three places.
func (r *replay) unlink(ctx context.Context, dir, ino uint64, name []byte) error {
	if err := r.removeDirItem(ctx, dir, ino, name); err != nil {
		return err
	}
	index, err := r.removeRef(ctx, dir, ino, name)
	if err != nil {
		return err
	}
	e, err := r.lookupIndex(ctx, dir, index, name)
	if err != nil {
		return err
	}
	if e == nil || e.Location != inodeKey(ino) {
		return corrupt("name %q in directory %d is not at index %d", name, dir, index)
	}
	k := dirIndexKey(dir, index)
	if err := r.edit.Delete(k, k); err != nil {
		return err
	}
	r.fix[ino] = struct{}{}
	return r.resizeDir(ctx, dir, func(size uint64) uint64 { return size - min(size, 2*uint64(len(name))) })
}

// removeDirItem takes a name, which must lead to ino, out of the DIR_ITEM of its hash.
func (r *replay) removeDirItem(ctx context.Context, dir, ino uint64, name []byte) error {
	k := dirItemKey(dir, name)
	item, ok, err := r.edit.Find(ctx, k)
	if err != nil {
		return err
	}
	for rest := item; ok && len(rest) > 0; {
		at := len(item) - len(rest)
		var e ondisk.DirEntry
		if e, rest, err = ondisk.NextDirEntry(rest); err != nil {
			return err
		}
		if !bytes.Equal(e.Name, name) {
			continue
		}
		if e.Location != inodeKey(ino) {
			return corrupt("name %q in directory %d leads to %s, not to inode %d", name, dir, e.Location, ino)
		}
		return r.cut(k, item, at, len(item)-len(rest))
	}
	return corrupt("name %q is not in directory %d", name, dir)
}

// cut takes bytes [from, to) out of an item, and with its last ones the item.
func (r *replay) cut(k ondisk.Key, item []byte, from, to int) error {
	if from == 0 && to == len(item) {
		return r.edit.Delete(k, k)
	}
	return r.edit.Put(k, append(bytes.Clone(item[:from]), item[to:]...))
}

// linkNew makes a name and the inode's reference to it.
func (r *replay) linkNew(ctx context.Context, dir, ino, index uint64, name []byte) error {
	if has, err := r.hasRef(ctx, dir, ino, name); has || err != nil {
		return err // the kernel's EEXIST, which its replay passes over
	}
	if err := r.addRef(ctx, dir, ino, index, name); err != nil {
		return err
	}
	return r.link(ctx, dir, ino, index, name)
}

// link makes a name in a directory that has none like it. The inode's reference is made elsewhere.
func (r *replay) link(ctx context.Context, dir, ino, index uint64, name []byte) error {
	n, ok, err := r.inode(ctx, ino)
	if err != nil {
		return err
	}
	if !ok {
		return corrupt("name %q in directory %d leads to inode %d, which does not exist", name, dir, ino)
	}
	entry := encodeEntry(ino, r.Generation+1, fileType(n.Mode), name)
	k := dirItemKey(dir, name)
	item, _, err := r.edit.Find(ctx, k)
	if err != nil {
		return err
	}
	if item = append(bytes.Clone(item), entry...); len(item) > r.maxItem() {
		return corrupt("directory %d has too many names of hash %d", dir, k.Offset)
	}
	if err := r.edit.Put(k, item); err != nil {
		return err
	}
	k = dirIndexKey(dir, index)
	if _, taken, err := r.edit.Find(ctx, k); err != nil || taken {
		if err == nil {
			err = corrupt("name %q in directory %d: index %d is another one's", name, dir, index)
		}
		return err
	}
	if err := r.edit.Put(k, entry); err != nil {
		return err
	}
	return r.resizeDir(ctx, dir, func(size uint64) uint64 { return size + 2*uint64(len(name)) })
}

// resizeDir follows the sum of names that a directory's size is.
func (r *replay) resizeDir(ctx context.Context, dir uint64, f func(uint64) uint64) error {
	is := false
	if err := r.changeInode(ctx, dir, func(n ondisk.InodeItem, item []byte) {
		if is = isDir(n.Mode); is {
			setSize(item, f(n.Size))
		}
	}); err != nil {
		return err
	}
	if !is {
		return corrupt("inode %d has names and is no directory", dir)
	}
	return nil
}

// maxItem is the most that an item in a leaf may have, in bytes: the leaf without its header and the item's.
func (r *replay) maxItem() int { return int(r.NodeSize) - 101 - 25 }

// encodeEntry makes a directory entry that leads to an inode.
//
// struct btrfs_dir_item, 30 bytes: location {objectid u64 @0, type u8 @8, offset u64 @9}, transid u64 @17,
// data_len u16 @25, name_len u16 @27, type u8 @29, then the name.
func encodeEntry(ino, transID uint64, typ uint8, name []byte) []byte {
	b := make([]byte, 30, 30+len(name))
	le.PutUint64(b, ino)
	b[8] = ondisk.TypeInodeItem
	le.PutUint64(b[17:], transID)
	le.PutUint16(b[27:], uint16(len(name)))
	b[29] = typ
	return append(b, name...)
}

// fileType is what a directory entry says of an inode of that mode (fs_umode_to_ftype).
func fileType(mode uint32) uint8 {
	switch mode & modeType {
	case modeRegular:
		return ondisk.FileTypeRegular
	case modeDir:
		return ondisk.FileTypeDir
	case 0o020000:
		return ondisk.FileTypeCharDev
	case 0o060000:
		return ondisk.FileTypeBlockDev
	case 0o010000:
		return ondisk.FileTypeFIFO
	case 0o140000:
		return ondisk.FileTypeSocket
	case 0o120000:
		return ondisk.FileTypeSymlink
	}
	return ondisk.FileTypeUnknown
}

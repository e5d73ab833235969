package logtree

import (
	"bytes"
	"context"
	"hash/crc32"
	"math"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// ref is one name of an inode, from an INODE_REF or INODE_EXTREF item.
type ref struct {
	parent, index uint64
	name          []byte // aliases the item
	from, to      int    // its bytes in the item
}

// refs decodes an item of either type. A name is 1 to 255 bytes.
func refs(k ondisk.Key, item []byte) ([]ref, error) {
	var out []ref
	for rest := item; len(rest) > 0; {
		n := ref{parent: k.Offset, from: len(item) - len(rest)}
		if k.Type == ondisk.TypeInodeExtref {
			var x ondisk.InodeExtref
			var err error
			if x, rest, err = ondisk.NextInodeExtref(rest); err != nil {
				return nil, err
			}
			n.parent, n.index, n.name = x.Parent, x.Index, x.Name
		} else {
			var x ondisk.InodeRef
			var err error
			if x, rest, err = ondisk.NextInodeRef(rest); err != nil {
				return nil, err
			}
			n.index, n.name = x.Index, x.Name
		}
		if len(n.name) == 0 || len(n.name) > math.MaxUint8 {
			return nil, corrupt("%s has a name of %d bytes", k, len(n.name))
		}
		n.to = len(item) - len(rest)
		out = append(out, n)
	}
	return out, nil
}

// find gives the first ref of that parent and name; nil when there is none.
func find(list []ref, parent uint64, name []byte) *ref {
	for i := range list {
		if list[i].parent == parent && bytes.Equal(list[i].name, name) {
			return &list[i]
		}
	}
	return nil
}

func refKey(ino, parent uint64) ondisk.Key {
	return ondisk.Key{ObjectID: ino, Type: ondisk.TypeInodeRef, Offset: parent}
}

// extrefKey has the hash of parent and name as its offset (btrfs_extref_hash): the register of crc32c,
// started at the parent's number and not inverted at the end.
func extrefKey(ino, parent uint64, name []byte) ondisk.Key {
	hash := ^crc32.Update(^uint32(parent), crc32.MakeTable(crc32.Castagnoli), name)
	return ondisk.Key{ObjectID: ino, Type: ondisk.TypeInodeExtref, Offset: uint64(hash)}
}

// refsAt gives the refs of an item as it is by now.
func (r *replay) refsAt(ctx context.Context, k ondisk.Key) ([]byte, []ref, error) {
	item, ok, err := r.edit.Find(ctx, k)
	if !ok || err != nil {
		return nil, nil, err
	}
	list, err := refs(k, item)
	return item, list, err
}

// inLog says whether an item of the log has a name.
func (r *replay) inLog(ctx context.Context, k ondisk.Key, parent uint64, name []byte) (bool, error) {
	var c btree.Cursor
	ok, err := c.Find(ctx, r.Log, k)
	if !ok || err != nil {
		return false, err
	}
	list, err := refs(k, c.Item())
	return find(list, parent, name) != nil, err
}

// loggedRef says whether the log has a name among the references of its inode.
func (r *replay) loggedRef(ctx context.Context, ino, parent uint64, name []byte) (bool, error) {
	if ok, err := r.inLog(ctx, refKey(ino, parent), parent, name); ok || err != nil {
		return ok, err
	}
	return r.inLog(ctx, extrefKey(ino, parent, name), parent, name)
}

// replayRefs makes the names of one INODE_REF or INODE_EXTREF item, and takes away those that the inode
// has in that item's place and the log does not. A directory that was not logged has no names to make.
func (r *replay) replayRefs(ctx context.Context, k ondisk.Key, item []byte) error {
	logged, err := refs(k, item)
	if err != nil || len(logged) == 0 {
		return err
	}
	ino := k.ObjectID
	if logged[0].parent == ino {
		return nil // the top directory's name for itself
	}
	if _, ok, err := r.inode(ctx, ino); !ok || err != nil {
		if err == nil {
			err = corrupt("inode %d does not exist", ino)
		}
		return err
	}
	for i, n := range logged {
		_, ok, err := r.inode(ctx, n.parent)
		if err != nil {
			return err
		}
		if !ok && i == 0 {
			return nil
		}
		if !ok {
			continue
		}
		if err := r.replayRef(ctx, ino, n); err != nil {
			return err
		}
	}
	if err := r.unlinkOld(ctx, k, logged); err != nil {
		return err
	}
	return r.edit.Put(k, item)
}

// replayRef makes one name, unless it is there already.
func (r *replay) replayRef(ctx context.Context, ino uint64, n ref) error {
	byIndex, err := r.lookupIndex(ctx, n.parent, n.index, n.name)
	if err != nil {
		return err
	}
	byName, err := r.lookup(ctx, n.parent, n.name)
	if err != nil {
		return err
	}
	leads := func(e *ondisk.DirEntry) bool { return e != nil && e.Location.ObjectID == ino }
	if leads(byIndex) && leads(byName) {
		return nil
	}
	if err := r.makeRoom(ctx, ino, n); err != nil {
		return err
	}
	return r.link(ctx, n.parent, ino, n.index, n.name)
}

// makeRoom takes away what is in a name's way: names of the same inode in that directory which the log does
// not have, then who has the name or stands at its index. Every one is removed as it is by now, so that a
// name which another inode has taken over since stays.
func (r *replay) makeRoom(ctx context.Context, ino uint64, n ref) error {
	if err := r.unlinkUnlogged(ctx, refKey(ino, n.parent), n.parent); err != nil {
		return err
	}
	if err := r.unlinkUnlogged(ctx, extrefKey(ino, n.parent, n.name), n.parent); err != nil {
		return err
	}
	e, err := r.lookupIndex(ctx, n.parent, n.index, n.name)
	if err != nil {
		return err
	}
	if e != nil {
		if err := r.unlinkEntry(ctx, n.parent, *e); err != nil {
			return err
		}
	}
	if e, err = r.lookup(ctx, n.parent, n.name); e == nil || err != nil {
		return err
	}
	return r.unlinkEntry(ctx, n.parent, *e)
}

// unlinkUnlogged takes away the names in an item of the inode that lie in parent and that the log's item
// of the same key does not have.
func (r *replay) unlinkUnlogged(ctx context.Context, k ondisk.Key, parent uint64) error {
	_, list, err := r.refsAt(ctx, k)
	if err != nil {
		return err
	}
	for _, n := range list {
		if n.parent != parent {
			continue
		}
		logged, err := r.inLog(ctx, k, parent, n.name)
		if err != nil {
			return err
		}
		if logged {
			continue
		}
		if err := r.unlink(ctx, parent, k.ObjectID, n.name); err != nil {
			return err
		}
	}
	return nil
}

// unlinkOld takes away the names of an item that is about to be replaced by one without them.
func (r *replay) unlinkOld(ctx context.Context, k ondisk.Key, logged []ref) error {
	_, list, err := r.refsAt(ctx, k)
	if err != nil {
		return err
	}
	for _, n := range list {
		if find(logged, n.parent, n.name) != nil {
			continue
		}
		if err := r.unlink(ctx, n.parent, k.ObjectID, n.name); err != nil {
			return err
		}
	}
	return nil
}

// hasRef says whether an inode has a name.
func (r *replay) hasRef(ctx context.Context, parent, ino uint64, name []byte) (bool, error) {
	for _, k := range []ondisk.Key{refKey(ino, parent), extrefKey(ino, parent, name)} {
		_, list, err := r.refsAt(ctx, k)
		if err != nil || find(list, parent, name) != nil {
			return err == nil, err
		}
	}
	return false, nil
}

// removeRef takes a name out of an inode's references and gives the index that it had.
func (r *replay) removeRef(ctx context.Context, parent, ino uint64, name []byte) (uint64, error) {
	for _, k := range []ondisk.Key{refKey(ino, parent), extrefKey(ino, parent, name)} {
		item, list, err := r.refsAt(ctx, k)
		if err != nil {
			return 0, err
		}
		if n := find(list, parent, name); n != nil {
			return n.index, r.cut(k, item, n.from, n.to)
		}
	}
	return 0, corrupt("inode %d does not know of its name %q in directory %d", ino, name, parent)
}

// addRef adds a name to an inode's references: an INODE_REF, or once that is full an INODE_EXTREF.
//
// struct btrfs_inode_ref, 10 bytes: index u64 @0, name_len u16 @8, then the name. struct btrfs_inode_extref,
// 18 bytes: parent u64 @0, index u64 @8, name_len u16 @16, then the name.
func (r *replay) addRef(ctx context.Context, parent, ino, index uint64, name []byte) error {
	k := refKey(ino, parent)
	item, _, err := r.edit.Find(ctx, k)
	if err != nil {
		return err
	}
	var head []byte
	if len(item)+10+len(name) > r.maxItem() {
		k = extrefKey(ino, parent, name)
		if item, _, err = r.edit.Find(ctx, k); err != nil {
			return err
		}
		if len(item)+18+len(name) > r.maxItem() {
			return corrupt("inode %d has too many names of one hash", ino)
		}
		head = le.AppendUint64(nil, parent)
	}
	item = append(bytes.Clone(item), head...)
	item = le.AppendUint64(item, index)
	item = le.AppendUint16(item, uint16(len(name)))
	return r.edit.Put(k, append(item, name...))
}

// countRefs counts the names of an inode.
func (r *replay) countRefs(ctx context.Context, ino uint64) (uint32, error) {
	n := uint32(0)
	for next := (ondisk.Key{ObjectID: ino, Type: ondisk.TypeInodeRef}); ; {
		k, item, ok, err := r.edit.From(ctx, next)
		if err != nil {
			return 0, err
		}
		if !ok || k.ObjectID != ino || k.Type > ondisk.TypeInodeExtref {
			return n, nil
		}
		list, err := refs(k, item)
		if err != nil {
			return 0, err
		}
		if n += uint32(len(list)); k.Offset == math.MaxUint64 {
			k.Type++
			k.Offset = 0
		} else {
			k.Offset++
		}
		next = k
	}
}

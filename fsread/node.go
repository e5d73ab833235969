package fsread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// emptyInode is the number of the empty directory that the kernel shows where a snapshot has the
// entry of a subvolume that lay in its origin (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID).
const emptyInode = 2

// maxLinks is how many symbolic links the kernel follows in one path (MAXSYMLINKS).
const maxLinks = 40

// maxLinkTarget bounds a symbolic link's target: PATH_MAX.
const maxLinkTarget = 4096

// Node is an inode found by path.
type Node struct {
	sv    *Subvolume
	ino   uint64
	item  ondisk.InodeItem
	ghost bool // the empty directory
}

// Inode is the inode's number in its subvolume.
func (n *Node) Inode() uint64 { return n.ino }

// Subvolume is the one that the inode lies in.
func (n *Node) Subvolume() *Subvolume { return n.sv }

// Item is the inode as stored: size, owner, times, flags.
func (n *Node) Item() ondisk.InodeItem { return n.item }

// Mode is the inode's type and permissions as Go has them.
func (n *Node) Mode() fs.FileMode { return fileMode(n.item.Mode) }

// IsDir says whether it is a directory.
func (n *Node) IsDir() bool { return n.item.Mode&modeType == modeDir }

// The file type bits of st_mode.
const (
	modeType    = 0o170000
	modeFIFO    = 0o010000
	modeCharDev = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeSocket  = 0o140000
	modeSetUID  = 0o4000
	modeSetGID  = 0o2000
	modeSticky  = 0o1000
)

func fileMode(m uint32) fs.FileMode {
	out := fs.FileMode(m & 0o777)
	for _, bit := range []struct {
		st uint32
		fs fs.FileMode
	}{{modeSetUID, fs.ModeSetuid}, {modeSetGID, fs.ModeSetgid}, {modeSticky, fs.ModeSticky}} {
		if m&bit.st != 0 {
			out |= bit.fs
		}
	}
	switch m & modeType {
	case modeFIFO:
		out |= fs.ModeNamedPipe
	case modeCharDev:
		out |= fs.ModeDevice | fs.ModeCharDevice
	case modeDir:
		out |= fs.ModeDir
	case modeBlock:
		out |= fs.ModeDevice
	case modeSymlink:
		out |= fs.ModeSymlink
	case modeSocket:
		out |= fs.ModeSocket
	case modeRegular:
	default:
		out |= fs.ModeIrregular
	}
	return out
}

// Root is the subvolume's top directory.
func (s *Subvolume) Root(ctx context.Context) (*Node, error) { return s.node(ctx, ondisk.FirstFree) }

// node reads an inode.
func (s *Subvolume) node(ctx context.Context, ino uint64) (*Node, error) {
	var c btree.Cursor
	ok, err := c.Find(ctx, s.tree, ondisk.Key{ObjectID: ino, Type: ondisk.TypeInodeItem})
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, &ondisk.Error{Item: "INODE_ITEM", Detail: fmt.Sprintf("subvolume %d inode %d has none", s.id, ino)}
	}
	item, err := ondisk.DecodeInodeItem(c.Item())
	if err != nil {
		return nil, err
	}
	return &Node{sv: s, ino: ino, item: item}, nil
}

// emptyDir is what stands for a subvolume that is not there.
func emptyDir(s *Subvolume) *Node {
	return &Node{sv: s, ino: emptyInode, ghost: true, item: ondisk.InodeItem{Mode: modeDir | 0o755, NLink: 1}}
}

// lookup finds a name in a directory, by its hash; nil when it is not there. Several names may share
// one item, so each is compared.
func lookup(ctx context.Context, t btree.Tree, dir uint64, name []byte) (*ondisk.DirEntry, error) {
	var c btree.Cursor
	ok, err := c.Find(ctx, t, ondisk.Key{ObjectID: dir, Type: ondisk.TypeDirItem, Offset: ondisk.NameHash(name)})
	if !ok || err != nil {
		return nil, err
	}
	for rest := c.Item(); len(rest) > 0; {
		var e ondisk.DirEntry
		e, rest, err = ondisk.NextDirEntry(rest)
		if err != nil && !errors.Is(err, ondisk.ErrUnsupported) {
			return nil, err
		}
		if bytes.Equal(e.Name, name) {
			return &e, err
		}
	}
	return nil, nil
}

// child finds the inode that a name in this directory leads to; nil when there is no such name.
func (n *Node) child(ctx context.Context, name []byte) (*Node, error) {
	if n.ghost {
		return nil, nil
	}
	e, err := lookup(ctx, n.sv.tree, n.ino, name)
	if e == nil || err != nil {
		return nil, err
	}
	return n.follow(ctx, e)
}

// follow goes from a directory entry to its inode: in this subvolume, or the top of another one, when
// that one says that it lies here under this name. A snapshot has copies of such entries that no
// subvolume owns to: the kernel shows an empty directory for them, and never the live subvolume.
func (n *Node) follow(ctx context.Context, e *ondisk.DirEntry) (*Node, error) {
	switch e.Location.Type {
	case ondisk.TypeInodeItem:
		return n.sv.node(ctx, e.Location.ObjectID)
	case ondisk.TypeRootItem:
		owned, err := n.owns(ctx, e)
		if err != nil {
			return nil, err
		}
		if !owned {
			return emptyDir(n.sv), nil
		}
		sub, err := n.sv.fs.SubvolumeByID(ctx, e.Location.ObjectID)
		if err != nil {
			return nil, err
		}
		return sub.Root(ctx)
	}
	return nil, &ondisk.Error{Item: "directory entry", Detail: fmt.Sprintf("%q leads to %s", e.Name, e.Location)}
}

// owns looks for the ROOT_REF that makes an entry a subvolume's place.
func (n *Node) owns(ctx context.Context, e *ondisk.DirEntry) (bool, error) {
	var c btree.Cursor
	ok, err := c.Find(ctx, n.sv.fs.roots, ondisk.Key{ObjectID: n.sv.id, Type: ondisk.TypeRootRef, Offset: e.Location.ObjectID})
	if !ok || err != nil {
		return false, err
	}
	ref, err := ondisk.DecodeRootRef(c.Item())
	return err == nil && ref.DirID == n.ino && bytes.Equal(ref.Name, e.Name), err
}

// Entry is one name in a directory.
type Entry struct {
	Name string      // bytes as stored; no encoding is promised
	Type fs.FileMode // type bits alone, as the entry has them
	e    ondisk.DirEntry
	dir  *Node
}

// Node goes to the entry's inode.
func (e *Entry) Node(ctx context.Context) (*Node, error) { return e.dir.follow(ctx, &e.e) }

// ReadDir calls f for every entry in the order of their making, without "." and "..". A name that
// no path could hold ("..", one with a slash or NUL), or that fscrypt has encrypted, is refused by
// ondisk.ErrCorrupt or ondisk.ErrUnsupported, after the others were given.
func (n *Node) ReadDir(ctx context.Context, f func(Entry) error) error {
	if !n.IsDir() {
		return ErrNotDir
	}
	if n.ghost {
		return nil
	}
	var refused error
	err := n.sv.tree.All(ctx, ondisk.Key{ObjectID: n.ino, Type: ondisk.TypeDirIndex}, func(k ondisk.Key, item []byte) (bool, error) {
		if k.ObjectID != n.ino || k.Type != ondisk.TypeDirIndex {
			return false, nil
		}
		e, _, err := ondisk.NextDirEntry(item)
		if errors.Is(err, ondisk.ErrUnsupported) {
			refused = err
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if !usableName(e.Name) {
			refused = &ondisk.Error{Item: "directory entry", Detail: fmt.Sprintf("name %q in directory %d", e.Name, n.ino)}
			return true, nil
		}
		return true, f(Entry{Name: string(e.Name), Type: entryType(e.Type), e: e, dir: n})
	})
	if err != nil {
		return err
	}
	return refused
}

func usableName(name []byte) bool {
	return len(name) > 0 && bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0 &&
		string(name) != "." && string(name) != ".."
}

func entryType(t uint8) fs.FileMode {
	switch t {
	case ondisk.FileTypeDir:
		return fs.ModeDir
	case ondisk.FileTypeSymlink:
		return fs.ModeSymlink
	case ondisk.FileTypeCharDev:
		return fs.ModeDevice | fs.ModeCharDevice
	case ondisk.FileTypeBlockDev:
		return fs.ModeDevice
	case ondisk.FileTypeFIFO:
		return fs.ModeNamedPipe
	case ondisk.FileTypeSocket:
		return fs.ModeSocket
	case ondisk.FileTypeRegular:
		return 0
	}
	return fs.ModeIrregular
}

// Readlink gives a symbolic link's target: an inline extent, cut to the inode's size, since some
// versions of mkfs stored a NUL behind it.
func (n *Node) Readlink(ctx context.Context) (string, error) {
	if n.item.Mode&modeType != modeSymlink {
		return "", &ondisk.Error{Item: "symbolic link", Detail: fmt.Sprintf("inode %d is none", n.ino)}
	}
	var c btree.Cursor
	ok, err := c.Find(ctx, n.sv.tree, ondisk.Key{ObjectID: n.ino, Type: ondisk.TypeExtentData})
	if err != nil {
		return "", err
	}
	if !ok || n.item.Size == 0 || n.item.Size > maxLinkTarget {
		return "", &ondisk.Error{Item: "symbolic link", Detail: fmt.Sprintf("inode %d of %d bytes has no target", n.ino, n.item.Size)}
	}
	x, err := ondisk.DecodeFileExtent(c.Item(), 0, n.sv.fs.super.SectorSize)
	if err != nil {
		return "", err
	}
	if x.Type != ondisk.ExtentInline || x.Compression != ondisk.CompressNone || uint64(len(x.Inline)) < n.item.Size {
		return "", &ondisk.Error{Item: "symbolic link", Detail: fmt.Sprintf("inode %d has a target of %d bytes, not %d", n.ino, len(x.Inline), n.item.Size)}
	}
	target := x.Inline[:n.item.Size]
	if bytes.IndexByte(target, 0) >= 0 {
		return "", &ondisk.Error{Item: "symbolic link", Detail: fmt.Sprintf("inode %d has a NUL in its target", n.ino)}
	}
	return string(target), nil
}

package logtree

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	top    = ondisk.FirstFree // inode of the top directory
	sector = 4096
	subvol = 300
	gen    = 7 // of the superblock
)

// items are what a tree is made of. Each method adds some and gives the receiver.
type items map[ondisk.Key][]byte

func (m items) put(ino uint64, typ uint8, off uint64, data []byte) items {
	k := ondisk.Key{ObjectID: ino, Type: typ, Offset: off}
	m[k] = append(m[k], data...)
	return m
}

func (m items) inode(ino uint64, mode uint32, size uint64, nlink uint32, generation uint64) items {
	return m.put(ino, ondisk.TypeInodeItem, 0, ondisktest.InodeItem(ondisk.InodeItem{Generation: generation, Size: size, NLink: nlink, Mode: mode}))
}

func (m items) dir(ino, size uint64) items  { return m.inode(ino, modeDir|0o755, size, 1, gen) }
func (m items) file(ino, size uint64) items { return m.inode(ino, modeRegular|0o644, size, 1, gen) }

// index is a name in a directory's DIR_INDEX alone, as logs have them.
func (m items) index(dir, index uint64, name string, ino uint64) items {
	return m.put(dir, ondisk.TypeDirIndex, index, entry(name, ino))
}

func entry(name string, ino uint64) []byte {
	typ := ondisk.FileTypeRegular
	if strings.HasPrefix(name, "dir") {
		typ = ondisk.FileTypeDir
	}
	return ondisktest.DirEntries(ondisk.DirEntry{Location: inodeKey(ino), TransID: gen, Type: typ, Name: []byte(name)})
}

// ref is a name among an inode's references alone, as logs have them.
func (m items) ref(dir, index uint64, name string, ino uint64) items {
	return m.put(ino, ondisk.TypeInodeRef, dir, ondisktest.InodeRefs(ondisk.InodeRef{Index: index, Name: []byte(name)}))
}

func (m items) extref(dir, index uint64, name string, ino uint64) items {
	k := extrefKey(ino, dir, []byte(name))
	return m.put(ino, k.Type, k.Offset, ondisktest.InodeExtrefs(ondisk.InodeExtref{Parent: dir, Index: index, Name: []byte(name)}))
}

// name is a name in all three places, as subvolumes have them.
func (m items) name(dir, index uint64, name string, ino uint64) items {
	return m.index(dir, index, name, ino).ref(dir, index, name, ino).put(dir, ondisk.TypeDirItem, ondisk.NameHash([]byte(name)), entry(name, ino))
}

// dirLog says that the log has every name of the directory from first to last.
func (m items) dirLog(dir, first, last uint64) items {
	return m.put(dir, ondisk.TypeDirLogIndex, first, le.AppendUint64(nil, last))
}

func (m items) extent(ino, off uint64, at ondisk.Logical, disk, offset, n uint64) items {
	return m.put(ino, ondisk.TypeExtentData, off, ondisktest.FileExtent(ondisk.FileExtent{Generation: gen, Type: ondisk.ExtentRegular,
		DiskBytenr: at, DiskNumBytes: disk, Offset: offset, NumBytes: n, RAMBytes: disk}))
}

func (m items) inline(ino uint64, text string) items {
	return m.put(ino, ondisk.TypeExtentData, 0, ondisktest.FileExtent(ondisk.FileExtent{Generation: gen, Inline: []byte(text), RAMBytes: uint64(len(text))}))
}

func (m items) csum(at uint64, sums string) items {
	return m.put(ondisk.CsumObjectID, ondisk.TypeExtentCsum, at, []byte(sums))
}

// disk is a filesystem of one device in memory.
type disk struct {
	t      testing.TB
	bytes  []byte
	next   ondisk.Logical
	sb     *ondisk.Superblock
	reader *btree.Reader
}

func newDisk(t testing.TB) *disk {
	sb := ondisktest.NewSuperblock()
	sb.NodeSize = 4096
	d := &disk{t: t, bytes: make([]byte, 9<<20), next: 1 << 20, sb: sb}
	copy(d.bytes[64<<10:], ondisktest.Super(sb))
	pool := devio.NewPool(1 << 20)
	dev := faultdev.New(faultdev.Mem("disk", d.bytes))
	t.Cleanup(func() { dev.Close(); pool.Close() })
	set, err := volume.Scan(context.Background(), pool, []volume.Device{dev}, false)
	if err != nil {
		t.Fatal(err)
	}
	v, err := set.Bootstrap(pool, volume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.reader = btree.NewReader(v, 4<<20)
	return d
}

// tree writes a tree of few items a leaf.
func (d *disk) tree(m items, owner, generation uint64) btree.Pointer {
	const fan = 5
	keys := slices.SortedFunc(maps.Keys(m), ondisk.Key.Compare)
	h := func() ondisktest.Header {
		return ondisktest.Header{Bytenr: d.next, FSID: d.sb.FSID, Generation: generation, Owner: owner, NodeSize: d.sb.NodeSize}
	}
	add := func(b []byte) ondisk.Logical {
		at := d.next
		copy(d.bytes[at:], b)
		d.next += 4096
		return at
	}
	var ptrs []ondisktest.Ptr
	for c := range slices.Chunk(keys, fan) {
		var list []ondisktest.Item
		for _, k := range c {
			list = append(list, ondisktest.Item{Key: k, Data: m[k]})
		}
		ptrs = append(ptrs, ondisktest.Ptr{Key: c[0], Block: add(ondisktest.Leaf(h(), list...)), Generation: generation})
	}
	if len(ptrs) == 0 {
		return btree.Pointer{Logical: add(ondisktest.Leaf(h())), Generation: generation}
	}
	level := uint8(0)
	if len(ptrs) > 1 {
		hd := h()
		hd.Level, level = 1, 1
		ptrs[0].Block = add(ondisktest.Node(hd, ptrs...))
	}
	return btree.Pointer{Logical: ptrs[0].Block, Generation: generation, Level: level}
}

// input writes both trees.
func (d *disk) input(base, log items) Input {
	return Input{
		Tree: d.reader.Subvolume(subvol, d.tree(base, subvol, gen)),
		Log:  d.reader.Log(d.tree(log, ondisk.TreeLog, gen+1)), Generation: gen,
		SectorSize: sector, NodeSize: d.sb.NodeSize, CsumSize: 4, NoHoles: true, MaxBytes: 1 << 20,
	}
}

// view says in words what a tree shows: names, inodes, extents. A name that does not stand in all of its
// three places is told as a fault.
func view(t testing.TB, tree btree.Tree) []string {
	t.Helper()
	m := make(items)
	if err := tree.All(t.Context(), ondisk.Key{}, func(k ondisk.Key, item []byte) (bool, error) {
		m[k] = bytes.Clone(item)
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	places, indexes := make(map[string]int), make(map[string]int)
	for _, k := range slices.SortedFunc(maps.Keys(m), ondisk.Key.Compare) {
		item := m[k]
		switch k.Type {
		case ondisk.TypeInodeItem:
			n, err := ondisk.DecodeInodeItem(item)
			if err != nil {
				t.Fatal(err)
			}
			say("%d: %o size %d links %d", k.ObjectID, n.Mode, n.Size, n.NLink)
		case ondisk.TypeDirIndex, ondisk.TypeDirItem:
			for len(item) > 0 {
				e, rest, err := ondisk.NextDirEntry(item)
				if err != nil {
					t.Fatal(err)
				}
				item = rest
				places[fmt.Sprintf("%d/%s=%d", k.ObjectID, e.Name, e.Location.ObjectID)]++
				if k.Type == ondisk.TypeDirIndex {
					indexes[fmt.Sprintf("%d/%s at %d", k.ObjectID, e.Name, k.Offset)]++
					say("%d/%s=%d", k.ObjectID, e.Name, e.Location.ObjectID)
				}
			}
		case ondisk.TypeInodeRef, ondisk.TypeInodeExtref:
			list, err := refs(k, item)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range list {
				if n.parent == k.ObjectID {
					continue // the top directory
				}
				places[fmt.Sprintf("%d/%s=%d", n.parent, n.name, k.ObjectID)]++
				indexes[fmt.Sprintf("%d/%s at %d", n.parent, n.name, n.index)]++
			}
		case ondisk.TypeExtentData:
			x, err := ondisk.DecodeFileExtent(item, k.Offset, sector)
			if err != nil {
				t.Fatal(err)
			}
			if x.Type == ondisk.ExtentInline {
				say("%d: inline %q", k.ObjectID, x.Inline)
			} else {
				say("%d: [%d,+%d) at %d+%d", k.ObjectID, k.Offset/sector, x.NumBytes/sector, x.DiskBytenr, x.Offset/sector)
			}
		}
	}
	for name, n := range places {
		if n != 3 {
			say("fault: %s stands in %d places", name, n)
		}
	}
	for name, n := range indexes {
		if n != 2 {
			say("fault: %s in %d places", name, n)
		}
	}
	slices.Sort(out)
	return out
}

package fsread

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
)

// builder makes a filesystem of one device by hand, for what mkfs and the kernel would never write. Logical
// addresses are physical ones: a single system chunk holds all of it, which a reader need not mind.
type builder struct {
	t     testing.TB
	sb    *ondisk.Superblock
	disk  []byte
	next  ondisk.Logical
	trees map[uint64][]ondisktest.Item // items by tree id; sorted when built
	fan   int                          // items a leaf
}

const (
	chunkStart = ondisk.Logical(1 << 20)
	dataStart  = ondisk.Logical(8 << 20)
	fileIno    = 257
)

func newBuilder(t testing.TB) *builder {
	sb := ondisktest.NewSuperblock()
	sb.NodeSize = 4096
	b := &builder{t: t, sb: sb, disk: make([]byte, 9<<20), next: chunkStart, trees: map[uint64][]ondisktest.Item{}, fan: 6}
	b.subvolume(ondisk.TreeFS)
	b.put(ondisk.TreeFS, fileIno, ondisk.TypeInodeItem, 0, inode(modeRegular|0o644, 64<<10, 0))
	b.entry(ondisk.TreeFS, 256, "file", ondisk.Key{ObjectID: fileIno, Type: ondisk.TypeInodeItem}, ondisk.FileTypeRegular)
	b.trees[ondisk.TreeCsum] = nil
	return b
}

func inode(mode uint32, size, flags uint64) []byte {
	return ondisktest.InodeItem(ondisk.InodeItem{Generation: 7, TransID: 7, Size: size, NLink: 1, Mode: mode, Flags: flags})
}

// subvolume makes a tree with its top directory.
func (b *builder) subvolume(id uint64) {
	b.put(id, 256, ondisk.TypeInodeItem, 0, inode(modeDir|0o755, 0, 0))
}

func (b *builder) put(tree, objectID uint64, typ uint8, offset uint64, data []byte) {
	b.trees[tree] = append(b.trees[tree], ondisktest.Item{Key: ondisk.Key{ObjectID: objectID, Type: typ, Offset: offset}, Data: data})
}

// replace takes the items of a key out and puts one in.
func (b *builder) replace(tree, objectID uint64, typ uint8, offset uint64, data []byte) {
	k := ondisk.Key{ObjectID: objectID, Type: typ, Offset: offset}
	b.trees[tree] = slices.DeleteFunc(b.trees[tree], func(i ondisktest.Item) bool { return i.Key == k })
	b.put(tree, objectID, typ, offset, data)
}

// entry puts a name into a directory: DIR_ITEM, packed with those of the same hash, and DIR_INDEX.
func (b *builder) entry(tree, dir uint64, name string, to ondisk.Key, typ uint8) {
	e := ondisktest.DirEntries(ondisk.DirEntry{Location: to, TransID: 7, Type: typ, Name: []byte(name)})
	hash := ondisk.NameHash([]byte(name))
	packed := slices.Clone(e)
	for _, i := range b.trees[tree] {
		if i.Key == (ondisk.Key{ObjectID: dir, Type: ondisk.TypeDirItem, Offset: hash}) {
			packed = append(slices.Clone(i.Data), packed...)
		}
	}
	b.replace(tree, dir, ondisk.TypeDirItem, hash, packed)
	b.put(tree, dir, ondisk.TypeDirIndex, uint64(len(b.trees[tree])+2), e)
}

// extent puts an extent of the file.
func (b *builder) extent(off uint64, x ondisk.FileExtent) {
	x.Generation = 7
	if x.Type == ondisk.ExtentInline && x.RAMBytes == 0 {
		x.RAMBytes = uint64(len(x.Inline))
	}
	if x.Type != ondisk.ExtentInline && x.RAMBytes == 0 {
		x.RAMBytes = x.DiskNumBytes
	}
	b.put(ondisk.TreeFS, fileIno, ondisk.TypeExtentData, off, ondisktest.FileExtent(x))
}

// data writes bytes to the disk, with or without their checksums.
func (b *builder) data(at ondisk.Logical, p []byte, sums bool) {
	copy(b.disk[at:], p)
	if sums {
		b.put(ondisk.TreeCsum, ondisk.CsumObjectID, ondisk.TypeExtentCsum, uint64(at), ondisktest.Csums(p, 4096, csum.CRC32C))
	}
}

// tree writes a tree's blocks and gives its root.
func (b *builder) tree(id uint64) (ondisk.Logical, uint8) {
	items := b.trees[id]
	slices.SortFunc(items, func(x, y ondisktest.Item) int { return x.Key.Compare(y.Key) })
	if len(items) == 0 {
		return b.block(id, ondisktest.Leaf(b.header(id, 0))), 0
	}
	var ptrs []ondisktest.Ptr
	for len(items) > 0 {
		n, size := 0, 0
		for n < len(items) && n < b.fan && size+len(items[n].Data)+25 < 3900 {
			size += len(items[n].Data) + 25
			n++
		}
		at := b.block(id, ondisktest.Leaf(b.header(id, 0), items[:n]...))
		ptrs = append(ptrs, ondisktest.Ptr{Key: items[0].Key, Block: at, Generation: b.sb.Generation})
		items = items[n:]
	}
	level := uint8(0)
	for ; len(ptrs) > 1; level++ {
		at := b.block(id, ondisktest.Node(b.header(id, level+1), ptrs...))
		ptrs = []ondisktest.Ptr{{Key: ptrs[0].Key, Block: at, Generation: b.sb.Generation}}
	}
	return ptrs[0].Block, level
}

func (b *builder) header(id uint64, level uint8) ondisktest.Header {
	return ondisktest.Header{FSID: b.sb.FSID, Bytenr: b.next, Generation: b.sb.Generation, Owner: id, Level: level, NodeSize: b.sb.NodeSize}
}

func (b *builder) block(_ uint64, block []byte) ondisk.Logical {
	ondisktest.Seal(block, csum.CRC32C)
	at := b.next
	copy(b.disk[at:], block)
	b.next += ondisk.Logical(b.sb.NodeSize)
	return at
}

// build writes all trees and the superblock.
func (b *builder) build() {
	chunk := ondisk.Chunk{Length: 8 << 20, Owner: ondisk.TreeExtent, StripeLen: ondisk.StripeLen, Type: ondisk.BlockGroupSystem,
		SubStripes: 1, SectorSize: 4096, Stripes: []ondisk.Stripe{{Dev: 1, Physical: 1 << 20, DevUUID: b.sb.Dev.UUID}}}
	b.replace(ondisk.TreeChunk, 1, ondisk.TypeDevItem, 1, ondisktest.DevItem(b.sb.Dev))
	b.replace(ondisk.TreeChunk, ondisk.FirstChunkTreeObjectID, ondisk.TypeChunkItem, uint64(chunkStart), ondisktest.Chunk(chunk))
	for id := range b.trees {
		if id == ondisk.TreeChunk || id == ondisk.TreeRoot {
			continue
		}
		at, level := b.tree(id)
		k := ondisk.Key{ObjectID: id, Type: ondisk.TypeRootItem}
		if !slices.ContainsFunc(b.trees[ondisk.TreeRoot], func(i ondisktest.Item) bool { return i.Key == k }) {
			b.put(ondisk.TreeRoot, id, ondisk.TypeRootItem, 0, b.rootItem(at, level, 1, 0))
		}
	}
	b.sb.Root, b.sb.RootLevel = b.tree(ondisk.TreeRoot)
	b.sb.ChunkRoot, b.sb.ChunkRootLevel = b.tree(ondisk.TreeChunk)
	b.sb.ChunkRootGeneration = b.sb.Generation
	copy(b.disk[64<<10:], ondisktest.Super(b.sb))
}

func (b *builder) rootItem(at ondisk.Logical, level uint8, refs uint32, flags uint64) []byte {
	return ondisktest.RootItem(ondisk.RootItem{Generation: b.sb.Generation, DirID: 256, Bytenr: at, Level: level, Refs: refs, Flags: flags})
}

// open builds and opens the filesystem, for the whole test.
func (b *builder) open() *FS {
	b.t.Helper()
	b.build()
	f, err := openMem(b.t, b.disk)
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

// file opens the one file of the top level.
func (b *builder) file() *File {
	b.t.Helper()
	s, err := b.open().SubvolumeByID(context.Background(), ondisk.TreeFS)
	if err != nil {
		b.t.Fatal(err)
	}
	f, err := s.OpenFile(context.Background(), "/file")
	if err != nil {
		b.t.Fatal(err)
	}
	return f
}

// size sets the file's size and flags.
func (b *builder) size(n, flags uint64) {
	b.replace(ondisk.TreeFS, fileIno, ondisk.TypeInodeItem, 0, inode(modeRegular|0o644, n, flags))
}

// pattern is n bytes that differ from sector to sector.
func pattern(n int, salt byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i>>12)*7 + byte(i)*3 + salt + 1
	}
	return p
}

var zeroes = bytes.Repeat([]byte{0}, 64<<10)

// openMem opens a filesystem that lies in memory.
func openMem(t testing.TB, disk []byte) (*FS, error) {
	dev := faultdev.Mem("disk", disk)
	f, err := Open(context.Background(), []volume.Device{dev}, Options{})
	if err != nil {
		dev.Close()
		return nil, err
	}
	t.Cleanup(func() { f.Close() })
	return f, nil
}

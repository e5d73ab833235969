package fsread

import (
	"encoding/binary"
	"sync"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
)

// lazyFS is a filesystem of one device, larger than any memory: its tree blocks are made when they are read, out
// of functions that give the i-th item, and every sector of its data holds its own address. It has one file, and
// is its own device, whose reads complete in Submit.
type lazyFS struct {
	sb     *ondisk.Superblock
	trees  []*lazyTree
	end    ondisk.Logical // of the tree blocks
	size   uint64         // of the file
	extent func(i int) (off uint64, x ondisk.FileExtent)

	mu     sync.Mutex
	blocks int // tree blocks that were read; guarded by mu
}

// lazyTree has its leaves first, then the nodes of each level.
type lazyTree struct {
	id      uint64
	n       int // items
	perLeaf int
	item    func(i int) ondisktest.Item
	levels  []lazyLevel
}

type lazyLevel struct {
	at     ondisk.Logical
	blocks int
}

const (
	lazyFan  = 400  // pointers a node
	lazyRun  = 4000 // sectors a checksum item, and a leaf
	lazyData = ondisk.Logical(1) << 40
	lazySize = 1 << 42 // of the device
)

// newLazy makes a filesystem whose file has n extents, over sectors of data from lazyData on.
func newLazy(size uint64, n int, sectors uint64, extent func(i int) (uint64, ondisk.FileExtent)) *lazyFS {
	l := &lazyFS{sb: ondisktest.NewSuperblock(), end: 1 << 20, size: size, extent: extent}
	sb := l.sb
	sb.NodeSize, sb.TotalBytes, sb.Dev.TotalBytes = 16<<10, lazySize, lazySize
	l.plant(&lazyTree{id: ondisk.TreeFS, n: n + 1, perLeaf: 200, item: l.fileItem})
	zero, add := lazyCRC()
	l.plant(&lazyTree{id: ondisk.TreeCsum, n: int((sectors + lazyRun - 1) / lazyRun), perLeaf: 1,
		item: func(i int) ondisktest.Item { return lazySums(zero, add, i) }})
	chunk := ondisk.Chunk{Length: lazySize - uint64(chunkStart), Owner: ondisk.TreeExtent, StripeLen: ondisk.StripeLen,
		Type: ondisk.BlockGroupSystem, SubStripes: 1, SectorSize: 4096,
		Stripes: []ondisk.Stripe{{Dev: 1, Physical: devio.Physical(chunkStart), DevUUID: sb.Dev.UUID}}}
	l.plant(listed(ondisk.TreeRoot,
		item(ondisk.TreeFS, ondisk.TypeRootItem, 0, l.rootItem(0)), item(ondisk.TreeCsum, ondisk.TypeRootItem, 0, l.rootItem(1))))
	l.plant(listed(ondisk.TreeChunk,
		item(1, ondisk.TypeDevItem, 1, ondisktest.DevItem(sb.Dev)),
		item(ondisk.FirstChunkTreeObjectID, ondisk.TypeChunkItem, uint64(chunkStart), ondisktest.Chunk(chunk))))
	sb.SysChunkArray = ondisktest.SysChunkArray(ondisk.ChunkEntry{Logical: chunkStart, Chunk: chunk})
	sb.Root, sb.RootLevel = l.trees[2].root()
	sb.ChunkRoot, sb.ChunkRootLevel = l.trees[3].root()
	sb.ChunkRootGeneration = sb.Generation
	return l
}

// fragmented is a file of n extents of which every second one was rewritten elsewhere: 12 KiB in place, 4 KiB of a
// stride away. n is even.
func fragmented(n int) *lazyFS {
	groups := uint64(n / 2)
	size := groups * (16 << 10)
	return newLazy(size, n, 5*groups, func(i int) (uint64, ondisk.FileExtent) {
		g := uint64(i / 2)
		if i%2 == 0 {
			return g * (16 << 10), plain(lazyData, size, g*(16<<10), 12<<10)
		}
		return g*(16<<10) + 12<<10, plain(lazyData+ondisk.Logical(size+g*7919%groups*4096), 4096, 0, 4096)
	})
}

// unbroken is a file of n extents of 128 MiB that follow one another.
func unbroken(n int) *lazyFS {
	const whole = 128 << 20
	return newLazy(uint64(n)*whole, n, uint64(n)*whole/4096, func(i int) (uint64, ondisk.FileExtent) {
		return uint64(i) * whole, plain(lazyData+ondisk.Logical(i*whole), whole, 0, whole)
	})
}

// plant gives a tree its place.
func (l *lazyFS) plant(t *lazyTree) {
	for n := (t.n + t.perLeaf - 1) / t.perLeaf; ; n = (n + lazyFan - 1) / lazyFan {
		t.levels = append(t.levels, lazyLevel{at: l.end, blocks: n})
		l.end += ondisk.Logical(n) * ondisk.Logical(l.sb.NodeSize)
		if n == 1 {
			break
		}
	}
	l.trees = append(l.trees, t)
}

// listed is a tree of one leaf.
func listed(id uint64, items ...ondisktest.Item) *lazyTree {
	return &lazyTree{id: id, n: len(items), perLeaf: len(items), item: func(i int) ondisktest.Item { return items[i] }}
}

func (t *lazyTree) root() (ondisk.Logical, uint8) {
	return t.levels[len(t.levels)-1].at, uint8(len(t.levels) - 1)
}

func (l *lazyFS) rootItem(tree int) []byte {
	at, level := l.trees[tree].root()
	return ondisktest.RootItem(ondisk.RootItem{Generation: l.sb.Generation, DirID: 256, Bytenr: at, Level: level, Refs: 1})
}

func (l *lazyFS) fileItem(i int) ondisktest.Item {
	if i == 0 {
		return item(fileIno, ondisk.TypeInodeItem, 0, inode(modeRegular|0o644, l.size, 0))
	}
	off, x := l.extent(i - 1)
	x.Generation, x.RAMBytes = l.sb.Generation, x.DiskNumBytes
	return item(fileIno, ondisk.TypeExtentData, off, ondisktest.FileExtent(x))
}

// lazySums are the checksums of a run of sectors, each put together from what its address's bytes add to the checksum
// of a sector of zeroes: CRC is linear.
func lazySums(zero uint32, add *[8][256]uint32, i int) ondisktest.Item {
	at := uint64(lazyData) + uint64(i)*lazyRun*4096
	sums := make([]byte, 0, 4*lazyRun)
	for s := range uint64(lazyRun) {
		sum := zero
		for k := range add {
			sum ^= add[k][byte((at+s*4096)>>(8*k))]
		}
		sums = binary.LittleEndian.AppendUint32(sums, sum)
	}
	return item(ondisk.CsumObjectID, ondisk.TypeExtentCsum, at, sums)
}

// lazyCRC is the checksum of a sector of zeroes, and what each value of each of its first eight bytes adds to it.
func lazyCRC() (zero uint32, add *[8][256]uint32) {
	b := make([]byte, 4096)
	sum := func() uint32 {
		var sum [csum.MaxSize]byte
		csum.CRC32C.Sum(&sum, b)
		return binary.LittleEndian.Uint32(sum[:])
	}
	zero, add = sum(), new([8][256]uint32)
	for k := range add {
		for v := range add[k] {
			b[k] = byte(v)
			add[k][v] = sum() ^ zero
		}
		b[k] = 0
	}
	return zero, add
}

// block makes the tree block at an address.
func (l *lazyFS) block(at ondisk.Logical) []byte {
	for _, t := range l.trees {
		for level, x := range t.levels {
			if i := int((at - x.at) / ondisk.Logical(l.sb.NodeSize)); at >= x.at && i < x.blocks {
				return t.block(l.sb, level, i)
			}
		}
	}
	return make([]byte, l.sb.NodeSize)
}

func (t *lazyTree) block(sb *ondisk.Superblock, level, i int) []byte {
	node := ondisk.Logical(sb.NodeSize)
	h := ondisktest.Header{FSID: sb.FSID, Bytenr: t.levels[level].at + ondisk.Logical(i)*node, Generation: sb.Generation, Owner: t.id,
		Level: uint8(level), NodeSize: sb.NodeSize}
	if level == 0 {
		var items []ondisktest.Item
		for k := i * t.perLeaf; k < min((i+1)*t.perLeaf, t.n); k++ {
			items = append(items, t.item(k))
		}
		return ondisktest.Leaf(h, items...)
	}
	leaves := 1 // below a child
	for range level - 1 {
		leaves *= lazyFan
	}
	var ptrs []ondisktest.Ptr
	for k := i * lazyFan; k < min((i+1)*lazyFan, t.levels[level-1].blocks); k++ {
		ptrs = append(ptrs, ondisktest.Ptr{Key: t.item(k * leaves * t.perLeaf).Key, Block: t.levels[level-1].at + ondisk.Logical(k)*node,
			Generation: sb.Generation})
	}
	return ondisktest.Node(h, ptrs...)
}

// fill puts into b what the device has at off.
func (l *lazyFS) fill(b []byte, off devio.Physical) {
	at, node := ondisk.Logical(off), ondisk.Logical(l.sb.NodeSize)
	switch {
	case at >= lazyData:
		clear(b)
		for i := 0; i < len(b); i += 4096 {
			binary.LittleEndian.PutUint64(b[i:], uint64(at)+uint64(i))
		}
	case at >= chunkStart:
		for len(b) > 0 {
			in := (at - chunkStart) % node
			l.mu.Lock()
			l.blocks++
			l.mu.Unlock()
			n := copy(b, l.block(at - in)[in:])
			b, at = b[n:], at+ondisk.Logical(n)
		}
	default:
		clear(b)
		if super := ondisktest.Super(l.sb); at <= 64<<10 && int(64<<10-at) < len(b) {
			copy(b[64<<10-at:], super)
		}
	}
}

// treeBlocks is how many reads there were of tree blocks.
func (l *lazyFS) treeBlocks() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocks
}

// Submit implements volume.Device, as what follows.
func (l *lazyFS) Submit(batch []*devio.Read) {
	for _, r := range batch {
		done, at := r.Done, r.Off
		for _, b := range r.Bufs {
			l.fill(b, at)
			at += devio.Physical(len(b))
		}
		r.N, r.Err = int(at-r.Off), nil
		done.ReadDone(r)
	}
}

func (l *lazyFS) Size() uint64        { return lazySize }
func (l *lazyFS) Align() int          { return 4096 }
func (l *lazyFS) Name() string        { return "lazy" }
func (l *lazyFS) Depth() int          { return 0 }
func (l *lazyFS) Observe(devio.Stats) {}
func (l *lazyFS) Close() error        { return nil }

// open opens the file on dev, which is l or l behind something, for the whole test.
func (l *lazyFS) open(t testing.TB, dev volume.Device, o Options) *File {
	t.Helper()
	f, err := Open(t.Context(), []volume.Device{dev}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.node(t.Context(), fileIno)
	if err != nil {
		t.Fatal(err)
	}
	file, err := n.File()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

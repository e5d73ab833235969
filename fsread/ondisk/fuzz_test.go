package ondisk_test

import (
	"bytes"
	"errors"
	"math"
	"math/bits"
	"reflect"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

// fit returns b cut or zero-padded to n bytes.
func fit(b []byte, n int) []byte {
	out := make([]byte, n)
	copy(out, b)
	return out
}

// known fails the test for an error of no kind.
func known(t *testing.T, err error) {
	t.Helper()
	for _, k := range []error{ondisk.ErrCorrupt, ondisk.ErrChecksum, ondisk.ErrUnsupported, ondisk.ErrNoMagic} {
		if errors.Is(err, k) {
			return
		}
	}
	t.Fatalf("error of no kind: %v", err)
}

func soundChunk(t *testing.T, at ondisk.Logical, c ondisk.Chunk, sectorSize uint32) {
	t.Helper()
	size := c.StripeLength()
	switch {
	case len(c.Stripes) == 0 || size == 0 || c.Length == 0:
		t.Fatalf("chunk without stripes or length: %+v", c)
	case uint64(at) > math.MaxUint64-c.Length:
		t.Fatalf("chunk %d wraps: %+v", at, c)
	case size > c.Length+ondisk.StripeLen:
		t.Fatalf("stripes of %d in a chunk of %d", size, c.Length)
	}
	for _, s := range c.Stripes {
		if uint64(s.Physical) > math.MaxUint64-size {
			t.Fatalf("stripe wraps: %+v", s)
		}
	}
	again, err := ondisk.DecodeChunk(ondisktest.Chunk(c), at, sectorSize)
	if err != nil || !reflect.DeepEqual(c, again) {
		t.Fatalf("encoded and decoded again: got %+v, %v, want %+v", again, err, c)
	}
}

// soundBackups holds every usable slot against what a search relies on.
func soundBackups(t *testing.T, s *ondisk.Superblock) {
	t.Helper()
	for slot := range ondisk.BackupSlots {
		r, err := s.Backup(slot)
		if errors.Is(err, ondisk.ErrNoBackup) {
			continue
		}
		if err != nil {
			known(t, err)
			continue
		}
		if r.Generation == 0 || r.Generation > s.Generation || r.ChunkRootGeneration > r.Generation || r.RootLevel > 7 || r.ChunkRootLevel > 7 {
			t.Fatalf("accepted slot %d: %+v of generation %d", slot, r, s.Generation)
		}
		if at := s.At(r); at.Roots() != r {
			t.Fatalf("slot %d: %+v became %+v", slot, r, at.Roots())
		}
	}
}

// FuzzSuperblock repairs magic, checksum type, place and checksum, so that mutations reach what is behind.
func FuzzSuperblock(f *testing.F) {
	f.Add(ondisktest.Super(ondisktest.NewSuperblock()))
	s := ondisktest.NewSuperblock()
	s.Incompat |= ondisk.IncompatMetadataUUID | 1<<15
	s.MetadataUUID = s.FSID
	s.SysChunkArray = ondisktest.SysChunkArray(
		ondisk.ChunkEntry{Logical: 1 << 20, Chunk: chunk(ondisk.BlockGroupSystem|ondisk.BlockGroupRAID1C3, 3)},
		ondisk.ChunkEntry{Logical: 2 << 30, Chunk: chunk(ondisk.BlockGroupSystem|ondisk.BlockGroupRAID10, 4)})
	f.Add(ondisktest.Super(s))
	s.Backups[1] = goodBackup()
	f.Add(ondisktest.Super(s))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := fit(in, ondisk.SuperblockSize)
		copy(b[64:], "_BHRfS_M")
		u16(b, 196, 0)
		u64(b, 48, superAt)
		ondisktest.Seal(b, 0)
		s, err := ondisk.DecodeSuperblock(b, superAt)
		if err != nil {
			known(t, err)
			return
		}
		soundBackups(t, s)
		if bits.OnesCount32(s.SectorSize) != 1 || s.NodeSize < s.SectorSize || s.NodeSize > 64<<10 {
			t.Fatalf("accepted sectorsize %d, nodesize %d", s.SectorSize, s.NodeSize)
		}
		if s.TreeFSID() != s.Dev.FSID {
			t.Fatalf("accepted fsid %s with device item %s", s.TreeFSID(), s.Dev.FSID)
		}
		if err := s.Gate(); err != nil {
			known(t, err)
		}
		if got, want := len(s.Features()), bits.OnesCount64(s.Incompat)+bits.OnesCount64(s.CompatRO); got != want {
			t.Fatalf("%d names of %d features", got, want)
		}
		chunks, err := s.SysChunks()
		if err != nil {
			known(t, err)
			return
		}
		if !bytes.Equal(ondisktest.SysChunkArray(chunks...), withIO(s.SysChunkArray, chunks)) {
			t.Fatal("chunks do not make up the array")
		}
		for _, c := range chunks {
			soundChunk(t, c.Logical, c.Chunk, s.SectorSize)
		}
	})
}

// withIO returns the array with io_align and io_width as the encoder writes them: they are not decoded.
func withIO(array []byte, chunks []ondisk.ChunkEntry) []byte {
	array = bytes.Clone(array)
	at := 0
	for _, c := range chunks {
		u32(array, at+17+32, ondisk.StripeLen)
		u32(array, at+17+36, ondisk.StripeLen)
		at += 17 + 48 + 32*len(c.Chunk.Stripes)
	}
	return array
}

func FuzzChunk(f *testing.F) {
	for _, p := range profiles {
		f.Add(ondisktest.Chunk(chunk(ondisk.BlockGroupMetadata|p.bit, p.legal[0])), uint64(chunkAt), uint8(0))
	}
	f.Add(ondisktest.Chunk(chunk(ondisk.BlockGroupSystem, 1)), uint64(math.MaxUint64), uint8(4))
	f.Fuzz(func(t *testing.T, item []byte, at uint64, shift uint8) {
		size := uint32(4096) << (shift % 5)
		c, err := ondisk.DecodeChunk(item, ondisk.Logical(at), size)
		if err != nil {
			known(t, err)
			return
		}
		soundChunk(t, ondisk.Logical(at), c, size)
	})
}

// FuzzBlock expects what the mutated header says of itself, with the checksum redone.
func FuzzBlock(f *testing.F) {
	h := header(5, 0, 4096)
	f.Add(ondisktest.Leaf(h, goodItems()...))
	f.Add(testLeaf(h))
	f.Add(ondisktest.Leaf(header(7, 0, 4096)))
	f.Add(testNode(header(5, 1, 4096)))
	f.Add(testNode(header(300, 7, 4096)))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := ondisk.Block(fit(in, 4096))
		ondisktest.Seal(b, 0)
		e := ondisk.Expect{
			Logical: b.Bytenr(), FSID: ondisk.UUID(b[32:48]), Level: b.Level(), Generation: b.Generation(),
			Owner: b.Owner(), MaxGeneration: b.Generation(), SectorSize: sector, NodeSize: 4096,
		}
		if err := e.Check(b); err != nil {
			known(t, err)
			return
		}
		soundBlock(t, b)
		if err := ondisk.CheckLeafItems(b, sector, 4); err != nil {
			known(t, err)
		} else if b.Level() == 0 {
			decodable(t, b)
		}
	})
}

// soundBlock asks every accessor for every item.
func soundBlock(t *testing.T, b ondisk.Block) {
	t.Helper()
	lowest := len(b)
	for i := range b.Len() {
		k := b.Key(i)
		if i > 0 && b.Key(i-1).Compare(k) >= 0 {
			t.Fatalf("key %d %s is not after %s", i, k, b.Key(i-1))
		}
		if got := b.Search(k); got != i {
			t.Fatalf("Search(%s): got %d, want %d", k, got, i)
		}
		if b.Level() == 0 {
			lowest -= len(b.Item(i))
			continue
		}
		if p := b.Ptr(i); p == 0 || p%sector != 0 {
			t.Fatalf("pointer %d to %d", i, p)
		}
		_ = b.PtrGeneration(i)
	}
	if end := ondisktest.HeaderSize + b.Len()*ondisktest.ItemSize; b.Level() == 0 && lowest < end {
		t.Fatalf("items reach down to %d, their headers end at %d", lowest, end)
	}
}

// decodable decodes each item of a leaf that CheckLeafItems accepted: none may fail, but for encrypted
// names.
func decodable(t *testing.T, b ondisk.Block) {
	t.Helper()
	for i := range b.Len() {
		k, item := b.Key(i), b.Item(i)
		var err error
		switch k.Type {
		case ondisk.TypeInodeItem:
			_, err = ondisk.DecodeInodeItem(item)
		case ondisk.TypeInodeRef:
			walkInodeRefs(t, item)
		case ondisk.TypeInodeExtref:
			walkInodeExtrefs(t, item)
		case ondisk.TypeDirItem, ondisk.TypeDirIndex:
			err = walkDirEntries(t, item)
		case ondisk.TypeExtentData:
			_, err = ondisk.DecodeFileExtent(item, k.Offset, sector)
		case ondisk.TypeRootItem:
			_, err = ondisk.DecodeRootItem(item)
		case ondisk.TypeRootRef, ondisk.TypeRootBackref:
			_, err = ondisk.DecodeRootRef(item)
		case ondisk.TypeDevItem:
			_, err = ondisk.DecodeDevItem(item)
		case ondisk.TypeChunkItem:
			_, err = ondisk.DecodeChunk(item, ondisk.Logical(k.Offset), sector)
		case ondisk.TypeRaidStripe:
			_, err = ondisk.DecodeStripeExtent(k, item, sector)
		}
		if err != nil {
			t.Fatalf("%s passed CheckLeafItems, then: %v", k, err)
		}
	}
}

// walkDirEntries iterates to the end or the first error, and holds that the entries make up the bytes.
func walkDirEntries(t *testing.T, item []byte) error {
	t.Helper()
	var seen []byte
	for b := item; len(b) > 0; {
		e, rest, err := ondisk.NextDirEntry(b)
		if errors.Is(err, ondisk.ErrUnsupported) {
			e.Type |= 0x80
		} else if err != nil {
			known(t, err)
			return err
		}
		seen = append(seen, ondisktest.DirEntries(e)...)
		if len(rest) >= len(b) {
			t.Fatal("iteration does not advance")
		}
		b = rest
	}
	if !bytes.Equal(seen, item) {
		t.Fatalf("entries make up %x, not %x", seen, item)
	}
	return nil
}

func walkInodeRefs(t *testing.T, item []byte) {
	t.Helper()
	var seen []byte
	for b := item; len(b) > 0; {
		r, rest, err := ondisk.NextInodeRef(b)
		if err != nil {
			known(t, err)
			return
		}
		seen, b = append(seen, ondisktest.InodeRefs(r)...), rest
	}
	if !bytes.Equal(seen, item) {
		t.Fatalf("names make up %x, not %x", seen, item)
	}
}

func walkInodeExtrefs(t *testing.T, item []byte) {
	t.Helper()
	var seen []byte
	for b := item; len(b) > 0; {
		r, rest, err := ondisk.NextInodeExtref(b)
		if err != nil {
			known(t, err)
			return
		}
		seen, b = append(seen, ondisktest.InodeExtrefs(r)...), rest
	}
	if !bytes.Equal(seen, item) {
		t.Fatalf("names make up %x, not %x", seen, item)
	}
}

func FuzzDirEntries(f *testing.F) {
	encrypted := dirEntry
	encrypted.Type |= 0x80
	f.Add(ondisktest.DirEntries(dirEntry))
	f.Add(ondisktest.DirEntries(dirEntry, encrypted, ondisk.DirEntry{Type: 8, Name: name("user.x"), Data: name("value")}))
	f.Fuzz(func(t *testing.T, item []byte) { _ = walkDirEntries(t, item) })
}

func FuzzInodeRefs(f *testing.F) {
	f.Add(ondisktest.InodeRefs(ondisk.InodeRef{Index: 2, Name: name("a")}, ondisk.InodeRef{Index: 3, Name: name("bc")}))
	f.Fuzz(walkInodeRefs)
}

func FuzzInodeExtrefs(f *testing.F) {
	f.Add(ondisktest.InodeExtrefs(ondisk.InodeExtref{Parent: 1, Index: 2, Name: name("a")}, ondisk.InodeExtref{Name: name("bc")}))
	f.Fuzz(walkInodeExtrefs)
}

// FuzzFixedItems decodes the bytes as each item of fixed layout. What is accepted comes back the same when
// it is encoded and decoded again.
func FuzzFixedItems(f *testing.F) {
	f.Add(ondisktest.RootItem(rootItem))
	f.Add(ondisktest.RootItem(rootItem)[:239])
	f.Add(ondisktest.RootRef(ondisk.RootRef{DirID: 256, Sequence: 2, Name: name("snap")}))
	f.Add(ondisktest.InodeItem(inodeItem))
	f.Add(ondisktest.DevItem(ondisktest.NewSuperblock().Dev))
	f.Fuzz(func(t *testing.T, item []byte) {
		again(t, item, ondisk.DecodeRootItem, ondisktest.RootItem)
		again(t, item, ondisk.DecodeRootRef, ondisktest.RootRef)
		again(t, item, ondisk.DecodeInodeItem, ondisktest.InodeItem)
		again(t, item, ondisk.DecodeDevItem, ondisktest.DevItem)
	})
}

func again[T any](t *testing.T, item []byte, decode func([]byte) (T, error), encode func(T) []byte) {
	t.Helper()
	x, err := decode(item)
	if err != nil {
		known(t, err)
		return
	}
	if y, err := decode(encode(x)); err != nil || !reflect.DeepEqual(x, y) {
		t.Fatalf("encoded and decoded again: got %+v, %v, want %+v", y, err, x)
	}
}

func FuzzFileExtent(f *testing.F) {
	for _, x := range []ondisk.FileExtent{inline, regular, compressed, {Type: 1, NumBytes: 4096}} {
		f.Add(ondisktest.FileExtent(x), uint64(0), uint8(0))
	}
	f.Add(ondisktest.FileExtent(regular), uint64(math.MaxUint64-4095), uint8(1))
	f.Fuzz(func(t *testing.T, item []byte, at uint64, shift uint8) {
		size := uint32(4096) << (shift % 5)
		x, err := ondisk.DecodeFileExtent(item, at, size)
		if err != nil {
			known(t, err)
			return
		}
		soundExtent(t, x, at, size)
		y, err := ondisk.DecodeFileExtent(ondisktest.FileExtent(x), at, size)
		if err != nil || !reflect.DeepEqual(x, y) {
			t.Fatalf("encoded and decoded again: got %+v, %v, want %+v", y, err, x)
		}
	})
}

func soundExtent(t *testing.T, x ondisk.FileExtent, at uint64, sectorSize uint32) {
	t.Helper()
	span := x.Span(sectorSize)
	switch {
	case at > math.MaxUint64-span:
		t.Fatalf("extent at %d wraps: %+v", at, x)
	case span == 0 && x.Type != ondisk.ExtentInline:
		t.Fatalf("extent of no bytes: %+v", x)
	case x.Compression != 0 && x.Type == ondisk.ExtentInline && x.RAMBytes > ondisk.MaxCompressed:
		t.Fatalf("inline extent would be inflated to %d bytes", x.RAMBytes)
	}
	if x.Type != ondisk.ExtentRegular || x.DiskBytenr == 0 {
		return
	}
	limit := x.DiskNumBytes
	if x.Compression != 0 {
		limit = x.RAMBytes
		if limit > ondisk.MaxCompressed || x.DiskNumBytes > ondisk.MaxCompressed {
			t.Fatalf("compressed extent too large: %+v", x)
		}
	}
	if end := x.Offset + x.NumBytes; end < x.Offset || end > limit {
		t.Fatalf("bytes %d to %d of an extent of %d", x.Offset, end, limit)
	}
	if uint64(x.DiskBytenr)+x.DiskNumBytes < x.DiskNumBytes {
		t.Fatalf("extent wraps on the disk: %+v", x)
	}
}

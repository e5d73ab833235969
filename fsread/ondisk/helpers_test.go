package ondisk_test

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

var le = binary.LittleEndian

const sector = 4096

// checkErr wants an error of the given kind, and of no other kind, whose message holds part; or none when
// kind is nil.
func checkErr(t *testing.T, err, kind error, part string) {
	t.Helper()
	if kind == nil {
		if err != nil {
			t.Errorf("got error %q, want none", err)
		}
		return
	}
	if err == nil {
		t.Errorf("got no error, want %q with %q", kind, part)
		return
	}
	for _, k := range []error{ondisk.ErrCorrupt, ondisk.ErrChecksum, ondisk.ErrUnsupported, ondisk.ErrNoMagic} {
		if got, want := errors.Is(err, k), k == kind; got != want {
			t.Errorf("errors.Is(%q, %q): got %t, want %t", err, k, got, want)
		}
	}
	if !strings.Contains(err.Error(), part) {
		t.Errorf("got error %q, want %q in it", err, part)
	}
}

func key(id uint64, typ uint8, off uint64) ondisk.Key {
	return ondisk.Key{ObjectID: id, Type: typ, Offset: off}
}

func u64(b []byte, at int, v uint64) { le.PutUint64(b[at:], v) }
func u32(b []byte, at int, v uint32) { le.PutUint32(b[at:], v) }
func u16(b []byte, at int, v uint16) { le.PutUint16(b[at:], v) }

// fsid of all test blocks.
var fsid = ondisk.UUID{0xf5, 0x1d}

func header(owner uint64, level uint8, nodeSize uint32) ondisktest.Header {
	return ondisktest.Header{FSID: fsid, Bytenr: 30408704, Generation: 9, Owner: owner, Level: level, NodeSize: nodeSize}
}

// expect is what header's block should be.
func expect(h ondisktest.Header) ondisk.Expect {
	return ondisk.Expect{
		Logical: h.Bytenr, FSID: h.FSID, Level: h.Level, Generation: h.Generation, Owner: h.Owner,
		MaxGeneration: h.Generation, SectorSize: sector, NodeSize: h.NodeSize,
	}
}

func name(s string) []byte { return []byte(s) }

var dirEntry = ondisk.DirEntry{
	Location: ondisk.Key{ObjectID: 257, Type: ondisk.TypeInodeItem}, TransID: 9, Type: ondisk.FileTypeRegular,
	Name: []byte("disk.raw"), Data: []byte{},
}

var regular = ondisk.FileExtent{
	Generation: 9, RAMBytes: 64 << 10, Type: ondisk.ExtentRegular,
	DiskBytenr: 1 << 30, DiskNumBytes: 64 << 10, Offset: 8 << 10, NumBytes: 16 << 10,
}

var compressed = ondisk.FileExtent{
	Generation: 9, RAMBytes: 128 << 10, Type: ondisk.ExtentRegular, Compression: ondisk.CompressZstd,
	DiskBytenr: 1 << 30, DiskNumBytes: 8 << 10, Offset: 64 << 10, NumBytes: 64 << 10,
}

var inline = ondisk.FileExtent{Generation: 9, RAMBytes: 5, Type: ondisk.ExtentInline, Inline: []byte("hello")}

var rootItem = ondisk.RootItem{
	Generation: 9, DirID: 256, Bytenr: 30 << 20, Level: 1, BytesUsed: 16 << 10, LastSnapshot: 4, Flags: 1, Refs: 1,
	DropProgress: ondisk.Key{ObjectID: 1, Type: 2, Offset: 3}, DropLevel: 1,
	UUID: ondisk.UUID{1}, ParentUUID: ondisk.UUID{2}, ReceivedUUID: ondisk.UUID{3},
	CTransID: 11, OTransID: 12, STransID: 13, RTransID: 14,
	CTime: ondisk.Timespec{Sec: 21, Nsec: 31}, OTime: ondisk.Timespec{Sec: 22, Nsec: 32},
	STime: ondisk.Timespec{Sec: 23, Nsec: 33}, RTime: ondisk.Timespec{Sec: 24, Nsec: 34},
}

var inodeItem = ondisk.InodeItem{
	Generation: 8, TransID: 9, Size: 1 << 40, NBytes: 4096, NLink: 2, UID: 1000, GID: 100, Mode: 0o100644,
	RDev: 7, Flags: ondisk.InodeNoDataSum | ondisk.InodeNoDataCow, Sequence: 17,
	ATime: ondisk.Timespec{Sec: -1, Nsec: 999999999}, CTime: ondisk.Timespec{Sec: 2, Nsec: 3},
	MTime: ondisk.Timespec{Sec: 4, Nsec: 5}, OTime: ondisk.Timespec{Sec: 6, Nsec: 7},
}

// chunk returns a good chunk of the type bits with n stripes.
func chunk(typ uint64, n int) ondisk.Chunk {
	c := ondisk.Chunk{
		Length: 1 << 30, Owner: ondisk.TreeExtent, StripeLen: ondisk.StripeLen, Type: typ, SubStripes: 1, SectorSize: sector,
	}
	if typ&ondisk.BlockGroupRAID10 != 0 {
		c.SubStripes = 2
	}
	for i := range n {
		c.Stripes = append(c.Stripes, ondisk.Stripe{Dev: devio.DevID(i + 1), Physical: 1 << 20, DevUUID: ondisk.UUID{byte(i)}})
	}
	return c
}

// goodItems holds, in order, one or more good items of every type that CheckLeafItems knows and of some
// that it must pass over.
func goodItems() []ondisktest.Item {
	ino := func(typ uint8, off uint64, data []byte) ondisktest.Item {
		return ondisktest.Item{Key: key(257, typ, off), Data: data}
	}
	item := func(id uint64, typ uint8, off uint64, data []byte) ondisktest.Item {
		return ondisktest.Item{Key: key(id, typ, off), Data: data}
	}
	dev := ondisk.DevItem{DevID: 3, TotalBytes: 1 << 40, BytesUsed: 1 << 30, SectorSize: sector, UUID: ondisk.UUID{7}, FSID: fsid}
	ref := ondisk.RootRef{DirID: 256, Sequence: 4, Name: name("snap")}
	return []ondisktest.Item{
		item(1, ondisk.TypeDevItem, 3, ondisktest.DevItem(dev)),
		item(5, ondisk.TypeRootItem, 0, ondisktest.RootItem(rootItem)),
		item(5, ondisk.TypeRootRef, 256, ondisktest.RootRef(ref)),
		item(256, ondisk.TypeRootItem, 0, ondisktest.RootItem(rootItem)[:239]),
		item(256, ondisk.TypeRootBackref, 5, ondisktest.RootRef(ref)),
		item(256, ondisk.TypeChunkItem, 22<<20, ondisktest.Chunk(chunk(ondisk.BlockGroupData|ondisk.BlockGroupRAID1, 2))),
		ino(ondisk.TypeInodeItem, 0, ondisktest.InodeItem(inodeItem)),
		ino(ondisk.TypeInodeRef, 256, ondisktest.InodeRefs(ondisk.InodeRef{Index: 2, Name: name("a")}, ondisk.InodeRef{Index: 3, Name: name("bc")})),
		ino(ondisk.TypeInodeExtref, 1, ondisktest.InodeExtrefs(ondisk.InodeExtref{Parent: 256, Index: 2, Name: name("a")})),
		ino(ondisk.TypeXattrItem, 5, []byte("not looked at")),
		ino(ondisk.TypeDirItem, ondisk.NameHash(dirEntry.Name), ondisktest.DirEntries(dirEntry, dirEntry)),
		ino(ondisk.TypeDirIndex, 2, ondisktest.DirEntries(dirEntry)),
		ino(ondisk.TypeExtentData, 0, ondisktest.FileExtent(inline)),
		ino(ondisk.TypeExtentData, 4096, ondisktest.FileExtent(regular)),
		ino(ondisk.TypeExtentData, 20480, ondisktest.FileExtent(compressed)),
		item(258, ondisk.TypeExtentData, 0, ondisktest.FileExtent(regular)),
		item(300, 251, 7, []byte("a type nobody knows")),
		stripeItem(stripes),
		item(ondisk.CsumObjectID, ondisk.TypeExtentCsum, 1<<30, make([]byte, 16)),
		item(ondisk.CsumObjectID, ondisk.TypeExtentCsum, 1<<30+4*sector, make([]byte, 4)),
		item(math.MaxUint64, 255, math.MaxUint64, nil),
	}
}

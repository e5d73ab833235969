package ondisk_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

func checkItems(items ...ondisktest.Item) error {
	b := ondisktest.Leaf(header(5, 0, nodeSize), items...)
	return ondisk.CheckLeafItems(ondisk.Block(b), sector, 4)
}

func TestCheckLeafItemsGood(t *testing.T) {
	items := goodItems()
	h := header(5, 0, nodeSize)
	e := expect(h)
	b := ondisktest.Leaf(h, items...)
	if err := e.Check(b); err != nil {
		t.Fatal(err)
	}
	if err := ondisk.CheckLeafItems(b, sector, 4); err != nil {
		t.Error(err)
	}
}

func TestCheckLeafItemsPassesNodes(t *testing.T) {
	// Pointers are not items, even under keys of items.
	b := ondisktest.Node(header(5, 1, nodeSize), ondisktest.Ptr{Key: key(257, ondisk.TypeInodeItem, 0), Block: sector})
	if err := ondisk.CheckLeafItems(b, sector, 4); err != nil {
		t.Error(err)
	}
}

// TestCheckLeafItemsPassesUnknownTypes: every type that is not checked may hold anything.
func TestCheckLeafItemsPassesUnknownTypes(t *testing.T) {
	checked := map[uint8]bool{1: true, 12: true, 13: true, 84: true, 96: true, 108: true, 128: true, 132: true, 144: true, 156: true, 216: true, 228: true, 230: true}
	for typ := range 256 {
		err := checkItems(ondisktest.Item{Key: key(257, uint8(typ), 1), Data: []byte{1, 2, 3}})
		if got, want := err == nil, !checked[uint8(typ)]; got != want {
			t.Errorf("type %d: passed %t, want %t (%v)", typ, got, want, err)
		}
	}
}

func TestCheckLeafItemsRefuses(t *testing.T) {
	edit := func(b []byte, change func(b []byte)) []byte {
		b = bytes.Clone(b)
		change(b)
		return b
	}
	dir := ondisktest.DirEntries(dirEntry)
	hash := ondisk.NameHash(dirEntry.Name)
	root := ondisktest.RootItem(rootItem)
	ref := ondisktest.RootRef(ondisk.RootRef{Name: name("snap")})
	refs := ondisktest.InodeRefs(ondisk.InodeRef{Name: name("a")}, ondisk.InodeRef{Name: name("bc")})
	extrefs := ondisktest.InodeExtrefs(ondisk.InodeExtref{Name: name("a")}, ondisk.InodeExtref{Name: name("bc")})
	dev := ondisktest.DevItem(ondisk.DevItem{DevID: 3})
	raid1 := ondisktest.Chunk(chunk(ondisk.BlockGroupData|ondisk.BlockGroupRAID1, 2))
	k := func(typ uint8, off uint64) ondisk.Key { return key(257, typ, off) }
	csums := func(off uint64) ondisk.Key { return key(ondisk.CsumObjectID, ondisk.TypeExtentCsum, off) }
	tests := []struct {
		name string
		key  ondisk.Key
		data []byte
		part string
	}{
		{"inode item short", k(1, 0), make([]byte, 159), "159 bytes, want 160"},
		{"inode item long", k(1, 0), make([]byte, 161), "161 bytes, want 160"},
		{"inode ref cut in the header", k(12, 256), refs[:len(refs)-3], "inode ref: 9 bytes left"},
		{"inode ref cut in the name", k(12, 256), refs[:len(refs)-1], "inode ref: name_len 2, 11 bytes left"},
		{"inode extref cut in the header", k(13, 0), extrefs[:len(extrefs)-3], "inode extref: 17 bytes left"},
		{"inode extref cut in the name", k(13, 0), extrefs[:len(extrefs)-1], "inode extref: name_len 2, 19 bytes left"},
		{"dir item empty", k(84, 0), nil, "empty item"},
		{"dir item hash", k(84, hash+1), dir, `name "disk.raw" has hash`},
		{"dir item hash of the second", k(84, hash), append(bytes.Clone(dir), ondisktest.DirEntries(ondisk.DirEntry{Name: name("x")})...), `name "x" has hash`},
		{"dir item cut in the header", k(84, hash), append(bytes.Clone(dir), dir[:29]...), "29 bytes left"},
		{"dir item cut in the name", k(84, hash), dir[:len(dir)-1], "name_len 8, data_len 0, 37 bytes left"},
		{"dir index cut", k(96, 2), dir[:len(dir)-1], "37 bytes left"},
		{"dir item name_len 0", k(84, hash), edit(dir, func(b []byte) { u16(b, 27, 0) }), "name_len 0"},
		{"dir item name_len 256", k(96, 2), append(edit(dir, func(b []byte) { u16(b, 27, 256) }), make([]byte, 256)...), "name_len 256"},
		{"dir item with data", k(96, 2), append(edit(dir, func(b []byte) { u16(b, 25, 1) }), 0), "type 1 with data_len 1"},
		{"dir item type", k(96, 2), edit(dir, func(b []byte) { b[29] = 9 }), "type 9"},
		{"dir item of an xattr", k(96, 2), edit(dir, func(b []byte) { b[29] = 8 }), "type 8"},
		{"extent", k(108, 0), edit(ondisktest.FileExtent(regular), func(b []byte) { b[16] = 4 }), "file extent at 0: compression 4"},
		{"csum objectid", k(128, sector), make([]byte, 4), "key (257 EXTENT_CSUM 4096)"},
		{"csum not aligned", csums(512), make([]byte, 4), "key (-10 EXTENT_CSUM 512)"},
		{"csum size", csums(sector), make([]byte, 6), "6 bytes are no multiple of 4"},
		{"csum past 2^64", csums(math.MaxUint64 - sector + 1), make([]byte, 4), "end past 2^64"},
		{"root item size", k(132, 0), root[:438], "438 bytes, want 439 or 239"},
		{"root item level", k(132, 0), edit(root, func(b []byte) { b[238] = 8 }), "level 8"},
		{"root item bytenr", k(132, 0), edit(root, func(b []byte) { b[176] = 1 }), "is not aligned to 4096"},
		{"root ref", k(156, 0), ref[:len(ref)-1], "name_len 4 in 21 bytes"},
		{"root backref", k(144, 0), append(ref, 0), "name_len 4 in 23 bytes"},
		{"dev item size", key(1, 216, 3), dev[:97], "97 bytes"},
		{"dev item objectid", key(2, 216, 3), dev, "devid 3 under key (2 DEV_ITEM 3)"},
		{"dev item devid", key(1, 216, 4), dev, "devid 3 under key (1 DEV_ITEM 4)"},
		{"chunk item objectid", key(257, 228, 22<<20), raid1, "key (257 CHUNK_ITEM 23068672)"},
		{"chunk item", key(256, 228, 22<<20+1), raid1, "start is not aligned"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := checkItems(ondisktest.Item{Key: tt.key, Data: tt.data})
			checkErr(t, err, ondisk.ErrCorrupt, tt.part)
			if prefix := "tree block 30408704, item 0 " + tt.key.String() + ": "; err != nil && !strings.HasPrefix(err.Error(), prefix) {
				t.Errorf("got %q, want it to start with %q", err, prefix)
			}
			if ce := (*ondisk.Error)(nil); !errors.As(err, &ce) {
				t.Errorf("got %T, want an *Error in it", err)
			}
		})
	}
}

func TestCheckLeafItemsNeighbours(t *testing.T) {
	ext := func(ino, off uint64, x ondisk.FileExtent) ondisktest.Item {
		return ondisktest.Item{Key: key(ino, ondisk.TypeExtentData, off), Data: ondisktest.FileExtent(x)}
	}
	csums := func(off uint64, n int) ondisktest.Item {
		return ondisktest.Item{Key: key(ondisk.CsumObjectID, ondisk.TypeExtentCsum, off), Data: make([]byte, 4*n)}
	}
	gap := ondisktest.Item{Key: key(257, 200, 0)}
	zin := ondisk.FileExtent{RAMBytes: 5000, Compression: ondisk.CompressZlib, Inline: []byte("z")}
	tests := []struct {
		name  string
		items []ondisktest.Item
		part  string // empty: good
	}{
		{"extents touch", []ondisktest.Item{ext(257, 0, regular), ext(257, 16384, regular)}, ""},
		{"extents overlap", []ondisktest.Item{ext(257, 0, regular), ext(257, 12288, regular)}, "the one before it ends at 16384"},
		{"extents of two inodes", []ondisktest.Item{ext(257, 0, regular), ext(258, 4096, regular)}, ""},
		{"hole, then extent", []ondisktest.Item{ext(257, 0, regular), ext(257, 1<<30, regular)}, ""},
		{"inline, then extent", []ondisktest.Item{ext(257, 0, inline), ext(257, 4096, regular)}, ""},
		{"inline of two sectors, then extent", []ondisktest.Item{ext(257, 0, zin), ext(257, 4096, regular)}, "the one before it ends at 8192"},
		{"checksums touch", []ondisktest.Item{csums(0, 2), csums(8192, 1)}, ""},
		{"checksums overlap", []ondisktest.Item{csums(0, 2), csums(4096, 1)}, "starts at 4096, the one before it ends at 8192"},
		{"checksums overlap across another item", []ondisktest.Item{gap, csums(0, 2), csums(4096, 1)}, "starts at 4096"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var kind error
			if tt.part != "" {
				kind = ondisk.ErrCorrupt
			}
			checkErr(t, checkItems(tt.items...), kind, tt.part)
		})
	}
}

func TestCheckLeafItemsChecksumSize(t *testing.T) {
	b := ondisktest.Leaf(header(7, 0, nodeSize), ondisktest.Item{
		Key: key(ondisk.CsumObjectID, ondisk.TypeExtentCsum, 0), Data: make([]byte, 64),
	})
	for _, size := range []int{4, 8, 32} {
		checkErr(t, ondisk.CheckLeafItems(b, sector, size), nil, "")
	}
	for _, size := range []int{0, -4} { // of a type that csum does not know
		checkErr(t, ondisk.CheckLeafItems(b, sector, size), ondisk.ErrCorrupt, "64 bytes are no multiple of")
	}
}

func TestCheckLeafItemsPassesEncryptedNames(t *testing.T) {
	e := dirEntry
	e.Type |= 0x80
	checkErr(t, checkItems(ondisktest.Item{Key: key(257, ondisk.TypeDirIndex, 2), Data: ondisktest.DirEntries(e)}), nil, "")
}

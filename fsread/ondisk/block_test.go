package ondisk_test

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

func TestLeafAccessors(t *testing.T) {
	h := header(300, 0, nodeSize)
	items := goodItems()
	b := ondisk.Block(ondisktest.Leaf(h, items...))
	if b.Bytenr() != h.Bytenr || b.Generation() != 9 || b.Owner() != 300 || b.Level() != 0 || b.Len() != len(items) {
		t.Errorf("header: got %d %d %d %d %d", b.Bytenr(), b.Generation(), b.Owner(), b.Level(), b.Len())
	}
	for i, want := range items {
		if got := b.Key(i); got != want.Key {
			t.Errorf("key %d: got %s, want %s", i, got, want.Key)
		}
		got := b.Item(i)
		if !bytes.Equal(got, want.Data) {
			t.Errorf("item %d: got %x, want %x", i, got, want.Data)
		}
		if len(got) != cap(got) {
			t.Errorf("item %d: an append would write into the next one", i)
		}
	}
}

func TestNodeAccessors(t *testing.T) {
	b := ondisk.Block(testNode(header(5, 3, nodeSize)))
	if b.Level() != 3 || b.Len() != 3 {
		t.Errorf("got level %d, %d pointers, want 3, 3", b.Level(), b.Len())
	}
	for i, want := range []ondisktest.Ptr{
		{Key: key(256, 251, 0), Block: 40 << 20, Generation: 9},
		{Key: key(256, 251, 7), Block: 41 << 20, Generation: 8},
		{Key: key(257, 251, 0), Block: 42 << 20, Generation: 7},
	} {
		if got := (ondisktest.Ptr{Key: b.Key(i), Block: b.Ptr(i), Generation: b.PtrGeneration(i)}); got != want {
			t.Errorf("pointer %d: got %+v, want %+v", i, got, want)
		}
	}
}

// keys draws keys that often differ in one part only.
func keys() *rapid.Generator[ondisk.Key] {
	part := rapid.SampledFrom([]uint64{0, 1, 2, 255, 256, 1 << 32, math.MaxUint64 - 1, math.MaxUint64})
	return rapid.Custom(func(t *rapid.T) ondisk.Key {
		return key(part.Draw(t, "objectid"), rapid.SampledFrom([]uint8{0, 1, 127, 128, 255}).Draw(t, "type"), part.Draw(t, "offset"))
	})
}

// naiveCompare compares the parts as one list of numbers.
func naiveCompare(a, b ondisk.Key) int {
	return slices.Compare(
		[]uint64{a.ObjectID, uint64(a.Type), a.Offset},
		[]uint64{b.ObjectID, uint64(b.Type), b.Offset})
}

func TestSearchAgainstScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sorted := rapid.SliceOfNDistinct(keys(), 0, 60, rapid.ID).Draw(t, "keys")
		slices.SortFunc(sorted, naiveCompare)
		var items []ondisktest.Item
		var ptrs []ondisktest.Ptr
		for i, k := range sorted {
			items = append(items, ondisktest.Item{Key: k, Data: make([]byte, i%3)})
			ptrs = append(ptrs, ondisktest.Ptr{Key: k, Block: sector})
		}
		k := keys().Draw(t, "k")
		want := -1
		for i := range sorted {
			if naiveCompare(sorted[i], k) <= 0 {
				want = i
			}
		}
		leaf := ondisk.Block(ondisktest.Leaf(header(5, 0, 4096), items...))
		if got := leaf.Search(k); got != want {
			t.Fatalf("leaf: Search(%s): got %d, want %d", k, got, want)
		}
		node := ondisk.Block(ondisktest.Node(header(5, 1, 4096), ptrs...))
		if got := node.Search(k); got != want {
			t.Fatalf("node: Search(%s): got %d, want %d", k, got, want)
		}
	})
}

func TestKeyCompare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := keys().Draw(t, "a"), keys().Draw(t, "b")
		if got, want := cmp.Compare(a.Compare(b), 0), naiveCompare(a, b); got != want {
			t.Fatalf("%s, %s: got %d, want %d", a, b, got, want)
		}
	})
}

func TestKeyString(t *testing.T) {
	tests := []struct {
		k    ondisk.Key
		want string
	}{
		{key(256, ondisk.TypeExtentData, 4096), "(256 EXTENT_DATA 4096)"},
		{key(ondisk.CsumObjectID, ondisk.TypeExtentCsum, math.MaxUint64), "(-10 EXTENT_CSUM 18446744073709551615)"},
		{key(ondisk.LastFree, ondisk.TypeRootItem, 0), "(-256 ROOT_ITEM 0)"},
		{key(ondisk.LastFree-1, ondisk.TypeOrphan, 0), "(18446744073709551359 ORPHAN_ITEM 0)"},
		{key(1, 251, 2), "(1 251 2)"},
	}
	for _, tt := range tests {
		if got := tt.k.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// TestConstants holds the numbers of the format, written out again.
func TestConstants(t *testing.T) {
	for _, tt := range []struct {
		name string
		got  uint64
		want int64
	}{
		{"LastFree", ondisk.LastFree, -256}, {"TreeLog", ondisk.TreeLog, -6}, {"TreeReloc", ondisk.TreeReloc, -8},
		{"TreeDataReloc", ondisk.TreeDataReloc, -9}, {"CsumObjectID", ondisk.CsumObjectID, -10},
		{"OrphanObjectID", ondisk.OrphanObjectID, -5},
	} {
		if int64(tt.got) != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, int64(tt.got), tt.want)
		}
	}
}

func TestTypeNames(t *testing.T) {
	names := map[uint8]string{
		1: "INODE_ITEM", 12: "INODE_REF", 13: "INODE_EXTREF", 24: "XATTR_ITEM", 36: "VERITY_DESC_ITEM",
		37: "VERITY_MERKLE_ITEM", 48: "ORPHAN_ITEM", 60: "DIR_LOG_ITEM", 72: "DIR_LOG_INDEX", 84: "DIR_ITEM",
		96: "DIR_INDEX", 108: "EXTENT_DATA", 128: "EXTENT_CSUM", 132: "ROOT_ITEM", 144: "ROOT_BACKREF",
		156: "ROOT_REF", 216: "DEV_ITEM", 228: "CHUNK_ITEM", 168: "EXTENT_ITEM", 169: "METADATA_ITEM", 178: "178",
	}
	for typ, want := range names {
		if got := key(0, typ, 0).String(); got != "(0 "+want+" 0)" {
			t.Errorf("type %d: got %s, want %s in it", typ, got, want)
		}
	}
}

func TestIsSubvolume(t *testing.T) {
	for id, want := range map[uint64]bool{
		0: false, 1: false, 4: false, 5: true, 6: false, 255: false, 256: true, 1<<48 - 1: true, 1 << 48: false,
		ondisk.TreeLog: false, ondisk.TreeReloc: false, ondisk.LastFree: false,
	} {
		if got := ondisk.IsSubvolume(id); got != want {
			t.Errorf("IsSubvolume(%d): got %t, want %t", int64(id), got, want)
		}
	}
}

func TestUUID(t *testing.T) {
	u := ondisk.UUID{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8}
	if got, want := u.String(), "12345678-9abc-def0-0102-030405060708"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if u.IsZero() || !(ondisk.UUID{}).IsZero() {
		t.Errorf("IsZero: got %t and %t, want false and true", u.IsZero(), ondisk.UUID{}.IsZero())
	}
}

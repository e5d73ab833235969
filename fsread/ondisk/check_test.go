package ondisk_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

const nodeSize = 16 << 10

// testLeaf has three items of 8, 0 and 4 bytes.
func testLeaf(h ondisktest.Header) []byte {
	return ondisktest.Leaf(h,
		ondisktest.Item{Key: key(256, 251, 0), Data: make([]byte, 8)},
		ondisktest.Item{Key: key(256, 251, 7)},
		ondisktest.Item{Key: key(257, 251, 0), Data: make([]byte, 4)},
	)
}

// testNode has pointers at the keys of testLeaf.
func testNode(h ondisktest.Header) []byte {
	return ondisktest.Node(h,
		ondisktest.Ptr{Key: key(256, 251, 0), Block: 40 << 20, Generation: 9},
		ondisktest.Ptr{Key: key(256, 251, 7), Block: 41 << 20, Generation: 8},
		ondisktest.Ptr{Key: key(257, 251, 0), Block: 42 << 20, Generation: 7},
	)
}

func testBlock(h ondisktest.Header) []byte {
	if h.Level == 0 {
		return testLeaf(h)
	}
	return testNode(h)
}

func TestCheckAccepts(t *testing.T) {
	for _, size := range []uint32{4 << 10, 16 << 10, 64 << 10} {
		for level := range uint8(8) {
			h := header(ondisk.TreeFS, level, size)
			e := expect(h)
			e.HasFirstKey, e.FirstKey = true, key(256, 251, 0)
			e.HasLimit, e.Limit = true, key(257, 251, 1)
			if err := e.Check(testBlock(h)); err != nil {
				t.Errorf("nodesize %d level %d: %v", size, level, err)
			}
		}
	}
}

func TestCheckAcceptsMore(t *testing.T) {
	full := func(h ondisktest.Header) []byte { // no byte left between items and payloads
		n := (int(h.NodeSize) - ondisktest.HeaderSize) / ondisktest.ItemSize
		items := make([]ondisktest.Item, n)
		for i := range items {
			items[i].Key = key(uint64(i), 0, 0) // the first one is the lowest key there is
		}
		items[0].Data = make([]byte, (int(h.NodeSize)-ondisktest.HeaderSize)%ondisktest.ItemSize)
		return ondisktest.Leaf(h, items...)
	}
	fullNode := func(h ondisktest.Header) []byte {
		ptrs := make([]ondisktest.Ptr, (int(h.NodeSize)-ondisktest.HeaderSize)/ondisktest.PtrSize)
		for i := range ptrs {
			ptrs[i] = ondisktest.Ptr{Key: key(uint64(i), 0, 0), Block: sector}
		}
		return ondisktest.Node(h, ptrs...)
	}
	empty := func(h ondisktest.Header) []byte { return ondisktest.Leaf(h) }
	tests := []struct {
		name  string
		owner uint64
		level uint8
		build func(ondisktest.Header) []byte
		edit  func(e *ondisk.Expect)
	}{
		{"full leaf", ondisk.TreeCsum, 0, full, nil},
		{"full node", ondisk.TreeCsum, 1, fullNode, nil},
		{"empty csum tree", ondisk.TreeCsum, 0, empty, nil},
		{"empty subvolume being dropped", 300, 0, empty, nil},
		{"empty log tree", ondisk.TreeLog, 0, empty, nil},
		{"block of a seed", 5, 0, testLeaf, func(e *ondisk.Expect) { e.FSID, e.Seeds = ondisk.UUID{1}, []ondisk.UUID{{2}, fsid} }},
		{"shared with a snapshot", 300, 0, testLeaf, func(e *ondisk.Expect) { e.Owner = ondisk.OwnerAnySubvolume }},
		{"shared with the top level", 5, 1, testNode, func(e *ondisk.Expect) { e.Owner = ondisk.OwnerAnySubvolume }},
		{"any owner", ondisk.TreeReloc, 0, testLeaf, func(e *ondisk.Expect) { e.Owner = ondisk.OwnerUnchecked }},
		{"written before the last transaction", 5, 0, testLeaf, func(e *ondisk.Expect) { e.MaxGeneration++ }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := header(tt.owner, tt.level, nodeSize)
			e := expect(h)
			if tt.edit != nil {
				tt.edit(&e)
			}
			if err := e.Check(tt.build(h)); err != nil {
				t.Error(err)
			}
		})
	}
}

// item returns the place of item i's header in a leaf, ptr that of pointer i in a node.
func item(i int) int { return ondisktest.HeaderSize + i*ondisktest.ItemSize }
func ptr(i int) int  { return ondisktest.HeaderSize + i*ondisktest.PtrSize }

func TestCheckRefuses(t *testing.T) {
	const end = nodeSize - ondisktest.HeaderSize
	type E = ondisk.Expect
	tests := []struct {
		name  string
		level uint8
		block func(b []byte) // breaks the block
		edit  func(e *E)     // or the expectation
		part  string
	}{
		{"bytenr", 0, func(b []byte) { u64(b, 48, 4096) }, nil, "tree block 30408704: bytenr 4096"},
		{"fsid", 0, func(b []byte) { b[32]++ }, nil, "fsid f61d0000-0000-0000-0000-000000000000, want f51d"},
		{"fsid is no seed's", 0, nil, func(e *E) { e.FSID, e.Seeds = ondisk.UUID{1}, []ondisk.UUID{{2}} }, "fsid f51d"},
		{"level 8", 0, func(b []byte) { b[100] = 8 }, nil, "level 8, want less than 8"},
		{"node for leaf", 0, func(b []byte) { b[100] = 1 }, nil, "level 1, want 0"},
		{"leaf for node", 1, func(b []byte) { b[100] = 0 }, nil, "level 0, want 1"},
		{"older", 0, func(b []byte) { u64(b, 80, 8) }, nil, "generation 8, want 9"},
		{"newer", 0, func(b []byte) { u64(b, 80, 10) }, nil, "generation 10, want 9"},
		{"from the future", 0, nil, func(e *E) { e.MaxGeneration = 8 }, "generation 9 is after the last one, 8"},
		{"first key of a leaf", 0, nil, func(e *E) { e.HasFirstKey, e.FirstKey = true, key(256, 251, 1) }, "first key (256 251 0), want (256 251 1)"},
		{"first key of a node", 1, nil, func(e *E) { e.HasFirstKey, e.FirstKey = true, key(255, 251, 0) }, "first key (256 251 0), want (255 251 0)"},
		{"first key of an empty leaf", 0, func(b []byte) { u32(b, 96, 0); u64(b, 88, 7) }, func(e *E) {
			e.Owner, e.HasFirstKey, e.FirstKey = 7, true, key(256, 251, 0)
		}, "no items, want first key"},
		{"owner", 0, nil, func(e *E) { e.Owner = 7 }, "owner 5, want 7"},
		{"owner is a subvolume", 0, nil, func(e *E) { e.Owner = 256 }, "owner 5, want 256"},
		{"owner is no subvolume", 0, func(b []byte) { u64(b, 88, 7) }, func(e *E) { e.Owner = ondisk.OwnerAnySubvolume }, "owner 7, want a subvolume"},
		{"owner is the log", 0, func(b []byte) { u64(b, 88, ondisk.TreeLog) }, func(e *E) { e.Owner = ondisk.OwnerAnySubvolume }, "owner -6, want a subvolume"},
		{"owner left out", 0, nil, func(e *E) { e.Owner = 0 }, "owner 5, want 0"},

		{"leaf: nritems", 0, func(b []byte) { u32(b, 96, end/25+1) }, nil, fmt.Sprintf("nritems %d", end/25+1)},
		{"leaf: nritems huge", 0, func(b []byte) { u32(b, 96, math.MaxUint32) }, nil, "nritems 4294967295"},
		{"leaf: keys equal", 0, func(b []byte) { u64(b, item(1)+9, 0) }, nil, "key 1 (256 251 0) is not after (256 251 0)"},
		{"leaf: keys fall", 0, func(b []byte) { u64(b, item(2), 255) }, nil, "key 2 (255 251 0) is not after (256 251 7)"},
		{"leaf: keys fall by type", 0, func(b []byte) { b[item(1)+8] = 250 }, nil, "key 1 (256 250 7) is not after"},
		{"leaf: item 0 does not end the block", 0, func(b []byte) { u32(b, item(0)+17, end-9) }, nil, "item 0 (256 251 0) lies at 16274+8"},
		{"leaf: item 0 ends past the block", 0, func(b []byte) { u32(b, item(0)+21, 9) }, nil, "item 0 (256 251 0) lies at 16275+9"},
		{"leaf: gap", 0, func(b []byte) { u32(b, item(2)+17, end-13) }, nil, "item 2 (257 251 0) lies at"},
		{"leaf: overlap", 0, func(b []byte) { u32(b, item(2)+21, 5) }, nil, "item 2 (257 251 0) lies at"},
		{"leaf: offset wraps", 0, func(b []byte) { u32(b, item(0)+17, math.MaxUint32); u32(b, item(0)+21, end+1) }, nil, "item 0"},
		{"leaf: payload over the items", 0, func(b []byte) { u32(b, item(2)+17, 74); u32(b, item(2)+21, end-8-74) }, nil, "must end at 16275 and start after 75"},
		{"leaf: limit", 0, nil, func(e *E) { e.HasLimit, e.Limit = true, key(257, 251, 0) }, "key (257 251 0) is not before (257 251 0)"},

		{"node: empty", 1, func(b []byte) { u32(b, 96, 0) }, nil, "nritems 0"},
		{"node: nritems", 1, func(b []byte) { u32(b, 96, end/33+1) }, nil, fmt.Sprintf("nritems %d", end/33+1)},
		{"node: nritems huge", 1, func(b []byte) { u32(b, 96, math.MaxUint32) }, nil, "nritems 4294967295"},
		{"node: keys equal", 1, func(b []byte) { u64(b, ptr(1)+9, 0) }, nil, "key 1 (256 251 0) is not after (256 251 0)"},
		{"node: last key falls", 1, func(b []byte) { u64(b, ptr(2), 255) }, nil, "key 2 (255 251 0) is not after"},
		{"node: pointer 0", 1, func(b []byte) { u64(b, ptr(0)+17, 0) }, nil, "pointer 0 to 0"},
		{"node: pointer not aligned", 1, func(b []byte) { u64(b, ptr(1)+17, 40<<20+512) }, nil, "pointer 1 to 41943552"},
		{"node: last pointer 0", 1, func(b []byte) { u64(b, ptr(2)+17, 0) }, nil, "pointer 2 to 0"},
		{"node: last pointer not aligned", 1, func(b []byte) { u64(b, ptr(2)+17, 1) }, nil, "pointer 2 to 1"},
		{"node: limit", 1, nil, func(e *E) { e.HasLimit, e.Limit = true, key(256, 252, 0) }, "key (257 251 0) is not before (256 252 0)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := header(ondisk.TreeFS, tt.level, nodeSize)
			b, e := testBlock(h), expect(h)
			if tt.block != nil {
				tt.block(b)
				ondisktest.Seal(b, 0)
			}
			if tt.edit != nil {
				tt.edit(&e)
			}
			err := e.Check(b)
			checkErr(t, err, ondisk.ErrCorrupt, tt.part)
			if ce := (*ondisk.Error)(nil); !errors.As(err, &ce) || ce.Item != "tree block 30408704" {
				t.Errorf("got %#v, want an *Error of tree block 30408704", err)
			}
		})
	}
}

func TestCheckEmptyLeaf(t *testing.T) {
	never := []uint64{0, ondisk.TreeRoot, ondisk.TreeChunk, ondisk.TreeDev, ondisk.TreeFS, ondisk.TreeDataReloc}
	for _, owner := range never {
		h := header(owner, 0, nodeSize)
		e := expect(h)
		checkErr(t, e.Check(ondisktest.Leaf(h)), ondisk.ErrCorrupt, fmt.Sprintf("leaf of tree %d is empty", int64(owner)))
	}
}

// TestCheckChecksum flips single bits all over the block: whatever the header checks let through is a
// checksum mismatch that tells both sums.
func TestCheckChecksum(t *testing.T) {
	h := header(ondisk.TreeFS, 0, nodeSize)
	good, e := testLeaf(h), expect(h)
	for _, at := range []int{0, 3, 56, 64, 80, 88, 96, 101, 5000, nodeSize - 1} {
		b := bytes.Clone(good)
		b[at] ^= 1
		checkErr(t, e.Check(b), ondisk.ErrChecksum, "tree block 30408704: crc32c of the bytes read is ")
	}
}

func TestCheckUnsupportedChecksum(t *testing.T) {
	h := header(ondisk.TreeFS, 0, nodeSize)
	e := expect(h)
	e.Csum = 2
	b := testLeaf(h)
	clear(b[:32])
	checkErr(t, e.Check(b), ondisk.ErrChecksum, "sha256")
}

func TestCheckLength(t *testing.T) {
	h := header(ondisk.TreeFS, 0, nodeSize)
	b, e := testLeaf(h), expect(h)
	for _, n := range []int{0, 100, 4096, nodeSize - 1} {
		checkErr(t, e.Check(b[:n]), ondisk.ErrCorrupt, fmt.Sprintf("%d bytes", n))
	}
	e.NodeSize = 100
	checkErr(t, e.Check(b[:100]), ondisk.ErrCorrupt, "100 bytes")
}

// TestCheckOrder: where several checks fail, the error is the kernel's first.
func TestCheckOrder(t *testing.T) {
	h := header(ondisk.TreeFS, 1, nodeSize)
	e := expect(h)
	e.HasFirstKey, e.FirstKey = true, key(1, 1, 1)
	e.HasLimit = true
	b := testNode(h)
	u64(b, 48, 1)
	b[32]++
	b[100] = 9
	u64(b, 80, 1)
	u64(b, 88, 7)
	u32(b, 96, math.MaxUint32)
	steps := []struct {
		part   string
		repair func()
	}{
		{"bytenr", func() { u64(b, 48, uint64(h.Bytenr)) }},
		{"fsid", func() { b[32]-- }},
		{"level 9, want less", func() { b[100] = 2 }},
		{"crc32c", func() {}},
		{"level 2, want 1", func() { b[100] = 1 }},
		{"generation", func() { u64(b, 80, 9) }},
		{"first key", func() { e.FirstKey = key(256, 251, 0) }},
		{"owner", func() { u64(b, 88, 5) }},
		{"nritems", func() { u32(b, 96, 3) }},
		{"is not before", func() { e.HasLimit = false }},
	}
	sealed := false // until the checksum's turn it must be wrong, from then on right
	for _, s := range steps {
		if s.part == "crc32c" {
			checkErr(t, e.Check(b), ondisk.ErrChecksum, s.part)
			sealed = true
		} else {
			checkErr(t, e.Check(b), ondisk.ErrCorrupt, s.part)
		}
		s.repair()
		if sealed {
			ondisktest.Seal(b, 0)
		}
	}
	checkErr(t, e.Check(b), nil, "")
}

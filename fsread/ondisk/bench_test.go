package ondisk_test

import (
	"fmt"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

// extentLeaf is a full leaf of a file's regular extents, what most leaves on a read's way are.
func extentLeaf() ([]byte, ondisk.Expect) {
	h := header(5, 0, nodeSize)
	data := ondisktest.FileExtent(regular)
	items := make([]ondisktest.Item, (nodeSize-ondisktest.HeaderSize)/(ondisktest.ItemSize+len(data)))
	for i := range items {
		items[i] = ondisktest.Item{Key: key(257, ondisk.TypeExtentData, uint64(i)*16<<10), Data: data}
	}
	e := expect(h)
	e.HasFirstKey, e.FirstKey = true, items[0].Key
	e.HasLimit, e.Limit = true, key(258, 0, 0)
	return ondisktest.Leaf(h, items...), e
}

func TestNoAllocations(t *testing.T) {
	all := ondisktest.Leaf(header(5, 0, nodeSize), goodItems()...)
	leaf, e := extentLeaf()
	h := header(5, 1, nodeSize)
	node, en := testNode(h), expect(h)
	item := ondisktest.FileExtent(regular)
	block := ondisk.Block(leaf)
	chunks := ondisktest.Leaf(header(3, 0, nodeSize), ondisktest.Item{
		Key:  key(256, ondisk.TypeChunkItem, 0),
		Data: ondisktest.Chunk(chunk(ondisk.BlockGroupData|ondisk.BlockGroupRAID6, 6)),
	})
	ok := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	tests := map[string]func(){
		"Check of a leaf":           func() { ok(e.Check(leaf)) },
		"Check of a node":           func() { ok(en.Check(node)) },
		"CheckLeafItems":            func() { ok(ondisk.CheckLeafItems(all, sector, 4)) },
		"CheckLeafItems of a chunk": func() { ok(ondisk.CheckLeafItems(chunks, sector, 4)) },
		"CheckLeafItems of extents": func() { ok(ondisk.CheckLeafItems(leaf, sector, 4)) },
		"Search": func() {
			if i := block.Search(key(257, ondisk.TypeExtentData, 100<<10)); i != 6 {
				t.Errorf("Search: got %d, want 6", i)
			}
		},
		"DecodeFileExtent": func() {
			x, err := ondisk.DecodeFileExtent(item, 4096, sector)
			ok(err)
			if x.NumBytes != regular.NumBytes {
				t.Errorf("num_bytes: got %d, want %d", x.NumBytes, regular.NumBytes)
			}
		},
	}
	for name, f := range tests {
		if n := testing.AllocsPerRun(50, f); n != 0 {
			t.Errorf("%s: got %v allocations per run, want 0", name, n)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	leaf, e := extentLeaf()
	b.SetBytes(int64(len(leaf)))
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Check(leaf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckLeafItems(b *testing.B) {
	leaf, _ := extentLeaf()
	b.SetBytes(int64(len(leaf)))
	b.ReportAllocs()
	for b.Loop() {
		if err := ondisk.CheckLeafItems(leaf, sector, 4); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSearch(b *testing.B) {
	leaf, _ := extentLeaf()
	block := ondisk.Block(leaf)
	n := block.Len()
	b.Run(fmt.Sprintf("items=%d", n), func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if got := block.Search(key(257, ondisk.TypeExtentData, uint64(i)*16<<10+4096)); got != i {
				b.Fatalf("got %d, want %d", got, i)
			}
			i = (i + 7) % n
		}
	})
}

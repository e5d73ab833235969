package btree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// pair is one item of the model: a sorted slice of them is what a tree should hold.
type pair struct {
	key  ondisk.Key
	item string
}

type model []pair

func (m model) find(k ondisk.Key) (int, bool) {
	return slices.BinarySearchFunc(m, k, func(p pair, k ondisk.Key) int { return p.key.Compare(k) })
}

func (m *model) put(k ondisk.Key, item string) {
	i, ok := m.find(k)
	if ok {
		(*m)[i].item = item
		return
	}
	*m = slices.Insert(*m, i, pair{k, item})
}

func (m *model) delete(first, last ondisk.Key) {
	*m = slices.DeleteFunc(*m, func(p pair) bool { return p.key.Compare(first) >= 0 && p.key.Compare(last) <= 0 })
}

// near is a key of the tree, one beside it, or any.
func near(rng *rand.Rand, keys []ondisk.Key) ondisk.Key {
	if rng.IntN(20) == 0 {
		return []ondisk.Key{{}, {ObjectID: ^uint64(0), Type: 255, Offset: ^uint64(0)}}[rng.IntN(2)]
	}
	k := keys[rng.IntN(len(keys))]
	k.Offset += rng.Uint64N(3)
	if rng.IntN(8) == 0 {
		k.Type += uint8(rng.IntN(3)) - 1
	}
	return k
}

// change makes one random change to both.
func change(t *testing.T, rng *rand.Rand, e *Edit, m *model, keys []ondisk.Key) {
	var err error
	if k := near(rng, keys); rng.IntN(3) > 0 {
		item := binary.LittleEndian.AppendUint32(nil, rng.Uint32())
		m.put(k, string(item))
		err = e.Put(k, item)
		clear(item) // Put has made a copy
	} else {
		last := k
		if rng.IntN(2) == 0 {
			last = near(rng, keys)
		} else if rng.IntN(2) == 0 {
			last.Offset += rng.Uint64N(4)
		}
		m.delete(k, last)
		err = e.Delete(k, last)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// next is Next by a cursor that may not wait, then, if it must, by one that may.
func next(t *testing.T, c *Cursor) bool {
	c.NoWait = true
	key, valid := ondisk.Key{}, c.Valid()
	if valid {
		key = c.Key()
	}
	ok, err := c.Next(t.Context())
	if err == ErrNotCached {
		if c.Valid() != valid || (valid && c.Key() != key) {
			t.Fatal("Next moved the cursor and says ErrNotCached")
		}
		c.NoWait = false
		ok, err = c.Next(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// check asks for k in every way, and walks on from there.
func (m model) check(t *testing.T, tree Tree, k ondisk.Key, steps int) {
	t.Helper()
	i, exact := m.find(k)
	if !exact {
		i--
	}
	var c Cursor
	if err := c.Seek(t.Context(), tree, k); err != nil {
		t.Fatal(err)
	}
	if c.Valid() != (i >= 0) || (i >= 0 && (c.Key() != m[i].key || string(c.Item()) != m[i].item)) {
		t.Fatalf("Seek %s: wrong, want index %d of %d", k, i, len(m))
	}
	for n := i + 1; n <= len(m) && n < i+steps; n++ {
		if ok := next(t, &c); ok != (n < len(m)) {
			t.Fatalf("Seek %s, Next to index %d of %d: %v", k, n, len(m), ok)
		}
		if n < len(m) && (c.Key() != m[n].key || string(c.Item()) != m[n].item) {
			t.Fatalf("Seek %s, Next to index %d: %s, want %s", k, n, c.Key(), m[n].key)
		}
	}
	c.NoWait = false
	if ok, err := c.Find(t.Context(), tree, k); ok != exact || err != nil {
		t.Fatalf("Find %s: %v %v, want %v", k, ok, err, exact)
	}
	if !exact {
		i++
	}
	ok, err := c.SeekFrom(t.Context(), tree, k)
	if err != nil || ok != (i < len(m)) || (ok && c.Key() != m[i].key) {
		t.Fatalf("SeekFrom %s: %v %v, want index %d of %d", k, ok, err, i, len(m))
	}
	i, _ = m.find(ondisk.Key{ObjectID: k.ObjectID, Type: k.Type})
	want := i < len(m) && m[i].key.ObjectID == k.ObjectID && m[i].key.Type == k.Type
	if ok, err := c.FindFirst(t.Context(), tree, k.ObjectID, k.Type); ok != want || err != nil || (ok && c.Key() != m[i].key) {
		t.Fatalf("FindFirst %s: %v %v, want %v at index %d", k, ok, err, want, i)
	}
}

// checkEdit asks an Edit, between its changes.
func (m model) checkEdit(t *testing.T, e *Edit, k ondisk.Key) {
	t.Helper()
	i, exact := m.find(k)
	item, ok, err := e.Find(t.Context(), k)
	if err != nil || ok != exact || (ok && string(item) != m[i].item) {
		t.Fatalf("Find %s: %x %v %v, want index %d %v", k, item, ok, err, i, exact)
	}
	got, item, ok, err := e.From(t.Context(), k)
	if err != nil || ok != (i < len(m)) || (ok && (got != m[i].key || string(item) != m[i].item)) {
		t.Fatalf("From %s: %s %v %v, want index %d of %d", k, got, ok, err, i, len(m))
	}
	if !exact {
		i--
	}
	got, item, ok, err = e.Floor(t.Context(), k)
	if err != nil || ok != (i >= 0) || (ok && (got != m[i].key || string(item) != m[i].item)) {
		t.Fatalf("Floor %s: %s %v %v, want index %d of %d", k, got, ok, err, i, len(m))
	}
}

// TestOverlay holds trees under random changes against a sorted slice, at every change and after all.
func TestOverlay(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 11))
		f := newForest(t)
		keys := randomKeys(rng, 1+rng.IntN(250))
		r := f.reader(1 << 20)
		tree := r.Tree(treeID, f.build(keys, 2+rng.IntN(8)))
		var m model
		for _, k := range keys {
			m = append(m, pair{k, string(content(k))})
		}
		e := NewEdit(tree, 1<<20)
		for range rng.IntN(600) {
			change(t, rng, e, &m, keys)
			m.checkEdit(t, e, near(rng, keys))
		}
		o := e.Overlay()
		merged := f.reader(1<<20).Tree(treeID, tree.Root()).With(o) // nothing is cached: NoWait must be asked again
		for range 40 {
			m.check(t, merged, near(rng, keys), rng.IntN(30)+1)
		}
		m.check(t, merged, ondisk.Key{}, len(m)+2)
		n := 0
		if err := merged.All(t.Context(), ondisk.Key{}, func(k ondisk.Key, item []byte) (bool, error) {
			if n >= len(m) || m[n].key != k || m[n].item != string(item) {
				t.Fatalf("seed %d: All gives %s at index %d of %d", seed, k, n, len(m))
			}
			n++
			return true, nil
		}); err != nil || n != len(m) {
			t.Fatalf("seed %d: All called %d times, %v, want %d", seed, n, err, len(m))
		}
	}
}

// TestOverlayLarge has more items than one chunk of a table holds, put in random order.
func TestOverlayLarge(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 12))
	f := newForest(t)
	keys := randomKeys(rng, 50)
	e := NewEdit(f.reader(1<<20).Tree(treeID, f.build(keys, 7)), 1<<20)
	var m model
	for _, k := range keys {
		m = append(m, pair{k, string(content(k))})
	}
	for range 5000 {
		k := ondisk.Key{ObjectID: 256 + rng.Uint64N(40), Type: 250, Offset: rng.Uint64N(2000)}
		m.put(k, "x")
		if err := e.Put(k, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for range 2000 {
		k := m[rng.IntN(len(m))].key
		m.delete(k, k)
		if err := e.Delete(k, k); err != nil {
			t.Fatal(err)
		}
	}
	o := e.Overlay()
	if n := o.Items(); n < 2500 {
		t.Errorf("%d items, want some 3000", n)
	}
	m.check(t, e.tree, ondisk.Key{}, len(m)+2)
}

// TestOverlayBounds refuses changes that would take more memory than the limit, and counts what is given back.
func TestOverlayBounds(t *testing.T) {
	f := newForest(t)
	keys := randomKeys(rand.New(rand.NewPCG(1, 13)), 9)
	tree := f.reader(1<<20).Tree(treeID, f.build(keys, 7))
	const limit = 10 * (slotCost + 1000)
	e := NewEdit(tree, limit)
	item := bytes.Repeat([]byte{1}, 1000)
	put := func(n uint64) error { return e.Put(ondisk.Key{ObjectID: n, Type: 1}, item) }
	for range 3 { // the same ones again take nothing more
		for n := range uint64(10) {
			if err := put(n); err != nil {
				t.Fatal(err)
			}
		}
	}
	var large *TooLargeError
	if err := put(10); !errors.As(err, &large) || large.Limit != limit {
		t.Errorf("got %v, want TooLargeError", err)
	}
	e = NewEdit(tree, limit)
	for range 50 {
		for n := range uint64(9) {
			if err := put(n); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Delete(ondisk.Key{}, ondisk.Key{ObjectID: 8, Type: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for n := uint64(0); ; n += 2 {
		k := ondisk.Key{ObjectID: 1000, Offset: n}
		if err := e.Delete(k, k); errors.As(err, &large) {
			break
		} else if err != nil || n > 1000 {
			t.Fatalf("%d ranges, %v: want TooLargeError", n/2, err)
		}
	}
}

// TestNoOverlay keeps a tree without changes as it is.
func TestNoOverlay(t *testing.T) {
	f := newForest(t)
	tree := f.reader(1<<20).Tree(treeID, f.build(randomKeys(rand.New(rand.NewPCG(1, 14)), 9), 7))
	e := NewEdit(tree, 1<<20)
	if o := e.Overlay(); o != nil || tree.With(o) != tree {
		t.Errorf("got %v, want no overlay from no changes", o)
	}
}

// TestOverlayAllocates nothing, once blocks are cached.
func TestOverlayAllocates(t *testing.T) {
	f := newForest(t)
	keys := randomKeys(rand.New(rand.NewPCG(1, 15)), 60)
	e := NewEdit(f.reader(1<<20).Tree(treeID, f.build(keys, 7)), 1<<20)
	for i := 0; i < 60; i += 3 {
		if err := errors.Join(e.Put(keys[i], []byte("x")), e.Delete(keys[i+1], keys[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	tree := e.tree.With(e.Overlay())
	var c Cursor
	if n := testing.AllocsPerRun(20, func() {
		ok, err := c.SeekFrom(context.Background(), tree, ondisk.Key{})
		for ; ok && err == nil; ok, err = c.Next(context.Background()) {
		}
		if err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations on cached blocks", n)
	}
}

// TestLogTree takes blocks of the transaction after the superblock's, and of no later one.
func TestLogTree(t *testing.T) {
	for newer, good := range []bool{true, true, false} {
		f := newForest(t)
		h := f.header(0)
		h.Generation, h.Owner = h.Generation+uint64(newer), ondisk.TreeLog
		k := ondisk.Key{ObjectID: 256, Type: 250}
		root := Pointer{Logical: f.add(leaf(h, k)), Generation: h.Generation}
		r := f.reader(1 << 20)
		var c Cursor
		if ok, err := c.Find(t.Context(), r.Log(root), k); ok != good || errors.Is(err, ondisk.ErrCorrupt) == good {
			t.Errorf("%d generations later: %v %v, want %v", newer, ok, err, good)
		}
		if _, err := c.Find(t.Context(), r.Subvolume(300, root), k); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("a subvolume took a block of a log: %v", err)
		}
	}
}

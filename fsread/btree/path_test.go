package btree

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// TestCursorUsedAgain goes about three trees, one of them with an overlay, with one cursor that keeps its path, rests,
// may not wait, and meets reads that fail; and holds it against a new cursor for every place.
func TestCursorUsedAgain(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 5))
		f := newForest(t)
		keys := randomKeys(rng, 300)
		root, other := f.build(keys, 5), f.build(randomKeys(rng, 40), 5)
		r := f.reader([]int64{1, 16 * 20 << 10, 4 << 20}[rng.IntN(3)]) // of nothing, of some blocks, of all
		m := model{}
		e := NewEdit(r.Tree(treeID, root), 1<<20)
		for range rng.IntN(60) {
			change(t, rng, e, &m, keys)
		}
		trees := []Tree{r.Tree(treeID, root).With(e.Overlay()), r.Tree(treeID, root), r.Tree(treeID, other)}
		tree := trees[0]
		var used Cursor
		for range 1500 {
			if rng.IntN(20) == 0 {
				tree = trees[rng.IntN(3)]
			}
			k := near(rng, keys)
			used.NoWait = rng.IntN(2) == 0
			if rng.IntN(10) == 0 {
				used.Rest()
			}
			if !usedSeek(t, rng, f, &used, tree, k) {
				continue
			}
			var fresh Cursor
			if err := fresh.Seek(t.Context(), tree, k); err != nil {
				t.Fatal(err)
			}
			mustAgree(t, seed, k, &used, &fresh)
			if end, ok := used.End(); ok && tree.over == nil && end.Compare(k) <= 0 {
				t.Fatalf("seed %d: leaf of %s ends at %s", seed, k, end)
			}
			for range rng.IntN(20) {
				if used.NoWait = true; rng.IntN(4) == 0 {
					if _, err := used.Next(t.Context()); err == ErrNotCached {
						break // and the next Seek starts from there
					} else if err != nil {
						t.Fatal(err)
					}
				} else {
					next(t, &used)
				}
				want, err := fresh.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if !want {
					break
				}
				mustAgree(t, seed, k, &used, &fresh)
			}
		}
	}
}

// usedSeek seeks, now and then while the device fails one read or while the cursor may not wait; false when it ended with
// the error of that.
func usedSeek(t *testing.T, rng *rand.Rand, f *forest, c *Cursor, tree Tree, k ondisk.Key) bool {
	t.Helper()
	var rule *faultdev.Rule
	if rng.IntN(4) == 0 {
		rule = f.dev.Fail(faultdev.Nth(rng.IntN(3)), syscall.EIO)
		defer rule.Remove()
	}
	err := c.Seek(t.Context(), tree, k)
	if err == ErrNotCached && c.NoWait && rng.IntN(2) == 0 {
		c.NoWait = false
		err = c.Seek(t.Context(), tree, k)
	}
	if err != nil && !(err == ErrNotCached && c.NoWait) && !(rule != nil && errors.Is(err, syscall.EIO)) {
		t.Fatal(err)
	}
	return err == nil
}

func mustAgree(t *testing.T, seed uint64, k ondisk.Key, used, fresh *Cursor) {
	t.Helper()
	if used.Valid() != fresh.Valid() || used.Valid() && (used.Key() != fresh.Key() || string(used.Item()) != string(fresh.Item())) {
		t.Fatalf("seed %d: from %s, valid %v and %v: the cursor is elsewhere than a new one", seed, k, used.Valid(), fresh.Valid())
	}
}

// TestRest keeps no block but the root, and finds its way from there.
func TestRest(t *testing.T) {
	f := newForest(t)
	keys := randomKeys(rand.New(rand.NewPCG(1, 1)), 300)
	tree := f.reader(1).Tree(treeID, f.build(keys, 5))
	var c Cursor
	c.Rest() // of a cursor that was nowhere
	for _, k := range keys {
		if ok, err := c.Find(t.Context(), tree, k); !ok || err != nil {
			t.Fatal(ok, err)
		}
		c.Rest()
		for i, b := range c.blocks {
			if (b != nil) != (i == int(tree.root.Level)) {
				t.Fatalf("level %d: block %v", i, b != nil)
			}
		}
	}
}

// TestPathKept reads no block twice while keys stay below it, though nothing is cached.
func TestPathKept(t *testing.T) {
	f := newForest(t)
	keys := randomKeys(rand.New(rand.NewPCG(1, 1)), 300)
	tree := f.reader(1).Tree(treeID, f.build(keys, 5))
	before := f.dev.Reads()
	var c Cursor
	for _, k := range keys {
		if ok, err := c.Find(t.Context(), tree, k); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if n, want := f.dev.Reads()-before, 60+12+3+1; n != want {
		t.Errorf("%d blocks read, want %d: each once", n, want)
	}
}

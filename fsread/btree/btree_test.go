package btree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// forest is a filesystem of one device in memory, with room to build trees in.
type forest struct {
	t    testing.TB
	sb   *ondisk.Superblock
	disk []byte
	dev  *faultdev.Dev
	pool *devio.Pool
	next ondisk.Logical // where the next block goes; logical is physical
}

const treeID = 300

func newForest(t testing.TB) *forest {
	sb := ondisktest.NewSuperblock()
	sb.NodeSize = 4096
	f := &forest{t: t, sb: sb, disk: make([]byte, 9<<20), pool: devio.NewPool(1 << 20), next: 1 << 20}
	copy(f.disk[64<<10:], ondisktest.Super(sb))
	f.dev = faultdev.New(faultdev.Mem("disk", f.disk))
	t.Cleanup(func() {
		f.dev.Close()
		if n := f.pool.Lent(); n != 0 {
			t.Errorf("%d buffers still lent", n)
		}
		f.pool.Close()
	})
	return f
}

func (f *forest) header(level uint8) ondisktest.Header {
	return ondisktest.Header{Bytenr: f.next, FSID: f.sb.FSID, Generation: f.sb.Generation, Owner: treeID, Level: level, NodeSize: f.sb.NodeSize}
}

// add seals a block that was made by f.header and puts it on the disk.
func (f *forest) add(b []byte) ondisk.Logical {
	ondisktest.Seal(b, f.sb.CsumType)
	at := f.next
	copy(f.disk[at:], b)
	f.next += ondisk.Logical(f.sb.NodeSize)
	return at
}

// build makes a tree of the keys, fan items or pointers a block, and gives its root.
func (f *forest) build(keys []ondisk.Key, fan int) Pointer {
	var ptrs []ondisktest.Ptr
	for i := 0; i < len(keys); i += fan {
		kids := keys[i:min(i+fan, len(keys))]
		ptrs = append(ptrs, ondisktest.Ptr{Key: keys[i], Block: f.add(leaf(f.header(0), kids...)), Generation: f.sb.Generation})
	}
	level := uint8(0)
	for ; len(ptrs) > 1; level++ {
		var up []ondisktest.Ptr
		for i := 0; i < len(ptrs); i += fan {
			kids := ptrs[i:min(i+fan, len(ptrs))]
			up = append(up, ondisktest.Ptr{Key: kids[0].Key, Block: f.add(ondisktest.Node(f.header(level+1), kids...)), Generation: f.sb.Generation})
		}
		ptrs = up
	}
	return Pointer{Logical: ptrs[0].Block, Generation: f.sb.Generation, Level: level}
}

// content is what a key's item holds.
func content(k ondisk.Key) []byte { return binary.LittleEndian.AppendUint64(nil, k.ObjectID^k.Offset) }

func (f *forest) reader(cache int64) *Reader {
	set, err := volume.Scan(context.Background(), f.pool, []volume.Device{f.dev}, false)
	if err != nil {
		f.t.Fatal(err)
	}
	v, err := set.Bootstrap(f.pool, volume.Options{})
	if err != nil {
		f.t.Fatal(err)
	}
	return NewReader(v, cache)
}

// randomKeys gives sorted keys of a type that no check knows, with gaps.
func randomKeys(rng *rand.Rand, n int) []ondisk.Key {
	var keys []ondisk.Key
	k := ondisk.Key{ObjectID: 256, Type: 250}
	for range n {
		if k.Offset += 1 + rng.Uint64N(5); rng.IntN(8) == 0 {
			k.ObjectID, k.Offset = k.ObjectID+1+rng.Uint64N(3), rng.Uint64N(4)
		}
		keys = append(keys, k)
	}
	return keys
}

// TestSeekAndNext holds the cursor against a sorted slice, on trees of one to four levels.
func TestSeekAndNext(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{1, 2, 7, 8, 50, 300} {
		f := newForest(t)
		keys := randomKeys(rng, n)
		tree := f.reader(1<<20).Tree(treeID, f.build(keys, 7))
		for range 300 {
			k := ondisk.Key{ObjectID: 255 + rng.Uint64N(keys[n-1].ObjectID-253), Type: 249 + uint8(rng.IntN(3)), Offset: rng.Uint64N(20)}
			if rng.IntN(3) == 0 {
				k = keys[rng.IntN(n)]
			}
			want := -1
			for want+1 < n && keys[want+1].Compare(k) <= 0 {
				want++
			}
			var c Cursor
			if err := c.Seek(t.Context(), tree, k); err != nil {
				t.Fatal(err)
			}
			if c.Valid() != (want >= 0) || (want >= 0 && c.Key() != keys[want]) {
				t.Fatalf("%d keys: Seek %s is wrong, want index %d", n, k, want)
			}
			for i := want + 1; ; i++ {
				ok, err := c.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if ok != (i < n) {
					t.Fatalf("%d keys: Next at index %d says %v", n, i, ok)
				}
				if !ok {
					break
				}
				if c.Key() != keys[i] || string(c.Item()) != string(content(keys[i])) {
					t.Fatalf("%d keys: Next gives %s, want %s", n, c.Key(), keys[i])
				}
			}
			if ok, err := c.Next(t.Context()); ok || err != nil || c.Key() != keys[n-1] {
				t.Fatalf("%d keys: behind the end: %v %v", n, ok, err)
			}
		}
	}
}

// TestFind covers the ways to ask for one item.
func TestFind(t *testing.T) {
	f := newForest(t)
	keys := []ondisk.Key{{ObjectID: 256, Type: 250, Offset: 4}, {ObjectID: 256, Type: 250, Offset: 9}, {ObjectID: 256, Type: 252, Offset: 1}, {ObjectID: 300, Type: 250, Offset: 0}}
	tree := f.reader(1<<20).Tree(treeID, f.build(keys, 2))
	var c Cursor
	for _, k := range []struct {
		key  ondisk.Key
		want bool
	}{{keys[0], true}, {keys[3], true}, {ondisk.Key{ObjectID: 256, Type: 250, Offset: 5}, false}, {ondisk.Key{}, false}} {
		if ok, err := c.Find(t.Context(), tree, k.key); ok != k.want || err != nil {
			t.Errorf("Find %s: %v %v, want %v", k.key, ok, err, k.want)
		}
	}
	for _, k := range []struct {
		id   uint64
		typ  uint8
		want int
	}{{256, 250, 0}, {256, 252, 2}, {300, 250, 3}, {256, 251, -1}, {299, 250, -1}, {301, 250, -1}, {1, 1, -1}} {
		ok, err := c.FindFirst(t.Context(), tree, k.id, k.typ)
		if ok != (k.want >= 0) || err != nil || (ok && c.Key() != keys[k.want]) {
			t.Errorf("FindFirst %d %d: %v %v, want index %d", k.id, k.typ, ok, err, k.want)
		}
	}
	n := 0
	if err := tree.All(t.Context(), keys[1], func(ondisk.Key, []byte) (bool, error) { n++; return n < 2, nil }); err != nil || n != 2 {
		t.Errorf("All called %d times, %v, want 2", n, err)
	}
}

// TestNoWait answers ErrNotCached, reads nothing, and leaves the cursor where one that may wait goes on.
func TestNoWait(t *testing.T) {
	f := newForest(t)
	keys := randomKeys(rand.New(rand.NewPCG(5, 5)), 60)
	tree := f.reader(1<<20).Tree(treeID, f.build(keys, 4))
	f.dev.Record()
	c := Cursor{NoWait: true}
	if err := c.Seek(t.Context(), tree, keys[0]); err != ErrNotCached || len(f.dev.Log()) != 0 {
		t.Fatalf("got %v and %d reads, want ErrNotCached and none", err, len(f.dev.Log()))
	}
	c.NoWait = false
	if err := c.Seek(t.Context(), tree, keys[0]); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(keys); {
		c.NoWait = true
		ok, err := c.Next(t.Context())
		if err == ErrNotCached {
			c.NoWait = false
			ok, err = c.Next(t.Context())
		}
		if !ok || err != nil || c.Key() != keys[i] {
			t.Fatalf("index %d: %v %v %s, want %s", i, ok, err, c.Key(), keys[i])
		}
		i++
	}
	c.NoWait = true
	if n := testing.AllocsPerRun(50, func() {
		if err := c.Seek(context.Background(), tree, keys[30]); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if _, err := c.Next(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations on cached blocks", n)
	}
}

// TestWrongBlocks breaks what a parent says of a child: each is an error that names tree and block, never items.
func TestWrongBlocks(t *testing.T) {
	keys := randomKeys(rand.New(rand.NewPCG(6, 6)), 40)
	for _, c := range []struct {
		name   string
		change func(f *forest, leaf, root []byte)
		kind   error
	}{
		{"checksum", func(_ *forest, leaf, _ []byte) { leaf[2000] ^= 1 }, ondisk.ErrChecksum},
		{"generation", func(f *forest, leaf, _ []byte) { leaf[80]--; ondisktest.Seal(leaf, 0) }, ondisk.ErrCorrupt},
		{"owner", func(f *forest, leaf, _ []byte) { leaf[88]++; ondisktest.Seal(leaf, 0) }, ondisk.ErrCorrupt},
		{"level", func(f *forest, leaf, _ []byte) { leaf[100]++; ondisktest.Seal(leaf, 0) }, ondisk.ErrCorrupt},
		{"address", func(f *forest, leaf, _ []byte) { leaf[49]++; ondisktest.Seal(leaf, 0) }, ondisk.ErrCorrupt},
		{"first key", func(f *forest, leaf, _ []byte) { leaf[101+9]++; ondisktest.Seal(leaf, 0) }, ondisk.ErrCorrupt},
		{"two pointers to one leaf", func(f *forest, _, root []byte) {
			copy(root[101+33+17:101+33+33], root[101+17:101+33])
			ondisktest.Seal(root, 0)
		}, ondisk.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newForest(t)
			root := f.build(keys, 20)
			c.change(f, f.disk[1<<20:][:4096], f.disk[root.Logical:][:4096])
			tree := f.reader(1<<20).Tree(treeID, root)
			err := tree.All(t.Context(), ondisk.Key{}, func(ondisk.Key, []byte) (bool, error) { return true, nil })
			var be *BlockError
			if !errors.Is(err, c.kind) || !errors.As(err, &be) || be.Tree != treeID {
				t.Errorf("got %v, want a BlockError of %v", err, c.kind)
			}
		})
	}
}

// TestOwners keeps one tree's blocks from answering for another's.
func TestOwners(t *testing.T) {
	f := newForest(t)
	root := f.build(randomKeys(rand.New(rand.NewPCG(7, 7)), 40), 20)
	r := f.reader(1 << 20)
	ctx := context.Background()
	all := func(t Tree) error {
		return t.All(ctx, ondisk.Key{}, func(ondisk.Key, []byte) (bool, error) { return true, nil })
	}
	if err := all(r.Tree(treeID, root)); err != nil {
		t.Error(err)
	}
	if err := all(r.Subvolume(400, root)); err != nil {
		t.Errorf("a snapshot shares its origin's blocks: %v", err)
	}
	if err := all(r.Tree(ondisk.TreeCsum, root)); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("the checksum tree took a subvolume's cached block: %v", err)
	}
}

// TestSharedRead has many wait for the same blocks: each is read once; who gives up leaves the others be.
func TestSharedRead(t *testing.T) {
	f := newForest(t)
	root := f.build(randomKeys(rand.New(rand.NewPCG(8, 8)), 10), 20)
	tree := f.reader(1<<20).Tree(treeID, root)
	f.dev.Record()
	hang := f.dev.Hang(faultdev.All())
	gone, cancel := context.WithCancelCause(context.Background())
	var wg sync.WaitGroup
	errs := make(chan error, 9)
	for i := range 9 {
		ctx := context.Background()
		if i == 0 {
			ctx = gone
		}
		wg.Go(func() {
			var c Cursor
			errs <- c.Seek(ctx, tree, ondisk.Key{ObjectID: 256})
		})
	}
	cancel(syscall.ECANCELED)
	if err := <-errs; !errors.Is(err, syscall.ECANCELED) {
		t.Errorf("got %v first, want the one that gave up", err)
	}
	for f.dev.Depth() == 0 {
		time.Sleep(time.Millisecond)
	}
	hang.Remove()
	f.dev.Release()
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if n := len(f.dev.Log()); n != 1 {
		t.Errorf("%d reads for one block", n)
	}
}

// TestFailNth fails every read in turn: an error with its cause, and right items once it is gone.
func TestFailNth(t *testing.T) {
	keys := randomKeys(rand.New(rand.NewPCG(9, 9)), 60)
	for i, fired := 0, true; fired; i++ {
		f := newForest(t)
		root := f.build(keys, 5)
		tree := f.reader(1<<20).Tree(treeID, root)
		rule := f.dev.Fail(faultdev.Nth(i), syscall.EIO)
		for range 2 {
			n := 0
			err := tree.All(t.Context(), ondisk.Key{}, func(k ondisk.Key, _ []byte) (bool, error) {
				if k != keys[n] {
					return false, fmt.Errorf("index %d: %s, want %s", n, k, keys[n])
				}
				n++
				return true, nil
			})
			if err == nil && n != len(keys) {
				t.Fatalf("read %d: %d items and no error", i, n)
			}
			if err != nil && !errors.Is(err, syscall.EIO) {
				t.Fatalf("read %d: %v", i, err)
			}
		}
		fired = rule.Fired()
	}
}

func BenchmarkSeek(b *testing.B) {
	f := newForest(b)
	keys := randomKeys(rand.New(rand.NewPCG(1, 9)), 5000)
	tree := f.reader(8<<20).Tree(treeID, f.build(keys, 50))
	var c Cursor
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := c.Seek(context.Background(), tree, keys[i*7919%len(keys)]); err != nil {
			b.Fatal(err)
		}
	}
}

// leaf is a leaf of the keys, as build makes them.
func leaf(h ondisktest.Header, keys ...ondisk.Key) []byte {
	var items []ondisktest.Item
	for _, k := range keys {
		items = append(items, ondisktest.Item{Key: k, Data: content(k)})
	}
	return ondisktest.Leaf(h, items...)
}

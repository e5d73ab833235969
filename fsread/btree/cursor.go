package btree

import (
	"context"
	"fmt"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// maxLevel is BTRFS_MAX_LEVEL: levels are 0..7.
const maxLevel = 8

// Tree is one tree at one root. It is a value: copy it freely.
type Tree struct {
	r     *Reader
	root  Pointer
	id    uint64 // for errors and for Owner
	owner uint64 // as ondisk.Expect has it
	newer uint64 // generations that its blocks may be after the superblock's
	over  *Overlay
}

// Tree gives the tree of that id, whose blocks carry exactly that owner.
func (r *Reader) Tree(id uint64, root Pointer) Tree {
	return Tree{r: r, root: root, id: id, owner: id}
}

// Subvolume gives a tree whose blocks may be shared with other subvolumes, so carry any subvolume's id.
func (r *Reader) Subvolume(id uint64, root Pointer) Tree {
	return Tree{r: r, root: root, id: id, owner: ondisk.OwnerAnySubvolume}
}

// Log gives a log tree, of which there is one beside each subvolume that was synced since the last commit,
// and one of their roots: blocks of both are of the transaction after the superblock's.
func (r *Reader) Log(root Pointer) Tree {
	return Tree{r: r, root: root, id: ondisk.TreeLog, owner: ondisk.TreeLog, newer: 1}
}

// ID is the tree's object id.
func (t Tree) ID() uint64 { return t.id }

// Root is the tree's root block.
func (t Tree) Root() Pointer { return t.root }

// ReadRoot reads and checks the tree's topmost block, and nothing below it.
func (t Tree) ReadRoot(ctx context.Context) error {
	want := t.r.expect
	want.Logical, want.Generation, want.Level, want.Owner = t.root.Logical, t.root.Generation, t.root.Level, t.owner
	want.MaxGeneration += t.newer
	_, err := t.r.block(ctx, t.id, &want, true)
	return err
}

// Cursor is a place in a tree: an item, or before the first. The zero value is ready for Seek. It
// must not be used by two goroutines at a time.
type Cursor struct {
	// NoWait makes Seek and Next answer ErrNotCached rather than read a block.
	NoWait bool

	tree   Tree
	low    uint8 // from this level up to the root's, blocks and limits are one path
	blocks [maxLevel]ondisk.Block
	slots  [maxLevel]int
	want   ondisk.Expect // reused from level to level
	limits [maxLevel]limit

	merge merge
}

// limit is the key that everything in the block of a level stays below.
type limit struct {
	key ondisk.Key
	has bool
}

// Seek goes to the last item whose key is at most k, or before the first item when there is none.
func (c *Cursor) Seek(ctx context.Context, t Tree, k ondisk.Key) error {
	c.merge = merge{}
	if err := c.seek(ctx, t, k); err != nil || t.over == nil {
		return err
	}
	return c.seekMerged(ctx, k)
}

// seek is Seek among the tree's own items. It goes down from the lowest block of the last path that k lies below:
// blocks do not change, so what was checked once stays right.
func (c *Cursor) seek(ctx context.Context, t Tree, k ondisk.Key) error {
	if t.root.Level >= maxLevel {
		return &ondisk.Error{Item: "tree root", Detail: fmt.Sprintf("tree %d has level %d", int64(t.id), t.root.Level)}
	}
	if c.tree != t || c.blocks[t.root.Level] == nil {
		if err := c.start(ctx, t); err != nil {
			return err
		}
	}
	level := c.low
	for level < t.root.Level && !c.covers(level, k) {
		level++
	}
	for {
		c.slots[level] = c.blocks[level].Search(k)
		if level == 0 {
			return nil
		}
		c.slots[level] = max(c.slots[level], 0)
		c.low = level
		c.expectChild(level)
		b, err := t.r.block(ctx, t.id, &c.want, !c.NoWait)
		if err != nil {
			return err
		}
		level--
		c.low, c.blocks[level] = level, b
	}
}

// start takes the root of a tree that the cursor was not in.
func (c *Cursor) start(ctx context.Context, t Tree) error {
	c.tree, c.low = t, t.root.Level
	clear(c.blocks[:])
	c.want = t.r.expect
	c.want.Logical, c.want.Generation, c.want.Level, c.want.Owner = t.root.Logical, t.root.Generation, t.root.Level, t.owner
	c.want.MaxGeneration += t.newer
	c.limits[t.root.Level] = limit{}
	b, err := t.r.block(ctx, t.id, &c.want, !c.NoWait)
	c.blocks[t.root.Level] = b
	return err
}

// covers says whether k is among the keys that can only lie below the path's block of this level.
func (c *Cursor) covers(level uint8, k ondisk.Key) bool {
	b, l := c.blocks[level], c.limits[level]
	return b.Len() > 0 && b.Key(0).Compare(k) <= 0 && (!l.has || k.Compare(l.key) < 0)
}

// Rest lets go of every block but the root, which the cursor then begins with. A cursor that is kept for later
// keeps no more memory alive than that.
func (c *Cursor) Rest() {
	if c.tree.r == nil {
		return
	}
	top := c.tree.root.Level
	clear(c.blocks[:top])
	c.low, c.merge = top, merge{}
}

// End is the key that everything in the leaf which the last Seek led to stays below, among the tree's own items; false
// when it is the last leaf.
func (c *Cursor) End() (ondisk.Key, bool) { return c.limits[0].key, c.limits[0].has }

// expectChild makes c.want what the slot of this level says about its child.
func (c *Cursor) expectChild(level uint8) {
	b, i := c.blocks[level], c.slots[level]
	l := c.limits[level]
	if i+1 < b.Len() {
		l = limit{key: b.Key(i + 1), has: true}
	}
	c.limits[level-1] = l
	c.want.Logical, c.want.Generation, c.want.Level = b.Ptr(i), b.PtrGeneration(i), level-1
	c.want.FirstKey, c.want.HasFirstKey = b.Key(i), true
	c.want.Limit, c.want.HasLimit = l.key, l.has
}

// Next goes to the next item; false at the end of the tree, where the cursor then stays.
func (c *Cursor) Next(ctx context.Context) (bool, error) {
	if c.tree.over != nil {
		return c.nextMerged(ctx)
	}
	return c.next(ctx)
}

// next is Next among the tree's own items.
func (c *Cursor) next(ctx context.Context) (bool, error) {
	if c.slots[0]+1 < c.blocks[0].Len() {
		c.slots[0]++
		return true, nil
	}
	level := uint8(1)
	for ; level <= c.tree.root.Level && c.slots[level]+1 >= c.blocks[level].Len(); level++ {
	}
	if level > c.tree.root.Level {
		return false, nil
	}
	return c.descend(ctx, level)
}

// descend goes to the first item below the next slot of level. The cursor moves only when every block
// on the way is there, so that a Next which may not wait can be asked again by one that may.
func (c *Cursor) descend(ctx context.Context, level uint8) (bool, error) {
	blocks, slots := c.blocks, c.slots
	c.slots[level]++
	for l := level; l > 0; l-- {
		c.expectChild(l)
		b, err := c.tree.r.block(ctx, c.tree.id, &c.want, !c.NoWait)
		if err != nil {
			c.blocks, c.slots, c.low = blocks, slots, level // limits below it are those of where it did not go
			return false, err
		}
		c.blocks[l-1] = b
		if l > 1 {
			c.slots[l-1] = 0
		}
	}
	if c.blocks[0].Len() == 0 {
		c.blocks, c.slots, c.low = blocks, slots, level
		return false, &ondisk.Error{Item: "tree block", Detail: fmt.Sprintf("tree %d: empty leaf below a node", int64(c.tree.id))}
	}
	c.low = 0
	c.slots[0] = 0
	return true, nil
}

// Valid says whether the cursor is on an item, rather than before the first.
func (c *Cursor) Valid() bool { return c.merge.on || c.onBlock() }

// onBlock says whether the cursor is on an item of the tree's own.
func (c *Cursor) onBlock() bool {
	return c.blocks[0] != nil && c.slots[0] >= 0 && c.slots[0] < c.blocks[0].Len()
}

// Key is the key of the item. Precondition: Valid.
func (c *Cursor) Key() ondisk.Key {
	if c.merge.on {
		return c.merge.item.key
	}
	return c.blocks[0].Key(c.slots[0])
}

// Item is the item's data, immutable. Precondition: Valid.
func (c *Cursor) Item() []byte {
	if c.merge.on {
		return c.merge.item.v
	}
	return c.blocks[0].Item(c.slots[0])
}

// Path gives the blocks that hold the item, the leaf first and the root last; none for an item of an overlay.
// Precondition: Valid. The slice is the cursor's.
func (c *Cursor) Path() []ondisk.Block {
	if c.merge.on {
		return nil
	}
	return c.blocks[:c.tree.root.Level+1]
}

// Find goes to the item of exactly this key; false when there is none.
func (c *Cursor) Find(ctx context.Context, t Tree, k ondisk.Key) (bool, error) {
	if err := c.Seek(ctx, t, k); err != nil {
		return false, err
	}
	return c.Valid() && c.Key() == k, nil
}

// SeekFrom goes to the first item whose key is at least k; false when there is none.
func (c *Cursor) SeekFrom(ctx context.Context, t Tree, k ondisk.Key) (bool, error) {
	if err := c.Seek(ctx, t, k); err != nil {
		return false, err
	}
	if c.Valid() && c.Key() == k {
		return true, nil
	}
	return c.Next(ctx)
}

// FindFirst goes to the first item of an object and type; false when there is none.
func (c *Cursor) FindFirst(ctx context.Context, t Tree, objectID uint64, typ uint8) (bool, error) {
	ok, err := c.SeekFrom(ctx, t, ondisk.Key{ObjectID: objectID, Type: typ})
	if !ok || err != nil {
		return false, err
	}
	k := c.Key()
	return k.ObjectID == objectID && k.Type == typ, nil
}

// All calls f for every item from first on, in key order, until f says no more or the tree ends.
func (t Tree) All(ctx context.Context, first ondisk.Key, f func(k ondisk.Key, item []byte) (more bool, err error)) error {
	var c Cursor
	ok, err := c.SeekFrom(ctx, t, first)
	for ; ok && err == nil; ok, err = c.Next(ctx) {
		more, err := f(c.Key(), c.Item())
		if err != nil || !more {
			return err
		}
	}
	return err
}

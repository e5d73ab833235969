package btree

import (
	"context"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// merge is a Cursor's place in an overlay. While on is clear, blocks and slots are the place, as in a tree
// without one. While it is set, they are on the last item of the tree's own that is not behind item,
// or, with ahead, on the first one behind it that the overlay does not take away.
type merge struct {
	item  slot[[]byte]
	on    bool
	ahead bool
	ended bool // with ahead: there is none behind it
}

// seekMerged ends a Seek: blocks and slots are on the last item of the tree's own that is at most k.
func (c *Cursor) seekMerged(ctx context.Context, k ondisk.Key) error {
	it, ok := c.tree.over.items.floor(k)
	for {
		if ok && (!c.onBlock() || it.key.Compare(c.blockKey()) >= 0) {
			c.merge = merge{item: it, on: true}
			return nil
		}
		if !c.onBlock() {
			return nil
		}
		r, gone := c.tree.over.hides(c.blockKey())
		if !gone {
			return nil
		}
		if err := c.seekBefore(ctx, r.key); err != nil {
			return err
		}
	}
}

// blockKey is the key among the tree's own items. Precondition: onBlock.
func (c *Cursor) blockKey() ondisk.Key { return c.blocks[0].Key(c.slots[0]) }

// seekBefore goes back to the last of the tree's own items in front of k.
func (c *Cursor) seekBefore(ctx context.Context, k ondisk.Key) error {
	k, ok := before(k)
	if i := c.blocks[0].Search(k); ok && i >= 0 {
		c.slots[0] = i // most often it is in the same leaf
		return nil
	}
	if err := c.seek(ctx, c.tree, k); err != nil {
		return err
	}
	if !ok {
		c.slots[0] = -1
	}
	return nil
}

// nextMerged goes to the lesser of the next item of the overlay and the next of the tree's own. As with
// descend, the cursor moves only if all goes well.
func (c *Cursor) nextMerged(ctx context.Context) (bool, error) {
	saved := *c
	it, ok := c.nextItem()
	if !c.merge.ahead {
		more, err := c.advance(ctx)
		if err != nil {
			*c = saved
			return false, err
		}
		c.merge.ahead, c.merge.ended = true, !more
	}
	switch {
	case ok && (c.merge.ended || it.key.Compare(c.blockKey()) < 0):
		c.merge.item, c.merge.on = it, true
	case c.merge.ended:
		*c = saved
		return false, nil
	default:
		c.merge = merge{}
	}
	return true, nil
}

// nextItem is the first item of the overlay behind the cursor.
func (c *Cursor) nextItem() (slot[[]byte], bool) {
	if !c.Valid() {
		return c.tree.over.items.first()
	}
	return c.tree.over.items.above(c.Key())
}

// advance goes to the next of the tree's own items that the overlay neither replaces nor takes away;
// false when there is none.
func (c *Cursor) advance(ctx context.Context) (bool, error) {
	for {
		ok, err := c.next(ctx)
		if !ok || err != nil {
			return false, err
		}
		k := c.blockKey()
		if _, replaced := c.tree.over.items.get(k); replaced {
			continue
		}
		r, gone := c.tree.over.hides(k)
		if !gone {
			return true, nil
		}
		if k != r.v {
			if err := c.seek(ctx, c.tree, r.v); err != nil {
				return false, err
			}
		}
	}
}

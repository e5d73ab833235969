package btree

import (
	"bytes"
	"context"
	"fmt"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// slotCost is what a slot of a table takes beside the bytes of its item, roughly.
const slotCost = 96

// TooLargeError is a change that an Edit refuses, since all together would take more than its limit.
type TooLargeError struct {
	Limit int64 // bytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("changes would take more than %d bytes of memory", e.Limit)
}

// Overlay is what to show otherwise than a tree has it: items that replace its items or stand beside
// them, and ranges of keys whose items are gone. It is immutable.
type Overlay struct {
	items table[[]byte]
	// gone holds ranges that neither overlap nor touch: from a slot's key to its value, both inclusive. An
	// item of the overlay is there, though its key lies in one.
	gone  table[ondisk.Key]
	bytes int64 // what it all takes
}

// Bytes is the memory that the overlay takes, roughly.
func (o *Overlay) Bytes() int64 {
	if o == nil {
		return 0
	}
	return o.bytes
}

// Items is the number of items that the overlay adds or replaces.
func (o *Overlay) Items() int {
	n := 0
	for _, c := range o.items.chunks {
		n += len(c)
	}
	return n
}

// hides finds the range that takes k's item away. Items that replace one are looked at elsewhere.
func (o *Overlay) hides(k ondisk.Key) (r slot[ondisk.Key], ok bool) {
	r, ok = o.gone.floor(k)
	return r, ok && k.Compare(r.v) <= 0
}

// With gives the tree as o changes it; a nil o changes nothing.
func (t Tree) With(o *Overlay) Tree {
	t.over = o
	return t
}

// Edit changes a tree in memory: what it holds is read as if every change before had been written. It
// must not be used by two goroutines at a time.
type Edit struct {
	tree  Tree // with the changes
	o     *Overlay
	limit int64
	cur   Cursor
}

// NewEdit starts without changes over t, which must not have an overlay. The changes may take limit bytes.
func NewEdit(t Tree, limit int64) *Edit {
	o := &Overlay{}
	return &Edit{tree: t.With(o), o: o, limit: limit}
}

// Overlay gives the changes; nil when there are none. The Edit must not be used afterwards.
func (e *Edit) Overlay() *Overlay {
	o := e.o
	e.o = nil
	if len(o.items.chunks) == 0 && len(o.gone.chunks) == 0 {
		return nil
	}
	return o
}

// Find gives the item of exactly this key, immutable; false when there is none.
func (e *Edit) Find(ctx context.Context, k ondisk.Key) ([]byte, bool, error) {
	ok, err := e.cur.Find(ctx, e.tree, k)
	if !ok || err != nil {
		return nil, false, err
	}
	return e.cur.Item(), true, nil
}

// Floor gives the last item whose key is at most k; false when there is none.
func (e *Edit) Floor(ctx context.Context, k ondisk.Key) (ondisk.Key, []byte, bool, error) {
	if err := e.cur.Seek(ctx, e.tree, k); err != nil || !e.cur.Valid() {
		return ondisk.Key{}, nil, false, err
	}
	return e.cur.Key(), e.cur.Item(), true, nil
}

// From gives the first item whose key is at least k; false when there is none.
func (e *Edit) From(ctx context.Context, k ondisk.Key) (ondisk.Key, []byte, bool, error) {
	ok, err := e.cur.SeekFrom(ctx, e.tree, k)
	if !ok || err != nil {
		return ondisk.Key{}, nil, false, err
	}
	return e.cur.Key(), e.cur.Item(), true, nil
}

// Put makes a copy of item the item of k, whether there was one or not. Errors: *TooLargeError.
func (e *Edit) Put(k ondisk.Key, item []byte) error {
	old, had := e.o.items.get(k)
	if had {
		e.o.bytes -= slotCost + int64(len(old))
	}
	if e.o.bytes += slotCost + int64(len(item)); e.o.bytes > e.limit {
		return &TooLargeError{Limit: e.limit}
	}
	e.o.items.put(k, bytes.Clone(item))
	return nil
}

// Delete takes away every item from first to last, both inclusive. Errors: *TooLargeError.
func (e *Edit) Delete(first, last ondisk.Key) error {
	if first.Compare(last) > 0 {
		return nil
	}
	for s, ok := e.o.items.from(first); ok && s.key.Compare(last) <= 0; s, ok = e.o.items.above(s.key) {
		e.o.bytes -= slotCost + int64(len(s.v))
		e.o.items.remove(s.key)
	}
	// Ranges that overlap the new one or touch it become one with it.
	if r, ok := e.o.gone.floor(first); ok && follows(r.v, first) {
		first = r.key
		last = later(last, r.v)
	}
	for r, ok := e.o.gone.from(first); ok && follows(last, r.key); r, ok = e.o.gone.above(r.key) {
		last = later(last, r.v)
		e.o.gone.remove(r.key)
		e.o.bytes -= slotCost
	}
	if e.o.bytes += slotCost; e.o.bytes > e.limit {
		return &TooLargeError{Limit: e.limit}
	}
	e.o.gone.put(first, last)
	return nil
}

// follows says whether k is at most the key right behind end: a range from k on overlaps or touches one
// that ends at end.
func follows(end, k ondisk.Key) bool {
	if k.Compare(end) <= 0 {
		return true
	}
	before, _ := before(k)
	return before == end
}

// before is the key right in front of k; false when k is the first of all.
func before(k ondisk.Key) (ondisk.Key, bool) {
	switch {
	case k.Offset > 0:
		k.Offset--
	case k.Type > 0:
		k.Type, k.Offset = k.Type-1, ^uint64(0)
	case k.ObjectID > 0:
		k.ObjectID, k.Type, k.Offset = k.ObjectID-1, ^uint8(0), ^uint64(0)
	default:
		return k, false
	}
	return k, true
}

func later(a, b ondisk.Key) ondisk.Key {
	if a.Compare(b) > 0 {
		return a
	}
	return b
}

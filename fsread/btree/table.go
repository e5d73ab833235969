package btree

import (
	"slices"
	"sort"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// chunkSlots is how many slots a chunk of a table holds at most: a change moves one chunk's slots only.
const chunkSlots = 256

// slot is a key and what belongs to it.
type slot[V any] struct {
	key ondisk.Key
	v   V
}

// table is a sorted map. Chunks are never empty. The zero value is an empty table.
type table[V any] struct {
	chunks [][]slot[V]
}

// chunk is the index of the chunk that holds k if any does: the last that starts at or before it; -1 when
// all start behind it.
func (t *table[V]) chunk(k ondisk.Key) int {
	return sort.Search(len(t.chunks), func(i int) bool { return t.chunks[i][0].key.Compare(k) > 0 }) - 1
}

// at is the first index in a chunk whose key is at least k.
func at[V any](c []slot[V], k ondisk.Key) (int, bool) {
	return slices.BinarySearchFunc(c, k, func(s slot[V], k ondisk.Key) int { return s.key.Compare(k) })
}

// floor finds the last slot whose key is at most k.
func (t *table[V]) floor(k ondisk.Key) (s slot[V], ok bool) {
	n := t.chunk(k)
	if n < 0 {
		return s, false
	}
	i, exact := at(t.chunks[n], k)
	if !exact {
		i-- // not below zero: the chunk starts at or before k
	}
	return t.chunks[n][i], true
}

// above finds the first slot whose key is greater than k.
func (t *table[V]) above(k ondisk.Key) (s slot[V], ok bool) {
	n := t.chunk(k)
	if n < 0 {
		return t.first()
	}
	i, exact := at(t.chunks[n], k)
	if exact {
		i++
	}
	if i < len(t.chunks[n]) {
		return t.chunks[n][i], true
	}
	if n+1 < len(t.chunks) {
		return t.chunks[n+1][0], true
	}
	return s, false
}

// from finds the first slot whose key is at least k.
func (t *table[V]) from(k ondisk.Key) (slot[V], bool) {
	if s, ok := t.floor(k); ok && s.key == k {
		return s, true
	}
	return t.above(k)
}

func (t *table[V]) first() (s slot[V], ok bool) {
	if len(t.chunks) == 0 {
		return s, false
	}
	return t.chunks[0][0], true
}

// get finds the slot of exactly k.
func (t *table[V]) get(k ondisk.Key) (v V, ok bool) {
	s, ok := t.floor(k)
	if !ok || s.key != k {
		return v, false
	}
	return s.v, true
}

// put sets what belongs to k.
func (t *table[V]) put(k ondisk.Key, v V) {
	n := t.chunk(k)
	if n < 0 {
		if len(t.chunks) == 0 {
			t.chunks = append(t.chunks, nil)
		}
		n = 0
	}
	c := t.chunks[n]
	i, exact := at(c, k)
	if exact {
		c[i].v = v
		return
	}
	c = slices.Insert(c, i, slot[V]{key: k, v: v})
	t.chunks[n] = c
	if len(c) > chunkSlots {
		half := len(c) / 2
		t.chunks[n] = slices.Clip(c[:half])
		t.chunks = slices.Insert(t.chunks, n+1, slices.Clone(c[half:]))
	}
}

// remove takes k out, if it is there.
func (t *table[V]) remove(k ondisk.Key) {
	n := t.chunk(k)
	if n < 0 {
		return
	}
	i, exact := at(t.chunks[n], k)
	if !exact {
		return
	}
	if t.chunks[n] = slices.Delete(t.chunks[n], i, i+1); len(t.chunks[n]) == 0 {
		t.chunks = slices.Delete(t.chunks, n, n+1)
	}
}

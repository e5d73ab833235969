package fsread

import (
	"math"
	"slices"
	"sort"
)

// maxSpans bounds a set of spans: 1 MiB of memory.
const maxSpans = 1 << 16

// spans is a set of addresses, as ranges that are sorted and do not touch.
type spans struct {
	list  []span
	limit int // ranges; 0 means maxSpans
}

// span is [from, to).
type span struct{ from, to uint64 }

// at says whether x is in the set, and where the answer changes next.
func (s *spans) at(x uint64) (in bool, until uint64) {
	i := sort.Search(len(s.list), func(i int) bool { return s.list[i].to > x })
	switch {
	case i == len(s.list):
		return false, math.MaxUint64
	case s.list[i].from > x:
		return false, s.list[i].from
	}
	return true, s.list[i].to
}

// add puts [from, to) into the set. It gives how much of that is new; ok is false when the set is full and does
// not keep it.
func (s *spans) add(from, to uint64) (fresh uint64, ok bool) {
	i := sort.Search(len(s.list), func(i int) bool { return s.list[i].to >= from })
	j := i
	fresh = to - from
	whole := span{from, to}
	for ; j < len(s.list) && s.list[j].from <= to; j++ {
		o := s.list[j]
		if lo, hi := max(o.from, from), min(o.to, to); lo < hi {
			fresh -= hi - lo
		}
		whole = span{min(whole.from, o.from), max(whole.to, o.to)}
	}
	limit := s.limit
	if limit == 0 {
		limit = maxSpans
	}
	if i == j && len(s.list) >= limit {
		return fresh, false
	}
	s.list = slices.Replace(s.list, i, j, whole)
	return fresh, true
}

package faultdev

import "github.com/btrexport/btrexport/devio"

// Match says which reads a rule concerns.
type Match struct {
	off    devio.Physical
	length uint64 // 0: the whole device
	first  int    // reads that fit the range and are let through first
	count  int    // reads that are then concerned; 0: all
}

// All matches every read.
func All() Match { return Match{} }

// Range matches the reads that touch the n bytes at off; n must not be 0.
func Range(off devio.Physical, n uint64) Match {
	if n == 0 {
		panic("faultdev: empty range")
	}
	return Match{off: off, length: n}
}

// Nth matches one read: the one that i others precede, counted from when the rule is added.
func Nth(i int) Match { return All().Nth(i) }

// Nth narrows m to one of its reads, the one that i others of m precede.
func (m Match) Nth(i int) Match {
	m.first, m.count = i, 1
	return m
}

// First narrows m to its first n reads; n must not be 0.
func (m Match) First(n int) Match {
	if n == 0 {
		panic("faultdev: no reads")
	}
	m.first, m.count = 0, n
	return m
}

// touched returns the part of r that lies in the range of m: [from, to) in bytes from the start
// of r, empty if there is none.
func (m Match) touched(r *devio.Read) (from, to uint64) {
	size := uint64(r.Size())
	if m.length == 0 {
		return 0, size
	}
	start := uint64(r.Off)
	if uint64(m.off) > start {
		from = min(uint64(m.off)-start, size)
	}
	// The end of the range as a distance from start; a range may reach beyond the last address.
	switch {
	case uint64(m.off) >= start:
		to = from + min(m.length, size-from)
	case m.length > start-uint64(m.off):
		to = min(m.length-(start-uint64(m.off)), size)
	}
	return from, to
}

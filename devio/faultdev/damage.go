package faultdev

import (
	"cmp"
	"slices"
)

const (
	rubbish = 0xdb // what buffers hold where no data arrived: nobody must take it for zeroes
	flip    = 0xa5 // changes half of the bits of every byte
)

// spoil fills what follows the first skip bytes of bufs with rubbish.
func spoil(bufs [][]byte, skip int) {
	for _, b := range bufs {
		n := min(skip, len(b))
		skip -= n
		for i := range b[n:] {
			b[n+i] = rubbish
		}
	}
}

// corrupt changes the bytes of bufs that lie in any of spans, each once.
func corrupt(bufs [][]byte, spans []span) {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	done := uint64(0)
	for _, s := range spans {
		invert(bufs, max(s.from, done), s.to)
		done = max(done, s.to)
	}
}

// invert changes the bytes [from, to) of bufs, counted over all of them.
func invert(bufs [][]byte, from, to uint64) {
	start := uint64(0)
	for _, b := range bufs {
		end := start + uint64(len(b))
		for at := max(from, start); at < min(to, end); at++ {
			b[at-start] ^= flip
		}
		start = end
	}
}

package devio

import (
	"cmp"
	"iter"
	"slices"
	"unsafe"
)

const (
	// mergedMax bounds a request that is made of several reads, in bytes with what lies between them: enough for the full
	// speed of a device.
	mergedMax = 256 << 10
	// mergedGap is how much that nobody asked for may lie between two of them, in bytes. To read it and throw it away
	// costs less than another request.
	mergedGap = 16 << 10
	// mergedBufs bounds the buffers of such a request, gaps included.
	mergedBufs = 128
)

// merger makes one request of reads of a batch that lie close together on the device: the blocks of a fragmented file
// that were not rewritten. A request that does not bring all of its reads is no news of any of them: they are then
// done one by one.
type merger struct {
	file         *file
	gap          int     // bytes that may lie between; 0 from the day on that such a request failed
	sink         []byte  // where what lies between goes; nobody reads it
	todo, sorted []*Read // of the batch; kept for the next
}

func newMerger(f *file) merger { return merger{file: f, gap: mergedGap, sink: aligned(mergedGap)} }

// aligned gives n bytes that the kernel may read into with O_DIRECT.
func aligned(n int) []byte {
	b := make([]byte, n+maxAlign)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (maxAlign - 1)
	return b[skip:][:n:n]
}

// queue appends the batch to q, but for the reads that are over already: those it settles. Of reads that become one
// request only the first is in q; the others hang on it by their follower, by offset.
func (m *merger) queue(batch []*Read, q, settled *fifo) {
	for _, r := range batch {
		if todo, err := m.file.begin(r); todo {
			m.todo = append(m.todo, r)
		} else {
			r.N, r.Err = 0, err
			settled.push(r)
		}
	}
	if len(m.todo) > 1 {
		m.chain()
	}
	for _, r := range m.todo {
		if !r.follows {
			q.push(r)
		}
	}
	clear(m.todo)
	m.todo = m.todo[:0]
}

// chain hangs those reads of todo on others that can be one request with them.
func (m *merger) chain() {
	m.sorted = append(m.sorted[:0], m.todo...)
	slices.SortFunc(m.sorted, func(a, b *Read) int { return cmp.Compare(a.Off, b.Off) })
	var start, end Physical // of the request that is being made
	bufs := 0
	for i, r := range m.sorted {
		size := r.Size()
		ok := !r.Alone && size < mergedMax && len(r.Bufs) < mergedBufs
		if i > 0 && ok && bufs > 0 && r.Off >= end && int64(r.Off-end) <= int64(m.gap) &&
			int64(r.Off-start)+int64(size) <= mergedMax && bufs+1+len(r.Bufs) <= mergedBufs {
			m.sorted[i-1].follower, r.follows = r, true
			bufs += 1 + len(r.Bufs)
		} else if start, bufs = r.Off, 0; ok {
			bufs = len(r.Bufs)
		}
		end = r.Off + Physical(size)
	}
	clear(m.sorted)
}

// fill describes where a request goes that is made of several reads, and gives its length.
func (m *merger) fill(iov *iovecs, first *Read) (size int) {
	*iov = (*iov)[:0]
	for r := first; r != nil; r = r.follower {
		if gap := int(r.Off-first.Off) - size; gap > 0 {
			iov.add(m.sink[:gap])
			size += gap
		}
		for _, b := range r.Bufs {
			iov.add(b)
			size += len(b)
		}
	}
	return size
}

// parts gives the reads that one request was made of, by offset, and takes them apart.
func parts(first *Read) iter.Seq[*Read] {
	return func(yield func(*Read) bool) {
		for r := first; r != nil; {
			others := r.follower
			r.follower, r.follows = nil, false
			if !yield(r) {
				return
			}
			r = others
		}
	}
}

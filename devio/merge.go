package devio

import (
	"cmp"
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
	file   *file
	gap    int     // bytes that may lie between; 0 from the day on that such a request failed
	sink   []byte  // where what lies between goes; nobody reads it
	sorted []*Read // of the batch; kept for the next
}

func newMerger(f *file) merger { return merger{file: f, gap: mergedGap, sink: alignedBytes(mergedGap)} }

// alignedBytes gives n bytes that the kernel may read into with O_DIRECT.
func alignedBytes(n int) []byte {
	b := make([]byte, n+maxAlign)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (maxAlign - 1)
	return b[skip:][:n:n]
}

// queue appends the batch to q. Of reads that become one request only the first is in q; the others hang on it by
// their follower, by offset.
func (m *merger) queue(batch []*Read, q *fifo) {
	if len(batch) == 1 {
		q.push(batch[0])
		return
	}
	m.chain(batch)
	for _, r := range batch {
		if !r.follows {
			q.push(r)
		}
	}
}

func (m *merger) chain(batch []*Read) {
	m.sorted = append(m.sorted[:0], batch...)
	slices.SortFunc(m.sorted, func(a, b *Read) int { return cmp.Compare(a.Off, b.Off) })
	var start, end Physical // of the request that is being made
	bufs := 0
	for i, r := range m.sorted {
		size, ok := m.mergeable(r)
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

// mergeable gives the size of a read that may be part of a request.
func (m *merger) mergeable(r *Read) (size int, ok bool) {
	if r.Alone || len(r.Bufs) >= mergedBufs {
		return 0, false
	}
	size = r.Size()
	if size >= mergedMax {
		return 0, false
	}
	todo, err := m.file.begin(r)
	return size, todo && err == nil
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

// part takes a read off the front of those that one request was made of, and gives the others.
func part(r *Read) (others *Read) {
	others, r.follower, r.follows = r.follower, nil, false
	return others
}

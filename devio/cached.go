package devio

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// cachedMax bounds what one Submit reads out of the page cache, in bytes: about 100 µs of copying.
	cachedMax = 1 << 20
	// cachedSeats is how many Submits may do so at a time on one queue.
	cachedSeats = 4
)

// cachedReader reads what lies in the page cache inside Submit, by reads that do not wait. A seat is held also while
// the Completer runs: Completers that submit again find no seat after the last, so the stack cannot grow.
type cachedReader struct {
	never atomic.Bool // the file has no reads that do not wait
	seats [cachedSeats]struct {
		sync.Mutex
		scratch iovecs // guarded by Mutex
	}
}

// readCached reads from the beginning of batch what is in the page cache, and returns how many reads it did.
func (q *Queue) readCached(batch []*Read) int {
	c := &q.cached
	if q.file.direct.Load() || q.file.noWait == nil || c.never.Load() {
		return 0
	}
	for i := range c.seats {
		if s := &c.seats[i]; s.TryLock() {
			reads := q.readOutOfCache(batch, &s.scratch)
			s.Unlock()
			return reads
		}
	}
	return 0
}

// readOutOfCache is readCached once it has a seat.
func (q *Queue) readOutOfCache(batch []*Read, scratch *iovecs) (reads int) {
	left := cachedMax
	for i, r := range batch {
		if left -= r.Size(); left < 0 && i > 0 || q.closed.Load() {
			return i
		}
		if !q.readNoWait(r, scratch) {
			return i
		}
		q.told(1)
		q.finish(r, r.Size(), nil)
	}
	return len(batch)
}

// readNoWait reads r, or returns false where it is not all there for the taking: then the engine finds out why.
func (q *Queue) readNoWait(r *Read, scratch *iovecs) bool {
	if todo, err := q.file.begin(r); !todo || err != nil {
		return false
	}
	for n, total := 0, r.Size(); n < total; {
		scratch.set(r.Bufs, n)
		got, err := q.file.noWait(q.file.fd, *scratch, q.file.at(r.Off, n))
		clear(*scratch) // buffers are not ours after the read
		if err == unix.EOPNOTSUPP || err == unix.EINVAL || err == unix.ENOSYS {
			q.cached.never.Store(true)
		}
		if err != nil || got == 0 {
			return false
		}
		n += got
	}
	return true
}

// shut waits for the reads inside Submit and keeps others from beginning. The queue is closed.
func (c *cachedReader) shut() {
	for i := range c.seats {
		c.seats[i].Lock()
	}
}

// preadvNoWait is preadv for what can be had at once: else it returns EAGAIN, or less.
func preadvNoWait(fd int, iov []unix.Iovec, off int64) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)), uintptr(off), 0, unix.RWF_NOWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

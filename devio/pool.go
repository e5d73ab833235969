package devio

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Pool lends page-aligned buffers that lie outside the Go heap: they cost the garbage collector
// nothing, never move, and are not cleared. It may be used from any goroutine.
type Pool struct {
	mu     sync.Mutex
	free   [classes]freeList // guarded by mu
	bytes  int64             // guarded by mu; of all free buffers
	retain int64             // guarded by mu; bound of bytes
	clock  uint64            // guarded by mu; counts releases
	lent   int               // guarded by mu
}

// Buffer is lent by a Pool. It has one owner at a time, who calls Release once. Who needs its memory for longer
// than the owner may, as a device that is late with a read into it, calls Retain and has a Release of his own.
type Buffer struct {
	// B has the length that was asked for; its capacity may be larger and may be used. Contents
	// are undefined at first. Its owner may reslice it.
	B []byte

	pool  *Pool  // immutable
	mem   []byte // immutable; the whole mapping
	class int    // immutable
	holds int    // guarded by pool.mu; Releases to come: 0 is free

	newer, older *Buffer // guarded by pool.mu; neighbours in the free list
	released     uint64  // guarded by pool.mu; Pool.clock at the last release
}

// NewPool returns a pool that keeps up to retain bytes of free buffers. What is released beyond
// that makes the longest unused ones go back to the kernel.
func NewPool(retain int64) *Pool {
	return &Pool{retain: max(retain, 0)}
}

// Get lends a buffer of n bytes, 1 to 64 MiB + 256 KiB; another n is the caller's bug and panics,
// as does memory that the kernel refuses. The address is a multiple of 4096. Buffers are as large
// as the next power of two up to 64 KiB, above that less than 25 % larger than n.
func (p *Pool) Get(n int) *Buffer {
	if n < 1 || n > maxBuffer {
		panic(fmt.Sprintf("devio: buffer of %d bytes asked for, not 1 to %d", n, maxBuffer))
	}
	class := classOf(n)
	p.mu.Lock()
	p.lent++
	b := p.free[class].newest
	if b != nil {
		p.take(b)
		b.holds = 1
	}
	p.mu.Unlock()
	if b == nil {
		b = &Buffer{pool: p, class: class, mem: p.mmap(classSize(class)), holds: 1}
	}
	b.B = b.mem[:n]
	return b
}

// Retain makes the buffer need one more Release. B is the owner's alone all the same.
func (b *Buffer) Retain() {
	b.pool.mu.Lock()
	defer b.pool.mu.Unlock()
	if b.holds == 0 {
		panic("devio: free buffer retained")
	}
	b.holds++
}

// Release gives the buffer back. Releasing it more often than it was lent and retained panics.
func (b *Buffer) Release() {
	p := b.pool
	p.mu.Lock()
	if b.holds == 0 {
		p.mu.Unlock()
		panic("devio: buffer released twice")
	}
	if b.holds--; b.holds > 0 {
		p.mu.Unlock()
		return
	}
	b.B = nil
	p.lent--
	surplus := b
	if int64(len(b.mem)) <= p.retain { // else it would push everything out and then itself
		p.put(b)
		surplus = p.trim(p.retain)
	}
	p.mu.Unlock()
	unmapAll(surplus)
}

// Lent is the number of buffers out.
func (p *Pool) Lent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lent
}

// Close unmaps the free buffers. Those out are unmapped when they are released.
func (p *Pool) Close() {
	p.mu.Lock()
	p.retain = 0
	surplus := p.trim(0)
	p.mu.Unlock()
	unmapAll(surplus)
}

// put makes b the newest free buffer of its class. p.mu is held.
func (p *Pool) put(b *Buffer) {
	p.clock++
	b.released = p.clock
	p.free[b.class].push(b)
	p.bytes += int64(len(b.mem))
}

// take removes b from the free buffers. p.mu is held.
func (p *Pool) take(b *Buffer) {
	p.free[b.class].remove(b)
	p.bytes -= int64(len(b.mem))
}

// trim takes the longest unused buffers out until no more than bound bytes are free, and returns
// them linked by older. p.mu is held; unmapping is left for after it, since that can be slow.
func (p *Pool) trim(bound int64) (surplus *Buffer) {
	for p.bytes > bound {
		var oldest *Buffer
		for i := range p.free {
			if b := p.free[i].oldest; b != nil && (oldest == nil || b.released < oldest.released) {
				oldest = b
			}
		}
		p.take(oldest)
		oldest.older = surplus
		surplus = oldest
	}
	return surplus
}

// mmap returns n bytes of fresh memory. When the kernel refuses, the free buffers are given up.
func (p *Pool) mmap(n int) []byte {
	mem, err := mmap(n)
	if err == nil {
		return mem
	}
	p.mu.Lock()
	surplus := p.trim(0)
	p.mu.Unlock()
	unmapAll(surplus)
	if mem, err = mmap(n); err != nil {
		panic(fmt.Sprintf("devio: out of memory: mmap of %d bytes: %v", n, err))
	}
	return mem
}

func mmap(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

// unmapAll gives back a chain of buffers, linked by older.
func unmapAll(b *Buffer) {
	for ; b != nil; b = b.older {
		if unix.Munmap(b.mem) != nil {
			// A hole in a larger mapping can exceed the limit of mappings. The pages at least go.
			_ = unix.Madvise(b.mem, unix.MADV_DONTNEED)
		}
	}
}

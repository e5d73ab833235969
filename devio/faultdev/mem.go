package faultdev

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"

	"github.com/btrexport/btrexport/devio"
)

// MemDevice is a device over bytes in memory. It is as strict about alignment as O_DIRECT.
type MemDevice struct {
	counters
	name  string // immutable
	data  []byte // immutable
	align int    // immutable

	mu      sync.Mutex
	closed  bool       // guarded by mu
	rng     *rand.Rand // guarded by mu; nil: reads complete inside Submit
	waiting []memRead  // guarded by mu
	work    sync.Cond
	worker  sync.WaitGroup
}

type memRead struct {
	read   *devio.Read
	ticket ticket
}

// MemOption changes how a MemDevice works.
type MemOption func(*MemDevice)

// Aligned makes n, a power of two, the alignment that reads must respect, in place of 4096.
func Aligned(n int) MemOption {
	if n < 1 || n&(n-1) != 0 {
		panic(fmt.Sprintf("faultdev: alignment %d is not a power of two", n))
	}
	return func(m *MemDevice) { m.align = n }
}

// Shuffled makes reads complete on a goroutine, which takes those that wait in a random order that
// seed determines. Close ends the goroutine.
func Shuffled(seed uint64) MemOption {
	return func(m *MemDevice) { m.rng = rand.New(rand.NewPCG(seed, 0)) }
}

// Mem returns a device that holds data, which it keeps and may be changed between reads. Reads
// complete inside Submit, in order, unless it is Shuffled.
func Mem(name string, data []byte, options ...MemOption) *MemDevice {
	m := &MemDevice{name: name, data: data, align: 4096}
	m.work.L = &m.mu
	for _, o := range options {
		o(m)
	}
	if m.rng != nil {
		m.worker.Go(m.run)
	}
	return m
}

// Size is the length of the data.
func (m *MemDevice) Size() uint64 { return uint64(len(m.data)) }

// Align is 4096 or what Aligned says.
func (m *MemDevice) Align() int { return m.align }

// Name is what Mem was given.
func (m *MemDevice) Name() string { return m.name }

// Submit carries out batch, or leaves it to the goroutine of Shuffled.
func (m *MemDevice) Submit(batch []*devio.Read) {
	t := m.begin(len(batch))
	if m.queue(batch, t) {
		return
	}
	for _, r := range batch {
		n, err := m.read(r)
		m.end(t, r, n, err)
	}
}

// queue leaves batch to the goroutine, if there is one and it still runs.
func (m *MemDevice) queue(batch []*devio.Read, t ticket) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rng == nil || m.closed {
		return false
	}
	for _, r := range batch {
		m.waiting = append(m.waiting, memRead{r, t})
	}
	m.work.Signal()
	return true
}

// run is the goroutine of Shuffled.
func (m *MemDevice) run() {
	for {
		w, ok := m.next()
		if !ok {
			return
		}
		n, err := m.read(w.read)
		m.end(w.ticket, w.read, n, err)
	}
}

// next takes a random one of the waiting reads; none is left when it returns false.
func (m *MemDevice) next() (memRead, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.waiting) == 0 {
		if m.closed {
			return memRead{}, false
		}
		m.work.Wait()
	}
	i, last := m.rng.IntN(len(m.waiting)), len(m.waiting)-1
	w := m.waiting[i]
	m.waiting[i] = m.waiting[last]
	m.waiting = m.waiting[:last]
	return w, true
}

// read fills the buffers of r as far as the data goes.
func (m *MemDevice) read(r *devio.Read) (int, error) {
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed {
		return 0, devio.ErrClosed
	}
	if err := r.Check(m.align); err != nil {
		return 0, err
	}
	left := m.data[min(uint64(r.Off), uint64(len(m.data))):]
	n := 0
	for _, b := range r.Bufs {
		n += copy(b, left[n:])
	}
	if n < r.Size() {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// Close ends reads that wait with devio.ErrClosed, as those to come.
func (m *MemDevice) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.work.Broadcast()
	m.worker.Wait()
	return nil
}

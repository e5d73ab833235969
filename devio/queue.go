package devio

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// inlineMax is the largest read, in bytes, that its submitter does itself.
	inlineMax = 64 << 10
	// slowRead is how long a read takes on a device that nobody should wait for inside Submit.
	slowRead = 100 * time.Millisecond
	// closeWait bounds Close: a disk in trouble may keep a read for minutes, a lost one for ever.
	closeWait = 5 * time.Second
)

// Queue reads from one device. Open makes it; Close ends it.
type Queue struct {
	file      *file         // immutable; closed when the last read has left the kernel
	engine    engine        // immutable
	kind      Engine        // immutable; what engine is
	refused   error         // immutable; why engine is not io_uring although that was tried
	closeWait time.Duration // immutable

	depth atomic.Int64          // reads submitted and not completed
	slow  atomic.Bool           // the last read to end took slowRead or longer
	stats atomic.Pointer[Stats] // nil: nobody observes

	// inline is held by whoever reads in Submit and may wait for the disk there, also while the Completer runs. A
	// Completer that submits again therefore never reads inline on the same queue: the stack cannot grow.
	inline  sync.Mutex
	scratch iovecs // guarded by inline
	lone    *uring // guarded by inline; what file.preadv reads by, nil: the system call
	cached  cachedReader
	alone   aloneReads

	closed   atomic.Bool
	closing  sync.Once
	done     chan struct{} // closed when the file is
	closeErr error         // result of closing the file; valid once done is closed
}

func newQueue(f *file) *Queue {
	return &Queue{file: f, closeWait: closeWait, done: make(chan struct{})}
}

// newPreadQueue reads by a pool of workers, since io_uring was refused, or not asked for.
func newPreadQueue(f *file, workers int, refused error) *Queue {
	q := newQueue(f)
	q.kind, q.refused = Pread, refused
	q.engine = newPreadEngine(f, workers, q.finish, q.told)
	return q
}

// newUringQueue reads by two rings: one for batches, one for what the submitter waits for.
func newUringQueue(f *file, depth int) (*Queue, error) {
	rg, err := newPolledRing(depth)
	if err != nil {
		return nil, err
	}
	lone, err := newUring(1)
	if err != nil {
		rg.close()
		return nil, err
	}
	q := newQueue(f)
	q.kind, q.lone = IOUring, lone
	f.preadv = loneRing{lone}.preadv
	q.engine = newUringEngine(f, depth, rg, q.finish, q.told)
	return q, nil
}

// Submit hands over batch; the slice may be reused when it returns. It does not wait for a disk,
// with one exception: a batch of one read that is Lone and of at most 64 KiB, on a queue that has no other
// read and whose last read was not slow, is read by the caller, since nothing is faster. So is, on a device that is
// read through the page cache, what lies there at the beginning of the batch, up to 1 MiB: that is waiting for
// nothing. Reads that come after Close complete with ErrClosed, inside Submit.
func (q *Queue) Submit(batch []*Read) {
	if len(batch) == 0 {
		return
	}
	idle := q.begin(batch)
	batch = batch[q.readCached(batch):]
	if len(batch) == 0 || idle && len(batch) == 1 && q.readInline(batch[0]) {
		return
	}
	from := 0
	for i, r := range batch {
		if r.Alone {
			q.hand(batch[from:i])
			q.submitAlone(r)
			from = i + 1
		}
	}
	q.hand(batch[from:])
}

// hand gives reads to the engine.
func (q *Queue) hand(batch []*Read) {
	if len(batch) == 0 || q.engine.submit(batch) {
		return
	}
	for _, r := range batch {
		q.finish(r, 0, ErrClosed)
	}
}

// begin counts the reads of batch and reports whether the queue had none before.
func (q *Queue) begin(batch []*Read) (idle bool) {
	var stats Stats
	if s := q.stats.Load(); s != nil {
		stats = *s
		stats.InFlight(len(batch))
	}
	now := time.Now()
	for _, r := range batch {
		r.submitted, r.stats = now, stats
	}
	n := int64(len(batch))
	return q.depth.Add(n) == n
}

// readInline reads r here and now, or returns false.
func (q *Queue) readInline(r *Read) bool {
	if !r.Lone || r.Alone || r.Size() > inlineMax || q.slow.Load() || !q.inline.TryLock() {
		return false
	}
	defer q.inline.Unlock()
	if q.closed.Load() {
		return false
	}
	q.told(1)
	n, err := q.file.read(r, &q.scratch)
	q.finish(r, n, err)
	return true
}

// told counts a system call that handed so many requests to the kernel.
func (q *Queue) told(requests int) {
	if s := q.stats.Load(); s != nil {
		(*s).Submitted(requests)
	}
}

// finish gives r back to its owner with the result, and has the next one read that was to be alone.
func (q *Queue) finish(r *Read, n int, err error) {
	if r.Alone {
		q.nextAlone()
	}
	q.end(r, n, err)
}

// end gives r back to its owner with the result.
func (q *Queue) end(r *Read, n int, err error) {
	if err == nil && n < r.Size() {
		err = io.ErrUnexpectedEOF
	}
	took := time.Since(r.submitted)
	if slow := took >= slowRead; slow != q.slow.Load() {
		q.slow.Store(slow)
	}
	r.started.Store(0)
	stats, done := r.stats, r.Done
	r.N, r.Err, r.stats = n, err, nil
	q.depth.Add(-1)
	if stats != nil {
		if !errors.Is(err, ErrClosed) {
			stats.ReadDone(n, took, err)
		}
		stats.InFlight(-1)
	}
	done.ReadDone(r)
}

// Size is the number of bytes of the device or file, from Offset on, when it was opened.
func (q *Queue) Size() uint64 { return q.file.size }

// Align is the power of two, 1 to 4096, that reads must respect: see Read. It does not change.
func (q *Queue) Align() int { return q.file.align }

// Depth is the number of reads that are submitted and not completed.
func (q *Queue) Depth() int { return int(q.depth.Load()) }

// Name is the device as the user wrote it: Options.Name, or else the path that was opened.
func (q *Queue) Name() string { return q.file.name }

// Path is what was opened.
func (q *Queue) Path() string { return q.file.path }

// Offset is where in Path the queue begins, in bytes.
func (q *Queue) Offset() uint64 { return q.file.base }

// At names what begins at an offset, in bytes, of what q reads: as Name would say it.
func (q *Queue) At(offset uint64) string {
	return fmt.Sprintf("%s@%d", q.file.path, q.file.base+offset)
}

// Same reports whether both read one device or one file from the same offset on, under whatever names: a symbolic
// link, a hard link, a second device node. A copy is not the same.
func (q *Queue) Same(o *Queue) bool { return q.file.id == o.file.id && q.file.base == o.file.base }

// Direct reports whether reads bypass the page cache. It can turn false at a read.
func (q *Queue) Direct() bool { return q.file.direct.Load() }

// Engine is how reads are carried out: IOUring or Pread.
func (q *Queue) Engine() Engine { return q.kind }

// Refused is why reads are not carried out by io_uring although Options.Engine was Auto; nil if they are.
func (q *Queue) Refused() error { return q.refused }

// Observe tells s, and nobody else, of the reads submitted from now on; nil tells nobody. Reads
// under way are still told to who was told of their submission.
func (q *Queue) Observe(s Stats) {
	if s == nil {
		q.stats.Store(nil)
		return
	}
	q.stats.Store(&s)
}

// Close ends the intake, completes reads that have not been started with ErrClosed, waits for those
// in the kernel and closes the descriptor. A device that does not answer holds it up for five
// seconds: then it returns an error, and the reads complete and the descriptor closes whenever the
// kernel lets go of them; until then their buffers stay lent. Closing twice is harmless.
func (q *Queue) Close() error {
	q.closing.Do(q.shutdown)
	timeout := time.NewTimer(q.closeWait)
	defer timeout.Stop()
	select {
	case <-q.done:
		return q.closeErr
	case <-timeout.C:
		return fmt.Errorf("close %s: %d reads have not come back from the device after %v",
			q.Name(), q.Depth(), q.closeWait)
	}
}

func (q *Queue) shutdown() {
	q.closed.Store(true)
	q.engine.stop()
	q.endAlone()
	go func() {
		q.engine.wait()
		q.cached.shut()
		q.inline.Lock() // a read inside Submit
		defer q.inline.Unlock()
		if q.lone != nil {
			q.lone.close()
		}
		q.closeErr = q.file.close()
		close(q.done)
	}()
}

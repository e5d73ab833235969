package devio

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// uringPause is how long a ring is left alone that does not take or give anything for the moment.
	uringPause = time.Millisecond
	// uringPatience is after how many pauses in a row reads that the kernel does not take fail.
	uringPatience = 1000
	// uringAgain is how often a read is done again that the kernel gave up without having asked the device.
	uringAgain = 16
	// uringAides bounds the goroutines beside the reaper that finish heavy reads.
	uringAides = 7
	// uringLook is how often a ring with reads under way is looked into although nobody said that there is anything.
	uringLook = time.Second
	// uringLong is from what size on a heavy read is passed on although no other waits for the reaper yet, in bytes.
	uringLong = 64 << 10
)

// ring is what a uringEngine asks of the kernel: a polledRing, or what stands in for it in tests. Its methods are
// called under the engine's mutex, but for wait and wake.
type ring interface {
	pushRead(tag uint64, fd int, iov []unix.Iovec, off int64, async bool)
	waiting() int
	takeBack() (tag uint64)
	enter(results int) (taken int, err error)
	next() (tag uint64, res int, ok bool)
	wait()
	wake(after time.Duration)
	close()
}

// uringEngine hands reads to an io_uring: whoever submits enters the kernel, once for a batch, and one goroutine
// finishes what comes back and hands in what waited for a slot. That goroutine waits in Go's poller. Others finish what is
// heavy beside it.
type uringEngine struct {
	file   *file        // immutable
	finish finishFunc   // immutable
	told   func(int)    // immutable; told of the requests that one enter took
	heavy  chan ended   // immutable; of the aides, with room for one each
	idle   atomic.Int32 // aides that have nothing to do
	reaper sync.WaitGroup

	mu       sync.Mutex
	ring     ring     // guarded by mu but for wait and wake
	merger   merger   // guarded by mu
	queued   fifo     // guarded by mu, as all below; reads that wait for a slot, the first of each request
	settled  fifo     // reads that end without the kernel; Err says how
	slots    []slot   // its index is the tag of a request
	free     []uint64 // slots that are free
	refusals int      // enters in a row that the kernel took nothing of
	look     *time.Timer
	looking  bool // look is running
	stopped  bool
}

// slot is a request that is with the kernel, or about to be: a read, or several as one. It keeps them and their buffers
// reachable.
type slot struct {
	r      *Read // the first
	iov    iovecs
	size   int  // bytes of the request, where it is made of several
	n      int  // bytes that are there, from the start of the read
	at     int  // where the request begins that is under way
	direct bool // it is one with O_DIRECT
	async  bool // it is for a worker of the kernel, that may block
	again  int  // times that the kernel gave it up
}

// ended is a read that is over.
type ended struct {
	r   *Read
	n   int
	err error
}

func newUringEngine(f *file, depth int, rg ring, finish finishFunc, told func(int)) *uringEngine {
	e := &uringEngine{file: f, finish: finish, told: told, ring: rg, slots: make([]slot, depth), merger: newMerger(f)}
	for i := range e.slots {
		e.free = append(e.free, uint64(depth-1-i))
	}
	e.mu.Lock() // for lookInto
	e.look, e.looking = time.AfterFunc(uringLook, e.lookInto), true
	e.mu.Unlock()
	aides := min(runtime.GOMAXPROCS(0)-1, uringAides)
	e.heavy = make(chan ended, aides)
	e.idle.Store(int32(aides))
	for range aides {
		e.reaper.Go(e.aid)
	}
	e.reaper.Go(e.reap)
	return e
}

func (e *uringEngine) submit(batch []*Read) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return false
	}
	e.merger.queue(batch, &e.queued, &e.settled)
	e.issue()
	return true
}

// issue hands in as many reads as there are slots, and what is in the submission queue already. e.mu is held.
func (e *uringEngine) issue() {
	now := time.Now()
	for !e.queued.empty() && len(e.free) > 0 {
		r := e.queued.pop()
		last := len(e.free) - 1
		tag := e.free[last]
		e.free = e.free[:last]
		e.slots[tag].r = r
		for ; r != nil; r = r.follower {
			r.start(now)
		}
		e.push(tag)
	}
	e.enter()
	if !e.settled.empty() {
		e.ring.wake(0)
	}
	if !e.looking && e.busy() {
		e.looking = true
		e.look.Reset(uringLook)
	}
}

// busy says whether requests are under way. e.mu is held.
func (e *uringEngine) busy() bool { return len(e.free) < len(e.slots) }

// lookInto has the reaper look for results as long as any are to come: a wake-up that is lost between the kernel and Go's
// poller then costs a second, and does not hang reads for ever.
func (e *uringEngine) lookInto() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.looking = e.busy(); e.looking {
		e.ring.wake(0)
		e.look.Reset(uringLook)
	}
}

// push makes the request for what is left of the slot's read, or for all of its reads. e.mu is held.
func (e *uringEngine) push(tag uint64) {
	s := &e.slots[tag]
	s.at, s.direct = e.file.resume(s.n)
	if s.r.follower != nil {
		s.size = e.merger.fill(&s.iov, s.r)
	} else {
		s.iov.set(s.r.Bufs, s.at)
	}
	e.ring.pushRead(tag, e.file.fd, s.iov, e.file.at(s.r.Off, s.at), s.async)
}

// enter hands in what is in the submission queue. What the kernel does not take for the moment is tried again by the
// reaper, what it never takes fails. e.mu is held.
func (e *uringEngine) enter() {
	for e.ring.waiting() > 0 {
		n, err := e.ring.enter(0)
		switch {
		case err == nil && n > 0:
			e.refusals = 0
			e.told(n)
		case err == unix.EINTR:
		case (err == nil || err == unix.EAGAIN || err == unix.EBUSY) && e.refusals < uringPatience:
			e.refusals++
			e.ring.wake(uringPause)
			return
		default:
			if err == nil {
				err = unix.EAGAIN
			}
			e.takeBack(err)
		}
	}
}

// takeBack settles the reads that the kernel did not take. e.mu is held.
func (e *uringEngine) takeBack(err error) {
	e.refusals = 0
	for e.ring.waiting() > 0 {
		r, n := e.vacate(e.ring.takeBack())
		for r := range parts(r) {
			r.N, r.Err = n, err
			e.settled.push(r)
		}
	}
}

// vacate frees the slot and gives what it held. e.mu is held.
func (e *uringEngine) vacate(tag uint64) (r *Read, n int) {
	s := &e.slots[tag]
	r, n = s.r, s.n
	clear(s.iov) // buffers are not ours after the read
	*s = slot{iov: s.iov[:0]}
	e.free = append(e.free, tag)
	return r, n
}

// reap finishes reads until the engine is stopped and none is left.
func (e *uringEngine) reap() {
	defer close(e.heavy)
	over := make([]ended, 0, len(e.slots))
	for more := true; more; {
		e.ring.wait()
		over, more = e.collect(over[:0])
		for i, x := range over {
			last := i == len(over)-1
			if x.r.Heavy && (!last || x.n >= uringLong) && e.passOn(x) {
				continue
			}
			e.finish(x.r, x.n, x.err)
		}
		clear(over)
	}
}

// passOn has a read finished beside the others, if anybody is free.
func (e *uringEngine) passOn(x ended) bool {
	if e.idle.Load() == 0 {
		return false
	}
	e.idle.Add(-1) // by nobody else
	e.heavy <- x
	return true
}

// aid finishes heavy reads that the reaper passes on.
func (e *uringEngine) aid() {
	for x := range e.heavy {
		e.finish(x.r, x.n, x.err)
		e.idle.Add(1)
	}
}

// collect appends the reads that are over, hands others in, and reports whether there will be more.
func (e *uringEngine) collect(over []ended) ([]ended, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		tag, res, ok := e.ring.next()
		if !ok {
			break
		}
		s := &e.slots[tag]
		if s.r.follower != nil {
			over = e.split(over, tag, res)
		} else if done, err := e.landed(s, res); done {
			r, n := e.vacate(tag)
			over = append(over, ended{r, n, err})
		} else {
			e.push(tag)
		}
	}
	e.issue()
	for !e.settled.empty() {
		r := e.settled.pop()
		over = append(over, ended{r, r.N, r.Err})
	}
	return over, !e.stopped || e.busy()
}

// split ends the reads that the request of a slot was made of, or has them done one by one. e.mu is held.
func (e *uringEngine) split(over []ended, tag uint64, res int) []ended {
	all := res == e.slots[tag].size
	end := Physical(0)
	first, _ := e.vacate(tag)
	for r := range parts(first) {
		if !all && end > 0 && r.Off > end {
			e.merger.gap = 0 // what lies between may be why, and nobody needs it
		}
		end = r.Off + Physical(r.Size())
		if all {
			over = append(over, ended{r, r.Size(), nil})
		} else {
			e.queued.push(r)
		}
	}
	return over
}

// landed judges a result as file.read does that of a system call: whether the read is done, and its error. e.mu is held.
func (e *uringEngine) landed(s *slot, res int) (done bool, err error) {
	if res >= 0 {
		got := s.at + res
		if got <= s.n {
			return true, nil
		}
		s.n = got
		return got >= s.r.Size(), nil
	}
	errno := unix.Errno(-res)
	switch {
	case errno == unix.EINTR:
		return false, nil
	case (errno == unix.EAGAIN || errno == unix.ECANCELED) && s.again < uringAgain:
		s.again++
		s.async = true
		return false, nil
	case s.direct && refusesDirect(errno):
		if err := e.file.dropDirect(errno); err != nil {
			return true, err
		}
		return false, nil
	}
	return true, errno
}

func (e *uringEngine) stop() {
	e.mu.Lock()
	e.stopped = true
	cancelled := e.queued
	e.queued = fifo{}
	e.mu.Unlock()
	e.ring.wake(0)
	for !cancelled.empty() {
		for r := range parts(cancelled.pop()) {
			e.finish(r, 0, ErrClosed)
		}
	}
}

func (e *uringEngine) wait() {
	e.reaper.Wait()
	e.look.Stop() // should it run: nothing is under way
	e.ring.close()
}

package devio

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// engines are those that tests run on.
var engines = []Engine{Pread, IOUring}

// forEngines runs test for each engine.
func forEngines(t *testing.T, test func(t *testing.T, e Engine)) {
	t.Helper()
	for _, e := range engines {
		t.Run(e.String(), func(t *testing.T) { test(t, e) })
	}
}

// requireEngine skips the test where the kernel does not allow the engine.
func requireEngine(t testing.TB, e Engine) Engine {
	t.Helper()
	if e == IOUring {
		u, err := newUring(1)
		if err != nil {
			t.Skipf("no io_uring here: %v", err)
		}
		u.close()
	}
	return e
}

// readBy reads r of f by an engine, whose queue closes f.
func readBy(t testing.TB, f *file, e Engine, r *Read) (int, error) {
	t.Helper()
	q := newTestQueue(f, e, 2)
	done := make(arrivals, 1)
	r.Done = done
	q.Submit([]*Read{r})
	done.next(t)
	if err := q.Close(); err != nil && f.fd >= 0 {
		t.Errorf("close: %v", err)
	}
	return r.N, r.Err
}

// newTestQueue reads f by its preadv, on either engine.
func newTestQueue(f *file, e Engine, workers int) *Queue {
	f.noWait = nil
	if e == Pread {
		return newPreadQueue(f, workers, nil)
	}
	return newFakeUringQueue(f, workers, &fakeRing{})
}

// newFakeUringQueue is a queue on rg, whose reads are done by f.preadv.
func newFakeUringQueue(f *file, depth int, rg *fakeRing) *Queue {
	rg.file, rg.some = f, make(chan struct{}, 1)
	q := newQueue(f)
	q.kind = IOUring
	q.engine = newUringEngine(f, depth, rg, q.finish, q.told)
	return q
}

// fakeRing is a kernel's ring that reads by the preadv of a file, each request in a goroutine of its own.
type fakeRing struct {
	file  *file
	some  chan struct{} // a result is there, or wake was called
	taken atomic.Int64  // by enter
	// refuse is asked at each enter, from 0: it may take n requests fewer, or none and return an error.
	refuse func(call, waiting int) (n int, err error)
	deaf   bool // nobody is told of results
	// answer changes a result; nil: it is as it is.
	answer func(tag uint64, async bool, res int) int

	sq     []fakeRequest
	enters int

	mu     sync.Mutex
	cq     []fakeResult // guarded by mu
	closed bool         // guarded by mu
}

type fakeRequest struct {
	tag   uint64
	fd    int
	iov   []unix.Iovec
	off   int64
	async bool
}

type fakeResult struct {
	tag uint64
	res int
}

func (f *fakeRing) pushRead(tag uint64, fd int, iov []unix.Iovec, off int64, async bool) {
	f.sq = append(f.sq, fakeRequest{tag, fd, iov, off, async})
}

func (f *fakeRing) waiting() int { return len(f.sq) }

func (f *fakeRing) takeBack() uint64 {
	last := len(f.sq) - 1
	tag := f.sq[last].tag
	f.sq = f.sq[:last]
	return tag
}

func (f *fakeRing) enter(int) (int, error) {
	n := len(f.sq)
	call := f.enters
	f.enters++
	if f.refuse != nil {
		less, err := f.refuse(call, n)
		if err != nil {
			return 0, err
		}
		n -= less
	}
	for _, r := range f.sq[:n] {
		go f.read(r)
	}
	f.taken.Add(int64(n))
	f.sq = append([]fakeRequest(nil), f.sq[n:]...)
	return n, nil
}

func (f *fakeRing) read(r fakeRequest) {
	res, err := f.file.preadv(r.fd, r.iov, r.off)
	if err != nil {
		res = -int(err.(unix.Errno))
	}
	if f.answer != nil {
		res = f.answer(r.tag, r.async, res)
	}
	f.mu.Lock()
	f.cq = append(f.cq, fakeResult{r.tag, res})
	f.mu.Unlock()
	if !f.deaf {
		f.wake(0)
	}
}

func (f *fakeRing) next() (uint64, int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.cq) == 0 {
		return 0, 0, false
	}
	r := f.cq[0]
	f.cq = f.cq[1:]
	return r.tag, r.res, true
}

func (f *fakeRing) wait() { <-f.some }

func (f *fakeRing) wake(after time.Duration) {
	time.AfterFunc(after, func() {
		select {
		case f.some <- struct{}{}:
		default:
		}
	})
}

func (f *fakeRing) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		panic("ring closed twice")
	}
	f.closed = true
}

// cpuTime is the processor time that the process has used, in nanoseconds.
func cpuTime(t testing.TB) int64 {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// newRand is a source of choices, repeated by BTREXPORT_SEED.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if v := os.Getenv("BTREXPORT_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("BTREXPORT_SEED: %v", err)
		}
	}
	t.Logf("BTREXPORT_SEED=%d", seed)
	return newSeeded(seed)
}

func newSeeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

package devio

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long tests wait for what must happen; it is never what they measure.
const patience = 20 * time.Second

// arrivals is a Completer that hands the reads on.
type arrivals chan *Read

func (a arrivals) ReadDone(r *Read) { a <- r }

// next waits for one read.
func (a arrivals) next(t testing.TB) *Read {
	t.Helper()
	select {
	case r := <-a:
		return r
	case <-time.After(patience):
		t.Fatal("a read did not complete")
		return nil
	}
}

// callback is a Completer made of a function.
type callback func(r *Read)

func (c callback) ReadDone(r *Read) { c(r) }

// tally is a Stats that counts.
type tally struct {
	reads, bytes, errs, inFlight, most, submitted, enters atomic.Int64
}

func (s *tally) ReadDone(n int, took time.Duration, err error) {
	s.reads.Add(1)
	s.bytes.Add(int64(n))
	if err != nil {
		s.errs.Add(1)
	}
	if took < 0 {
		panic("negative duration")
	}
}

func (s *tally) Submitted(n int) {
	s.submitted.Add(int64(n))
	s.enters.Add(1)
}

func (s *tally) InFlight(delta int) {
	now := s.inFlight.Add(int64(delta))
	for old := s.most.Load(); now > old && !s.most.CompareAndSwap(old, now); old = s.most.Load() {
	}
}

// gate is a preadv in front of another whose calls wait until they are let through.
type gate struct {
	entered chan int64    // offsets of calls that have arrived
	open    chan struct{} // one receive per call
}

func newGate() *gate {
	return &gate{entered: make(chan int64, 1024), open: make(chan struct{}, 1024)}
}

func (g *gate) over(inner func(int, []unix.Iovec, int64) (int, error)) func(int, []unix.Iovec, int64) (int, error) {
	return func(fd int, iov []unix.Iovec, off int64) (int, error) {
		g.entered <- off
		<-g.open
		return inner(fd, iov, off)
	}
}

// openGated opens a real file whose reads wait at a gate.
func openGated(t *testing.T, e Engine, workers int) (*Queue, *gate, []byte) {
	t.Helper()
	path, data := writeFile(t, 1<<20)
	f, err := openFile(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := newGate()
	f.preadv = g.over(f.preadv)
	q := newTestQueue(f, e, workers)
	t.Cleanup(func() {
		close(g.open)
		if err := q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return q, g, data
}

func open(t testing.TB, path string, o Options) *Queue {
	t.Helper()
	requireEngine(t, o.Engine)
	q, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if q.Depth() != 0 {
			t.Errorf("depth after close: %d", q.Depth())
		}
	})
	return q
}

func TestQueueReads(t *testing.T) { forEngines(t, testQueueReads) }

func testQueueReads(t *testing.T, e Engine) {
	for name, o := range map[string]Options{"direct": {}, "buffered": {Buffered: true}, "one worker": {Workers: 1}} {
		o.Engine = e
		t.Run(name, func(t *testing.T) {
			path, data := writeFile(t, 1<<20+1000)
			q := open(t, path, o)
			var stats tally
			q.Observe(&stats)
			rng := rand.New(rand.NewPCG(1, 1))
			done := make(arrivals, 64)
			wantBytes, wantErrs := 0, 0
			for range 50 {
				batch := make([]*Read, 1+rng.IntN(cap(done)))
				for i := range batch {
					buf := aligned((1 + rng.IntN(8)) * 4096)
					batch[i] = &Read{Off: Physical(rng.IntN(260) * 4096), Bufs: split(rng, buf, 4096, 1+rng.IntN(3)), Done: done}
				}
				sent := slices.Clone(batch)
				q.Submit(batch)
				clear(batch) // the slice is ours again
				for range sent {
					r := done.next(t)
					i := slices.Index(sent, r)
					if i < 0 {
						t.Fatal("a read completed twice")
					}
					sent[i] = nil
					wantBytes += r.N
					if r.Err != nil {
						wantErrs++
					}
					checkRead(t, r, data)
				}
			}
			if got := stats.bytes.Load(); got != int64(wantBytes) {
				t.Errorf("stats: %d bytes, want %d", got, wantBytes)
			}
			if got := stats.errs.Load(); got != int64(wantErrs) || got == 0 {
				t.Errorf("stats: %d errors, want %d and some", got, wantErrs)
			}
			least := stats.reads.Load() - stats.errs.Load()
			if e == IOUring {
				least /= mergedMax / 4096 // several reads may be one request
			}
			if got := stats.submitted.Load(); got < least || stats.enters.Load() > got {
				t.Errorf("stats: %d requests handed in by %d calls, for %d reads", got, stats.enters.Load(), stats.reads.Load())
			}
			if got := stats.inFlight.Load(); got != 0 || q.Depth() != 0 {
				t.Errorf("in flight %d, depth %d, want 0", got, q.Depth())
			}
		})
	}
}

// checkRead compares a completed read with the data of its file.
func checkRead(t *testing.T, r *Read, data []byte) {
	t.Helper()
	want := data[min(int(r.Off), len(data)):min(int(r.Off)+r.Size(), len(data))]
	got := bytes.Join(r.Bufs, nil)[:r.N]
	if !bytes.Equal(got, want) {
		t.Fatalf("read at %d of %d: got %d bytes, want %d, or they differ", r.Off, r.Size(), len(got), len(want))
	}
	if wantErr := len(want) < r.Size(); (r.Err != nil) != wantErr || (wantErr && r.Err != io.ErrUnexpectedEOF) {
		t.Fatalf("read at %d of %d: N %d, error %v", r.Off, r.Size(), r.N, r.Err)
	}
}

// doneInSubmit submits r alone and reports whether ReadDone ran inside Submit, which its stack tells.
func doneInSubmit(q *Queue, r *Read) (inline bool) {
	finished := make(chan struct{})
	r.Done = callback(func(*Read) {
		stack := make([]byte, 8<<10)
		inline = strings.Contains(string(stack[:runtime.Stack(stack, false)]), "devio.(*Queue).Submit(")
		close(finished)
	})
	q.Submit([]*Read{r})
	<-finished
	return inline
}

func TestInlineRule(t *testing.T) { forEngines(t, testInlineRule) }

func testInlineRule(t *testing.T, e Engine) {
	path, _ := writeFile(t, 1<<20)
	q := open(t, path, Options{Engine: e})
	lone := func(n int) *Read { return &Read{Bufs: [][]byte{aligned(n)}, Lone: true} }
	if !doneInSubmit(q, lone(inlineMax)) {
		t.Error("a lone read of 64 KiB on an idle queue was handed to a worker")
	}
	if doneInSubmit(q, lone(inlineMax+4096)) {
		t.Error("a read above 64 KiB was done by the caller")
	}
	if doneInSubmit(q, &Read{Bufs: [][]byte{aligned(4096)}}) {
		t.Error("a read that is not lone was done by the caller")
	}
	q.slow.Store(true)
	if doneInSubmit(q, lone(4096)) {
		t.Error("a read on a slow device was done by the caller")
	}
	if !doneInSubmit(q, lone(4096)) {
		t.Error("a read after a quick one was handed to a worker")
	}
}

func TestSlowReadIsNoticed(t *testing.T) { forEngines(t, testSlowReadIsNoticed) }

func testSlowReadIsNoticed(t *testing.T, e Engine) {
	path, _ := writeFile(t, 4096)
	q := open(t, path, Options{Engine: e})
	q.depth.Add(1)
	q.finish(&Read{Bufs: [][]byte{aligned(512)}, Done: make(arrivals, 1), submitted: time.Now().Add(-slowRead)}, 512, nil)
	if !q.slow.Load() {
		t.Error("a read of 100 ms does not count as slow")
	}
}

// Submit must return although the only worker and the disk are busy.
func TestSubmitDoesNotWait(t *testing.T) { forEngines(t, testSubmitDoesNotWait) }

func testSubmitDoesNotWait(t *testing.T, e Engine) {
	q, g, data := openGated(t, e, 1)
	done := make(arrivals, 256)
	first := &Read{Bufs: [][]byte{aligned(4096)}, Done: done}
	q.Submit([]*Read{first})
	<-g.entered
	if at, ok := first.Started(); !ok || time.Since(at) > time.Hour {
		t.Errorf("the read in the kernel started %v, %v", at, ok)
	}
	for i := 1; i < 200; i++ {
		q.Submit([]*Read{{Off: Physical(i * 4096), Bufs: [][]byte{aligned(4096)}, Done: done}})
	}
	if got := q.Depth(); got != 200 {
		t.Errorf("depth: got %d, want 200", got)
	}
	for i := range 200 {
		g.open <- struct{}{}
		r := done.next(t)
		checkRead(t, r, data)
		if want := Physical(i * 4096); r.Off != want { // one worker: in order
			t.Errorf("read %d: got offset %d, want %d", i, r.Off, want)
		}
	}
}

func TestWorkersBoundReadsInKernel(t *testing.T) { forEngines(t, testWorkersBoundReadsInKernel) }

func testWorkersBoundReadsInKernel(t *testing.T, e Engine) {
	q, g, _ := openGated(t, e, 3)
	done := make(arrivals, 16)
	batch := blocks(10, done)
	q.Submit(batch)
	for range 3 {
		<-g.entered
	}
	if n := len(g.entered); n != 0 {
		t.Errorf("%d reads in the kernel, want 3", 3+n)
	}
	for i := range batch {
		g.open <- struct{}{}
		done.next(t)
		if i+3 < len(batch) {
			<-g.entered
		}
	}
}

// A Completer may submit again, without end and without growing the stack.
func TestSubmitFromCompleter(t *testing.T) { forEngines(t, testSubmitFromCompleter) }

func testSubmitFromCompleter(t *testing.T, e Engine) {
	path, _ := writeFile(t, 1<<20)
	a, b := open(t, path, Options{Engine: e, Workers: 2}), open(t, path, Options{Engine: e, Workers: 2})
	const rounds = 4000
	finished := make(chan int)
	depths := 0
	left := rounds
	r := &Read{Bufs: [][]byte{aligned(4096)}}
	batch := []*Read{r}
	r.Done = callback(func(r *Read) {
		if left--; left == 0 {
			finished <- depths
			return
		}
		if left%100 == 0 {
			var frames [512]uintptr
			depths = max(depths, runtime.Callers(0, frames[:]))
		}
		if left%3 == 0 {
			a.Submit(batch)
		} else {
			b.Submit(batch)
		}
	})
	a.Submit(batch)
	select {
	case got := <-finished:
		if got > 60 {
			t.Errorf("stack of %d frames", got)
		}
	case <-time.After(patience):
		t.Fatal("the chain of reads stopped")
	}
}

func TestMisalignedReadIsRefused(t *testing.T) { forEngines(t, testMisalignedReadIsRefused) }

func testMisalignedReadIsRefused(t *testing.T, e Engine) {
	path, _ := writeFile(t, 64<<10)
	f, err := openFile(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.align = 512 // whatever this filesystem asks for
	q := newTestQueue(f, e, 2)
	defer q.Close()
	done := make(arrivals, 2)
	q.Submit([]*Read{
		{Off: 100, Bufs: [][]byte{aligned(4096)}, Done: done},
		{Off: 512, Bufs: nil, Done: done},
	})
	for range 2 {
		if r := done.next(t); !errors.Is(r.Err, ErrAlign) || r.N != 0 {
			t.Errorf("offset %d: got %d, %v, want ErrAlign", r.Off, r.N, r.Err)
		}
	}
	q.Submit(nil)
}

func TestCloseCancelsWhatWaits(t *testing.T) { forEngines(t, testCloseCancelsWhatWaits) }

func testCloseCancelsWhatWaits(t *testing.T, e Engine) {
	path, data := writeFile(t, 1<<20)
	f, err := openFile(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := newGate()
	f.preadv = g.over(f.preadv)
	q := newTestQueue(f, e, 2)
	var stats tally
	q.Observe(&stats)
	done := make(arrivals, 16)
	batch := blocks(10, done)
	q.Submit(batch)
	<-g.entered
	<-g.entered
	closed := make(chan error, 1)
	go func() { closed <- q.Close() }()
	for range 8 {
		if r := done.next(t); r.Err != ErrClosed || r.N != 0 {
			t.Errorf("offset %d: got %d, %v, want ErrClosed", r.Off, r.N, r.Err)
		}
	}
	q.Submit([]*Read{{Bufs: [][]byte{aligned(4096)}, Done: done}})
	if r := done.next(t); r.Err != ErrClosed {
		t.Errorf("after Close: got %v, want ErrClosed", r.Err)
	}
	select {
	case err := <-closed:
		t.Errorf("Close returned %v while reads were in the kernel", err)
	default:
	}
	close(g.open)
	for range 2 {
		checkRead(t, done.next(t), data)
	}
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if len(done) != 0 || q.Depth() != 0 {
		t.Errorf("%d reads completed twice, depth %d", len(done), q.Depth())
	}
	if got := stats.reads.Load(); got != 2 {
		t.Errorf("stats: %d reads, want the 2 that reached the device", got)
	}
	if got := stats.inFlight.Load(); got != 0 {
		t.Errorf("stats: %d in flight, want 0", got)
	}
}

// Close waits for a read that its submitter does itself, and is bounded when that one hangs.
func TestCloseIsBounded(t *testing.T) { forEngines(t, testCloseIsBounded) }

func testCloseIsBounded(t *testing.T, e Engine) {
	for name, size := range map[string]int{"inline": 4096, "worker": 128 << 10} {
		t.Run(name, func(t *testing.T) {
			path, data := writeFile(t, 1<<20)
			f, err := openFile(path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			g := newGate()
			f.preadv = g.over(f.preadv)
			q := newTestQueue(f, e, 1)
			q.closeWait = time.Millisecond
			done := make(arrivals, 1)
			go q.Submit([]*Read{{Bufs: [][]byte{aligned(size)}, Done: done, Lone: true}})
			<-g.entered
			err = q.Close()
			if err == nil || !strings.Contains(err.Error(), "close "+path+": 1 reads have not come back") {
				t.Errorf("Close of a hanging device: got %v", err)
			}
			close(g.open)
			checkRead(t, done.next(t), data) // the buffer stayed lent, the descriptor open
			q.closeWait = patience
			if err := q.Close(); err != nil {
				t.Errorf("Close after it came back: %v", err)
			}
		})
	}
}

func TestSubmitRacesWithClose(t *testing.T) { forEngines(t, testSubmitRacesWithClose) }

func testSubmitRacesWithClose(t *testing.T, e Engine) {
	requireEngine(t, e)
	path, data := writeFile(t, 1<<20)
	for range 50 {
		q, err := Open(path, Options{Engine: e, Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var completed atomic.Int64
		for range 4 {
			wg.Go(func() {
				done := make(arrivals, 2)
				for i := range 50 {
					batch := []*Read{{Bufs: [][]byte{aligned(4096)}, Done: done}, {Off: 4096, Bufs: [][]byte{aligned(4096)}, Done: done}}
					batch = batch[:1+i%2]
					q.Submit(batch)
					for range batch {
						r := <-done
						completed.Add(1)
						if r.Err != nil && r.Err != ErrClosed {
							t.Errorf("got %v", r.Err)
						} else if r.Err == nil && !bytes.Equal(r.Bufs[0], data[r.Off:][:4096]) {
							t.Error("wrong bytes")
						}
					}
				}
			})
		}
		if err := q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		wg.Wait()
		if got := completed.Load(); got != 4*75 || q.Depth() != 0 {
			t.Fatalf("%d reads completed, depth %d, want 300, 0", got, q.Depth())
		}
	}
}

// Changing the observer in the middle must not leave either with a gauge that is off.
func TestObserveChanges(t *testing.T) { forEngines(t, testObserveChanges) }

func testObserveChanges(t *testing.T, e Engine) {
	q, g, _ := openGated(t, e, 4)
	var before, after tally
	done := make(arrivals, 4)
	q.Observe(&before)
	read := func(i int) *Read {
		return &Read{Off: Physical(i * 4096), Bufs: [][]byte{aligned(4096)}, Done: done}
	}
	q.Submit([]*Read{read(0), read(1)})
	q.Observe(&after)
	q.Submit([]*Read{read(2)})
	q.Observe(nil)
	q.Submit([]*Read{read(3)})
	for range 4 {
		g.open <- struct{}{}
		done.next(t)
	}
	if got := before.reads.Load(); got != 2 || before.inFlight.Load() != 0 || before.most.Load() != 2 {
		t.Errorf("first observer: %d reads, %d in flight, most %d; want 2, 0, 2", got, before.inFlight.Load(), before.most.Load())
	}
	if got := after.reads.Load(); got != 1 || after.inFlight.Load() != 0 || after.bytes.Load() != 4096 {
		t.Errorf("second observer: %d reads, %d in flight, %d bytes; want 1, 0, 4096", got, after.inFlight.Load(), after.bytes.Load())
	}
}

func TestSubmitDoesNotAllocate(t *testing.T) { forEngines(t, testSubmitDoesNotAllocate) }

func testSubmitDoesNotAllocate(t *testing.T, e Engine) {
	path, _ := writeFile(t, 1<<20)
	tests := []struct {
		name     string
		count    int
		buffered bool
	}{{"inline", 1, false}, {"engine", 16, false}, {"more than fit", 100, false}, {"cached", 16, true}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			count := tt.count
			q := open(t, path, Options{Engine: e, Buffered: tt.buffered})
			q.Observe(&tally{})
			done := make(arrivals, count)
			batch := make([]*Read, count)
			for i := range batch {
				batch[i] = &Read{Lone: count == 1, Off: Physical(i % 64 * 16384), Bufs: split(rand.New(rand.NewPCG(1, 1)), aligned(16384), 4096, 4), Done: done}
			}
			round := func() {
				q.Submit(batch)
				for range batch {
					<-done
				}
			}
			for range 100 {
				round()
			}
			if got := testing.AllocsPerRun(500, round); got != 0 {
				t.Errorf("allocations per batch of %d: got %v, want 0", count, got)
			}
		})
	}
}

// A read that is submitted again, where no device has anything, does not pass for what it was before.
func TestReadUsedAgain(t *testing.T) {
	path, data := writeFile(t, 1<<20)
	for _, e := range engines {
		t.Run(e.String(), func(t *testing.T) {
			q := open(t, path, Options{Engine: e})
			done := make(arrivals, 1)
			r := &Read{Bufs: [][]byte{aligned(4096)}, Done: done}
			q.Submit([]*Read{r})
			checkRead(t, done.next(t), data)
			r.Off = math.MaxInt64 + 1
			q.Submit([]*Read{r})
			if done.next(t); r.N != 0 || r.Err != io.ErrUnexpectedEOF {
				t.Errorf("got %d, %v, want 0, %v", r.N, r.Err, io.ErrUnexpectedEOF)
			}
		})
	}
}

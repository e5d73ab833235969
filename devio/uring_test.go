package devio

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// openFake opens a real file of 1 MiB on a fakeRing.
func openFake(t *testing.T, depth int, rg *fakeRing) (*Queue, []byte) {
	t.Helper()
	path, data := writeFile(t, 1<<20)
	f, err := openFile(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.noWait = nil
	q := newFakeUringQueue(f, depth, rg)
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if !rg.closed {
			t.Error("the ring is still there")
		}
	})
	return q, data
}

// blocks gives n reads of 4 KiB, too far from each other to become one request.
func blocks(n int, done Completer) []*Read {
	batch := make([]*Read, n)
	for i := range batch {
		batch[i] = &Read{Off: Physical(i * (mergedGap + 2*4096)), Bufs: [][]byte{aligned(4096)}, Done: done}
	}
	return batch
}

func TestBatchIsOneEnter(t *testing.T) {
	path, data := writeFile(t, 1<<20)
	q := open(t, path, Options{Engine: IOUring, Workers: 32})
	var stats tally
	q.Observe(&stats)
	done := make(arrivals, 32)
	q.Submit(blocks(32, done))
	for range 32 {
		checkRead(t, done.next(t), data)
	}
	if got, want := stats.enters.Load(), int64(1); got != want || stats.submitted.Load() != 32 {
		t.Errorf("%d reads handed in by %d enters, want 32 by 1", stats.submitted.Load(), got)
	}
}

// What the kernel does not take at once is handed in later; the reads do not know.
func TestRingTakesFewer(t *testing.T) {
	for name, refuse := range map[string]func(call, waiting int) (int, error){
		"one at a time": func(_, waiting int) (int, error) { return waiting - 1, nil },
		"none at first": func(call, waiting int) (int, error) { return waiting * (call % 2), nil },
		"EAGAIN": func(call, _ int) (int, error) {
			if call < 5 {
				return 0, unix.EAGAIN
			}
			return 0, nil
		},
		"EBUSY and EINTR": func(call, _ int) (int, error) {
			return 0, []error{unix.EBUSY, unix.EINTR, nil}[call%3]
		},
	} {
		t.Run(name, func(t *testing.T) {
			rg := &fakeRing{refuse: refuse}
			q, data := openFake(t, 8, rg)
			done := make(arrivals, 32)
			q.Submit(blocks(32, done))
			for range 32 {
				checkRead(t, done.next(t), data)
			}
			if got := rg.taken.Load(); got != 32 {
				t.Errorf("the kernel took %d requests, want 32", got)
			}
		})
	}
}

// Results that nobody is told of are found all the same, also those of the next reads, and when the queue is closed.
func TestRingTellsNobody(t *testing.T) {
	q, data := openFake(t, 4, &fakeRing{deaf: true})
	done := make(arrivals, 2)
	for range 2 {
		q.Submit(blocks(2, done))
		for range 2 {
			checkRead(t, done.next(t), data)
		}
	}
	q.Submit(blocks(2, done))
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

// A ring that does not work any more fails its reads: no read hangs.
func TestRingBreaks(t *testing.T) {
	for name, errno := range map[string]unix.Errno{"for good": unix.EBADF, "for long": unix.EAGAIN} {
		t.Run(name, func(t *testing.T) {
			var broken atomic.Bool
			broken.Store(true)
			rg := &fakeRing{refuse: func(int, int) (int, error) {
				if broken.Load() {
					return 0, errno
				}
				return 0, nil
			}}
			q, data := openFake(t, 4, rg)
			done := make(arrivals, 8)
			q.Submit(blocks(8, done))
			for range 4 {
				if r := done.next(t); r.Err != errno || r.N != 0 {
					t.Errorf("got %d, %v, want %v", r.N, r.Err, errno)
				}
			}
			broken.Store(false) // whatever is still to come may be served or not
			for range 4 {
				if r := done.next(t); r.Err != errno {
					checkRead(t, r, data)
				}
			}
			q.Submit(blocks(8, done))
			for range 8 {
				checkRead(t, done.next(t), data)
			}
		})
	}
}

// A request that the kernel gives up is done again, by a kernel worker, and not for ever.
func TestRingGivesUpRequests(t *testing.T) {
	for name, errno := range map[string]unix.Errno{"ECANCELED": unix.ECANCELED, "EAGAIN": unix.EAGAIN} {
		t.Run(name, func(t *testing.T) {
			var always atomic.Bool
			rg := &fakeRing{answer: func(_ uint64, async bool, res int) int {
				if !async || always.Load() {
					return -int(errno)
				}
				return res
			}}
			q, data := openFake(t, 4, rg)
			done := make(arrivals, 1)
			for range 2 {
				q.Submit(blocks(1, done))
				checkRead(t, done.next(t), data)
			}
			if got := rg.taken.Load(); got != 4 {
				t.Errorf("%d requests, want 4: each read twice", got)
			}
			always.Store(true)
			q.Submit(blocks(1, done))
			if r := done.next(t); r.Err != errno {
				t.Errorf("got %v, want %v", r.Err, errno)
			}
			if got := rg.taken.Load(); got != 4+1+uringAgain {
				t.Errorf("%d requests, want %d", got, 4+1+uringAgain)
			}
		})
	}
}

// Reads that need no kernel end like others, not inside Submit: their Completer may submit them again.
func TestRefusedReadsEndOutsideSubmit(t *testing.T) {
	q, _ := openFake(t, 2, &fakeRing{})
	q.file.align = 512
	r := &Read{Off: 1, Bufs: [][]byte{aligned(512)}}
	if doneInSubmit(q, r) || !errors.Is(r.Err, ErrAlign) {
		t.Errorf("got %v inside Submit, want ErrAlign outside", r.Err)
	}
}

func TestSlotsKeepNoBuffers(t *testing.T) {
	q, data := openFake(t, 3, &fakeRing{})
	done := make(arrivals, 9)
	q.Submit(blocks(9, done))
	for range 9 {
		checkRead(t, done.next(t), data)
	}
	e := q.engine.(*uringEngine)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.slots {
		if s.r != nil {
			t.Error("a slot still refers to a read")
		}
		checkCleared(t, s.iov)
	}
}

// Random batches against a real ring, from several goroutines, and Close in the middle.
func TestRingStress(t *testing.T) {
	path, data := writeFile(t, 1<<20+1000)
	rng := newRand(t)
	for round := range 12 {
		depth := []int{1, 2, 3, 7, 32, 100}[rng.IntN(6)]
		q := open(t, path, Options{Engine: IOUring, Workers: depth, Buffered: round%4 == 3})
		early := rng.IntN(3) == 0
		var wg sync.WaitGroup
		for range 4 {
			seed := rng.Uint64()
			wg.Go(func() { stress(t, q, data, seed, early) })
		}
		if early {
			if err := q.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		wg.Wait()
		if err := q.Close(); err != nil || q.Depth() != 0 {
			t.Fatalf("depth %d: close: %v, %d reads left", depth, err, q.Depth())
		}
	}
}

// stress submits random batches and checks what comes back; closed reads are fine if the queue may close.
func stress(t *testing.T, q *Queue, data []byte, seed uint64, closing bool) {
	rng := newSeeded(seed)
	done := make(arrivals, 128)
	out := 0
	for range 60 {
		batch := make([]*Read, 1+rng.IntN(20))
		for i := range batch {
			buf := aligned((1 + rng.IntN(16)) * 4096)
			batch[i] = &Read{Off: Physical(rng.IntN(270) * 4096), Bufs: split(rng, buf, 4096, 1+rng.IntN(4)), Done: done, Lone: rng.IntN(2) == 0}
		}
		q.Submit(batch)
		for out += len(batch); out > cap(done)-20; out-- {
			checkStressed(t, <-done, data, closing)
		}
	}
	for ; out > 0; out-- {
		checkStressed(t, <-done, data, closing)
	}
}

func checkStressed(t *testing.T, r *Read, data []byte, closing bool) {
	want := data[min(int(r.Off), len(data)):min(int(r.Off)+r.Size(), len(data))]
	switch got := bytes.Join(r.Bufs, nil)[:r.N]; {
	case closing && r.Err == ErrClosed:
	case !bytes.Equal(got, want):
		t.Errorf("read at %d of %d: %d bytes, %v, want %d, or they differ", r.Off, r.Size(), r.N, r.Err, len(want))
	case (r.Err == nil) != (len(want) == r.Size()):
		t.Errorf("read at %d of %d: %d bytes, %v", r.Off, r.Size(), r.N, r.Err)
	}
}

// The ring that a lone read waits for gives what preadv gives.
func TestLoneRing(t *testing.T) {
	requireEngine(t, IOUring)
	path, data := writeFile(t, 3*maxAlign+1000)
	u, err := newUring(1)
	if err != nil {
		t.Fatal(err)
	}
	defer u.close()
	f, err := openFile(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	l := loneRing{u}
	for _, tt := range []struct {
		name string
		fd   int
		off  int64
		size []int
	}{
		{"one buffer", f.fd, 4096, []int{8192}},
		{"two buffers", f.fd, 0, []int{4096, 8192}},
		{"end", f.fd, 2 * maxAlign, []int{8192}},
		{"behind the end", f.fd, 8 * maxAlign, []int{4096}},
		{"closed", 1 << 20, 0, []int{4096}},
		{"not aligned", f.fd, 100, []int{4096}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			read := func(preadv func(int, []unix.Iovec, int64) (int, error)) ([]byte, int, error) {
				var bufs [][]byte
				for _, n := range tt.size {
					bufs = append(bufs, aligned(n))
				}
				var iov iovecs
				iov.set(bufs, 0)
				n, err := preadv(tt.fd, iov, tt.off)
				return bytes.Join(bufs, nil), n, err
			}
			got, n, err := read(l.preadv)
			want, wantN, wantErr := read(preadv)
			if n != wantN || err != wantErr || !bytes.Equal(got, want) {
				t.Errorf("got %d, %v, want %d, %v, or bytes differ", n, err, wantN, wantErr)
			}
			if wantErr == nil && n > 0 && !bytes.Equal(got[:n], data[tt.off:][:n]) {
				t.Error("wrong bytes")
			}
		})
	}
	if u.waiting() != 0 || u.ready() {
		t.Error("something is left in the ring")
	}
}

// Where no ring can be made, auto goes on without, and io_uring says what is wrong.
func TestNoRing(t *testing.T) {
	path, data := writeFile(t, 1<<20)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	probe, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = uint64(probe.Fd()) + 1 // room for the file, and not for a ring
	probe.Close()
	limited := func(e Engine) (*Queue, error) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
				t.Fatal(err)
			}
		}()
		return Open(path, Options{Engine: e})
	}
	q, err := limited(Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if q.Engine() != Pread || q.Refused() == nil || !strings.HasPrefix(q.Refused().Error(), "io_uring_setup: ") {
		t.Errorf("auto: engine %v because of %v, want pread and io_uring_setup's error", q.Engine(), q.Refused())
	}
	done := make(arrivals, 8)
	q.Submit(blocks(8, done))
	for range 8 {
		checkRead(t, done.next(t), data)
	}
	q.Close()
	if _, err := limited(IOUring); !errors.Is(err, ErrEngine) ||
		!strings.HasPrefix(err.Error(), "open "+path+": io_uring can't be used: io_uring_setup: ") || !strings.Contains(err.Error(), "(choose the engine auto or pread") {
		t.Errorf("io_uring: got %v", err)
	}
}

func TestEngineOfQueue(t *testing.T) {
	path, _ := writeFile(t, 4096)
	for _, e := range engines {
		if q := open(t, path, Options{Engine: e}); q.Engine() != e || q.Refused() != nil {
			t.Errorf("got %v, %v, want %v", q.Engine(), q.Refused(), e)
		}
	}
	if q := open(t, path, Options{}); (q.Engine() == IOUring) != (q.Refused() == nil) {
		t.Errorf("auto: %v, %v", q.Engine(), q.Refused())
	}
}

func TestEngineNames(t *testing.T) {
	for e, name := range map[Engine]string{Auto: "auto", IOUring: "io_uring", Pread: "pread"} {
		if got, err := ParseEngine(name); got != e || err != nil || e.String() != name {
			t.Errorf("%s: got %v, %v; its name is %s", name, got, err, e)
		}
	}
	if got, err := ParseEngine(""); got != Auto || err != nil {
		t.Errorf("nothing: got %v, %v, want auto", got, err)
	}
	if _, err := ParseEngine("aio"); err == nil || err.Error() != `"aio" is no I/O engine (auto, io_uring or pread)` {
		t.Errorf("aio: got %v", err)
	}
	if got := Engine(9).String(); got != "Engine(9)" {
		t.Errorf("got %s", got)
	}
}

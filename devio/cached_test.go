package devio

import (
	"bytes"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cacheOf is a noWait over data of which the first so many bytes are in the page cache.
type cacheOf struct {
	data   []byte
	cached int64
	err    error // for the rest; nil: what is there, and then EAGAIN
	calls  atomic.Int64
}

func (c *cacheOf) preadv(_ int, iov []unix.Iovec, off int64) (int, error) {
	c.calls.Add(1)
	if c.err != nil {
		return 0, c.err
	}
	if off >= c.cached {
		return 0, unix.EAGAIN
	}
	m := &memory{data: c.data[:c.cached]}
	return m.preadv(0, iov, off)
}

// openCached opens a real file of 4 MiB through the page cache, of which c says what is there.
func openCached(t *testing.T, c *cacheOf) *Queue {
	t.Helper()
	path, data := writeFile(t, 4<<20)
	f, err := openFile(path, Options{Buffered: true})
	if err != nil {
		t.Fatal(err)
	}
	c.data = data
	f.noWait = c.preadv
	q := newPreadQueue(f, 2, nil)
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return q
}

// inSubmit counts the reads that are done inside Submit.
func inSubmit(t *testing.T, q *Queue, batch []*Read) (inside int) {
	t.Helper()
	done := make(arrivals, len(batch))
	self := goroutine()
	var n atomic.Int64
	for _, r := range batch {
		r.Done = callback(func(r *Read) {
			if goroutine() == self {
				n.Add(1)
			}
			done <- r
		})
	}
	q.Submit(batch)
	inside = int(n.Load())
	for range batch {
		if r := done.next(t); r.Err != nil {
			t.Errorf("read at %d: %v", r.Off, r.Err)
		}
	}
	return inside
}

// goroutine names the running goroutine.
func goroutine() string {
	line := make([]byte, 64)
	line = line[:runtime.Stack(line, false)]
	name, _, _ := bytes.Cut(line, []byte(" ["))
	return string(name)
}

func TestCachedReads(t *testing.T) {
	tests := []struct {
		name   string
		cache  *cacheOf
		size   int // of each of 32 reads
		inside int
		calls  int64
	}{
		{"all", &cacheOf{cached: 4 << 20}, 4096, 32, 32},
		{"the beginning", &cacheOf{cached: 5 * 4096}, 4096, 5, 6},
		{"a part", &cacheOf{cached: 5*4096 + 100}, 4096, 5, 7},
		{"none", &cacheOf{}, 4096, 0, 1},
		{"the bound", &cacheOf{cached: 4 << 20}, 128 << 10, 8, 8},
		{"error", &cacheOf{err: unix.EIO}, 4096, 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.cache
			q := openCached(t, c)
			var stats tally
			q.Observe(&stats)
			batch := make([]*Read, 32)
			for i := range batch {
				batch[i] = &Read{Off: Physical(i * tt.size), Bufs: [][]byte{make([]byte, tt.size/2), make([]byte, tt.size/2)}}
			}
			if got := inSubmit(t, q, batch); got != tt.inside || c.calls.Load() != tt.calls {
				t.Errorf("%d reads inside Submit by %d calls, want %d by %d", got, c.calls.Load(), tt.inside, tt.calls)
			}
			for _, r := range batch {
				if got := bytes.Join(r.Bufs, nil); !bytes.Equal(got, c.data[r.Off:][:tt.size]) {
					t.Fatalf("wrong bytes at %d", r.Off)
				}
			}
			if stats.reads.Load() != 32 || stats.submitted.Load() != 32 || stats.inFlight.Load() != 0 {
				t.Errorf("stats: %d reads, %d handed in, %d in flight, want 32, 32, 0", stats.reads.Load(), stats.submitted.Load(), stats.inFlight.Load())
			}
		})
	}
}

// A file without reads that do not wait is not asked again.
func TestCachedReadsNotSupported(t *testing.T) {
	c := &cacheOf{err: unix.EOPNOTSUPP}
	q := openCached(t, c)
	for range 3 {
		if got := inSubmit(t, q, []*Read{{Bufs: [][]byte{make([]byte, 100)}}}); got != 0 {
			t.Errorf("%d reads inside Submit, want 0", got)
		}
	}
	if got := c.calls.Load(); got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
}

// A Completer that submits again inside Submit must not grow the stack without end.
func TestCachedReadsDoNotNest(t *testing.T) {
	q := openCached(t, &cacheOf{cached: 4 << 20})
	finished := make(chan int, 1)
	left, depth := 1000, 0
	r := &Read{Bufs: [][]byte{make([]byte, 4096)}}
	r.Done = callback(func(*Read) {
		var frames [512]uintptr
		depth = max(depth, runtime.Callers(0, frames[:]))
		if left--; left == 0 {
			finished <- depth
			return
		}
		q.Submit([]*Read{r})
	})
	q.Submit([]*Read{r})
	select {
	case got := <-finished:
		if got > 100 {
			t.Errorf("stack of %d frames", got)
		}
	case <-time.After(patience):
		t.Fatal("the chain of reads stopped")
	}
}

// Close waits for reads inside Submit before it closes the descriptor.
func TestCloseWaitsForCachedReads(t *testing.T) {
	q := openCached(t, &cacheOf{cached: 4 << 20})
	inside, open := make(chan struct{}), make(chan struct{})
	r := &Read{Bufs: [][]byte{make([]byte, 4096)}, Done: callback(func(*Read) {
		close(inside)
		<-open
	})}
	go q.Submit([]*Read{r})
	<-inside
	q.closeWait = time.Millisecond
	if err := q.Close(); err == nil {
		t.Error("closed under a read")
	}
	close(open)
	q.closeWait = patience
	if err := q.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if got := q.readCached([]*Read{r}); got != 0 {
		t.Errorf("%d reads after Close, want 0", got)
	}
}

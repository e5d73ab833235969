package devio

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// split cuts b at random multiples of align into parts.
func split(rng *rand.Rand, b []byte, align, parts int) [][]byte {
	var bufs [][]byte
	for ; parts > 1 && len(b) > align; parts-- {
		n := (1 + rng.IntN(max(len(b)/align/parts, 1))) * align
		bufs = append(bufs, b[:n])
		b = b[n:]
	}
	return append(bufs, b)
}

// memory is a preadv over a byte slice that behaves as the kernel does, with what tests add to it.
type memory struct {
	data    []byte
	align   int                // of O_DIRECT; 0: none is on
	limit   func(want int) int // nil: all that is asked for
	errs    map[int]error      // by number of the call, from 0
	calls   int                // made so far
	largest int                // most iovecs in one call
	offsets []int64            // of each call
}

func (m *memory) preadv(_ int, iov []unix.Iovec, off int64) (int, error) {
	call := m.calls
	m.calls++
	m.largest = max(m.largest, len(iov))
	m.offsets = append(m.offsets, off)
	if err := m.errs[call]; err != nil {
		return 0, err
	}
	if off < 0 || len(iov) == 0 || len(iov) > maxIovecs {
		return 0, unix.EINVAL
	}
	want := 0
	for _, v := range iov {
		if m.align > 0 && (uint64(uintptr(unsafe.Pointer(v.Base)))|v.Len|uint64(off))%uint64(m.align) != 0 {
			return 0, unix.EINVAL
		}
		want += int(v.Len)
	}
	if m.limit != nil {
		want = min(want, m.limit(want))
	}
	n := 0
	for _, v := range iov {
		src := m.data[min(off+int64(n), int64(len(m.data))):]
		dst := unsafe.Slice(v.Base, v.Len)
		n += copy(dst[:min(len(dst), want-n)], src)
	}
	return n, nil
}

func (m *memory) file(align int) *file {
	f := &file{name: "memory", size: uint64(len(m.data)), align: max(align, 1), log: Options{}.log(), preadv: m.preadv, fd: -1}
	f.direct.Store(align > 1)
	m.align = align
	return f
}

func TestReadLoop(t *testing.T) { forEngines(t, testReadLoop) }

func testReadLoop(t *testing.T, e Engine) {
	data := make([]byte, 3*maxAlign+1000)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	eio := map[int]error{1: unix.EIO}
	upTo := func(n int) func(int) int { return func(int) int { return n } }
	tests := []struct {
		name   string
		m      memory
		align  int
		off    Physical
		size   int
		want   int
		err    error
		system int // calls
	}{
		{"whole", memory{}, 512, 4096, 8192, 8192, nil, 1},
		{"partial reads go on", memory{limit: upTo(1024)}, 512, 0, 4096, 4096, nil, 4},
		{"unaligned partial reads, buffered", memory{limit: upTo(1000)}, 1, 0, 4096, 4096, nil, 5},
		{"unaligned partial reads, direct", memory{limit: upTo(1000)}, 512, 0, 2048, 2048, nil, 4},
		{"no progress inside a block, direct", memory{limit: upTo(100)}, 512, 0, 2048, 100, nil, 2},
		{"signals", memory{errs: map[int]error{0: unix.EINTR, 1: unix.EINTR}}, 512, 0, 4096, 4096, nil, 3},
		{"error", memory{errs: map[int]error{0: unix.ENODATA}}, 512, 0, 4096, 0, unix.ENODATA, 1},
		{"error after a part", memory{limit: upTo(512), errs: eio}, 512, 0, 4096, 512, unix.EIO, 2},
		{"odd tail, direct", memory{}, 512, 3 * maxAlign, 4096, 1000, nil, 2},
		{"odd tail, buffered", memory{}, 1, 3 * maxAlign, 4096, 1000, nil, 2},
		{"the tail after whole blocks, direct", memory{}, 4096, 0, 4 * maxAlign, 3*maxAlign + 1000, nil, 2},
		{"behind the end", memory{}, 512, 4 * maxAlign, 4096, 0, nil, 1},
		{"behind the largest offset", memory{}, 512, math.MaxInt64 - 511, 4096, 0, nil, 0},
		{"beyond signed offsets", memory{}, 512, math.MaxUint64 - 511, 4096, 0, nil, 0},
		{"offset not aligned", memory{}, 512, 100, 4096, 0, ErrAlign, 0},
		{"length not aligned", memory{}, 512, 0, 4095, 0, ErrAlign, 0},
		{"signals in the middle", memory{limit: upTo(1024), errs: map[int]error{1: unix.EINTR, 2: unix.EINTR}}, 512, 0, 2048, 2048, nil, 4},
		{"no buffer", memory{}, 512, 0, 0, 0, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.m.data = data
			f := tt.m.file(tt.align)
			buf := aligned(tt.size)
			n, err := readBy(t, f, e, &Read{Off: tt.off, Bufs: [][]byte{buf}})
			if tt.err == nil && tt.want < tt.size {
				tt.err = io.ErrUnexpectedEOF
			}
			if n != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("got %d, %v, want %d, %v", n, err, tt.want, tt.err)
			}
			if n > 0 && !bytes.Equal(buf[:n], data[tt.off:][:n]) {
				t.Error("wrong bytes")
			}
			if tt.m.calls != tt.system {
				t.Errorf("%d system calls at %v, want %d", tt.m.calls, tt.m.offsets, tt.system)
			}
		})
	}
}

func TestReadCheck(t *testing.T) {
	buf := aligned(8192)
	tests := []struct {
		name  string
		read  *Read
		align int
		ok    bool
	}{
		{"fine", &Read{Off: 4096, Bufs: [][]byte{buf}}, 4096, true},
		{"no buffers", &Read{}, 1, false},
		{"anything goes", &Read{Off: 3, Bufs: [][]byte{buf[5:12]}}, 1, true},
		{"address", &Read{Bufs: [][]byte{buf[8:520]}}, 512, false},
		{"second length", &Read{Bufs: [][]byte{buf[:512], buf[512:1000]}}, 512, false},
		{"offset", &Read{Off: 1 << 9, Bufs: [][]byte{buf}}, 4096, false},
	}
	for _, tt := range tests {
		err := tt.read.Check(tt.align)
		if (err == nil) != tt.ok || (err != nil && !errors.Is(err, ErrAlign)) {
			t.Errorf("%s: got %v, want ok %v", tt.name, err, tt.ok)
		}
	}
}

func TestReadManyBuffers(t *testing.T) { forEngines(t, testReadManyBuffers) }

func testReadManyBuffers(t *testing.T, e Engine) {
	const count = 2*maxIovecs + 100
	data := make([]byte, count*512)
	for i := range data {
		data[i] = byte(i / 512 * 7)
	}
	m := &memory{data: data}
	f := m.file(512)
	mem := aligned(len(data))
	r := &Read{}
	for i := range count {
		r.Bufs = append(r.Bufs, mem[i*512:][:512])
	}
	n, err := readBy(t, f, e, r)
	if n != len(data) || err != nil || !bytes.Equal(mem, data) {
		t.Errorf("got %d, %v, want %d and the data", n, err, len(data))
	}
	if m.calls != 3 || m.largest != maxIovecs {
		t.Errorf("%d calls with up to %d buffers, want 3 with %d", m.calls, m.largest, maxIovecs)
	}
	var scratch iovecs
	if n, err := f.read(r, &scratch); n != len(data) || err != nil {
		t.Errorf("got %d, %v, want %d", n, err, len(data))
	}
	checkCleared(t, scratch)
}

// checkCleared refuses iovecs that still refer to buffers.
func checkCleared(t *testing.T, v iovecs) {
	t.Helper()
	for i, v := range v[:cap(v)] {
		if v.Base != nil {
			t.Fatalf("iovec %d still refers to a buffer", i)
		}
	}
}

// The read loop against a slice, with random cuts and signals.
func TestReadProperty(t *testing.T) { forEngines(t, testReadProperty) }

func testReadProperty(t *testing.T, e Engine) {
	outer := t
	rapid.Check(t, func(t *rapid.T) {
		align := rapid.SampledFrom([]int{1, 512, 4096}).Draw(t, "align")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		data := make([]byte, rapid.IntRange(0, 64<<10).Draw(t, "data"))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		m := &memory{data: data, limit: func(want int) int { return align + rng.IntN(max(want, 1)) }}
		m.errs = map[int]error{rng.IntN(4): unix.EINTR}
		f := m.file(align)
		off := rapid.IntRange(0, 20).Draw(t, "block") * align
		buf := aligned(rapid.IntRange(1, 32).Draw(t, "blocks") * align)
		r := &Read{Off: Physical(off), Bufs: split(rng, buf, align, 1+rng.IntN(8))}
		n, err := readBy(outer, f, e, r)
		want := data[min(off, len(data)):min(off+len(buf), len(data))]
		if (err != nil) != (n < len(buf)) || n != len(want) || !bytes.Equal(buf[:n], want) {
			t.Fatalf("got %d bytes, %v, want %d", n, err, len(want))
		}
	})
}

// O_DIRECT may be accepted at open and refused at a read.
func TestDirectRefusedByRead(t *testing.T) { forEngines(t, testDirectRefusedByRead) }

func testDirectRefusedByRead(t *testing.T, e Engine) {
	path, data := writeFile(t, 8192+100)
	f, err := openFile(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.direct.Store(true) // also where it was refused at open
	f.align = 512
	var refused, broken atomic.Int64
	real := f.preadv
	f.preadv = func(fd int, iov []unix.Iovec, off int64) (int, error) {
		if f.direct.Load() {
			refused.Add(1)
			return 0, unix.EINVAL
		}
		if broken.Load() > 0 {
			return 0, unix.EINVAL
		}
		return real(fd, iov, off)
	}
	q := newTestQueue(f, e, 1)
	defer q.Close()
	done := make(arrivals, 1)
	for range 2 {
		buf := aligned(16 << 10)
		q.Submit([]*Read{{Bufs: [][]byte{buf}, Done: done}})
		if r := done.next(t); r.N != len(data) || r.Err != io.ErrUnexpectedEOF || !bytes.Equal(buf[:r.N], data) {
			t.Errorf("got %d, %v, want %d", r.N, r.Err, len(data))
		}
	}
	if refused.Load() != 1 || q.Direct() {
		t.Errorf("refused %d times, direct %v: want once, false", refused.Load(), q.Direct())
	}
	broken.Store(1)
	q.Submit([]*Read{{Bufs: [][]byte{aligned(512)}, Done: done}})
	if r := done.next(t); r.Err != unix.EINVAL {
		t.Errorf("EINVAL through the page cache: got %v, want EINVAL", r.Err)
	}
}

// A file can shrink and grow under its reader.
func TestReadTruncated(t *testing.T) { forEngines(t, testReadTruncated) }

func testReadTruncated(t *testing.T, e Engine) {
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 16<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	q := open(t, path, Options{Engine: e})
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	done := make(arrivals, 1)
	q.Submit([]*Read{{Bufs: [][]byte{aligned(16 << 10)}, Done: done}})
	if r := done.next(t); r.N != 5000 || r.Err != io.ErrUnexpectedEOF || q.Size() != 16<<10 {
		t.Errorf("got %d, %v of a file of %d, want 5000", r.N, r.Err, q.Size())
	}
}

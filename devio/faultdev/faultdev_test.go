package faultdev

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/btrexport/btrexport/devio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const block = 4096

// arrivals is a Completer that hands the reads on.
type arrivals chan *devio.Read

func (a arrivals) ReadDone(r *devio.Read) { a <- r }

func (a arrivals) next(t testing.TB) *devio.Read {
	t.Helper()
	select {
	case r := <-a:
		return r
	case <-time.After(20 * time.Second):
		t.Fatal("a read did not complete")
		return nil
	}
}

// tally is a Stats that counts.
type tally struct{ reads, bytes, errs, inFlight atomic.Int64 }

func (s *tally) ReadDone(n int, _ time.Duration, err error) {
	s.reads.Add(1)
	s.bytes.Add(int64(n))
	if err != nil {
		s.errs.Add(1)
	}
}

func (s *tally) Submitted(int) {}

func (s *tally) InFlight(delta int) { s.inFlight.Add(int64(delta)) }

// aligned returns n bytes at a multiple of 4096.
func aligned(n int) []byte {
	b := make([]byte, n+block)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (block - 1))
	return b[skip : skip+n : skip+n]
}

func image(n int) []byte {
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}

// read reads blocks whole blocks at the given one, each in a buffer of its own.
func read(t testing.TB, d Device, first, blocks int) *devio.Read {
	t.Helper()
	done := make(arrivals, 1)
	r := newRead(first, blocks, done)
	d.Submit([]*devio.Read{r})
	return done.next(t)
}

func newRead(first, blocks int, done devio.Completer) *devio.Read {
	r := &devio.Read{Off: devio.Physical(first * block), Done: done}
	mem := aligned(blocks * block)
	for i := range blocks {
		r.Bufs = append(r.Bufs, mem[i*block:][:block])
	}
	return r
}

func contents(r *devio.Read) []byte { return bytes.Join(r.Bufs, nil) }

func TestRules(t *testing.T) {
	data := image(64 * block)
	bad := func(from, to int) []byte { // the image with a damaged range
		b := slices.Clone(data)
		for i := from; i < to; i++ {
			b[i] ^= flip
		}
		return b
	}
	tests := []struct {
		name          string
		arm           func(d *Dev)
		first, blocks int
		n             int
		err           error
		want          []byte // image that the data must come from; nil: data
	}{
		{"none", func(*Dev) {}, 3, 5, 5 * block, nil, nil},
		{"fail elsewhere before", func(d *Dev) { d.Fail(Range(2*block, block), unix.EIO) }, 3, 5, 5 * block, nil, nil},
		{"fail elsewhere after", func(d *Dev) { d.Fail(Range(8*block, block), unix.EIO) }, 3, 5, 5 * block, nil, nil},
		{"fail in the last byte", func(d *Dev) { d.Fail(Range(8*block-1, 1), unix.ENODATA) }, 3, 5, 0, unix.ENODATA, nil},
		{"fail in the first byte", func(d *Dev) { d.Fail(Range(0, 3*block+1), unix.EIO) }, 3, 5, 0, unix.EIO, nil},
		{"the first error counts", func(d *Dev) { d.Fail(All(), unix.EIO); d.Fail(All(), unix.ENODATA) }, 3, 5, 0, unix.EIO, nil},
		{"lost with an error", func(d *Dev) { d.Lose(unix.ENXIO) }, 3, 5, 0, unix.ENXIO, nil},
		{"lost silently", func(d *Dev) { d.Lose(nil) }, 3, 5, 0, io.ErrUnexpectedEOF, nil},
		{"short at a range", func(d *Dev) { d.Short(Range(5*block, 10*block), 0) }, 3, 5, 2 * block, io.ErrUnexpectedEOF, nil},
		{"short inside a range", func(d *Dev) { d.Short(Range(5*block, 10*block), 0) }, 6, 2, 0, io.ErrUnexpectedEOF, nil},
		{"short, some kept", func(d *Dev) { d.Short(All(), 100) }, 3, 5, 100, io.ErrUnexpectedEOF, nil},
		{"short, all kept", func(d *Dev) { d.Short(All(), 5*block) }, 3, 5, 5 * block, nil, nil},
		{"the shortest counts", func(d *Dev) { d.Short(All(), 100); d.Short(All(), 50); d.Short(All(), 70) }, 3, 5, 50, io.ErrUnexpectedEOF, nil},
		{"short to nothing", func(d *Dev) { d.Short(All(), 0) }, 3, 5, 0, io.ErrUnexpectedEOF, nil},
		{"corrupt", func(d *Dev) { d.Corrupt(All()) }, 3, 5, 5 * block, nil, bad(0, len(data))},
		{"corrupt across buffers", func(d *Dev) { d.Corrupt(Range(4*block-10, 2*block)) }, 3, 5, 5 * block, nil, bad(4*block-10, 6*block-10)},
		{"corrupt once", func(d *Dev) {
			d.Corrupt(Range(5*block, 100))
			d.Corrupt(Range(4*block, 2*block))
			d.Corrupt(Range(5*block+50, 100))
		}, 3, 5, 5 * block, nil, bad(4*block, 6*block)},
		{"short and corrupt", func(d *Dev) { d.Corrupt(All()); d.Short(All(), block) }, 3, 5, block, io.ErrUnexpectedEOF, bad(0, len(data))},
		{"nth not reached", func(d *Dev) { d.Fail(Nth(1), unix.EIO) }, 3, 5, 5 * block, nil, nil},
		{"removed", func(d *Dev) { d.Fail(All(), unix.EIO).Remove() }, 3, 5, 5 * block, nil, nil},
		{"cleared", func(d *Dev) { d.Fail(All(), unix.EIO); d.Hang(All()); d.Clear() }, 3, 5, 5 * block, nil, nil},
		{"late", func(d *Dev) { d.Delay(Range(7*block, 1), time.Millisecond) }, 3, 5, 5 * block, nil, nil},
		{"late failure", func(d *Dev) { d.Delay(All(), time.Millisecond); d.Fail(All(), unix.EIO) }, 3, 5, 0, unix.EIO, nil},
		{"end of the device", func(*Dev) {}, 62, 4, 2 * block, io.ErrUnexpectedEOF, nil},
		{"end of the device, longer than a cut", func(d *Dev) { d.Short(All(), 3*block) }, 62, 4, 2 * block, io.ErrUnexpectedEOF, nil},
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	inner := map[string]func() Device{
		"mem":      func() Device { return Mem("disk", data) },
		"shuffled": func() Device { return Mem("disk", data, Shuffled(1)) },
		"dev":      func() Device { return New(Mem("disk", data)) },
		"file": func() Device {
			q, err := devio.Open(path, devio.Options{Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			return q
		},
	}
	for over, open := range inner {
		for _, tt := range tests {
			t.Run(over+"/"+tt.name, func(t *testing.T) {
				d := New(open())
				defer closeDevice(t, d)
				var stats tally
				d.Observe(&stats)
				tt.arm(d)
				r := read(t, d, tt.first, tt.blocks)
				if r.N != tt.n || r.Err != tt.err {
					t.Errorf("got %d, %v, want %d, %v", r.N, r.Err, tt.n, tt.err)
				}
				want := tt.want
				if want == nil {
					want = data
				}
				got := contents(r)
				if !bytes.Equal(got[:r.N], want[tt.first*block:][:r.N]) {
					t.Error("wrong bytes")
				}
				for i, b := range got[r.N:] {
					if b != rubbish {
						t.Errorf("byte %d, which did not arrive, is %#x", r.N+i, b)
						break
					}
				}
				wantErrs := int64(0)
				if tt.err != nil {
					wantErrs = 1
				}
				if stats.reads.Load() != 1 || stats.bytes.Load() != int64(tt.n) || stats.errs.Load() != wantErrs || stats.inFlight.Load() != 0 {
					t.Errorf("stats: %d reads, %d bytes, %d errors, %d in flight", stats.reads.Load(), stats.bytes.Load(), stats.errs.Load(), stats.inFlight.Load())
				}
			})
		}
	}
}

func closeDevice(t *testing.T, d Device) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if got := d.Depth(); got != 0 {
		t.Errorf("depth after close: %d", got)
	}
}

func TestCounts(t *testing.T) {
	d := New(Mem("disk", image(64*block)))
	defer closeDevice(t, d)
	third := d.Fail(Range(10*block, block).Nth(2), unix.EIO)
	two := d.Short(Range(20*block, block).First(2), 0)
	other := d.Fail(Nth(100), unix.EIO)
	var errs []error
	for range 5 {
		errs = append(errs, read(t, d, 10, 1).Err, read(t, d, 20, 1).Err, read(t, d, 30, 1).Err)
	}
	short := io.ErrUnexpectedEOF
	want := []error{nil, short, nil, nil, short, nil, unix.EIO, nil, nil, nil, nil, nil, nil, nil, nil}
	if !slices.Equal(errs, want) {
		t.Errorf("errors:\n got %v\nwant %v", errs, want)
	}
	if third.Hits() != 1 || !third.Fired() || two.Hits() != 2 || other.Fired() {
		t.Errorf("hits: got %d, %d, %d, want 1, 2, 0", third.Hits(), two.Hits(), other.Hits())
	}
	if got := d.Reads(); got != 15 {
		t.Errorf("reads: got %d, want 15", got)
	}
}

func TestLog(t *testing.T) {
	d := New(Mem("disk", image(64*block)))
	defer closeDevice(t, d)
	read(t, d, 1, 1)
	d.Record()
	d.Fail(Range(7*block, 1), unix.EIO)
	read(t, d, 5, 3)
	read(t, d, 2, 1)
	want := []Access{{5 * block, 3 * block}, {2 * block, block}}
	if got := d.Log(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	d.Record()
	if got := d.Log(); len(got) != 0 {
		t.Errorf("a new log holds %v", got)
	}
}

func TestHang(t *testing.T) {
	data := image(64 * block)
	d := New(Mem("disk", data))
	defer closeDevice(t, d)
	rule := d.Hang(Range(8*block, block))
	d.Fail(Range(8*block, block).Nth(1), unix.EIO)
	done := make(arrivals, 4)
	d.Submit([]*devio.Read{newRead(8, 1, done), newRead(7, 3, done), newRead(1, 1, done)})
	if r := done.next(t); r.Off != block || r.Err != nil {
		t.Errorf("got offset %d, %v, want the read that does not hang", r.Off, r.Err)
	}
	if len(done) != 0 || d.Hanging() != 2 || d.Depth() != 2 || !rule.Fired() {
		t.Errorf("%d completed, %d hang, depth %d; want 0, 2, 2", len(done), d.Hanging(), d.Depth())
	}
	if got := d.Release(); got != 2 {
		t.Errorf("released %d, want 2", got)
	}
	for range 2 {
		r := done.next(t)
		if r.Off == 8*block && (r.Err != nil || !bytes.Equal(contents(r), data[8*block:][:block])) {
			t.Errorf("the first: got %v, want its data", r.Err)
		}
		if r.Off == 7*block && r.Err != unix.EIO {
			t.Errorf("the second: got %v, want EIO", r.Err)
		}
	}
	if r := read(t, d, 8, 1); r.Err != nil {
		t.Errorf("after Release: %v", r.Err)
	}
}

func TestCloseEndsWhatIsHeld(t *testing.T) {
	d := New(Mem("disk", image(64*block)))
	var stats tally
	d.Observe(&stats)
	d.Hang(Range(0, block))
	d.Delay(Range(block, block), time.Hour)
	done := make(arrivals, 3)
	d.Submit([]*devio.Read{newRead(0, 1, done), newRead(1, 1, done)})
	closeDevice(t, d)
	d.Submit([]*devio.Read{newRead(2, 1, done)})
	for range 3 {
		if r := done.next(t); r.Err != devio.ErrClosed || r.N != 0 {
			t.Errorf("offset %d: got %d, %v, want ErrClosed", r.Off, r.N, r.Err)
		}
	}
	if stats.reads.Load() != 0 || stats.inFlight.Load() != 0 {
		t.Errorf("stats: %d reads, %d in flight, want 0", stats.reads.Load(), stats.inFlight.Load())
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Mem("disk", image(64*block)))
		d.Delay(Range(0, block), time.Second)
		d.Delay(Range(0, block), 3*time.Second)
		d.Delay(Range(0, block), 2*time.Second)
		done := make(arrivals, 2)
		start := time.Now()
		d.Submit([]*devio.Read{newRead(0, 1, done), newRead(1, 1, done)})
		if r := <-done; r.Off != block || time.Since(start) != 0 {
			t.Errorf("first: offset %d after %v, want %d at once", r.Off, time.Since(start), block)
		}
		if r := <-done; r.Err != nil || time.Since(start) != 3*time.Second {
			t.Errorf("second: %v after %v, want 3s", r.Err, time.Since(start))
		}
		closeDevice(t, d)
	})
}

func TestRuleMisuse(t *testing.T) {
	d := New(Mem("disk", nil))
	for name, f := range map[string]func(){
		"no error":    func() { d.Fail(All(), nil) },
		"empty range": func() { Range(1, 0) },
		"no reads":    func() { All().First(0) },
		"alignment":   func() { Aligned(3) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: did not panic", name)
				}
			}()
			f()
		}()
	}
}

// touched against a walk over every byte.
func TestTouchedProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := rapid.SampledFrom([]uint64{0, 1 << 40, math.MaxUint64 - 300}).Draw(t, "base")
		r := &devio.Read{
			Off:  devio.Physical(base + rapid.Uint64Range(0, 100).Draw(t, "off")),
			Bufs: [][]byte{make([]byte, rapid.IntRange(1, 50).Draw(t, "a")), make([]byte, rapid.IntRange(0, 50).Draw(t, "b"))},
		}
		off := base + rapid.Uint64Range(0, 200).Draw(t, "rule")
		n := rapid.Uint64Range(1, 100).Draw(t, "length")
		from, to := Range(devio.Physical(off), n).touched(r)
		for i := range uint64(r.Size()) {
			at := uint64(r.Off) + i
			if got, want := from <= i && i < to, at >= off && at < off+n; got != want {
				t.Fatalf("read %d+%d, range %d+%d, byte %d: got %v [%d, %d), want %v", r.Off, r.Size(), off, n, i, got, from, to, want)
			}
		}
	})
	r := &devio.Read{Off: 4096, Bufs: [][]byte{make([]byte, 512)}}
	if from, to := Range(100, math.MaxUint64).touched(r); from != 0 || to != 512 {
		t.Errorf("range to the end of all addresses: got [%d, %d), want [0, 512)", from, to)
	}
	if from, to := Range(4100, math.MaxUint64).touched(r); from != 4 || to != 512 {
		t.Errorf("range beyond the last address: got [%d, %d), want [4, 512)", from, to)
	}
}

func TestMem(t *testing.T) {
	data := image(3*block + 100)
	m := Mem("disk", data)
	defer closeDevice(t, m)
	if m.Size() != uint64(len(data)) || m.Align() != block || m.Name() != "disk" {
		t.Errorf("got %s, %d bytes, align %d", m.Name(), m.Size(), m.Align())
	}
	done := make(arrivals, 8)
	m.Submit([]*devio.Read{newRead(2, 2, done), newRead(9, 1, done), newRead(0, 1, done)})
	for i, want := range []struct {
		n   int
		err error
	}{{block + 100, io.ErrUnexpectedEOF}, {0, io.ErrUnexpectedEOF}, {block, nil}} {
		select {
		case r := <-done:
			if r.N != want.n || r.Err != want.err {
				t.Errorf("read %d: got %d, %v, want %d, %v", i, r.N, r.Err, want.n, want.err)
			}
		default:
			t.Fatalf("read %d did not complete inside Submit", i)
		}
	}
	m.Submit([]*devio.Read{{Off: 512, Bufs: [][]byte{aligned(block)}, Done: done}})
	if r := <-done; !errors.Is(r.Err, devio.ErrAlign) {
		t.Errorf("misaligned: got %v, want ErrAlign", r.Err)
	}
	fine := Mem("fine", data, Aligned(1))
	fine.Submit([]*devio.Read{{Off: 3, Bufs: [][]byte{make([]byte, 5)}, Done: done}})
	if r := <-done; r.Err != nil || !bytes.Equal(contents(r), data[3:8]) {
		t.Errorf("aligned to 1: got %v", r.Err)
	}
}

func TestMemShuffled(t *testing.T) {
	data := image(64 * block)
	order := func(seed uint64) []devio.Physical {
		m := Mem("disk", data, Shuffled(seed))
		defer closeDevice(t, m)
		done := make(arrivals, 64)
		batch := make([]*devio.Read, 64)
		for i := range batch {
			batch[i] = newRead(i, 1, done)
		}
		m.Submit(batch)
		var got []devio.Physical
		for range batch {
			r := done.next(t)
			if r.Err != nil || !bytes.Equal(contents(r), data[r.Off:][:block]) {
				t.Errorf("offset %d: %v, or wrong bytes", r.Off, r.Err)
			}
			got = append(got, r.Off)
		}
		return got
	}
	one, again, two := order(1), order(1), order(2)
	if !slices.Equal(one, again) {
		t.Error("the same seed gave another order")
	}
	if slices.Equal(one, two) || slices.IsSorted(one) {
		t.Error("the order is not random")
	}
}

func TestMemShuffledClose(t *testing.T) {
	m := Mem("disk", image(64*block), Shuffled(1))
	entered, leave := make(chan struct{}, 8), make(chan struct{})
	block := callback(func(*devio.Read) { entered <- struct{}{}; <-leave })
	m.Submit([]*devio.Read{newRead(0, 1, block)})
	<-entered
	done := make(arrivals, 2)
	m.Submit([]*devio.Read{newRead(1, 1, done), newRead(2, 1, done)})
	closed := make(chan struct{})
	go func() { defer close(closed); closeDevice(t, m) }()
	for stop := false; !stop; {
		m.mu.Lock()
		stop = m.closed
		m.mu.Unlock()
	}
	close(leave)
	for range 2 {
		if r := done.next(t); r.Err != devio.ErrClosed {
			t.Errorf("got %v, want ErrClosed", r.Err)
		}
	}
	<-closed
}

type callback func(r *devio.Read)

func (c callback) ReadDone(r *devio.Read) { c(r) }

// Rules come and go while reads run: each read has its data, or an error, and each completes.
func TestConcurrent(t *testing.T) {
	data := image(64 * block)
	d := New(Mem("disk", data, Shuffled(3)))
	var stats tally
	d.Observe(&stats)
	stop := make(chan struct{})
	var rules, readers sync.WaitGroup
	rules.Go(func() {
		rng := rand.New(rand.NewPCG(9, 9))
		for {
			select {
			case <-stop:
				d.Release()
				return
			default:
			}
			at := Range(devio.Physical(rng.IntN(64)*block), block)
			r := []*Rule{d.Fail(at, unix.EIO), d.Short(at, 10), d.Delay(at, time.Microsecond), d.Hang(at)}
			d.Release()
			for _, r := range r {
				r.Remove()
				r.Fired()
			}
			d.Release()
		}
	})
	for seed := range uint64(4) {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			done := make(arrivals, 4)
			for range 300 {
				batch := make([]*devio.Read, 1+rng.IntN(4))
				for i := range batch {
					batch[i] = newRead(rng.IntN(60), 1+rng.IntN(4), done)
				}
				d.Submit(batch)
				for range batch {
					r := <-done
					if !bytes.Equal(contents(r)[:r.N], data[r.Off:][:r.N]) || (r.Err == nil) != (r.N == r.Size()) {
						t.Errorf("offset %d: %d bytes, %v, or wrong bytes", r.Off, r.N, r.Err)
					}
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	rules.Wait()
	closeDevice(t, d)
	if got := stats.reads.Load(); got != int64(d.Reads()) || stats.inFlight.Load() != 0 {
		t.Errorf("stats: %d reads of %d, %d in flight", got, d.Reads(), stats.inFlight.Load())
	}
}

package fsread

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// TestPlanBySector holds plans against the layout that a file was given sector by sector, with extents that go on where the
// last one ended on the disk, or do not, holes, and sectors without a checksum.
func TestPlanBySector(t *testing.T) {
	const sectors = 300
	rng := fsreadtest.Seed(t)
	for range 20 {
		b := newBuilder(t)
		b.size(sectors*4096, 0)
		disk := pattern(512<<10, 3)
		copy(b.disk[dataStart:], disk)
		for s := range len(disk) / 4096 {
			if rng.IntN(20) > 0 {
				b.data(dataStart+ondisk.Logical(s)*4096, disk[s*4096:][:4096], true)
			}
		}
		want := make([]ondisk.Logical, sectors) // 0: a hole
		for s := 0; s < sectors; {
			n := min(1+rng.IntN(6), sectors-s)
			at := dataStart + ondisk.Logical(rng.IntN(len(disk)/4096-n))*4096
			if s > 0 && want[s-1] > 0 && rng.IntN(2) == 0 && want[s-1] < dataStart+ondisk.Logical(len(disk)-n*4096-4096) {
				at = want[s-1] + 4096
			}
			if rng.IntN(8) > 0 {
				b.extent(uint64(s)*4096, plain(at, uint64(n)*4096, 0, uint64(n)*4096))
				for i := range n {
					want[s+i] = at + ondisk.Logical(i)*4096
				}
			}
			s += n
		}
		file := b.file()
		var r Read
		for range 50 {
			first := rng.IntN(sectors)
			r.Off, r.Len = uint64(first)*4096, (1+rng.IntN(sectors-first))*4096
			if err := r.start(file); err != nil {
				t.Fatal(err)
			}
			if err := r.plan(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			checkPlan(t, &r, want, func(l ondisk.Logical) []byte { return b.disk[l:][:4096] })
			r.Release()
		}
	}
}

// checkPlan compares the pieces of a plan, and demands that no two of them could be one.
func checkPlan(t *testing.T, r *Read, want []ondisk.Logical, disk func(ondisk.Logical) []byte) {
	t.Helper()
	got := make([]ondisk.Logical, len(want))
	var last *piece
	for _, p := range r.pieces[:r.used] {
		if &p.Buf[0] != &r.buf.B[p.at] || len(p.Buf) != p.n {
			t.Fatalf("piece at %d of %d bytes: reads %d bytes to another place", p.at, p.n, len(p.Buf))
		}
		if last != nil && last.at+last.n == p.at && last.Logical+ondisk.Logical(last.n) == p.Logical {
			t.Fatalf("pieces at %d and %d touch", last.at, p.at)
		}
		last = p
		for i := range p.n / 4096 {
			l := p.Logical + ondisk.Logical(i)*4096
			got[int(r.window/4096)+p.at/4096+i] = l
			if err := p.VerifyUnit(i, disk(l)); err != nil && r.sums.have[p.first+i] {
				t.Fatalf("sector at logical %d: %v", l, err)
			}
			if wrong := bytes.Repeat([]byte{1}, 4096); p.VerifyUnit(i, wrong) == nil {
				t.Fatalf("sector at logical %d: anything passes", l)
			}
		}
	}
	for s := r.window / 4096; s < (r.window+uint64(len(r.buf.B)))/4096; s++ {
		if got[s] != want[s] {
			t.Fatalf("sector %d: from logical %d, want %d", s, got[s], want[s])
		}
	}
}

// TestReadKeepsLittle lets go of what a read of many pieces took.
func TestReadKeepsLittle(t *testing.T) {
	l := fragmented(1 << 13)
	file := l.open(t, l, Options{})
	for _, c := range []struct {
		n    int
		kept bool
	}{{1 << 20, true}, {32 << 20, false}} {
		r := &Read{Len: c.n}
		if err := planOnce(r, file, false); err != nil {
			t.Fatal(err)
		}
		if got := len(r.pieces) > 0; got != c.kept || len(r.pieces) > maxKeptPieces || cap(r.sums.have) > maxKeptSums {
			t.Errorf("after %d bytes: %d pieces and room for %d checksums kept", c.n, len(r.pieces), cap(r.sums.have))
		}
	}
}

// TestFragmentedPlanAllocatesNothing lays out reads of many pieces by a Read that is used again.
func TestFragmentedPlanAllocatesNothing(t *testing.T) {
	if fsreadtest.Race {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	l := fragmented(1 << 10)
	file := l.open(t, l, Options{})
	r := &Read{Len: 256 << 10}
	one := func() {
		if r.Off += 128 << 10; r.Off+uint64(r.Len) > file.size {
			r.Off = 0
		}
		if err := planOnce(r, file, false); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		one()
	}
	if n := testing.AllocsPerRun(200, one); n != 0 {
		t.Errorf("%v allocations a plan", n)
	}
}

// stamped says where a sector of fragmented's file lies, as its bytes do.
func stamped(l *lazyFS, sector uint64) ondisk.Logical {
	off, x := l.extent(int(sector / 4 * 2))
	if sector%4 == 3 {
		off, x = l.extent(int(sector/4*2 + 1))
	}
	return x.DiskBytenr + ondisk.Logical(x.Offset+sector*4096-off)
}

// checkStamps holds a read against where its sectors lie.
func checkStamps(t *testing.T, l *lazyFS, r *Read) {
	t.Helper()
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	for b := r.Payload(); len(b) > 0; b = b[4096:] {
		s := (r.Off + uint64(r.Len-len(b))) / 4096
		if got, want := ondisk.Logical(binary.LittleEndian.Uint64(b)), stamped(l, s); got != want {
			t.Fatalf("sector %d: bytes of logical %d, want %d", s, got, want)
		}
	}
}

// TestStreamNeverWaits reads a fragmented file in order, from a device that takes its time: no read but the first finds a
// tree block missing.
func TestStreamNeverWaits(t *testing.T) {
	l := fragmented(1 << 13)
	dev := faultdev.New(l)
	file := l.open(t, dev, Options{CacheBytes: 8 << 20})
	var waits atomic.Int32
	plan := file.fs.planners.work
	file.fs.planners.work = func(r *Read) { waits.Add(1); plan(r) }
	dev.Delay(faultdev.All(), 200*time.Microsecond)
	done := make(signal, 1)
	r := &Read{Len: 256 << 10, Done: done}
	for ; r.Off+uint64(r.Len) <= file.size; r.Off += uint64(r.Len) {
		file.Submit([]*Read{r})
		<-done
		checkStamps(t, l, r)
		r.Release()
		awaitLook(t, file) // whoever looks ahead is as fast as it must be
	}
	if n := waits.Load(); n != 1 {
		t.Errorf("%d reads of a stream waited for tree blocks, want the first alone", n)
	}
}

// awaitLook returns when nobody looks ahead in the file.
func awaitLook(t *testing.T, f *File) {
	t.Helper()
	for i := 0; f.ahead.busy.Load(); i++ {
		if time.Sleep(time.Millisecond); i > 20000 {
			t.Fatal("still looking ahead")
		}
	}
}

// TestRandomReadsLookNowhere reads what was asked for, and no tree blocks ahead, although every other read starts shortly
// behind the one before.
func TestRandomReadsLookNowhere(t *testing.T) {
	l := fragmented(1 << 20)
	file := l.open(t, l, Options{})
	done := make(signal, 1)
	r := &Read{Len: 4096, Done: done}
	for i := range uint64(40) {
		r.Off = (i/2*7919+1)%2000*(4<<20) + i%2*(1<<20)
		file.Submit([]*Read{r})
		<-done
		checkStamps(t, l, r)
		r.Release()
	}
	awaitLook(t, file)
	for i := range file.ahead.done {
		if n := file.ahead.done[i].Load(); n != 0 {
			t.Errorf("stride %d was looked at", n-1)
		}
	}
}

// TestLookAheadMeetsErrors reads a stream on a device that fails every so many reads: what is looked at ahead tells
// nobody, and what is read is right or an error.
func TestLookAheadMeetsErrors(t *testing.T) {
	l := fragmented(1 << 12)
	dev := faultdev.New(l)
	file := l.open(t, dev, Options{CacheBytes: 1})
	rule := dev.Fail(faultdev.Range(0, uint64(lazyData)), errors.New("tree blocks fail"))
	done := make(signal, 1)
	r := &Read{Len: 512 << 10, Done: done}
	for ; r.Off+uint64(r.Len) <= file.size; r.Off += uint64(r.Len) {
		if r.Off == 16<<20 {
			for file.ahead.busy.Load() { // a read may join one that fails
				runtime.Gosched()
			}
			rule.Remove()
		}
		file.Submit([]*Read{r})
		<-done
		if r.Off >= 16<<20 || r.Err == nil {
			checkStamps(t, l, r)
		} else if !errors.As(r.Err, new(*btree.BlockError)) {
			t.Fatalf("offset %d: %v", r.Off, r.Err)
		}
		r.Release()
	}
	if !rule.Fired() {
		t.Error("no tree block failed")
	}
}

// TestManyFragments opens a file of ten million extents and reads here and there: no more tree blocks are read for it than for a
// small file, and what is kept stays within the cache.
func TestManyFragments(t *testing.T) {
	reads := 600
	if fsreadtest.Race {
		reads = 60
	}
	opened := func(n int) (*lazyFS, *File, int) {
		l := fragmented(n)
		f := l.open(t, l, Options{CacheBytes: 16 << 20})
		return l, f, l.treeBlocks()
	}
	_, _, few := opened(1000)
	before := heap()
	l, file, many := opened(10_000_000)
	if many > few+4 { // two more levels of either tree
		t.Errorf("%d tree blocks read to open ten million extents, %d for a thousand", many, few)
	}
	rng := fsreadtest.Seed(t)
	done := make(signal, 1)
	r := &Read{Done: done}
	for range reads {
		r.Off, r.Len = rng.Uint64N(file.size/4096-64)*4096, 4096*(1+rng.IntN(16))
		file.Submit([]*Read{r})
		<-done
		checkStamps(t, l, r)
		r.Release()
	}
	if n := file.fs.reader.CacheBytes(); n > file.fs.treeCache() {
		t.Errorf("%d bytes cached, want at most %d", n, file.fs.treeCache())
	}
	if n := heap() - before; n > file.fs.treeCache()+4<<20 {
		t.Errorf("%d bytes of memory for a cache of %d", n, file.fs.treeCache())
	}
	runtime.KeepAlive(file)
	t.Logf("%d and %d tree blocks to open, %d to read, %d bytes cached, %d of memory", few, many, l.treeBlocks()-many,
		file.fs.reader.CacheBytes(), heap()-before)
}

// heap is what is in use after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

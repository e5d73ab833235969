package volume

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// array is a shape and how many of its devices are missing.
type array struct {
	shape
	gone int
}

func (a array) String() string {
	if a.gone == 0 {
		return a.shape.String()
	}
	return fmt.Sprintf("%s without %d", a.shape, a.gone)
}

// arrays are those that the speed of reading is told of.
func arrays() []array {
	return []array{{shape{ondisk.Single, 1}, 0}, {shape{ondisk.DUP, 2}, 0}, {shape{ondisk.RAID0, 2}, 0}, {shape{ondisk.RAID0, 4}, 0},
		{shape{ondisk.RAID1, 2}, 0}, {shape{ondisk.RAID1, 2}, 1}, {shape{ondisk.RAID1C3, 3}, 0}, {shape{ondisk.RAID10, 4}, 0},
		{shape{ondisk.RAID5, 3}, 0}, {shape{ondisk.RAID5, 3}, 1}, {shape{ondisk.RAID5, 5}, 0}, {shape{ondisk.RAID5, 5}, 1},
		{shape{ondisk.RAID6, 4}, 0}, {shape{ondisk.RAID6, 4}, 1}, {shape{ondisk.RAID6, 4}, 2}, {shape{ondisk.RAID6, 6}, 2}}
}

// summed is a request that is used again and judged by crc32c, as files are.
type summed struct {
	Request
	sums []byte
	end  *sync.WaitGroup
}

func (q *summed) RequestDone(*Request) { q.end.Done() }

func (q *summed) VerifyUnit(i int, b []byte) error {
	if !csum.CRC32C.Match(q.sums[i*4:], b) {
		return errBad
	}
	return nil
}

// load is a batch of requests of one size over a rig in memory.
type load struct {
	r    *rig
	n    int
	reqs []*Request
	own  []*summed
	end  sync.WaitGroup
	sums []byte // of all of the data
}

// newLoad makes depth requests of n bytes. The devices answer inside Submit.
func newLoad(t testing.TB, a array, depth, n int) *load {
	rows := 8 + depth*n/stripeLen/max(1, a.stripes-a.parities()-1)
	l := &load{r: newRig(t, a.shape, rows), n: n}
	l.r.plain()
	for _, m := range l.r.v.members[:a.gone] {
		d := m.dev
		m.dev = nil
		t.Cleanup(func() { m.dev = d })
	}
	for off := 0; off < len(l.r.data); off += testUnit {
		var sum [csum.MaxSize]byte
		csum.CRC32C.Sum(&sum, l.r.data[off:off+testUnit])
		l.sums = append(l.sums, sum[:4]...)
	}
	for range depth {
		b := l.r.pool.Get(n)
		q := &summed{end: &l.end}
		q.Request = Request{Buf: b.B, Home: b, Unit: testUnit, Verifier: q, Done: q}
		l.own, l.reqs = append(l.own, q), append(l.reqs, &q.Request)
		t.Cleanup(b.Release)
	}
	return l
}

// run reads the batch, each request at its place.
func (l *load) run(t testing.TB, at func(i int) int) {
	l.end.Add(len(l.own))
	for i, q := range l.own {
		off := at(i)
		q.Logical, q.sums = chunkBase+ondisk.Logical(off), l.sums[off/testUnit*4:]
	}
	l.r.v.Submit(l.reqs)
	l.end.Wait()
	for _, q := range l.own {
		if len(q.Lost) > 0 {
			t.Fatal("lost ", q.Lost)
		}
	}
}

// sequence gives places of requests one after the other, batch after batch.
func (l *load) sequence() func(int) int {
	next := 0
	return func(int) int {
		if next+l.n > len(l.r.data) {
			next = 0
		}
		next += l.n
		return next - l.n
	}
}

// random gives places anywhere.
func (l *load) random() func(int) int {
	rng := rand.New(rand.NewPCG(1, 1))
	return func(int) int { return rng.IntN((len(l.r.data)-l.n)/testUnit) * testUnit }
}

// TestBatchAllocatesNothing holds for requests that are used again, of every shape, whole and degraded: deep, large and
// in order, small and anywhere, and alone.
func TestBatchAllocatesNothing(t *testing.T) {
	if fsreadtest.Race {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	for _, a := range arrays() {
		for _, c := range []struct {
			depth, n int
			order    func(*load) func(int) int
		}{{16, 256 << 10, (*load).sequence}, {3, 5 * testUnit, (*load).random}, {1, testUnit, (*load).random}, {1, 1 << 20, (*load).sequence}} {
			l := newLoad(t, a, c.depth, c.n)
			at := c.order(l)
			runs := 10
			if c.n < 1<<18 {
				runs = 100
			}
			if n := l.allocations(t, runs, at); n != 0 {
				t.Errorf("%s, %d x %d: %v allocations", a, c.depth, c.n, n)
			}
		}
	}
}

// allocations counts those of a batch once every list has the room that it will ever need.
func (l *load) allocations(t *testing.T, runs int, at func(int) int) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties the pools
	for range 4 * runs {
		l.run(t, at)
	}
	return testing.AllocsPerRun(runs, func() { l.run(t, at) })
}

func BenchmarkBatch(b *testing.B) {
	for _, a := range arrays() {
		for _, c := range []struct {
			name     string
			depth, n int
			order    func(*load) func(int) int
		}{
			{"16x256K", 16, 256 << 10, (*load).sequence},
			{"32x4K", 32, testUnit, (*load).random},
			{"1x4K", 1, testUnit, (*load).random},
		} {
			b.Run(a.String()+"/"+c.name, func(b *testing.B) {
				l := newLoad(b, a, c.depth, c.n)
				at := c.order(l)
				for range 8 {
					l.run(b, at)
				}
				b.SetBytes(int64(c.depth * c.n))
				b.ReportAllocs()
				from := processTime()
				for b.Loop() {
					l.run(b, at)
				}
				b.ReportMetric(float64(processTime()-from)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// processTime is the processor time that this process has had: on a busy machine the better measure.
func processTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkParallel has several connections read small blocks anywhere.
func BenchmarkParallel(b *testing.B) {
	for _, slow := range []bool{false, true} {
		b.Run(fmt.Sprintf("watched %v", slow), func(b *testing.B) {
			const connections, depth = 4, 32
			first := newLoad(b, array{shape{ondisk.RAID1, 2}, 0}, depth, testUnit)
			if slow {
				first.r.v.watch.limit = 1e9
			}
			b.SetBytes(depth * testUnit)
			b.SetParallelism(connections / 2)
			b.RunParallel(func(pb *testing.PB) {
				l := &load{r: first.r, n: testUnit, sums: first.sums}
				for range depth {
					buf := l.r.pool.Get(testUnit)
					defer buf.Release()
					q := &summed{end: &l.end}
					q.Request = Request{Buf: buf.B, Home: buf, Unit: testUnit, Verifier: q, Done: q}
					l.own, l.reqs = append(l.own, q), append(l.reqs, &q.Request)
				}
				at := l.random()
				for pb.Next() {
					l.run(b, at)
				}
			})
		})
	}
}

// BenchmarkVerify tells what checking a 4 KiB block costs above its crc32c.
func BenchmarkVerify(b *testing.B) {
	const units = 64
	data := make([]byte, units*testUnit)
	q := &summed{}
	for i := range units {
		q.sums = binary.LittleEndian.AppendUint32(q.sums, sumOf(data[i*testUnit:][:testUnit]))
	}
	b.Run("crc alone", func(b *testing.B) {
		b.SetBytes(units * testUnit)
		for b.Loop() {
			for i := range units {
				sumOf(data[i*testUnit:][:testUnit])
			}
		}
	})
	b.Run("unit by unit", func(b *testing.B) {
		b.SetBytes(units * testUnit)
		var v Verifier = q
		for b.Loop() {
			for i := range units {
				if v.VerifyUnit(i, data[i*testUnit:][:testUnit]) != nil {
					b.Fatal("refused")
				}
			}
		}
	})
}

func sumOf(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

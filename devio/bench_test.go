package devio

import (
	"math/rand/v2"
	"testing"
)

const benchSize = 64 << 20

// benchEngines runs bench on a file where the tests keep theirs, and on a loop device over one.
func benchEngines(b *testing.B, buffered bool, bench func(b *testing.B, q *Queue)) {
	for _, on := range []string{"file", "loop"} {
		for _, e := range []Engine{Pread, IOUring} {
			b.Run(on+"/"+e.String(), func(b *testing.B) {
				path, _ := writeFile(b, benchSize)
				if on == "loop" {
					path = attachLoop(b, path, 512)
				}
				q := open(b, path, Options{Engine: requireEngine(b, e), Buffered: buffered, Workers: 32})
				if buffered {
					warm(b, q)
				}
				bench(b, q)
			})
		}
	}
}

// warm brings all of the device into the page cache.
func warm(b *testing.B, q *Queue) {
	done := make(arrivals, 1)
	r := &Read{Bufs: [][]byte{aligned(1 << 20)}, Done: done}
	for ; uint64(r.Off) < q.Size(); r.Off += 1 << 20 {
		q.Submit([]*Read{r})
		<-done
	}
}

// benchReads keeps depth reads of size bytes in flight, submitted in batches of what has completed.
func benchReads(b *testing.B, q *Queue, size, depth int, next func() Physical) {
	pool := NewPool(int64(depth * size))
	defer pool.Close()
	var counts tally
	q.Observe(&counts)
	done := make(arrivals, depth)
	batch := make([]*Read, 0, depth)
	for range depth {
		buf := pool.Get(size)
		defer buf.Release()
		batch = append(batch, &Read{Bufs: [][]byte{buf.B}, Done: done, Lone: depth == 1})
	}
	submit := func() {
		for _, r := range batch {
			r.Off = next()
		}
		q.Submit(batch)
		batch = batch[:0]
	}
	submit()
	b.SetBytes(int64(size))
	b.ReportAllocs()
	cpu := cpuTime(b)
	for b.Loop() {
		r := <-done
		if r.Err != nil {
			b.Fatal(r.Err)
		}
		if batch = append(batch, r); len(done) == 0 {
			submit()
		}
	}
	for range depth - len(batch) {
		<-done
	}
	b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(counts.reads.Load())/float64(max(counts.enters.Load(), 1)), "reads/enter")
}

func random4K() func() Physical {
	rng := rand.New(rand.NewPCG(1, 2))
	return func() Physical { return Physical(rng.Uint64N(benchSize/4096) * 4096) }
}

func sequential256K() func() Physical {
	off := Physical(0)
	return func() Physical {
		off = (off + 256<<10) % benchSize
		return off
	}
}

func BenchmarkRandom4KQD1(b *testing.B) {
	benchEngines(b, false, func(b *testing.B, q *Queue) { benchReads(b, q, 4096, 1, random4K()) })
}

func BenchmarkRandom4KQD32(b *testing.B) {
	benchEngines(b, false, func(b *testing.B, q *Queue) { benchReads(b, q, 4096, 32, random4K()) })
}

func BenchmarkSequential256KQD16(b *testing.B) {
	benchEngines(b, false, func(b *testing.B, q *Queue) { benchReads(b, q, 256<<10, 16, sequential256K()) })
}

// What is in the page cache is read inside Submit, whatever the engine.
func BenchmarkCached4KQD1(b *testing.B) {
	benchEngines(b, true, func(b *testing.B, q *Queue) { benchReads(b, q, 4096, 1, random4K()) })
}

func BenchmarkCached4KQD32(b *testing.B) {
	benchEngines(b, true, func(b *testing.B, q *Queue) { benchReads(b, q, 4096, 32, random4K()) })
}

func BenchmarkCached256KQD16(b *testing.B) {
	benchEngines(b, true, func(b *testing.B, q *Queue) { benchReads(b, q, 256<<10, 16, sequential256K()) })
}

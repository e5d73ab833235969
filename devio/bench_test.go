package devio

import (
	"math/rand/v2"
	"testing"
)

const benchSize = 64 << 20

// benchReads keeps depth reads of size bytes in flight, submitted in batches of what has completed.
func benchReads(b *testing.B, size, depth int, next func() Physical) {
	path, _ := writeFile(b, benchSize)
	q := open(b, path, Options{Workers: 16})
	pool := NewPool(int64(depth * size))
	defer pool.Close()
	done := make(arrivals, depth)
	batch := make([]*Read, 0, depth)
	for range depth {
		buf := pool.Get(size)
		defer buf.Release()
		batch = append(batch, &Read{Bufs: [][]byte{buf.B}, Done: done})
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
}

func random4K() func() Physical {
	rng := rand.New(rand.NewPCG(1, 2))
	return func() Physical { return Physical(rng.Uint64N(benchSize/4096) * 4096) }
}

func BenchmarkRandom4KQD1(b *testing.B)  { benchReads(b, 4096, 1, random4K()) }
func BenchmarkRandom4KQD32(b *testing.B) { benchReads(b, 4096, 32, random4K()) }

func BenchmarkSequential256K(b *testing.B) {
	off := Physical(0)
	benchReads(b, 256<<10, 4, func() Physical {
		off = (off + 256<<10) % benchSize
		return off
	})
}

package cache

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// TestBound puts values of random sizes: the cache never holds more than its limit, and gives back what was put.
func TestBound(t *testing.T) {
	const limit = 1 << 20
	c := New[uint64, []byte](limit)
	rng := rand.New(rand.NewPCG(1, 1))
	sizes := map[uint64]int{}
	for range 20000 {
		k := rng.Uint64N(3000)
		if v, ok := c.Get(k); ok && len(v) != sizes[k] {
			t.Fatalf("key %d: %d bytes, want %d", k, len(v), sizes[k])
		}
		if rng.IntN(3) == 0 {
			sizes[k] = rng.IntN(8000)
			c.Put(k, make([]byte, sizes[k]), sizes[k])
		}
		if n := c.Bytes(); n > limit {
			t.Fatalf("%d bytes, want at most %d", n, limit)
		}
	}
	for k, n := range sizes {
		if v, ok := c.Get(k); ok && len(v) != n {
			t.Errorf("key %d: %d bytes, want %d", k, len(v), n)
		}
	}
}

// TestTooLarge does not keep a value that no shard has room for, and drops the one before it.
func TestTooLarge(t *testing.T) {
	c := New[int, string](16 << 10)
	c.Put(1, "small", 5)
	c.Put(1, "large", 1<<20)
	if v, ok := c.Get(1); ok {
		t.Errorf("got %q, want nothing", v)
	}
	if n := c.Bytes(); n != 0 {
		t.Errorf("%d bytes held, want 0", n)
	}
}

// TestScanResistance asks for a hot set now and then while a scan ten times the cache's size goes by.
func TestScanResistance(t *testing.T) {
	const size, hot, fit = 4096, 50, 400
	c := New[int, int](fit * (size + entryOverhead))
	get := func(k int) bool {
		_, ok := c.Get(k)
		if !ok {
			c.Put(k, k, size)
		}
		return ok
	}
	for range 3 {
		for k := range hot {
			get(k)
		}
	}
	hits := 0
	for i := range 10 * fit {
		get(1000 + i)
		if get(i % hot) {
			hits++
		}
	}
	if hits < 10*fit*9/10 {
		t.Errorf("%d of %d hits on the hot set during a scan, want nine in ten", hits, 10*fit)
	}
}

// TestSecondChance keeps an entry that comes back soon after it was dropped unasked.
func TestSecondChance(t *testing.T) {
	c := New[int, int](320 * (100 + entryOverhead))
	for k := range 2000 {
		c.Put(k, k, 100)
	}
	var back int
	for k := 1999; ; k-- {
		if _, ok := c.Get(k); !ok {
			back = k
			break
		}
	}
	c.Put(back, back, 100)
	for k := range 1000 { // a scan: fresh keys pass through the small queue
		c.Put(5000+k, k, 100)
	}
	if _, ok := c.Get(back); !ok {
		t.Error("an entry that came back was driven out by a scan")
	}
}

// TestAdmit takes everything while there is room, and then what is asked for twice.
func TestAdmit(t *testing.T) {
	const size, fit = 1000, 100
	c := New[int, int](fit * (size + entryOverhead))
	for k := range fit {
		if !c.Admit(k, size) {
			t.Fatalf("key %d was refused although there is room", k)
		}
		c.Put(k, k, size)
	}
	for k := fit; k < fit+50; k++ {
		if c.Admit(k, size) {
			t.Errorf("key %d was taken at the first time, into a full cache", k)
		}
	}
	for k := fit; k < fit+50; k++ {
		if !c.Admit(k, size) {
			t.Errorf("key %d was refused at the second time", k)
		}
	}
	for k := range 10 * fit {
		c.Admit(1000+k, size)
	}
	if c.Admit(fit, size) {
		t.Error("a key is remembered though ten times as many came after it as there are entries")
	}
	for range 2 {
		if c.Admit(-1, fit*size*2) {
			t.Error("took what is larger than the cache")
		}
	}
}

// TestFewLargeValues keeps extents of 128 KiB in the smallest cache.
func TestFewLargeValues(t *testing.T) {
	c := New[int, int](2 << 20)
	for k := range 15 {
		c.Put(k, k, 128<<10)
	}
	for k := range 15 {
		if v, ok := c.Get(k); !ok || v != k {
			t.Errorf("key %d: %d, %v", k, v, ok)
		}
	}
}

func TestConcurrent(t *testing.T) {
	c := New[uint64, uint64](1 << 18)
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 0))
			for range 20000 {
				k := rng.Uint64N(500)
				if v, ok := c.Get(k); ok && v != k {
					t.Errorf("key %d: %d", k, v)
				} else if !ok {
					c.Put(k, k, 1000)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkGet(b *testing.B) {
	c := New[[4]uint64, []byte](1 << 24)
	for i := range uint64(500) {
		c.Put([4]uint64{i}, nil, 16<<10)
	}
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		c.Get([4]uint64{i % 500})
	}
}

// TestStats counts by hand what is found, what gives way, and what lies there.
func TestStats(t *testing.T) {
	const size = 1000
	c := New[int, int](10 * (size + entryOverhead))
	for k := range 10 {
		c.Put(k, k, size)
	}
	c.Get(3)
	c.Get(3)
	c.Get(77)
	if got, want := c.Stats(), (Stats{Hits: 2, Bytes: 10 * (size + entryOverhead)}); got != want {
		t.Errorf("a full cache: got %+v, want %+v", got, want)
	}
	c.Put(10, 10, size)
	c.Put(11, 11, size)
	c.Put(11, 12, size) // in its own place
	if got, want := c.Stats(), (Stats{Hits: 2, Evictions: 2, Bytes: 10 * (size + entryOverhead)}); got != want {
		t.Errorf("after two more: got %+v, want %+v", got, want)
	}
}

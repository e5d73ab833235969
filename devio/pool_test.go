package devio

import (
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// freeBytes reads the pool's own count and checks it against its lists.
func freeBytes(t *testing.T, p *Pool) int64 {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum int64
	for i := range p.free {
		for b := p.free[i].newest; b != nil; b = b.older {
			sum += int64(len(b.mem))
		}
	}
	if sum != p.bytes {
		t.Fatalf("free lists hold %d bytes, counted %d", sum, p.bytes)
	}
	return sum
}

func TestPoolSizes(t *testing.T) {
	p := NewPool(0)
	defer p.Close()
	for _, n := range []int{1, 4095, 4096, 4097, 8192, 65536, 65537, 81920, 81921, 1 << 20, 1<<20 + 1, 3 << 19, 64 << 20, 64<<20 + 1, maxBuffer} {
		b := p.Get(n)
		if len(b.B) != n {
			t.Errorf("Get(%d): length %d", n, len(b.B))
		}
		if address(b.B)%pageSize != 0 {
			t.Errorf("Get(%d): address %#x", n, address(b.B))
		}
		b.B[0], b.B[n-1] = 1, 1 // mapped and writable to the end
		full := b.B[:cap(b.B)]
		full[len(full)-1] = 1
		b.Release()
	}
	if got := p.Lent(); got != 0 {
		t.Errorf("lent: got %d, want 0", got)
	}
}

func TestPoolRefusesSizes(t *testing.T) {
	for _, n := range []int{-1, 0, maxBuffer + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Get(%d) did not panic", n)
				}
			}()
			NewPool(0).Get(n)
		}()
	}
}

func TestPoolClasses(t *testing.T) {
	for class := range classes {
		size := classSize(class)
		if got := classOf(size); got != class {
			t.Errorf("classOf(%d): got %d, want %d", size, got, class)
		}
		if size%pageSize != 0 {
			t.Errorf("class %d: %d bytes are not whole pages", class, size)
		}
		if class+1 < classes {
			if got := classOf(size + 1); got != class+1 {
				t.Errorf("classOf(%d): got %d, want %d", size+1, got, class+1)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, maxBuffer).Draw(t, "n")
		size := classSize(classOf(n))
		if size < n {
			t.Fatalf("%d bytes in a class of %d", n, size)
		}
		if n > doublingMax && float64(size) > 1.25*float64(n) {
			t.Fatalf("%d bytes waste %d", n, size-n)
		}
	})
}

func TestPoolReusesNewestFirst(t *testing.T) {
	p := NewPool(1 << 20)
	defer p.Close()
	a, b, c := p.Get(8192), p.Get(8192), p.Get(8192)
	a.Release()
	b.Release()
	c.Release()
	for i, want := range []*Buffer{c, b, a} {
		got := p.Get(5000)
		defer got.Release()
		if got != want {
			t.Errorf("Get %d: not the buffer released %d from last", i, i)
		}
		if len(got.B) != 5000 {
			t.Errorf("Get %d: length %d, want 5000", i, len(got.B))
		}
	}
}

func TestPoolResliceByOwner(t *testing.T) {
	p := NewPool(1 << 20)
	defer p.Close()
	b := p.Get(8192)
	b.B = b.B[4096:5000]
	b.Release()
	again := p.Get(8192)
	defer again.Release()
	if again != b || len(again.B) != 8192 || address(again.B)%pageSize != 0 {
		t.Errorf("got %d bytes at %#x, want the whole buffer again", len(again.B), address(again.B))
	}
}

func TestPoolRetention(t *testing.T) {
	p := NewPool(64 << 10)
	var small, large []*Buffer
	for range 16 {
		small = append(small, p.Get(4096))
	}
	for _, b := range small {
		b.Release()
	}
	if got := freeBytes(t, p); got != 64<<10 {
		t.Errorf("free after 16 of 4 KiB: got %d, want %d", got, 64<<10)
	}
	for range 3 {
		large = append(large, p.Get(32<<10))
	}
	for _, b := range large {
		b.Release()
	}
	if got := freeBytes(t, p); got != 64<<10 {
		t.Errorf("free after 3 of 32 KiB: got %d, want %d", got, 64<<10)
	}
	// The unused small ones had to go, then the oldest large one.
	for i, want := range []*Buffer{large[2], large[1]} {
		got := p.Get(32 << 10)
		if got != want {
			t.Errorf("Get %d: not the last released", i)
		}
		defer got.Release()
	}
	if got := freeBytes(t, p); got != 0 {
		t.Errorf("free: got %d, want 0", got)
	}

	keep := p.Get(4096)
	keep.Release()
	p.Get(1 << 20).Release() // larger than the bound: must not push the others out
	if got := freeBytes(t, p); got != 4096 {
		t.Errorf("free after a buffer beyond the bound: got %d, want 4096", got)
	}

	out := p.Get(4096)
	p.Close()
	if got := freeBytes(t, p); got != 0 {
		t.Errorf("free after Close: got %d, want 0", got)
	}
	out.Release()
	if got := freeBytes(t, p); got != 0 {
		t.Errorf("free after a release that follows Close: got %d, want 0", got)
	}
}

// What has been unused longest goes, of whatever class it is.
func TestPoolGivesUpOldest(t *testing.T) {
	for _, sizes := range [][2]int{{4096, 32 << 10}, {32 << 10, 4096}} {
		p := NewPool(40 << 10)
		first, second := p.Get(sizes[0]), p.Get(sizes[1])
		third := p.Get(8192)
		first.Release()
		second.Release()
		third.Release()
		again, fresh := p.Get(sizes[1]), p.Get(sizes[0])
		if again != second || fresh == first {
			t.Errorf("%d, then %d bytes: kept the first %v, the second %v, want only the second", sizes[0], sizes[1], fresh == first, again == second)
		}
		again.Release()
		fresh.Release()
		p.Close()
	}
}

func TestPoolNegativeRetention(t *testing.T) {
	p := NewPool(-1)
	p.Get(1).Release()
	if got := freeBytes(t, p); got != 0 {
		t.Errorf("free: got %d, want 0", got)
	}
}

func TestPoolReleaseTwice(t *testing.T) {
	for name, retain := range map[string]int64{"kept": 1 << 20, "unmapped": 0} {
		t.Run(name, func(t *testing.T) {
			p := NewPool(retain)
			defer p.Close()
			b := p.Get(1)
			b.Release()
			defer func() {
				if recover() == nil {
					t.Error("the second Release did not panic")
				}
				if got := p.Lent(); got != 0 {
					t.Errorf("lent: got %d, want 0", got)
				}
			}()
			b.Release()
		})
	}
}

func TestPoolConcurrent(t *testing.T) {
	p := NewPool(256 << 10)
	defer p.Close()
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			var held []*Buffer
			for range 2000 {
				if len(held) > 0 && rng.IntN(2) == 0 {
					i := rng.IntN(len(held))
					b := held[i]
					if b.B[0] != byte(seed) || b.B[len(b.B)-1] != byte(seed) {
						t.Errorf("buffer of goroutine %d was written by another", seed)
					}
					b.Release()
					held = append(held[:i], held[i+1:]...)
					continue
				}
				b := p.Get(1 + rng.IntN(40<<10))
				b.B[0], b.B[len(b.B)-1] = byte(seed), byte(seed)
				held = append(held, b)
			}
			for _, b := range held {
				b.Release()
			}
		})
	}
	wg.Wait()
	if got := p.Lent(); got != 0 {
		t.Errorf("lent: got %d, want 0", got)
	}
	if got := freeBytes(t, p); got > 256<<10 {
		t.Errorf("free: got %d, more than the bound", got)
	}
}

func TestPoolDoesNotAllocate(t *testing.T) {
	p := NewPool(1 << 20)
	defer p.Close()
	p.Get(4096).Release()
	if got := testing.AllocsPerRun(1000, func() { p.Get(4096).Release() }); got != 0 {
		t.Errorf("allocations per Get and Release: got %v, want 0", got)
	}
}

func BenchmarkPool(b *testing.B) {
	p := NewPool(1 << 20)
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		p.Get(4096).Release()
	}
}

// A buffer that is retained stays lent, with its contents, until the last Release.
func TestRetain(t *testing.T) {
	p := NewPool(1 << 20)
	defer p.Close()
	b := p.Get(4096)
	mem := b.B
	mem[0] = 7
	b.Retain()
	b.Release()
	if other := p.Get(4096); &other.B[0] == &mem[0] || p.Lent() != 2 || mem[0] != 7 {
		t.Errorf("a retained buffer was lent again, or %d are lent, want 2", p.Lent())
	} else {
		other.Release()
	}
	b.Release()
	if p.Lent() != 0 {
		t.Errorf("%d buffers lent after the last release", p.Lent())
	}
	for name, f := range map[string]func(){"Release": b.Release, "Retain": b.Retain} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a free buffer did not panic", name)
				}
			}()
			f()
		}()
	}
}

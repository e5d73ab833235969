package export

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestBudgetAgainstModel drives try and give of several connections and compares what is
// charged with a plain sum.
func TestBudgetAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const total, floor = 1000, 100
		b := newBudget(total, floor, time.Hour)
		type held struct {
			s *share
			c charge
		}
		shares := []*share{b.newShare(), b.newShare(), b.newShare()}
		var live []held
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(live) > 0 && rapid.Bool().Draw(t, "give") {
				i := rapid.IntRange(0, len(live)-1).Draw(t, "which")
				live[i].s.give(live[i].c)
				live = append(live[:i], live[i+1:]...)
				continue
			}
			s := shares[rapid.IntRange(0, 2).Draw(t, "share")]
			n := rapid.Int64Range(1, 1500).Draw(t, "n")
			var own, pool int64
			for _, h := range live {
				pool += h.c.pool
				if h.s == s {
					own += h.c.own
				}
			}
			want := own+n <= floor || pool+min(n, total) <= total
			c, ok := s.try(n)
			if ok != want {
				t.Fatalf("try(%d) with own %d pool %d: %t, want %t", n, own, pool, ok, want)
			}
			if ok {
				live = append(live, held{s, c})
			}
		}
		for _, h := range live {
			h.s.give(h.c)
		}
		for _, s := range shares {
			s.close()
		}
		if b.free != total {
			t.Fatalf("%d free at the end, want %d", b.free, total)
		}
	})
}

// take runs s.take in the background.
func take(s *share, n int64, stop chan struct{}) chan charge {
	out := make(chan charge, 1)
	go func() {
		if c, ok := s.take(n, stop, func() {}); ok {
			out <- c
		}
		close(out)
	}()
	return out
}

func queued(t *testing.T, b *budget, n int) {
	t.Helper()
	waitFor(t, "waiters", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.queue) == n })
}

func TestBudgetOrder(t *testing.T) {
	b := newBudget(1000, 100, time.Hour)
	first, large, small := b.newShare(), b.newShare(), b.newShare()
	c, _ := first.try(900)
	stop := make(chan struct{})
	gotLarge := take(large, 800, stop)
	queued(t, b, 1)
	gotSmall := take(small, 101, stop)
	queued(t, b, 2)
	if _, ok := first.try(110); ok {
		t.Error("a later read went past those who wait")
	}
	if _, ok := small.try(100); !ok {
		t.Error("the floor was not free")
	}
	first.give(c)
	if got := <-gotLarge; got.pool != 800 {
		t.Errorf("large got %+v", got)
	}
	if got := <-gotSmall; got.pool != 101 {
		t.Errorf("small got %+v", got)
	}
}

// TestBudgetFloorWakes: who waits is served from its own floor as soon as that is free,
// though the pool is not.
func TestBudgetFloorWakes(t *testing.T) {
	b := newBudget(1000, 100, time.Hour)
	hog, s := b.newShare(), b.newShare()
	_, _ = hog.try(1000)
	c, _ := s.try(80)
	got := take(s, 90, nil)
	queued(t, b, 1)
	s.give(c)
	if c := <-got; c.own != 90 {
		t.Errorf("got %+v, want 90 of the floor", c)
	}
}

func TestBudgetStop(t *testing.T) {
	b := newBudget(1000, 100, time.Hour)
	hog, s := b.newShare(), b.newShare()
	c, _ := hog.try(1000)
	stop := make(chan struct{})
	got := take(s, 500, stop)
	queued(t, b, 1)
	close(stop)
	if _, ok := <-got; ok {
		t.Error("granted after stop")
	}
	hog.give(c)
	hog.give(charge{})
	if b.free != 1000 || len(b.queue) != 0 {
		t.Errorf("free %d, %d waiting", b.free, len(b.queue))
	}
}

// TestBudgetClose: a connection that is given up leaves nothing charged, and what it returns
// later counts no more.
func TestBudgetClose(t *testing.T) {
	b := newBudget(1000, 100, time.Hour)
	s := b.newShare()
	c, _ := s.try(700)
	s.close()
	s.give(c)
	if b.free != 1000 {
		t.Errorf("free %d, want 1000", b.free)
	}
}

// TestBudgetWindow: one connection holds so much of the pool, or two long requests; another is not held up by it.
func TestBudgetWindow(t *testing.T) {
	for _, tt := range []struct {
		n    int64
		far  bool
		want int
	}{{256 << 10, false, 6}, {1 << 20, false, 2}, {8 << 20, false, 2}, {256 << 10, true, 16}, {1 << 20, true, 4}, {3 << 20, true, 2}, {8 << 20, true, 2}} {
		b := newBudget(64<<20, 0, time.Hour)
		b.window.far = tt.far
		for range 2 {
			s, got := b.newShare(), 0
			for _, ok := s.try(tt.n); ok; _, ok = s.try(tt.n) {
				got++
			}
			if got != tt.want {
				t.Errorf("%d requests of %d KiB in flight, far %v, want %d", got, tt.n>>10, tt.far, tt.want)
			}
		}
	}
	b := newBudget(64<<20, 0, time.Hour)
	s := b.newShare()
	for _, tt := range []struct {
		n    int64
		want bool
	}{{1 << 20, true}, {32 << 20, true}, {64 << 10, false}, {32 << 20, false}} {
		if _, got := s.try(tt.n); got != tt.want {
			t.Errorf("%d KiB more: %v, want %v", tt.n>>10, got, tt.want)
		}
	}
}

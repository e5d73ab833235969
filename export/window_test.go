package export

import (
	"testing"
	"time"
)

// TestWindow has bytes come at a rate and then at another: only a slow rate widens the window, only a very fast one narrows
// it, and so does a pause.
func TestWindow(t *testing.T) {
	var w window
	now := time.Unix(1, 0)
	looks := 0
	clock := func() time.Time { looks++; return now }
	come := func(bytesASecond float64) {
		const n = 256 << 10
		for range 4 * windowLook / n {
			w.add(n, clock)
			now = now.Add(time.Duration(n / bytesASecond * 1e9))
		}
	}
	for _, step := range []struct {
		rate float64 // 0: a pause
		want int64
	}{
		{3e9, nearWindow}, {500e6, nearWindow}, {350e6, farWindow}, {500e6, farWindow}, {1.1e9, farWindow}, {1.5e9, nearWindow},
		{1e6, farWindow}, {0, nearWindow}, {500e6, nearWindow}, {100e6, farWindow},
	} {
		if step.rate == 0 {
			w.idle()
			now = now.Add(time.Hour)
			w.add(1, clock)
		} else {
			come(step.rate)
		}
		if got := w.bytes(); got != step.want {
			t.Errorf("after %.0f bytes a second: window %d, want %d", step.rate, got, step.want)
		}
	}
	if most := 10 * 6; looks > most {
		t.Errorf("the clock was asked %d times, want at most %d", looks, most)
	}
}

// TestWindowOfFarDevice has a client keep 16 requests in flight on a device that gives all it was asked for at once, after
// its latency: one that is far away gets all of them, another one what stays in the cache.
func TestWindowOfFarDevice(t *testing.T) {
	const n, depth, floor = 256 << 10, 16, 512 << 10
	for _, c := range []struct {
		latency time.Duration
		want    int // requests at a time, of the floor, too
	}{{100 * time.Microsecond, 8}, {3 * time.Millisecond, 8}, {8 * time.Millisecond, depth}, {50 * time.Millisecond, depth}} {
		now := time.Unix(1, 0)
		b := newBudget(64<<20, floor, time.Hour)
		b.clock = func() time.Time { return now }
		s := b.newShare()
		var flight []charge
		waits := false
		for burst := range 100 {
			if waits {
				<-s.granted
				flight, waits = append(flight, s.grant), false
			}
			for ok := true; ok && len(flight) < depth; {
				var got charge
				if got, ok = s.try(n); ok {
					flight = append(flight, got)
				}
			}
			if burst > 50 && len(flight) != c.want {
				t.Fatalf("latency %v, burst %d: %d requests in flight, want %d", c.latency, burst, len(flight), c.want)
			}
			if waits = len(flight) < depth; waits {
				s.enqueue(n)
			}
			now = now.Add(c.latency)
			for _, got := range flight {
				s.give(got)
			}
			flight = flight[:0]
		}
	}
}

package export

import "time"

const (
	// nearWindow bounds the shared bytes in flight of one connection, but for two requests that are longer together. What
	// does not fit into the processor's cache on its way from the device to the socket costs a tenth of the throughput, and more
	// where the device is the page cache.
	nearWindow = 3 << 19
	// farWindow is the bound while less comes than farRate: then it may be a device that is far away, of which more has to be
	// asked at a time, and if it is not, it is a slow one and nothing is lost.
	farWindow = 4 << 20
	// farRate and nearRate are of all connections, in bytes a second. They lie further apart than the bounds do, so that
	// a device whose latency decides does not make the bound go to and fro.
	farRate, nearRate = 400e6, 1200e6
	// windowLook is how many bytes come between two looks at the rate, and windowPause after how long without any the
	// near bound is tried again.
	windowLook  = 8 << 20
	windowPause = time.Second
)

// window decides how many bytes each connection may have in flight, by how fast they come. The zero value is the
// near one.
type window struct {
	far   bool
	moved int64     // bytes since since
	since time.Time // zero: nothing was in flight
	seen  time.Time // when the clock was last asked
}

func (w *window) bytes() int64 {
	if w.far {
		return farWindow
	}
	return nearWindow
}

// add notes that n bytes have come. clock gives the time, and is asked for it now and then.
func (w *window) add(n int64, clock func() time.Time) {
	if w.since.IsZero() {
		now := clock()
		if now.Sub(w.seen) > windowPause {
			w.far = false
		}
		w.since, w.seen = now, now
		return
	}
	if w.moved += n; w.moved < windowLook {
		return
	}
	now := clock()
	switch rate := float64(w.moved) / max(now.Sub(w.since), 1).Seconds(); {
	case rate < farRate:
		w.far = true
	case rate > nearRate:
		w.far = false
	}
	w.moved, w.since, w.seen = 0, now, now
}

// idle notes that nothing is in flight and nobody waits: the time until something comes again says nothing of the rate.
func (w *window) idle() { w.moved, w.since = 0, time.Time{} }

package faultdev

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/btrexport/btrexport/devio"
)

// Device is the method set of *devio.Queue, which documents it.
type Device interface {
	Submit(batch []*devio.Read)
	Size() uint64
	Align() int
	Depth() int
	Name() string
	Observe(s devio.Stats)
	Close() error
}

var (
	_ Device = (*devio.Queue)(nil)
	_ Device = (*Dev)(nil)
	_ Device = (*MemDevice)(nil)
)

// counters keep a device's depth and tell its observer, as a devio.Queue does.
type counters struct {
	depth atomic.Int64
	stats atomic.Pointer[devio.Stats]
}

// Depth is the number of reads that are submitted and not completed.
func (c *counters) Depth() int { return int(c.depth.Load()) }

// Observe tells s, and nobody else, of the reads submitted from now on; nil tells nobody.
func (c *counters) Observe(s devio.Stats) {
	if s == nil {
		c.stats.Store(nil)
		return
	}
	c.stats.Store(&s)
}

// ticket is what begin notes of a batch for the end of its reads.
type ticket struct {
	at    time.Time
	stats devio.Stats // may be nil
}

func (c *counters) begin(reads int) ticket {
	c.depth.Add(int64(reads))
	t := ticket{at: time.Now()}
	if s := c.stats.Load(); s != nil {
		t.stats = *s
		t.stats.Submitted(reads)
		t.stats.InFlight(reads)
	}
	return t
}

// end gives r back to its owner with the result.
func (c *counters) end(t ticket, r *devio.Read, n int, err error) {
	done := r.Done
	r.N, r.Err = n, err
	c.depth.Add(-1)
	if t.stats != nil {
		if !errors.Is(err, devio.ErrClosed) {
			t.stats.ReadDone(n, time.Since(t.at), err)
		}
		t.stats.InFlight(-1)
	}
	done.ReadDone(r)
}

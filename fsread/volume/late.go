package volume

import (
	"fmt"
	"slices"

	"github.com/btrexport/btrexport/devio"
)

// A device read that takes too long is given up: its units are asked of the next copy, into another buffer,
// since the device may write into the first at any time. The read is then late. What it brings in the end still
// counts where the other copies failed: the first good answer is served. A late read keeps its buffers until the
// device is done with it, whoever asked for it may be long gone.

// The states of a run.
const (
	flying int32 = iota
	landed
	late
)

// giveUp makes the round's reads that are chosen late, if there is anything else to ask: because their devices are
// slow, or because something better has come. The caller holds the round.
func (r *Request) giveUp(slow bool, chosen func(*run) bool) {
	if r.home == nil {
		return
	}
	for _, x := range r.makeLate(slow, chosen) {
		for _, t := range x.taps {
			t.fail(ErrSlow)
		}
		x.taps = nil
		r.release()
	}
}

// makeLate makes chosen runs late, and gives them: each has one hold on the round left.
func (r *Request) makeLate(slow bool, chosen func(*run) bool) (lates []*run) {
	r.giving.Lock() // two may hold the round
	defer r.giving.Unlock()
	for i := range r.runs {
		x := &r.runs[i]
		if x.state.Load() == flying && r.replaceable(x) && chosen(x) && x.orphan() {
			if slow {
				x.m.failed(doubtAfter)
			}
			r.abandon(x, slow)
			lates = append(lates, x)
		}
	}
	return lates
}

// replaceable says whether some of the run's fragments can be had elsewhere.
func (r *Request) replaceable(x *run) bool {
	for f := x.first; f >= 0; f = x.frags[f].next {
		if fr := &x.frags[f]; fr.rb != nil || fr.c.alternatives() {
			return true
		}
	}
	return false
}

// alternatives says whether a byte of the chunk lies or can be rebuilt elsewhere.
func (c *chunk) alternatives() bool { return c.copies > 1 || c.code != nil }

// orphan makes the run late, unless it has just landed: from then on it keeps its buffers by itself.
func (x *run) orphan() bool {
	r := x.req
	x.homes, x.waiter = x.homes[:0], r
	for f := x.first; f >= 0; f = x.frags[f].next {
		home := r.home
		if rb := x.frags[f].rb; rb != nil {
			home = rb.buf
		}
		if !slices.Contains(x.homes, home) {
			home.Retain()
			x.homes = append(x.homes, home)
		}
	}
	x.m.late.Add(1)
	if x.state.CompareAndSwap(flying, late) {
		return true
	}
	x.m.late.Add(-1)
	x.dropHomes()
	return false
}

func (x *run) dropHomes() {
	for _, b := range x.homes {
		b.Release()
	}
	x.homes = nil
}

// abandon makes the units of a late run look for another copy.
func (r *Request) abandon(x *run, slow bool) {
	r.mu.Lock()
	r.lates, r.detached = append(r.lates, x), true
	r.mu.Unlock()
	reason := ""
	if slow {
		reason = "slow"
	}
	for f := x.first; f >= 0; f = x.frags[f].next {
		fr := &x.frags[f]
		if fr.rb != nil {
			fr.rb.missed(fr.col, ErrSlow)
			continue
		}
		r.mu.Lock()
		r.tainted = true
		r.mu.Unlock()
		if r.split {
			continue
		}
		for o := fr.off; o < fr.off+fr.n; o += r.Unit {
			r.failed(o/r.Unit, fr, o, ErrSlow, reason, true)
		}
	}
}

// lateDone is the end of a late read. It runs on whoever completed it.
func (x *run) lateDone() {
	x.m.late.Add(-1)
	x.m.ends.Add(1)
	x.lateMu.Lock()
	r := x.waiter
	if r == nil {
		x.lateMu.Unlock()
		x.dropHomes()
		return
	}
	x.waiter = nil
	r.mu.Lock()
	r.arrived = append(r.arrived, x)
	parked := r.parked
	r.parked = false
	r.mu.Unlock()
	if parked {
		r.pending.Store(1)
	}
	held := parked || r.hold()
	x.lateMu.Unlock()
	if !held {
		return // the round is just ending, and looks at what arrived before it parks
	}
	if !parked {
		// What arrived may be all that the round is for: its reads are not waited for any longer.
		r.giveUp(false, func(*run) bool { return true })
	}
	r.release()
}

// park leaves the request to its late reads; false when one has arrived in the meantime.
func (r *Request) park() bool {
	r.vol.watch.remove(r)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parked = len(r.arrived) == 0
	return r.parked
}

// move gives the request a new buffer, once a late read may write into the old one. Nothing but late reads is in
// flight.
func (r *Request) move() {
	if !r.tainted {
		return
	}
	r.tainted = false
	b := r.vol.pool.Get(len(r.Buf))
	from := 0
	for i := range r.bad {
		if u := &r.bad[i]; u.state != good {
			copy(b.B[from:u.unit*r.Unit], r.Buf[from:u.unit*r.Unit])
			from = (u.unit + 1) * r.Unit
		}
	}
	if from < len(r.Buf) {
		copy(b.B[from:], r.Buf[from:])
	}
	if r.Moved != nil {
		r.Moved.Release()
	}
	r.Buf, r.Moved, r.home = b.B, b, b
}

// checkMoved judges a request that has moved once more as a whole: the way there is rare and has many turns, and a
// wrong byte is worse than a lost one.
func (r *Request) checkMoved() {
	if r.Moved == nil || !r.vouched() {
		return
	}
	var more []badUnit
	for u := 0; u*r.Unit < len(r.Buf); u++ {
		if i, ok := r.recorded(u); ok && r.bad[i].state != good {
			continue
		}
		if err := r.Verifier.VerifyUnit(u, r.Buf[u*r.Unit:(u+1)*r.Unit]); err != nil {
			more = append(more, badUnit{unit: u, state: lost, err: fmt.Errorf("after a device was late: %w", err)})
		}
	}
	if len(more) == 0 {
		return
	}
	r.bad = slices.DeleteFunc(r.bad, func(b badUnit) bool { return b.state == good })
	r.bad = append(r.bad, more...)
	r.sortBad()
}

// absorb takes what late reads brought.
func (r *Request) absorb() {
	r.mu.Lock()
	arrived := r.arrived
	r.arrived = nil
	r.mu.Unlock()
	for _, x := range arrived {
		r.lates = slices.DeleteFunc(r.lates, func(l *run) bool { return l == x })
		pos := 0
		for f := x.first; f >= 0; f = x.frags[f].next {
			fr := &x.frags[f]
			pos += fr.n
			err := x.read.Err
			if pos <= x.read.N {
				err = nil
			}
			switch {
			case fr.rb != nil:
				fr.rb.arrived(r, fr, err)
			case !r.split:
				r.takeLate(x, fr, err)
			}
		}
		x.dropHomes()
	}
}

// takeLate puts the units of a late fragment in place that nothing else could serve so far.
func (r *Request) takeLate(x *run, fr *frag, err error) {
	for o := fr.off; o < fr.off+fr.n; o += r.Unit {
		i, ok := r.recorded(o / r.Unit)
		if !ok || r.bad[i].state == good {
			continue
		}
		u := &r.bad[i]
		b := x.buf[o : o+r.Unit]
		cause := err
		if cause == nil && r.Verifier != nil {
			cause = r.Verifier.VerifyUnit(u.unit, b)
		}
		if cause == nil {
			copy(r.Buf[o:], b)
			u.state = good
			continue
		}
		u.note(r.copyError(u.unit, fr, o, cause))
	}
}

// awaits says whether a late read may still serve the unit.
func (r *Request) awaits(unit int) bool {
	from, to := unit*r.Unit, (unit+1)*r.Unit
	for _, x := range r.lates {
		for f := x.first; f >= 0; f = x.frags[f].next {
			if fr := &x.frags[f]; fr.off < to && from < fr.off+fr.n && !(r.split && fr.rb == nil) {
				return true
			}
		}
	}
	return false
}

// detach lets late reads go: what they bring is nobody's any more.
func (r *Request) detach() {
	for _, x := range r.lates {
		x.lateMu.Lock()
		arrived := x.waiter == nil
		x.waiter = nil
		x.lateMu.Unlock()
		if arrived {
			x.dropHomes()
		}
	}
	r.lates, r.arrived = nil, nil
	if r.detached {
		r.frags, r.runs, r.detached = nil, nil, false
	}
}

var _ devio.Completer = (*run)(nil)

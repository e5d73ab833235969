package volume

import (
	"cmp"
	"errors"
	"slices"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// badUnit is a unit whose copy failed, and what became of it.
type badUnit struct {
	unit   int
	state  unitState
	tried  [maxCopies]tryState // by mirror-1
	combo  int                 // of a split unit: the combination of copies to try next
	fresh  bool                // the last failure has not been counted as a retry yet
	io     bool                // the last failure was the device's, not the check's
	dev    devio.DevID         // of the last failure
	copies []*CopyError
	err    error // why no copy helps
}

type unitState uint8

const (
	failed unitState = iota // needs another copy
	trying                  // its next copy is being read
	good
	lost
)

type tryState uint8

const (
	untried tryState = iota
	grouped          // failed as part of a longer read: by itself it might be readable
	spent            // failed by itself, or can't be asked
)

// failed records that a copy of a unit, at off of the buffer, failed: io when its read did, else its check.
func (r *Request) failed(unit int, f *frag, off int, err error, io, alone bool) {
	if !io && !errors.Is(err, ErrNoChecksum) {
		r.vol.opts.Stats.ChecksumFailed(uint64(f.m.id), r.Metadata)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.record(unit)
	b.state = failed
	if errors.Is(err, ErrNoChecksum) {
		b.err = err
		return
	}
	was := b.tried[f.mirror-1]
	b.tried[f.mirror-1] = grouped
	if alone {
		b.tried[f.mirror-1] = spent
	}
	if was == untried {
		b.fresh = true
	}
	b.io, b.dev = io, f.m.id
	b.note(&CopyError{Logical: r.Logical + ondisk.Logical(unit*r.Unit), Dev: f.m.id, Name: f.m.name(),
		Physical: f.phys + devio.Physical(off-f.off), Mirror: f.mirror, Err: err})
}

// record finds the unit's record. In the first round every failure is a new one.
func (r *Request) record(unit int) *badUnit {
	if r.round == 0 {
		r.bad = append(r.bad, badUnit{unit: unit})
		return &r.bad[len(r.bad)-1]
	}
	i, _ := slices.BinarySearchFunc(r.bad, unit, func(b badUnit, u int) int { return cmp.Compare(b.unit, u) })
	return &r.bad[i]
}

// note keeps the latest cause of each copy.
func (b *badUnit) note(e *CopyError) {
	for i, c := range b.copies {
		if c.Mirror == e.Mirror && c.Physical == e.Physical {
			b.copies[i] = e
			return
		}
	}
	b.copies = append(b.copies, e)
}

// nextRound is called when nothing of the request is in flight. It settles what the last round read
// and plans the next copy of every unit that is still bad; false when there is nothing left to read.
func (r *Request) nextRound() bool {
	if r.split {
		r.settleSplit()
	}
	if len(r.bad) == 0 {
		return false
	}
	if r.round == 0 {
		slices.SortFunc(r.bad, func(a, b badUnit) int { return cmp.Compare(a.unit, b.unit) })
	}
	r.round++
	r.frags, r.runs = r.frags[:0], r.runs[:0]
	for i := range r.bad {
		u := &r.bad[i]
		switch {
		case u.state == trying:
			u.state = good
			r.vol.opts.Stats.Repaired("mirror")
		case u.state == failed && u.err != nil:
			u.state = lost
		case u.state == failed && r.split:
			r.retrySplit(u)
		case u.state == failed:
			r.retry(u)
		}
	}
	if len(r.runs) == 0 {
		return false
	}
	b := r.vol.batches.Get().(*batch)
	r.seal(b)
	b.submit(r.vol)
	return true
}

// retry plans the next copy of a unit: one that was not asked yet, else one whose failure was
// that of a longer read, now by itself.
func (r *Request) retry(u *badUnit) {
	off := u.unit * r.Unit
	c := r.find(r.Logical + ondisk.Logical(off))
	in := uint64(r.Logical-c.start) + uint64(off)
	r.exclude(u, c, in)
	mirror := u.next(c, in)
	if mirror == 0 {
		u.state = lost
		return
	}
	r.countRetry(u)
	r.place(c, in, off, r.Unit, mirror, u.tried[mirror-1] == grouped)
}

// countRetry counts the copy that failed, now that another one is asked.
func (r *Request) countRetry(u *badUnit) {
	if u.fresh {
		reason := "checksum"
		if u.io {
			reason = "io"
		}
		r.vol.opts.Stats.Retried(uint64(u.dev), reason)
	}
	u.fresh, u.state = false, trying
}

// exclude marks the copies that can't be asked, with their reason.
func (r *Request) exclude(u *badUnit, c *chunk, in uint64) {
	for m := Mirror(1); int(m) <= c.copies; m++ {
		d, phys := c.locate(in, m)
		if err := d.usable(r.vouched(), r.vol.opts.Degraded); err != nil && u.tried[m-1] == untried {
			u.tried[m-1] = spent
			u.note(&CopyError{Logical: c.start + ondisk.Logical(in), Dev: d.id, Name: d.name(), Physical: phys, Mirror: m, Err: err})
		}
	}
}

// next gives the copy to ask: fresh ones before stale ones before those to be read by themselves.
func (u *badUnit) next(c *chunk, in uint64) Mirror {
	var stale, again Mirror
	for m := Mirror(1); int(m) <= c.copies; m++ {
		switch d, _ := c.locate(in, m); {
		case u.tried[m-1] == untried && !d.stale:
			return m
		case u.tried[m-1] == untried && stale == 0:
			stale = m
		case u.tried[m-1] == grouped && again == 0:
			again = m
		}
	}
	if stale != 0 {
		return stale
	}
	return again
}

// choose gives the copy that a first read asks: of devices that missed nothing the one with the fewest
// bytes to come, so that one stream uses both mirrors; where they are level, mirrors take turns by the
// MiB of address. DUP has both copies on one device: the first. 0 when no copy may serve.
func (v *Volume) choose(c *chunk, in uint64, verified bool) Mirror {
	if c.copies == 1 || c.profile == ondisk.DUP {
		if d, _ := c.locate(in, 1); d.usable(verified, v.opts.Degraded) != nil {
			return 0
		}
		return 1
	}
	var best Mirror
	var bestLoad int64
	bestStale := true
	turn := uint64(c.start>>20) + in>>20
	for i := range c.copies {
		m := Mirror((turn+uint64(i))%uint64(c.copies)) + 1
		d, _ := c.locate(in, m)
		if d.usable(verified, v.opts.Degraded) != nil {
			continue
		}
		load := d.load.Load()
		if best == 0 || (bestStale && !d.stale) || (bestStale == d.stale && load < bestLoad) {
			best, bestLoad, bestStale = m, load, d.stale
		}
	}
	return best
}

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
	effort effort              // that was taken to rebuild it from parity; sparing: none yet, or in the first round
	rb     *rebuild            // what it is being rebuilt by, or was last
	cause  error               // why it could not be
	rbs    []*rebuild          // of a split unit: one for each piece
	combo  int                 // of a split unit: the combination of copies to try next
	fresh  string              // reason of the last failure, until it is counted as a retry
	dev    devio.DevID         // of the last failure
	copies []*CopyError
	err    error // why no copy helps
}

type unitState uint8

const (
	failed  unitState = iota // needs another copy
	trying                   // its next copy is being read
	waiting                  // all copies have failed but those that late reads may bring
	good
	lost
)

type tryState uint8

const (
	untried tryState = iota
	grouped          // failed as part of a longer read: by itself it might be readable
	spent            // failed by itself, or can't be asked
)

// failed records that a copy of a unit, at off of the buffer, failed. The reason is "io" when its read did,
// "slow" when that is late, "checksum" when its check refused it; "" is a read that is not waited for.
func (r *Request) failed(unit int, f *frag, off int, err error, reason string, alone bool) {
	if reason == "checksum" && !errors.Is(err, ErrNoChecksum) {
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
		b.fresh, b.dev = reason, f.m.id
	}
	b.note(r.copyError(unit, f, off, err))
}

func (r *Request) copyError(unit int, f *frag, off int, err error) *CopyError {
	return &CopyError{Logical: r.Logical + ondisk.Logical(unit*r.Unit), Dev: f.m.id, Name: f.m.name(),
		Physical: f.phys + devio.Physical(off-f.off), Mirror: f.mirror, Err: err}
}

// record finds the unit's record. In the first round every failure is a new one.
func (r *Request) record(unit int) *badUnit {
	if r.round == 0 {
		r.bad = append(r.bad, badUnit{unit: unit})
		return &r.bad[len(r.bad)-1]
	}
	i, _ := r.recorded(unit)
	return &r.bad[i]
}

// recorded finds the record of a unit once records are sorted.
func (r *Request) recorded(unit int) (int, bool) {
	return slices.BinarySearchFunc(r.bad, unit, func(b badUnit, u int) int { return cmp.Compare(b.unit, u) })
}

// note keeps the latest cause of each copy.
func (b *badUnit) note(e *CopyError) {
	for i, c := range b.copies {
		if c.Mirror == e.Mirror && c.Column == e.Column && c.Dev == e.Dev && c.Physical == e.Physical {
			b.copies[i] = e
			return
		}
	}
	b.copies = append(b.copies, e)
}

// advance is called when nothing of the request is in flight but late reads. It settles what the last round read,
// and then reads the next copy of every unit that is still bad, waits for late reads, or ends the request.
func (r *Request) advance() {
	r.settle()
	if r.needsJudge() {
		go func() {
			r.rebuildAll(true)
			r.proceed()
		}()
		return
	}
	r.proceed()
}

// settle takes what the last round and late reads brought.
func (r *Request) settle() {
	r.sortBad()
	if r.split {
		r.settleSplit()
	}
	for i := range r.bad {
		if u := &r.bad[i]; u.state == trying && u.rb == nil && u.rbs == nil {
			u.state = good
			r.vol.opts.Stats.Repaired("mirror")
		}
	}
	r.move() // what is good by now
	r.absorb()
	r.rebuildAll(false)
}

func (r *Request) sortBad() {
	slices.SortFunc(r.bad, func(a, b badUnit) int { return cmp.Compare(a.unit, b.unit) })
}

// proceed plans the next round and starts it; without anything to read it parks or finishes.
func (r *Request) proceed() {
	if r.plan(); len(r.runs) == 0 {
		if !slices.ContainsFunc(r.bad, func(u badUnit) bool { return u.state == waiting }) {
			r.finish()
			return
		}
		if !r.park() {
			r.advance()
		}
		return
	}
	v := r.vol
	b := v.batches.Get().(*batch)
	r.seal(b)
	v.watch.again(b.watch, r)
	r.pending.Store(r.waitsFor()) // late reads of earlier rounds may end the request from now on
	b.submit(v)
}

// plan lays out the next round: one more copy of every unit that is still bad.
func (r *Request) plan() {
	if len(r.bad) == 0 {
		r.runs = r.runs[:0]
		return
	}
	r.round++
	if r.detached {
		r.frags, r.runs, r.detached = nil, nil, false
	}
	r.frags, r.runs, r.hedge, r.memory, r.taps = r.frags[:0], r.runs[:0], false, 0, 0
	for i := range r.bad {
		u := &r.bad[i]
		switch {
		case u.state == waiting && !r.awaits(u.unit), u.state == failed && u.err != nil:
			u.state = lost
		case u.state == failed && r.split:
			r.retrySplit(u)
		case u.state == failed:
			r.retry(u)
		}
	}
	r.readColumns(nil)
}

// giveIn ends the asking for a unit that has no copy left.
func (r *Request) giveIn(u *badUnit) {
	u.state = lost
	if r.awaits(u.unit) {
		u.state = waiting
	}
}

// retry plans the next copy of a unit: one that was not asked yet, else one whose failure was
// that of a longer read, now by itself.
func (r *Request) retry(u *badUnit) {
	off := u.unit * r.Unit
	c := r.find(r.Logical + ondisk.Logical(off))
	in := uint64(r.Logical-c.start) + uint64(off)
	r.exclude(u, c, in)
	if c.code != nil {
		r.retryRow(u, c, in)
		return
	}
	mirror := u.next(c, in)
	if mirror == 0 {
		r.giveIn(u)
		return
	}
	r.countRetry(u)
	r.place(c, in, off, r.Unit, mirror, u.tried[mirror-1] == grouped)
}

// countRetry counts the copy that failed, now that another one is asked.
func (r *Request) countRetry(u *badUnit) {
	if u.fresh != "" {
		r.vol.opts.Stats.Retried(uint64(u.dev), u.fresh)
	}
	u.fresh, u.state, u.rb = "", trying, nil
}

// exclude marks the copies that can't be asked, with their reason.
func (r *Request) exclude(u *badUnit, c *chunk, in uint64) {
	for m := Mirror(1); int(m) <= c.copies; m++ {
		d, phys := c.locate(in, m)
		if err := r.usable(c, d); err != nil && u.tried[m-1] == untried {
			u.tried[m-1] = spent
			u.note(&CopyError{Logical: c.start + ondisk.Logical(in), Dev: d.id, Name: d.name(), Physical: phys, Mirror: m, Err: err})
		}
	}
}

// usable says whether what d holds of the chunk may serve, and why not. Where there is parity, that serves
// rather than a device that missed writes.
func (r *Request) usable(c *chunk, d *member) error {
	return d.usable(r.vouched(), r.vol.opts.Degraded && c.code == nil)
}

// next gives the copy to ask: fresh ones before doubtful and stale ones before those to be read by themselves.
func (u *badUnit) next(c *chunk, in uint64) Mirror {
	var best, again Mirror
	rank := 0
	for m := Mirror(1); int(m) <= c.copies; m++ {
		switch d, _ := c.locate(in, m); {
		case u.tried[m-1] == untried && (best == 0 || d.rank() < rank):
			best, rank = m, d.rank()
		case u.tried[m-1] == grouped && again == 0:
			again = m
		}
	}
	if best != 0 {
		return best
	}
	return again
}

// rank orders devices: those that are well, those that are doubtful, those that missed writes.
func (m *member) rank() int {
	switch {
	case m.stale:
		return 2
	case m.doubtful():
		return 1
	}
	return 0
}

// choose gives the copy that a first read asks: of devices that missed nothing and do not fail the one with the
// fewest bytes to come, so that one stream uses both mirrors; where they are level, mirrors take turns by the
// MiB of address. DUP has both copies on one device: the first. 0 when no copy may serve.
func (r *Request) choose(c *chunk, in uint64) Mirror {
	switch {
	case c.code != nil:
		return r.chooseColumn(c, in)
	case c.copies == 1 || c.profile == ondisk.DUP:
		if d, _ := c.locate(in, 1); r.usable(c, d) != nil {
			return 0
		}
		return 1
	}
	var best Mirror
	var bestLoad int64
	var bestRank int
	turn := uint64(c.start>>20) + in>>20
	for i := range c.copies {
		m := Mirror((turn+uint64(i))%uint64(c.copies)) + 1
		d, _ := c.locate(in, m)
		if r.usable(c, d) != nil {
			continue
		}
		load, rank := d.load.Load(), d.rank()
		if rank == 1 && !d.avoid() {
			return m // to find out whether it is well again
		}
		if best == 0 || rank < bestRank || (rank == bestRank && load < bestLoad) {
			best, bestLoad, bestRank = m, load, rank
		}
	}
	return best
}

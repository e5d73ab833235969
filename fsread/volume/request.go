package volume

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// maxRun bounds one device read, in bytes: long enough for a disk's full speed, short enough that a
// large request is spread over workers and mirrors.
const maxRun = 1 << 20

// Verifier judges the units of a Request. It is called by whoever completes a device read, for
// different units perhaps at the same time.
type Verifier interface {
	// VerifyUnit says whether b is what unit i of the request must hold. ErrNoChecksum ends the
	// matter for the unit; any other error sends it to the next copy.
	VerifyUnit(i int, b []byte) error
}

// Completer is told of the end of a Request.
type Completer interface{ RequestDone(r *Request) }

// Request reads one logical range, checked unit by unit. Submit lends it and Buf to the volume until
// Done.RequestDone is called, exactly once, perhaps before Submit returns. It may be used again after;
// a Request that is used again allocates nothing as long as nothing fails.
type Request struct {
	Logical ondisk.Logical
	Buf     []byte // aligned as devio asks; its length a multiple of Unit
	// Home is the buffer that Buf lies in. With it a device that is slow is not waited for as long as there is
	// another copy; nil: every device is.
	Home     *devio.Buffer
	Unit     int      // bytes that are checked, and read again, together: sectorsize or nodesize
	Verifier Verifier // nil: there is nothing to judge by, what a device delivers is taken
	Weak     bool     // Verifier can refuse a unit but not vouch for it: stale copies serve no more than without one
	Metadata bool     // for the statistics
	Done     Completer
	// Stripes is what the RAID stripe tree says of the range, where Volume.UsesStripeTree: by address, without
	// overlap, not changed until the end. Bytes that none covers are lost.
	Stripes []ondisk.StripeExtent

	// Lost is the result: units that no copy could serve, by offset; empty when all of Buf is good.
	// Their bytes in Buf are zero.
	Lost []Lost
	// Moved is set when a late device may still write into the Buf that was submitted: Buf is then another one, in
	// Moved, which is the receiver's to release.
	Moved *devio.Buffer

	vol      *Volume
	stripes  []chunk // made of Stripes
	frags    []frag
	runs     []run
	rebuilds []*rebuild    // of this round, and those of earlier ones that may still be of use
	memory   int           // that the round reads columns into, bytes
	taps     int           // columns that the round waits for and others of the batch read
	home     *devio.Buffer // that Buf lies in now
	split    bool          // some unit lies in more than one fragment
	hedge    bool          // of something that the round reads there is another copy
	detached bool          // frags and runs belong to late reads too, and can't be used again
	round    int
	pending  atomic.Int32 // device reads in flight, and one for each who holds the round
	watched  watched
	giving   sync.Mutex // held by whoever makes reads late

	mu      sync.Mutex
	bad     []badUnit // guarded by mu while a round is in flight, as all below; sorted by unit from the second round on
	lates   []*run    // late reads that have not been looked at
	arrived []*run    // those of lates that have come
	tainted bool      // a late read may write into Buf
	parked  bool      // nothing is in flight but late reads, and the first of them wakes the request
}

// frag is a piece of a request that lies in one piece on one device.
type frag struct {
	off, n int // in Buf; of a column, what it helps to rebuild
	c      *chunk
	m      *member
	phys   devio.Physical
	mirror Mirror   // 0 for a column
	rb     *rebuild // that the fragment is a column for; nil: it goes into Buf
	col    int
	next   int // the run's next fragment, -1 at the end
}

// run is one device read: fragments that touch on their device, wherever they lie in Buf.
type run struct {
	read        devio.Read
	req         *Request
	m           *member
	frags       []frag
	first, last int // of frags
	size        int
	alone       bool // one unit, and nothing near it is read meanwhile: its failure says all about that unit
	state       atomic.Int32
	taps        []tap // who else takes what it brings; of whoever ends the run, or makes it late

	// Of a late run:
	buf    []byte          // the request's at that time
	homes  []*devio.Buffer // what the device writes into
	lateMu sync.Mutex
	waiter *Request // guarded by lateMu; nil: nobody is interested any more, or was told
}

// batch gathers the device reads of several requests, a list for each member.
type batch struct {
	reads [][]*devio.Read
	n     int
	idle  []*Request // that read nothing
	watch *watchList // where its requests are watched
	index [][]runRef // of each member, by address: what is read anyway; empty but while columns are planned
}

func (v *Volume) newBatch() *batch {
	n := len(v.members)
	return &batch{reads: make([][]*devio.Read, n), index: make([][]runRef, n), watch: v.watch.pick()}
}

// Submit starts the requests and does not wait for them.
func (v *Volume) Submit(reqs []*Request) {
	b := v.batches.Get().(*batch)
	for _, r := range reqs {
		r.vol, r.round, r.Lost, r.bad = v, 0, r.Lost[:0], r.bad[:0]
		r.home, r.Moved = r.Home, nil
		r.stripes = r.vol.scatter(r.stripes[:0], r.Stripes)
		r.planFirst()
	}
	b.planColumns(reqs)
	for _, r := range reqs {
		r.seal(b)
		r.pending.Store(r.waitsFor())
	}
	v.watch.add(b.watch, reqs...) // who gives up a read releases those who tap it: each has its holds by now
	b.submit(v)
}

// submit hands each member its reads and gives the batch back. The requests belong to others from then on.
func (b *batch) submit(v *Volume) {
	idle := b.idle
	for i, reads := range b.reads {
		if len(reads) > 0 {
			reads[0].Lone = reads[0].Lone && b.n == 1
			v.members[i].dev.Submit(reads)
			clear(reads)
			b.reads[i] = reads[:0]
		}
	}
	for _, r := range idle {
		r.advance()
	}
	clear(idle)
	b.n, b.idle = 0, idle[:0]
	v.batches.Put(b)
}

// hedged says whether a device that is slow need not be waited for.
func (r *Request) hedged() bool { return r.hedge && r.home != nil }

// vouched says whether a unit that passes its check is sure to be right.
func (r *Request) vouched() bool { return r.Verifier != nil && !r.Weak }

// planFirst lays out the first round: the whole range, each piece from the copy that is best to ask.
func (r *Request) planFirst() {
	r.frags, r.runs, r.split, r.hedge, r.taps = r.frags[:0], r.runs[:0], false, false, 0
	for off := 0; off < len(r.Buf); {
		l := r.Logical + ondisk.Logical(off)
		c := r.find(l)
		if err := mappable(c); err != nil {
			off += r.refuse(off, err)
			continue
		}
		in := uint64(l - c.start)
		n := int(min(uint64(len(r.Buf)-off), c.extent(in), maxRun))
		mirror := r.continued(c, in, n)
		if mirror == 0 {
			mirror = r.choose(c, in)
		}
		if mirror == 0 {
			n = r.noCopy(c, off, n)
			off += n
			continue
		}
		split := off%r.Unit != 0 || n%r.Unit != 0
		r.split = r.split || split
		if mirror == rebuilt {
			r.planMissing(c, in, off, n, split)
		} else {
			r.place(c, in, off, n, mirror, false)
		}
		off += n
	}
}

// continued gives the copy of a stripe that touches a run planned already, so that what lies in one piece on
// a device is read as one, and not stripe by stripe from one mirror and the other; 0 when there is none.
func (r *Request) continued(c *chunk, in uint64, n int) Mirror {
	if c.copies == 1 {
		return 0
	}
	for m := Mirror(1); int(m) <= c.copies; m++ {
		d, phys := c.locate(in, m)
		if i := r.touching(d, phys, n); i >= 0 {
			return m
		}
	}
	return 0
}

// touching gives the run on d that ends at phys and has room for n bytes; -1 when there is none.
func (r *Request) touching(d *member, phys devio.Physical, n int) int {
	for i := len(r.runs) - 1; i >= 0; i-- {
		x := &r.runs[i]
		if x.m == d && !x.alone && x.read.Off+devio.Physical(x.size) == phys && x.size+n <= maxRun {
			return i
		}
	}
	return -1
}

// mappable says why nothing can be read from a chunk, if so.
func mappable(c *chunk) error {
	if c == nil {
		return ErrUnmapped
	}
	if c.scattered {
		return ErrNoStripe
	}
	if c.copies == 0 {
		return &ondisk.UnsupportedError{Feature: "profile " + c.profile.String()}
	}
	return nil
}

// refuse gives up on the unit at off; it returns the bytes up to the next unit.
func (r *Request) refuse(off int, err error) int {
	r.addBad(off / r.Unit).err = err
	return r.Unit - off%r.Unit
}

// noCopy gives up on the units of [off, off+n), since no device that holds a copy may serve; it
// returns the bytes up to the next whole unit.
func (r *Request) noCopy(c *chunk, off, n int) int {
	end := min((off+n+r.Unit-1)/r.Unit*r.Unit, len(r.Buf))
	for u := off / r.Unit; u*r.Unit < end; u++ {
		b := r.addBad(u)
		r.exclude(b, c, uint64(r.Logical-c.start)+uint64(max(u*r.Unit, off)))
	}
	return end - off
}

// addBad gives the record of a unit that is bad in the round that is being planned or read.
// A unit in several fragments may come twice.
func (r *Request) addBad(unit int) *badUnit {
	if n := len(r.bad); n > 0 && r.bad[n-1].unit == unit {
		return &r.bad[n-1]
	}
	r.bad = append(r.bad, badUnit{unit: unit, state: failed})
	return &r.bad[len(r.bad)-1]
}

// place reads the fragment [off, off+n) from a copy.
func (r *Request) place(c *chunk, in uint64, off, n int, mirror Mirror, alone bool) {
	m, phys := c.locate(in, mirror)
	r.hedge = r.hedge || c.alternatives()
	r.add(frag{off: off, n: n, c: c, m: m, phys: phys, mirror: mirror}, alone)
}

// add puts the fragment into a run that it continues on its device, or into a new one, and says whether it is new.
func (r *Request) add(fr frag, alone bool) (started bool) {
	fr.next = -1
	fr.m.load.Add(int64(fr.n))
	r.frags = append(r.frags, fr)
	f := len(r.frags) - 1
	if i := r.touching(fr.m, fr.phys, fr.n); i >= 0 && !alone {
		x := &r.runs[i]
		r.frags[x.last].next, x.last, x.size = f, f, x.size+fr.n
		return false
	}
	if len(r.runs) < cap(r.runs) {
		r.runs = r.runs[:len(r.runs)+1]
	} else {
		r.runs = append(r.runs, run{})
	}
	x := &r.runs[len(r.runs)-1]
	x.m, x.first, x.last, x.size, x.alone, x.taps = fr.m, f, f, fr.n, alone, x.taps[:0]
	x.read.Off = fr.phys
	return true
}

// waitsFor is how many holds there are on a round that begins: one for each run and each tap. Whoever drops the last goes on
// with the request.
func (r *Request) waitsFor() int32 { return int32(len(r.runs) + r.taps) }

// seal points the planned runs at their buffers and puts them into the batch.
func (r *Request) seal(b *batch) {
	if r.waitsFor() == 0 {
		b.idle = append(b.idle, r)
		return
	}
	for i := range r.runs {
		x := &r.runs[i]
		x.req, x.read.Done, x.read.N, x.read.Err = r, x, 0, nil
		x.frags, x.buf = r.frags, r.Buf
		x.read.Lone, x.read.Alone, x.read.Heavy = !r.hedge, x.alone, r.vol.super.CsumType.Slow()
		x.state.Store(flying)
		x.scatter(r)
		b.reads[x.m.index] = append(b.reads[x.m.index], &x.read)
	}
	b.n += len(r.runs)
}

// scatter lists where the bytes of the run go: fragments that touch in Buf as one.
func (x *run) scatter(r *Request) {
	x.read.Bufs = x.read.Bufs[:0]
	end := -1
	for f := x.first; f >= 0; f = r.frags[f].next {
		fr := &r.frags[f]
		switch {
		case fr.rb != nil:
			x.read.Bufs, end = append(x.read.Bufs, fr.rb.cols[fr.col]), -1
			continue
		case fr.off == end:
			last := len(x.read.Bufs) - 1
			start := end - len(x.read.Bufs[last])
			x.read.Bufs[last] = r.Buf[start : fr.off+fr.n : fr.off+fr.n]
		default:
			x.read.Bufs = append(x.read.Bufs, r.Buf[fr.off:fr.off+fr.n:fr.off+fr.n])
		}
		end = fr.off + fr.n
	}
}

// ReadDone checks the units of the run while they are warm in the cache.
func (x *run) ReadDone(*devio.Read) {
	x.m.load.Add(-int64(x.size))
	if !x.state.CompareAndSwap(flying, landed) {
		x.lateDone()
		return
	}
	r := x.req
	x.m.delivered(r.checkRun(x))
	x.deliver()
	r.release()
}

// checkRun takes what the run brought, and says whether all of it was good.
func (r *Request) checkRun(x *run) (good bool) {
	good = x.read.Err == nil
	pos := 0
	for f := x.first; f >= 0; f = r.frags[f].next {
		fr := &r.frags[f]
		switch {
		case fr.rb != nil:
			if pos+fr.n > x.read.N {
				fr.rb.missed(fr.col, x.read.Err)
			}
		case !r.split:
			good = r.checkUnits(x, fr, pos) && good
		}
		pos += fr.n
	}
	return good
}

// checkUnits judges the units of a fragment, which begins at pos of its run.
func (r *Request) checkUnits(x *run, fr *frag, pos int) (good bool) {
	good = true
	for o := fr.off; o < fr.off+fr.n; o += r.Unit {
		pos += r.Unit
		if x.read.Err != nil && pos > x.read.N {
			good = false
			r.failed(o/r.Unit, fr, o, x.read.Err, "io", x.alone)
		} else if r.Verifier != nil {
			if err := r.Verifier.VerifyUnit(o/r.Unit, r.Buf[o:o+r.Unit]); err != nil {
				good = good && errors.Is(err, ErrNoChecksum)
				r.failed(o/r.Unit, fr, o, err, "checksum", true)
			}
		}
	}
	return good
}

// release drops one hold on the round; whoever drops the last goes on with the request.
func (r *Request) release() {
	if r.pending.Add(-1) == 0 {
		r.advance()
	}
}

// finish turns the units that stayed lost into the result and tells the owner.
func (r *Request) finish() {
	r.vol.watch.remove(r)
	r.detach()
	r.dropRebuilds()
	r.checkMoved()
	for i := range r.bad {
		if b := &r.bad[i]; b.state != good {
			off := b.unit * r.Unit
			clear(r.Buf[off : off+r.Unit])
			r.Lost = append(r.Lost, Lost{Off: off, Len: r.Unit, Logical: r.Logical + ondisk.Logical(off), Copies: b.copies, Err: b.err})
		}
	}
	if len(r.Lost) > 0 {
		r.vol.opts.Stats.Lost(len(r.Lost))
	}
	if served := len(r.Buf)/r.Unit - len(r.Lost); served > 0 && !r.vouched() {
		r.vol.opts.Stats.Unverified(served)
	}
	r.Done.RequestDone(r)
}

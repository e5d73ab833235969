package volume

import (
	"cmp"
	"slices"
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
	Logical  ondisk.Logical
	Buf      []byte   // aligned as devio asks; its length a multiple of Unit
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

	vol     *Volume
	stripes []chunk // made of Stripes
	frags   []frag
	runs    []run
	split   bool // some unit lies in more than one fragment
	round   int
	pending atomic.Int32 // device reads in flight, and one for whoever plans the round

	mu  sync.Mutex
	bad []badUnit // guarded by mu while a round is in flight; sorted by unit from the second round on
}

// frag is a piece of a request that lies in one piece on one device.
type frag struct {
	off, n int // in Buf
	m      *member
	phys   devio.Physical
	mirror Mirror
	next   int // the run's next fragment, -1 at the end
}

// run is one device read: fragments that touch on their device, wherever they lie in Buf.
type run struct {
	read        devio.Read
	req         *Request
	m           *member
	first, last int // of req.frags
	size        int
	alone       bool // one unit, read by itself: its failure says all about that unit
}

// batch gathers the device reads of several requests, a list for each member.
type batch struct{ reads [][]*devio.Read }

// Submit starts the requests and does not wait for them.
func (v *Volume) Submit(reqs []*Request) {
	b := v.batches.Get().(*batch)
	for _, r := range reqs {
		r.vol, r.round, r.Lost, r.bad = v, 0, r.Lost[:0], r.bad[:0]
		r.stripes = r.vol.scatter(r.stripes[:0], r.Stripes)
		r.planFirst()
		r.seal(b)
	}
	b.submit(v)
	for _, r := range reqs {
		r.release()
	}
}

// submit hands each member its reads and gives the batch back.
func (b *batch) submit(v *Volume) {
	for i, reads := range b.reads {
		if len(reads) > 0 {
			v.members[i].dev.Submit(reads)
			clear(reads)
			b.reads[i] = reads[:0]
		}
	}
	v.batches.Put(b)
}

// vouched says whether a unit that passes its check is sure to be right.
func (r *Request) vouched() bool { return r.Verifier != nil && !r.Weak }

// planFirst lays out the first round: the whole range, each piece from the copy that is best to ask.
func (r *Request) planFirst() {
	r.frags, r.runs, r.split = r.frags[:0], r.runs[:0], false
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
			mirror = r.vol.choose(c, in, r.vouched())
		}
		if mirror == 0 {
			n = r.noCopy(c, off, n)
			off += n
			continue
		}
		r.split = r.split || off%r.Unit != 0 || n%r.Unit != 0
		r.place(c, in, off, n, mirror, false)
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

// place adds the fragment [off, off+n) to a run that it continues on its device, or to a new one.
func (r *Request) place(c *chunk, in uint64, off, n int, mirror Mirror, alone bool) {
	m, phys := c.locate(in, mirror)
	m.load.Add(int64(n))
	r.frags = append(r.frags, frag{off: off, n: n, m: m, phys: phys, mirror: mirror, next: -1})
	f := len(r.frags) - 1
	if i := r.touching(m, phys, n); i >= 0 && !alone {
		x := &r.runs[i]
		r.frags[x.last].next, x.last, x.size = f, f, x.size+n
		return
	}
	if len(r.runs) < cap(r.runs) {
		r.runs = r.runs[:len(r.runs)+1]
	} else {
		r.runs = append(r.runs, run{})
	}
	x := &r.runs[len(r.runs)-1]
	x.m, x.first, x.last, x.size, x.alone = m, f, f, n, alone
	x.read.Off = phys
}

// seal points the planned runs at the buffer and puts them into the batch. From here on pending holds
// one for each run and one for the caller, who gives it back by release.
func (r *Request) seal(b *batch) {
	r.pending.Store(int32(len(r.runs)) + 1)
	for i := range r.runs {
		x := &r.runs[i]
		x.req, x.read.Done, x.read.N, x.read.Err = r, x, 0, nil
		x.alone = x.alone || x.size <= r.Unit
		x.read.Bufs = x.read.Bufs[:0]
		end := -1
		for f := x.first; f >= 0; f = r.frags[f].next {
			fr := &r.frags[f]
			if fr.off == end {
				last := len(x.read.Bufs) - 1
				start := end - len(x.read.Bufs[last])
				x.read.Bufs[last] = r.Buf[start : fr.off+fr.n : fr.off+fr.n]
			} else {
				x.read.Bufs = append(x.read.Bufs, r.Buf[fr.off:fr.off+fr.n:fr.off+fr.n])
			}
			end = fr.off + fr.n
		}
		b.reads[x.m.index] = append(b.reads[x.m.index], &x.read)
	}
}

// ReadDone checks the units of the run while they are warm in the cache.
func (x *run) ReadDone(*devio.Read) {
	r := x.req
	x.m.load.Add(-int64(x.size))
	if !r.split {
		r.checkRun(x)
	}
	r.release()
}

func (r *Request) checkRun(x *run) {
	pos := 0
	for f := x.first; f >= 0; f = r.frags[f].next {
		fr := &r.frags[f]
		for o := fr.off; o < fr.off+fr.n; o += r.Unit {
			pos += r.Unit
			if x.read.Err != nil && pos > x.read.N {
				r.failed(o/r.Unit, fr, o, x.read.Err, true, x.alone)
			} else if r.Verifier != nil {
				if err := r.Verifier.VerifyUnit(o/r.Unit, r.Buf[o:o+r.Unit]); err != nil {
					r.failed(o/r.Unit, fr, o, err, false, true)
				}
			}
		}
	}
}

// release drops one hold on the round; whoever drops the last starts the next round or ends the request.
func (r *Request) release() {
	for r.pending.Add(-1) == 0 {
		if !r.nextRound() {
			r.finish()
			return
		}
	}
}

// finish turns the units that stayed lost into the result and tells the owner.
func (r *Request) finish() {
	slices.SortFunc(r.bad, func(a, b badUnit) int { return cmp.Compare(a.unit, b.unit) })
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

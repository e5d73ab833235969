package volume

import (
	"bytes"
	"errors"
	"slices"
	"sort"
	"sync/atomic"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// maxAudit bounds the buffers of one Audit, in bytes, unless one row of RAID5 or RAID6 alone needs more: at
// most 256 columns of 64 KiB.
const maxAudit = 1 << 20

// Audit reads every copy of a logical range and, of RAID5 and RAID6, the rows that it lies in. Nothing is
// retried from another copy: each is judged for itself. Only what no copy holds right is read again as a Request
// reads it, which tells what is lost. Submit of a Volume's Audit lends it until Done.AuditDone is called, exactly
// once, perhaps before Audit returns. Its buffers come from the pool and are back by then, so that nobody has to
// wait for an Audit that is not wanted any more. An Audit is used once.
type Audit struct {
	Logical  ondisk.Logical
	Len      int      // bytes, a multiple of Unit
	Unit     int      // bytes that are checked together: the sectorsize
	Verifier Verifier // judges unit i of the range; nil: there are no checksums
	// Whole judges the whole range at once, nil: nothing to judge by. Without a Verifier every copy must pass;
	// with one, what its units vouch for must.
	Whole func(b []byte) error
	// Row judges a unit of the same row that lies outside of the range. ErrNoChecksum, or a nil Row: not known.
	Row func(logical ondisk.Logical, b []byte) error
	// Slice says whether to judge the parity of a slice, and whether to count it. nil: both, always. A slice is
	// one unit of every column of a row; its address is the chunk's start + row*64 KiB + place in the stripe.
	Slice     func(at ondisk.Logical) (judge, count bool)
	Uncounted bool                  // the copies of the range were counted before
	Stripes   []ondisk.StripeExtent // as of a Request
	Done      AuditCompleter

	// The results. Findings are by offset; empty when every copy that could be asked is good.
	Findings []Finding
	Tally    map[devio.DevID]*Tally
	Sound    []ondisk.Logical // addresses of slices of which every column and all parity are good
	Copies   int              // the most that a part of the range has, without parity
	Parity   int              // of RAID5 1, of RAID6 2: the most that a row of the range has
	Absent   int              // copies of units that missing devices would have, parity left out
	Err      error            // the devices were closed meanwhile: the rest says nothing

	vol     *Volume
	mapping Request // for find alone
	areas   []area
	rows    []auditRow
	runs    []*auditRun
	again   bool // the second round, of single units
	content []content
	lost    []error // by unit, where content is lost
	retries []*auditRetry
	pending atomic.Int32 // device reads or retries under way, and one for whoever starts them
}

// AuditCompleter is told of the end of an Audit.
type AuditCompleter interface{ AuditDone(a *Audit) }

// area is a buffer and what became of the reads into it: one for each copy, one for each row.
type area struct {
	buf  *devio.Buffer
	errs []error // by unit; nil: read
}

// auditFrag is a part of an area that lies in one piece on a device.
type auditFrag struct{ area, off, n int }

// auditRun is one device read: fragments that touch on their device.
type auditRun struct {
	read  devio.Read
	a     *Audit
	m     *member
	frags []auditFrag
	size  int
}

// content is what is known of a unit of the range after all copies of it were judged.
type content uint8

const (
	openUnit   content = iota // no copy is good
	goodUnit                  // some copy is good
	mendedUnit                // no copy is good, and it was rebuilt, or read well the second time
	lostUnit
)

// Unmapped says how many of n bytes from logical on nothing can be read of, for one reason: they need no Audit,
// however many a crafted filesystem has. 0: there may be something.
func (v *Volume) Unmapped(logical ondisk.Logical, n uint64) (uint64, error) {
	i := sort.Search(len(v.chunks), func(i int) bool { return v.chunks[i].end > logical })
	switch {
	case i == len(v.chunks):
		return n, ErrUnmapped
	case v.chunks[i].start > logical:
		return min(n, uint64(v.chunks[i].start-logical)), ErrUnmapped
	case v.chunks[i].scattered:
		return 0, nil
	}
	if err := mappable(v.chunks[i]); err != nil {
		return min(n, uint64(v.chunks[i].end-logical)), err
	}
	return 0, nil
}

// AuditStep gives how much of n bytes at logical one Audit should take, so that its buffers stay bounded.
func (v *Volume) AuditStep(logical ondisk.Logical, n uint64) int {
	c := v.chunks.find(logical)
	if c == nil || c.copies == 0 {
		return int(min(n, maxAudit))
	}
	n = min(n, uint64(c.end-logical))
	if c.code == nil {
		return int(min(n, uint64(max(maxAudit/c.copies/stripeLen, 1)*stripeLen)))
	}
	row := uint64(c.data()) * stripeLen
	rows := max(maxAudit/(row+uint64(len(c.Stripes))*stripeLen), 1)
	return int(min(n, rows*row-uint64(logical-c.start)%row))
}

// AuditRows widens a range to the whole rows of RAID5 or RAID6 that it lies in, as far as its chunk goes: Row is
// asked of that. Elsewhere it is the range itself.
func (v *Volume) AuditRows(logical ondisk.Logical, n int) (from, to ondisk.Logical) {
	from, to = logical, logical+ondisk.Logical(n)
	c := v.chunks.find(logical)
	if c == nil || c.code == nil {
		return from, to
	}
	row := ondisk.Logical(c.data()) * stripeLen
	from = c.start + (logical-c.start)/row*row
	return from, max(to, min(c.end, c.start+(to-c.start+row-1)/row*row))
}

// HasParity says whether an address lies in a row of RAID5 or RAID6.
func (v *Volume) HasParity(logical ondisk.Logical) bool {
	c := v.chunks.find(logical)
	return c != nil && c.code != nil
}

// AuditCost gives the bytes of buffers that an Audit of n bytes at logical takes at most.
func (v *Volume) AuditCost(logical ondisk.Logical, n int) int {
	c := v.chunks.find(logical)
	if c == nil {
		return n
	}
	if c.code == nil {
		return n * max(c.copies, 1)
	}
	from, to := v.AuditRows(logical, n)
	return n + int(to-from)/c.data()*len(c.Stripes)
}

// Audit starts a and does not wait for it.
func (v *Volume) Audit(a *Audit) {
	a.vol, a.Tally = v, make(map[devio.DevID]*Tally)
	a.mapping = Request{vol: v, stripes: v.scatter(nil, a.Stripes)}
	a.content, a.lost = make([]content, a.Len/a.Unit), make([]error, a.Len/a.Unit)
	a.layCopies()
	a.layRows()
	a.submit()
}

// find gives what maps an address: as of Request.find.
func (a *Audit) find(l ondisk.Logical) *chunk { return a.mapping.find(l) }

// pieces calls f for each part of the range that lies in one piece on its devices; c is nil where nothing maps it.
func (a *Audit) pieces(f func(c *chunk, in uint64, off, n int)) {
	for off := 0; off < a.Len; {
		l := a.Logical + ondisk.Logical(off)
		c := a.find(l)
		if mappable(c) != nil {
			f(nil, 0, off, a.Unit)
			off += a.Unit
			continue
		}
		in := uint64(l - c.start)
		n := int(min(uint64(a.Len-off), c.extent(in), maxRun))
		f(c, in, off, n)
		off += n
	}
}

// layCopies plans the read of each copy into an area of its own. What a copy has no place for counts as missing.
func (a *Audit) layCopies() {
	a.pieces(func(c *chunk, _ uint64, _, _ int) {
		if c != nil {
			a.Copies = max(a.Copies, c.copies)
		}
	})
	for range a.Copies {
		a.areas = append(a.areas, a.newArea(a.Len))
	}
	a.pieces(func(c *chunk, in uint64, off, n int) {
		for m := range a.Copies {
			if c == nil || m >= c.copies {
				a.fail(m, off, n, errNoPlace)
				continue
			}
			d, phys := c.locate(in, Mirror(m+1))
			a.place(d, phys, auditFrag{m, off, n})
		}
	})
}

func (a *Audit) newArea(n int) area {
	return area{buf: a.vol.pool.Get(n), errs: make([]error, n/a.Unit)}
}

// fail marks the units of a part of an area.
func (a *Audit) fail(in, off, n int, err error) {
	for u := off / a.Unit; u*a.Unit < off+n; u++ {
		a.areas[in].errs[u] = err
	}
}

// place adds a fragment to a run that it continues on its device, or to a new one.
func (a *Audit) place(d *member, phys devio.Physical, f auditFrag) {
	if d.dev == nil {
		a.fail(f.area, f.off, f.n, ErrMissing)
		return
	}
	d.load.Add(int64(f.n))
	for _, x := range slices.Backward(a.runs) {
		if x.m == d && !a.again && x.read.Off+devio.Physical(x.size) == phys && x.size+f.n <= maxRun {
			x.frags, x.size = append(x.frags, f), x.size+f.n
			return
		}
	}
	x := &auditRun{a: a, m: d, frags: []auditFrag{f}, size: f.n}
	x.read.Off, x.read.Done = phys, x
	a.runs = append(a.runs, x)
}

// submit starts the runs that are planned, and goes on at once if there are none.
func (a *Audit) submit() {
	a.pending.Store(int32(len(a.runs)) + 1)
	b := a.vol.batches.Get().(*batch)
	for _, x := range a.runs {
		x.read.Alone = a.again
		for _, f := range x.frags {
			x.read.Bufs = append(x.read.Bufs, a.areas[f.area].buf.B[f.off:f.off+f.n:f.off+f.n])
		}
		b.reads[x.m.index] = append(b.reads[x.m.index], &x.read)
	}
	b.submit(a.vol)
	a.release()
}

// ReadDone implements devio.Completer.
func (x *auditRun) ReadDone(*devio.Read) {
	x.m.load.Add(-int64(x.size))
	x.m.delivered(x.read.Err == nil)
	x.a.release()
}

// release drops one hold; whoever drops the last goes on.
func (a *Audit) release() {
	if a.pending.Add(-1) > 0 {
		return
	}
	if len(a.retries) > 0 {
		a.settle()
		return
	}
	if a.readAgain() {
		a.submit()
		return
	}
	a.judge()
}

// readAgain looks at what the runs brought. Of a run that failed each unit that did not arrive is read by itself; false
// when there is none.
func (a *Audit) readAgain() bool {
	was := a.runs
	again := a.again
	a.runs, a.again = nil, true
	for _, x := range was {
		if x.read.Err == nil {
			continue
		}
		if errors.Is(x.read.Err, devio.ErrClosed) {
			a.Err = x.read.Err
		}
		pos := 0
		for _, f := range x.frags {
			for in := 0; in < f.n; in, pos = in+a.Unit, pos+a.Unit {
				switch {
				case pos+a.Unit <= x.read.N:
				case again || a.Err != nil:
					a.fail(f.area, f.off+in, a.Unit, x.read.Err)
				default:
					a.place(x.m, x.read.Off+devio.Physical(pos), auditFrag{f.area, f.off + in, a.Unit})
				}
			}
		}
	}
	if a.Err != nil {
		for _, x := range a.runs {
			x.m.load.Add(-int64(x.size))
		}
		a.runs = nil
	}
	return len(a.runs) > 0
}

// judge looks at every copy of every unit, then, if there are checksums to rebuild by, at the rows, and has read
// again what no copy holds right.
func (a *Audit) judge() {
	if a.Err != nil {
		a.end()
		return
	}
	if a.Verifier != nil {
		a.judgeUnits()
		for i := range a.rows {
			a.judgeRow(&a.rows[i])
		}
		a.retry()
		return
	}
	if a.Whole != nil {
		a.judgeWhole()
	} else {
		a.judgeNone()
	}
	a.retry()
}

// judgeNone takes what was read, as there is nothing to judge it by.
func (a *Audit) judgeNone() {
	for u := range a.content {
		for m := range a.Copies {
			if a.areas[m].errs[u] == nil && a.trusted(u, m) {
				a.content[u] = goodUnit
			}
		}
	}
}

// unit gives a unit of a copy.
func (a *Audit) unit(copy, u int) []byte { return a.areas[copy].buf.B[u*a.Unit : (u+1)*a.Unit] }

// refused is the cause of a unit that was read and is not right.
type refused struct{ error }

func (e refused) Unwrap() error { return e.error }

func (a *Audit) judgeUnits() {
	for u := range a.content {
		for m := range a.Copies {
			if a.areas[m].errs[u] != nil {
				continue
			}
			if err := a.Verifier.VerifyUnit(u, a.unit(m, u)); err != nil {
				a.areas[m].errs[u] = refused{err}
			} else {
				a.content[u] = goodUnit
			}
		}
	}
}

// judgeWhole takes the range as one: a copy is good when all of it passes. Of a copy that does not, the units
// that differ from a good one are wrong; without a good one, all that were read.
func (a *Audit) judgeWhole() {
	good := -1
	verdicts := make([]error, a.Copies)
	for m := range a.Copies {
		if slices.ContainsFunc(a.areas[m].errs, func(e error) bool { return e != nil }) {
			verdicts[m] = errUnread
		} else if verdicts[m] = a.Whole(a.areas[m].buf.B); verdicts[m] == nil && good < 0 && a.trusted(0, m) {
			good = m
		}
	}
	for m, err := range verdicts {
		a.refuseWhole(m, good, err)
	}
	for u := range a.content {
		if good >= 0 {
			a.content[u] = goodUnit
		}
	}
}

// refuseWhole marks the units of a copy that does not pass.
func (a *Audit) refuseWhole(m, good int, err error) {
	if err == nil || (good < 0 && err == errUnread) {
		return
	}
	for u := range a.content {
		if a.areas[m].errs[u] == nil && (good < 0 || !bytes.Equal(a.unit(m, u), a.unit(good, u))) {
			a.areas[m].errs[u] = refused{err}
		}
	}
}

// auditRetry reads units of which no copy is good as a Request does: from what is left, by all means.
type auditRetry struct {
	Request
	a     *Audit
	first int // unit of the range
	buf   *devio.Buffer
}

// VerifyUnit implements Verifier.
func (r *auditRetry) VerifyUnit(i int, b []byte) error {
	if r.Weak {
		return r.a.Whole(b)
	}
	return r.a.Verifier.VerifyUnit(r.first+i, b)
}

// RequestDone implements Completer.
func (r *auditRetry) RequestDone(*Request) { r.a.release() }

// retry starts the reads of what is unresolved, run by run; all at once where only the whole can be judged.
func (a *Audit) retry() {
	var reqs []*Request
	for u := 0; u < len(a.content); u++ {
		if a.content[u] != openUnit {
			continue
		}
		end := u
		for end < len(a.content) && a.content[end] == openUnit {
			end++
		}
		r := &auditRetry{a: a, first: u, buf: a.vol.pool.Get((end - u) * a.Unit)}
		r.Request = Request{Logical: a.Logical + ondisk.Logical(u*a.Unit), Buf: r.buf.B, Unit: a.Unit, Stripes: a.Stripes, Done: r}
		switch {
		case a.Verifier != nil:
			r.Verifier = r
		case a.Whole != nil:
			r.Verifier, r.Weak, r.Unit = r, true, a.Len
		}
		a.retries, reqs, u = append(a.retries, r), append(reqs, &r.Request), end
	}
	if len(reqs) == 0 {
		a.finish()
		return
	}
	a.pending.Store(int32(len(reqs)) + 1)
	a.vol.Submit(reqs)
	a.release()
}

// settle takes over what the second reading brought: good bytes, or the news that there are none.
func (a *Audit) settle() {
	for _, r := range a.retries {
		units := len(r.Buf) / a.Unit
		for i := range units {
			a.content[r.first+i] = mendedUnit
		}
		for i := range r.Lost {
			l := &r.Lost[i]
			for u := l.Off / a.Unit; u*a.Unit < l.Off+l.Len; u++ {
				a.content[r.first+u], a.lost[r.first+u] = lostUnit, l
			}
		}
		for i := range units {
			if u := r.first + i; a.content[u] == mendedUnit && a.Copies > 0 {
				a.absolve(u, r.Buf[i*a.Unit:(i+1)*a.Unit])
				copy(a.unit(0, u), r.Buf[i*a.Unit:])
			}
		}
		r.buf.Release()
	}
	a.retries = nil
	a.finish()
}

// absolve takes back what was said of copies that hold b, which turned out to be right: when only the whole could
// be judged, all of it was refused for a part.
func (a *Audit) absolve(u int, b []byte) {
	for m := range a.Copies {
		if errors.As(a.areas[m].errs[u], new(refused)) && bytes.Equal(a.unit(m, u), b) {
			a.areas[m].errs[u] = nil
		}
	}
}

// finish makes the results.
func (a *Audit) finish() {
	if a.Verifier == nil { // else the rows helped to find out what is right
		for i := range a.rows {
			a.judgeRow(&a.rows[i])
		}
	}
	a.report()
	if a.Verifier != nil && a.Whole != nil && !slices.Contains(a.content, lostUnit) {
		if err := a.Whole(a.assemble()); err != nil {
			a.Findings = append(a.Findings, Finding{Len: a.Len, Lost: true, Err: err})
		}
	}
	a.end()
}

// assemble puts good bytes of every unit into the first area. Its verdicts are told already.
func (a *Audit) assemble() []byte {
	for u := range a.content {
		if a.content[u] == goodUnit && a.areas[0].errs[u] != nil {
			m := slices.IndexFunc(a.areas[:a.Copies], func(x area) bool { return x.errs[u] == nil })
			copy(a.unit(0, u), a.unit(m, u))
		}
	}
	return a.areas[0].buf.B
}

// end gives the buffers back and tells the owner.
func (a *Audit) end() {
	for _, x := range a.areas {
		x.buf.Release()
	}
	a.areas, a.rows, a.content, a.lost = nil, nil, nil, nil
	a.Done.AuditDone(a)
}

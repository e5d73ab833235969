package volume

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// auditRow is a row of RAID5 or RAID6 that the range covers bytes [from, to) of, counted over its data columns in
// order. Of every column [lo, hi) is read, column after column, into an area; what is the range's own is in the
// area of its only copy already, and left out there.
type auditRow struct {
	c        *chunk
	start    uint64 // in the chunk
	off      int    // of from, in the range
	from, to int
	lo, hi   int
	area     int
	slices   []auditSlice
}

// auditSlice is one unit of every column of a row, at the same place of their stripes.
type auditSlice struct {
	place    int // in the stripe
	at       ondisk.Logical
	count    bool
	verdicts [2]verdict // of P and Q
}

// verdict is what one copy, or one parity block, turned out to be.
type verdict struct {
	state State
	err   error
}

// layRows plans the reads that judging parity needs, beside the range itself.
func (a *Audit) layRows() {
	for off := 0; off < a.Len; {
		l := a.Logical + ondisk.Logical(off)
		c := a.find(l)
		if mappable(c) != nil {
			off += a.Unit
			continue
		}
		n := min(a.Len-off, int(min(c.end-l, ondisk.Logical(a.Len))))
		if c.code != nil {
			a.Parity = max(a.Parity, c.parity())
			row := c.data() * stripeLen
			in := uint64(l - c.start)
			n = min(n, row-int(in%uint64(row)))
			a.layRow(c, in, off, n)
		}
		off += n
	}
}

func (a *Audit) layRow(c *chunk, in uint64, off, n int) {
	row := uint64(c.data()) * stripeLen
	from := int(in % row)
	r := auditRow{c: c, start: in - uint64(from), off: off, from: from, to: from + n, lo: stripeLen}
	for place := 0; place < stripeLen; place += a.Unit {
		if r.first(place) < 0 {
			continue
		}
		s := auditSlice{place: place, at: c.start + ondisk.Logical(r.start/row*stripeLen) + ondisk.Logical(place), count: true}
		judge := true
		if a.Slice != nil {
			judge, s.count = a.Slice(s.at)
		}
		if judge {
			r.slices = append(r.slices, s)
			r.lo, r.hi = min(r.lo, place), max(r.hi, place+a.Unit)
		}
	}
	if len(r.slices) == 0 {
		return
	}
	r.area = len(a.areas)
	a.areas = append(a.areas, a.newArea((r.hi-r.lo)*len(c.Stripes)))
	for i := range c.Stripes {
		a.layColumn(&r, i)
	}
	a.rows = append(a.rows, r)
}

// first gives the first byte of the range's part of the row, counted as from is, that lies at a place of its
// stripe; -1 when none does.
func (r *auditRow) first(place int) int {
	for i := r.from / stripeLen; i*stripeLen < r.to; i++ {
		if at := i*stripeLen + place; at >= r.from && at < r.to {
			return at
		}
	}
	return -1
}

// layColumn plans the reads of a column but for what is the range's own.
func (a *Audit) layColumn(r *auditRow, i int) {
	from, to := r.hi, r.hi // of the range's own, in the stripe
	if i < r.c.data() {
		from, to = min(max(r.from-i*stripeLen, r.lo), r.hi), min(max(r.to-i*stripeLen, r.lo), r.hi)
	}
	for _, part := range [][2]int{{r.lo, from}, {max(from, to), r.hi}} {
		if part[0] < part[1] {
			d, phys := r.c.column(r.start+uint64(part[0]), i)
			a.place(d, phys, auditFrag{r.area, i*(r.hi-r.lo) + part[0] - r.lo, part[1] - part[0]})
		}
	}
}

// column gives a slice's unit of a column, and what is known of it: nil for one that is right, ErrNoChecksum
// where nothing tells, another error for one that is no use.
func (a *Audit) column(r *auditRow, s *auditSlice, i int) ([]byte, error) {
	if u := a.own(r, s, i); u >= 0 {
		err := a.areas[0].errs[u]
		if a.Verifier == nil && (err == nil || errors.As(err, new(refused))) {
			err = ErrNoChecksum
		}
		return a.unit(0, u), err
	}
	at := i*(r.hi-r.lo) + s.place - r.lo
	x := &a.areas[r.area]
	b, err := x.buf.B[at:at+a.Unit], x.errs[at/a.Unit]
	if err != nil || i >= r.c.data() {
		return b, err
	}
	return b, a.checkColumn(r, s, i, b)
}

// own gives the unit of the range that a column of a slice is; -1 when it is none.
func (a *Audit) own(r *auditRow, s *auditSlice, i int) int {
	at := i*stripeLen + s.place
	if i >= r.c.data() || at < r.from || at >= r.to {
		return -1
	}
	return (r.off + at - r.from) / a.Unit
}

// checkColumn judges what a data column should hold.
func (a *Audit) checkColumn(r *auditRow, s *auditSlice, i int, b []byte) error {
	if u := a.own(r, s, i); u >= 0 {
		if a.Verifier == nil {
			return ErrNoChecksum
		}
		return a.Verifier.VerifyUnit(u, b)
	}
	if a.Row == nil {
		return ErrNoChecksum
	}
	return a.Row(r.c.start+ondisk.Logical(r.c.neighbour(r.start+uint64(s.place), i)), b)
}

func (a *Audit) judgeRow(r *auditRow) {
	for i := range r.slices {
		a.judgeSlice(r, &r.slices[i])
	}
}

// judgeSlice holds P and Q against the data columns, once those are known. A data column that is bad is rebuilt
// from what is left first; where that can't be done, parity alone tells nothing.
func (a *Audit) judgeSlice(r *auditRow, s *auditSlice) {
	d := r.c.data()
	cols := make([][]byte, len(r.c.Stripes))
	var bad []int
	unknown, mine := 0, false // blocks without a checksum; whether some of them are the range's own
	for i := range d {
		b, err := a.column(r, s, i)
		switch {
		case err == nil:
			cols[i] = b
		case errors.Is(err, ErrNoChecksum):
			cols[i] = b
			unknown++
			mine = mine || a.own(r, s, i) >= 0
		default:
			bad = append(bad, i)
		}
	}
	for j := range len(cols) - d {
		b, err := a.column(r, s, d+j)
		if err == nil {
			cols[d+j] = b
		}
		s.verdicts[j] = verdictOf(err)
	}
	if len(bad) > 0 && !a.rebuildColumns(r, s, cols, bad) {
		s.giveUp()
		return
	}
	a.compareParity(r, s, cols, unknown, mine)
	if len(bad) == 0 && s.verdicts[0].state == Good && (len(cols)-d == 1 || s.verdicts[1].state == Good) {
		a.Sound = append(a.Sound, s.at)
	}
}

// giveUp says that parity which was read can't be judged.
func (s *auditSlice) giveUp() {
	for j := range s.verdicts {
		if s.verdicts[j].state == Good {
			s.verdicts[j] = verdict{NotJudged, ErrNotJudged}
		}
	}
}

// compareParity computes P and Q from the data and holds what was read against them. If only one of the two
// differs, that one is wrong: wrong data would show in both.
func (a *Audit) compareParity(r *auditRow, s *auditSlice, cols [][]byte, unknown int, mine bool) {
	d := r.c.data()
	want := make([][]byte, len(cols)-d)
	for j := range want {
		want[j] = make([]byte, a.Unit)
	}
	if err := r.c.code.Compute(cols[:d], want); err != nil {
		s.giveUp()
		return
	}
	same, differ := 0, 0
	for j, w := range want {
		if cols[d+j] == nil {
			continue
		}
		if bytes.Equal(cols[d+j], w) {
			same++
			continue
		}
		differ++
		s.verdicts[j] = verdict{Bad, ErrParityWrong}
	}
	if unknown == 0 || differ == 0 || same > 0 {
		return
	}
	for j := range want {
		switch {
		case s.verdicts[j].state != Bad:
		case mine:
			s.verdicts[j] = verdict{Differs, ErrParityDiffers}
		default:
			s.verdicts[j].err = fmt.Errorf("%w, in which %d of %d data blocks have no checksum", ErrParityWrong, unknown, d)
		}
	}
}

// rebuildColumns fills the bad data columns, by P first, by Q where P may be wrong, until checks accept them.
func (a *Audit) rebuildColumns(r *auditRow, s *auditSlice, cols [][]byte, bad []int) bool {
	d := r.c.data()
	if len(bad) > len(cols)-d {
		return false
	}
	for distrust := d - 1; distrust < len(cols); distrust++ { // d-1: none
		try := slices.Clone(cols)
		if distrust >= d {
			if try[distrust] == nil {
				continue
			}
			try[distrust] = nil
		}
		if !a.fill(r, try, bad) || !a.accept(r, s, try, bad) {
			continue
		}
		for _, i := range bad {
			cols[i] = try[i]
			if u := a.own(r, s, i); u >= 0 && a.Verifier != nil {
				a.content[u] = mendedUnit
				copy(a.unit(0, u), try[i])
			}
		}
		return true
	}
	return false
}

func (a *Audit) fill(r *auditRow, cols [][]byte, bad []int) bool {
	for _, i := range bad {
		dst := make([]byte, a.Unit)
		if r.c.code.Rebuild(dst, cols, i) != nil {
			return false
		}
		cols[i] = dst
	}
	return true
}

// accept says whether columns that were rebuilt are right: none is refused by its check, and one was accepted.
// Where no column has a check, a second parity that fits must vouch for the one that was rebuilt.
func (a *Audit) accept(r *auditRow, s *auditSlice, cols [][]byte, bad []int) bool {
	vouched := false
	for _, i := range bad {
		err := a.checkColumn(r, s, i, cols[i])
		if err != nil && !errors.Is(err, ErrNoChecksum) {
			return false
		}
		vouched = vouched || err == nil
	}
	d := r.c.data()
	if vouched || len(bad) > 1 || len(cols)-d < 2 || cols[d] == nil || cols[d+1] == nil {
		return vouched
	}
	want := [][]byte{make([]byte, a.Unit), make([]byte, a.Unit)}
	return r.c.code.Compute(cols[:d], want) == nil && bytes.Equal(want[1], cols[d+1])
}

// reportRow makes the findings of a row's parity.
func (a *Audit) reportRow(r *auditRow) {
	d := r.c.data()
	for j := range len(r.c.Stripes) - d {
		var last *Finding
		for i := range r.slices {
			s := &r.slices[i]
			v := s.verdicts[j]
			m, phys := r.c.column(r.start+uint64(s.place), d+j)
			if s.count {
				a.tally(m.id, v.state)
			}
			if v.state == Good || v.state == Missing {
				continue
			}
			f := Finding{Off: r.off + r.first(s.place) - r.from, Len: a.Unit, Err: v.err, Copies: []CopyState{{
				Copy: Copy{DevID: m.id, Name: m.name(), Missing: m.dev == nil, Physical: phys, Len: uint64(a.Unit), Parity: "PQ"[j : j+1]}, State: v.state, Err: v.err}}}
			last = a.add(last, f)
		}
	}
}

var _ devio.Completer = (*auditRun)(nil)

package volume

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// rebuilt is what stands for the mirror where a block is made from the parity of its row. The kernel counts
// mirrors of RAID5 and RAID6 like that as well.
const rebuilt Mirror = maxCopies + 1

// maxColumns bounds the memory that one round reads columns into for units whose own copy failed, in bytes. What
// goes beyond it waits for the next round.
const maxColumns = 16 << 20

// muchLoad is by how much more a device has to deliver, in bytes, that what is on another is preferred although it
// takes more work.
const muchLoad = 256 << 10

// effort is how much is read to rebuild something.
type effort uint8

const (
	// sparing reads just as many columns as are needed, and takes those that the request reads for itself from
	// there. For what lies on a device that is missing or doubtful, in the first round.
	sparing effort = iota
	// broad reads every column but those of doubtful devices, so that any of them may turn out to be wrong.
	broad
	// utmost reads every column there is, each by itself.
	utmost
)

// rebuild is a part of a data column of one row, that is to be made from the other columns of the row.
type rebuild struct {
	off, n int // in the request's Buf
	c      *chunk
	in     uint64 // offset in the chunk
	want   int    // which data column it is
	effort effort
	self   bool     // the column itself is read as well: of a split unit, whose other piece may be the wrong one
	mem    [][]byte // by column, as all below: where it is read to, n bytes; nil: it is not read
	cols   [][]byte // what there is of mem, or of Buf
	shared []bool   // cols is a part of Buf, where units may be bad
	tapped []bool   // another read of the batch brings it
	errs   []error  // why there is none
	buf    *devio.Buffer
	placed bool // its columns have been asked for
	fresh  bool // something has come that was not looked at
	late   bool // a column came late
	open   bool // its columns must be judged by their own checksums before it can go on

	part     [][]byte // the columns of one unit, as last asked for
	attempts [][]int  // what suspects gave last
}

// newRebuild plans to make n bytes at off of Buf, which lie in one stripe. Its columns are chosen by readColumns.
func (r *Request) newRebuild(c *chunk, in uint64, off, n int, e effort) *rebuild {
	k := c.code.Columns()
	rb := r.vol.rebuilds.Get().(*rebuild)
	*rb = rebuild{off: off, n: n, c: c, in: in, want: int(in / stripeLen % uint64(c.data())), effort: e,
		mem: cleared(rb.mem, k), cols: cleared(rb.cols, k), shared: cleared(rb.shared, k), tapped: cleared(rb.tapped, k), errs: cleared(rb.errs, k),
		part: cleared(rb.part, k), attempts: rb.attempts[:0]}
	r.rebuilds = append(r.rebuilds, rb)
	return rb
}

// cleared gives n zeroes, in s where it has the room.
func cleared[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// chooseColumn gives what a first read of RAID5 or RAID6 asks: the data column, or parity where that can't or
// should not be asked. 0 when too much is missing. A device that keeps failing is asked all the same for what
// nothing vouches for: what parity makes of such a block could be wrong unseen.
func (r *Request) chooseColumn(c *chunk, in uint64) Mirror {
	d, _ := c.locate(in, 1)
	usable := r.usable(c, d) == nil
	switch {
	case usable && (!r.vouched() || !d.avoid()):
		return 1
	case r.spared(c, in, d, false):
		return rebuilt
	case usable:
		return 1
	case r.spared(c, in, d, true):
		return rebuilt
	}
	return 0
}

// spared says whether the row of in can do without what lies on d.
func (r *Request) spared(c *chunk, in uint64, d *member, doubtfulToo bool) bool {
	gone := 1
	for i := range c.code.Columns() {
		if m, _ := c.column(in, i); m != d && (r.usable(c, m) != nil || (m.rank() > 0 && !doubtfulToo)) {
			gone++
		}
	}
	return gone <= c.parity()
}

// planMissing plans [off, off+n) of the first round, whose own device is not to be asked. Where nothing vouches for
// the result, or a unit goes on in another stripe, that takes more than what sparing reads: the next round does it.
func (r *Request) planMissing(c *chunk, in uint64, off, n int, split bool) {
	if split || !r.vouched() {
		for u := off / r.Unit; u*r.Unit < off+n; u++ {
			r.addBad(u)
		}
		return
	}
	r.newRebuild(c, in, off, n, sparing)
}

// retryRow goes on with a unit of RAID5 or RAID6: parity first, the data column where that was not asked, and in
// the end everything by itself.
func (r *Request) retryRow(u *badUnit, c *chunk, in uint64) {
	for {
		switch {
		case u.effort > sparing && u.tried[0] == untried, u.effort == utmost && u.tried[0] == grouped:
			r.countRetry(u)
			r.place(c, in, u.unit*r.Unit, r.Unit, 1, true)
			return
		case u.effort < utmost:
			if r.memory >= maxColumns {
				return
			}
			u.effort++
			if r.rebuildUnit(u, c, in, u.effort) {
				return
			}
		default:
			r.giveIn(u)
			return
		}
	}
}

// rebuildUnit plans to make the unit from its row, together with the unit in front of it where that lies in the
// same stripe; false when too few columns can be asked, or none that was not asked before.
func (r *Request) rebuildUnit(u *badUnit, c *chunk, in uint64, e effort) bool {
	d, _ := c.locate(in, 1)
	if !r.spared(c, in, d, true) {
		r.noteMissing(u, c, in)
		return false
	}
	if e == utmost && u.rb != nil && !u.rb.lacking() {
		return false
	}
	off := u.unit * r.Unit
	rb := r.lastRebuild()
	if rb != nil && !rb.placed && rb.effort == broad && e == broad && rb.c == c && rb.off+rb.n == off && rb.in/stripeLen == in/stripeLen {
		rb.n += r.Unit
	} else {
		rb = r.newRebuild(c, in, off, r.Unit, e)
	}
	r.memory += r.Unit * c.code.Columns()
	r.countRetry(u)
	u.rb = rb
	return true
}

func (r *Request) lastRebuild() *rebuild {
	if len(r.rebuilds) == 0 {
		return nil
	}
	return r.rebuilds[len(r.rebuilds)-1]
}

// readColumns asks for the columns of what is planned to be rebuilt. b is the batch that they may be shared in, or nil.
func (r *Request) readColumns(b *batch) {
	for i := 0; i < len(r.rebuilds); i++ { // what is cut off comes behind
		if rb := r.rebuilds[i]; !rb.placed {
			rb.placed, rb.fresh, r.hedge = true, true, true
			if b != nil {
				b.cut(r, rb)
			}
			r.chooseColumns(rb)
			r.placeColumns(rb, b)
		}
	}
}

// chooseColumns marks the columns to read with an empty, non-nil mem, and takes those from Buf that are read
// anyway. Doubtful devices and those that missed writes are left out as long as there are enough without.
func (r *Request) chooseColumns(rb *rebuild) {
	c, need := rb.c, rb.c.data()
	well := 0
	for i := range rb.mem {
		m, _ := c.column(rb.in, i)
		if rb.errs[i] = r.usable(c, m); rb.errs[i] == nil && m.rank() == 0 && i != rb.want {
			well++
		}
	}
	taken, spare := 0, -1
	if rb.effort == sparing && well > need && rb.prefersQ() {
		spare = c.data()
	}
	for i := range rb.mem {
		m, _ := c.column(rb.in, i)
		switch {
		case rb.errs[i] != nil, i == rb.want && !rb.self, i == spare:
		case rb.effort != utmost && well >= need && m.rank() > 0:
			rb.errs[i] = ErrSlow
			if m.stale {
				rb.errs[i] = ErrStale
			}
		case rb.effort == sparing && taken == need:
		case rb.effort == sparing && r.share(rb, i):
			taken++
		default:
			rb.mem[i] = []byte{}
			taken++
		}
	}
}

// prefersQ says whether Q, from which it takes more to rebuild than from P, can be had so much sooner that it is
// worth it: the columns that a missing device leaves are not as many on each of the others, if P is always taken.
func (rb *rebuild) prefersQ() bool {
	d := rb.c.data()
	if rb.c.parity() < 2 || rb.errs[d] != nil || rb.errs[d+1] != nil {
		return false
	}
	p, _ := rb.c.column(rb.in, d)
	q, _ := rb.c.column(rb.in, d+1)
	return q.rank() == 0 && p.load.Load() > q.load.Load()+muchLoad
}

// share takes a data column that the request reads for itself, the same part of it.
func (r *Request) share(rb *rebuild, i int) bool {
	if i >= rb.c.data() {
		return false
	}
	l := rb.c.start + ondisk.Logical(rb.c.neighbour(rb.in, i))
	if l < r.Logical || uint64(l-r.Logical)+uint64(rb.n) > uint64(len(r.Buf)) {
		return false
	}
	m, _ := rb.c.column(rb.in, i)
	if m.doubtful() {
		return false // it may be rebuilt itself
	}
	at := int(l - r.Logical)
	rb.cols[i], rb.shared[i] = r.Buf[at:at+rb.n], true
	return true
}

// placeColumns asks for the columns that are marked: of a read of the batch that brings them anyway, else of their
// devices.
func (r *Request) placeColumns(rb *rebuild, b *batch) {
	n := 0
	for i := range rb.mem {
		if rb.mem[i] == nil {
			continue
		}
		rb.tapped[i] = rb.effort == sparing && b != nil && b.tap(r, rb, i)
		if len(rb.mem[i]) == 0 {
			n += rb.n
		}
	}
	if n > 0 {
		rb.buf = r.vol.pool.Get(n)
	}
	at := 0
	for i := range rb.mem {
		if rb.mem[i] == nil {
			continue
		}
		if len(rb.mem[i]) == 0 {
			rb.mem[i] = rb.buf.B[at : at+rb.n : at+rb.n]
			at += rb.n
		}
		rb.cols[i] = rb.mem[i]
		if !rb.tapped[i] {
			m, phys := rb.c.column(rb.in, i)
			started := r.add(frag{off: rb.off, n: rb.n, c: rb.c, m: m, phys: phys, rb: rb, col: i}, rb.effort == utmost)
			if started && b != nil {
				b.enter(r, len(r.runs)-1)
			}
		}
	}
}

// missed notes that a column could not be read, or not in time.
func (rb *rebuild) missed(col int, err error) { rb.cols[col], rb.errs[col] = nil, err }

// arrived takes a column that is late, and looks at those units again that nothing could serve so far.
func (rb *rebuild) arrived(r *Request, fr *frag, err error) {
	if err != nil {
		rb.errs[fr.col] = err
		return
	}
	rb.cols[fr.col], rb.errs[fr.col] = rb.mem[fr.col], nil
	rb.fresh, rb.late = true, true
	if r.split && len(r.bad) == 1 && r.bad[0].state != good && r.bad[0].rbs != nil {
		r.bad[0].state = trying
	}
}

// rebuildAll makes what columns have come for. judging: the columns' own checksums are asked, which may wait.
func (r *Request) rebuildAll(judging bool) {
	var more []badUnit
	for _, rb := range r.rebuilds {
		if !rb.fresh && !rb.open {
			continue
		}
		rb.fresh, rb.open = false, false
		// What a late column completes may serve units that other rebuilds were tried for since.
		for o := rb.off; o < rb.off+rb.n && !r.split; o += r.Unit {
			i, isBad := r.recorded(o / r.Unit)
			switch {
			case isBad && r.bad[i].state != good && (r.bad[i].rb == rb || rb.late):
				r.rebuildBad(&r.bad[i], rb, judging)
			case !isBad && rb.effort == sparing:
				if err := r.makeUnit(o/r.Unit, rb, nil); err != nil {
					more = append(more, badUnit{unit: o / r.Unit, rb: rb, cause: err})
				}
			}
		}
	}
	if r.split && len(r.bad) == 1 && r.bad[0].state == trying && r.bad[0].rbs != nil {
		r.rebuildSplit(&r.bad[0], judging)
	}
	if len(more) > 0 {
		r.bad = append(r.bad, more...)
		r.sortBad()
	}
}

// needsJudge says whether something can't be made before the columns are judged.
func (r *Request) needsJudge() bool {
	return slices.ContainsFunc(r.rebuilds, func(rb *rebuild) bool { return rb.open })
}

// rebuildBad makes a unit whose own copy failed.
func (r *Request) rebuildBad(u *badUnit, rb *rebuild, judging bool) {
	var bad []int
	if judging {
		bad = r.judge(rb, u.unit*r.Unit, r.Unit)
	} else if r.judgeFirst() {
		rb.open = true
		return
	}
	if u.cause = r.makeUnit(u.unit, rb, bad); u.cause == nil {
		u.state = good
		return
	}
	if !judging && r.judgeable(rb) {
		u.state, rb.open = trying, true
		return
	}
	r.noteColumns(u, rb)
}

// judgeFirst says whether nothing may be made of columns before those were judged, since no check of the unit's
// own would tell.
func (r *Request) judgeFirst() bool { return !r.vouched() && r.vol.opts.Judge != nil && !r.Metadata }

// judgeable says whether knowing the columns that are wrong could help. Where P alone is there, it could not.
func (r *Request) judgeable(rb *rebuild) bool {
	return r.vol.opts.Judge != nil && !r.Metadata && rb.c.parity() > 1 && rb.effort != sparing
}

// judge gives the data columns which their own checksums refuse in the n bytes at off of Buf.
func (r *Request) judge(rb *rebuild, off, n int) (bad []int) {
	if r.vol.opts.Judge == nil || r.Metadata {
		return nil
	}
	for i := range rb.c.data() {
		col := rb.column(i, off, n)
		l := rb.c.start + ondisk.Logical(rb.c.neighbour(rb.in+uint64(off-rb.off), i))
		if i != rb.want && col != nil && r.vol.opts.Judge.Bad(l, col) {
			bad = append(bad, i)
		}
	}
	return bad
}

// column gives what there is of column i for n bytes at off of Buf.
func (rb *rebuild) column(i, off, n int) []byte {
	if rb.cols[i] == nil {
		return nil
	}
	return rb.cols[i][off-rb.off : off-rb.off+n]
}

// columns gives all columns for n bytes at off of Buf, but not those whose unit there is known to be bad. They
// are good until it is called again.
func (r *Request) columns(rb *rebuild, off, n int) [][]byte {
	out := rb.part
	for i := range out {
		if out[i] = rb.column(i, off, n); out[i] == nil || !rb.shared[i] {
			continue
		}
		l := rb.c.start + ondisk.Logical(rb.c.neighbour(rb.in+uint64(off-rb.off), i))
		if _, isBad := r.recorded(int(l-r.Logical) / r.Unit); isBad {
			out[i] = nil
		}
	}
	return out
}

// suspects lists which columns to leave out of a rebuild, one attempt after the other: those that are known to be
// wrong, those that missed writes, none, and where a check will tell right from wrong and there are two parities,
// P and each data column in turn. They are good until it is called again.
func (r *Request) suspects(rb *rebuild, bad []int) [][]int {
	out := rb.attempts[:0]
	defer func() { rb.attempts = out }()
	if r.Verifier == nil {
		return append(out, bad)
	}
	if len(bad) > 0 {
		out = append(out, bad)
	}
	var stale []int
	for i := range rb.cols {
		if m, _ := rb.c.column(rb.in, i); m.stale && i != rb.want && rb.cols[i] != nil {
			stale = append(stale, i)
		}
	}
	if len(stale) > 0 {
		out = append(out, stale)
	}
	out = append(out, nil)
	if rb.c.parity() < 2 || rb.effort == sparing {
		return out
	}
	out = append(out, []int{rb.c.data()})
	for i := range rb.c.data() {
		if i != rb.want {
			out = append(out, []int{i})
		}
	}
	return out
}

// makeUnit makes a unit of its row's columns until its check accepts it, and counts it; it returns why that was not
// to be had. Without a check only what both parities agree on is taken, where there are both.
func (r *Request) makeUnit(unit int, rb *rebuild, bad []int) (err error) {
	off := unit * r.Unit
	dst := r.Buf[off : off+r.Unit]
	cols := r.columns(rb, off, r.Unit)
	cols[rb.want] = nil
	for _, without := range r.suspects(rb, bad) {
		some := omit(cols, without)
		err = rb.c.code.Rebuild(dst, some, rb.want)
		if err == nil && r.Verifier == nil {
			err = agree(rb, some, dst)
		}
		if err == nil && r.Verifier != nil {
			err = r.Verifier.VerifyUnit(unit, dst)
		}
		if err == nil {
			r.countRebuilt(rb, cols, without)
			return nil
		}
	}
	return err
}

// omit gives the columns without some.
func omit(cols [][]byte, without []int) [][]byte {
	if len(without) == 0 {
		return cols
	}
	out := slices.Clone(cols)
	for _, i := range without {
		out[i] = nil
	}
	return out
}

// agree holds what P and the data gave against what Q gives, where all columns but the wanted one are there.
func agree(rb *rebuild, cols [][]byte, made []byte) error {
	if rb.c.parity() < 2 || len(cols)-1 != countThere(cols) {
		return nil
	}
	other := make([]byte, len(made))
	if err := rb.c.code.Rebuild(other, omit(cols, []int{rb.c.data()}), rb.want); err != nil || !bytes.Equal(made, other) {
		return ErrParity
	}
	return nil
}

func countThere(cols [][]byte) (n int) {
	for _, c := range cols {
		if c != nil {
			n++
		}
	}
	return n
}

// countRebuilt counts a unit that was made. A parity column that had to be left out although it was there is wrong:
// it counts against its device, since nobody else ever reads it for itself.
func (r *Request) countRebuilt(rb *rebuild, cols [][]byte, without []int) {
	r.vol.opts.Stats.Repaired("parity")
	for _, i := range without {
		if m, _ := rb.c.column(rb.in, i); i >= rb.c.data() && cols[i] != nil && !m.stale {
			r.vol.opts.Stats.ChecksumFailed(uint64(m.id), r.Metadata)
			r.vol.opts.Stats.Retried(uint64(m.id), "checksum")
		}
	}
}

// noteColumns adds to the causes of a unit why each column of its row was of no help.
func (r *Request) noteColumns(u *badUnit, rb *rebuild) {
	u.state = failed
	in := rb.in + uint64(max(u.unit*r.Unit-rb.off, 0))
	for i := range rb.cols {
		err := rb.errs[i]
		if i == rb.want {
			if m, phys := rb.c.column(in, i); err != nil && rb.self {
				u.note(&CopyError{Logical: r.Logical + ondisk.Logical(rb.off), Dev: m.id, Name: m.name(), Physical: phys, Mirror: 1, Err: err})
			}
			continue
		}
		if err == nil && i >= rb.c.data() && rb.mem[i] != nil {
			err = fmt.Errorf("rebuilt with it: %w", u.cause)
		}
		if err != nil {
			u.noteColumn(r, rb.c, in, i, err)
		}
	}
}

// noteMissing adds which devices a row can't be rebuilt without.
func (r *Request) noteMissing(u *badUnit, c *chunk, in uint64) {
	for i := range c.code.Columns() {
		if m, _ := c.column(in, i); i != int(in/stripeLen%uint64(c.data())) {
			if err := r.usable(c, m); err != nil {
				u.noteColumn(r, c, in, i, err)
			}
		}
	}
}

func (b *badUnit) noteColumn(r *Request, c *chunk, in uint64, i int, err error) {
	m, phys := c.column(in, i)
	name := fmt.Sprintf("D%d", i)
	if i >= c.data() {
		name = "PQ"[i-c.data():][:1]
	}
	b.note(&CopyError{Logical: r.Logical + ondisk.Logical(b.unit*r.Unit), Dev: m.id, Name: m.name(), Physical: phys, Column: name, Err: err})
}

func (r *Request) dropRebuilds() {
	for _, rb := range r.rebuilds {
		if rb.buf != nil {
			rb.buf.Release()
		}
		r.vol.rebuilds.Put(rb)
	}
	clear(r.rebuilds)
	r.rebuilds = r.rebuilds[:0]
}

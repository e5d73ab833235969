package volume

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// errSplit is the end of a data request whose sectors would lie across stripes: no valid extent does.
var errSplit = errors.New("sector crosses a stripe")

// A node is only sure to be aligned to the sector, so it may cross a stripe, on striped profiles even
// devices (btrfs-progs' fsck-tests/018). Then its fragments have copies of their own, and any
// combination may be the good one: n copies of p fragments give n^p, counted as digits. An extent that is
// checked whole is like that too, where the stripe tree has several items for it.

// maxPieces bounds the fragments of a split unit: a compressed extent of 128 KiB whose every sector lies by
// itself. maxCombos bounds the combinations that are looked at, which else a crafted stripe tree decides.
const (
	maxPieces = 32
	maxCombos = 1 << 10
)

// settleSplit judges the one unit of a split request, once all its fragments were read.
func (r *Request) settleSplit() {
	if len(r.Buf) != r.Unit {
		if r.round == 0 {
			r.bad = r.bad[:0]
			for u := 0; u*r.Unit < len(r.Buf); u++ {
				r.addBad(u).err = fmt.Errorf("%w: logical %d", errSplit, r.Logical)
			}
		}
		return
	}
	if len(r.bad) == 0 {
		r.bad = append(r.bad, badUnit{state: trying})
	}
	u := &r.bad[0]
	if u.state != trying {
		return // planning found a fragment that nothing can serve
	}
	if u.rbs != nil {
		return // rebuildSplit judges what is made of columns
	}
	if err := r.judgeSplit(u); err != nil {
		u.state = failed
	} else if r.round == 0 {
		r.bad = r.bad[:0]
	}
}

// judgeSplit counts a failed read against its device, and a failed check against every device of the
// combination: which of them was wrong, only another combination can tell.
func (r *Request) judgeSplit(u *badUnit) error {
	var first error
	for i := range r.runs {
		x := &r.runs[i]
		err, reason := ErrSlow, "slow"
		if x.state.Load() == landed {
			err, reason = x.read.Err, "io"
		}
		if err != nil {
			first, u.fresh, u.dev = err, reason, x.m.id
			r.noteSplit(u, x, err)
		}
	}
	if first != nil || r.Verifier == nil {
		return first
	}
	err := r.Verifier.VerifyUnit(0, r.Buf)
	for i := range r.runs {
		if x := &r.runs[i]; err != nil {
			r.vol.opts.Stats.ChecksumFailed(uint64(x.m.id), r.Metadata)
			u.fresh, u.dev = "checksum", x.m.id
			r.noteSplit(u, x, err)
		}
	}
	return err
}

func (r *Request) noteSplit(u *badUnit, x *run, err error) {
	f := &x.frags[x.first]
	u.note(&CopyError{Logical: r.Logical + ondisk.Logical(f.off), Dev: x.m.id, Name: x.m.name(), Physical: f.phys, Mirror: f.mirror, Err: err})
}

// retrySplit plans the next combination whose every device can be asked. The first round's comes again in
// its turn: which one that was, the load of the devices decided.
func (r *Request) retrySplit(u *badUnit) {
	if c := r.find(r.Logical); c != nil && c.code != nil {
		r.retryPieces(u)
		return
	}
	for done := false; !done; u.combo++ {
		done = r.planCombo(u)
	}
}

// planCombo plans combination u.combo; true when it was planned, or when there are no more.
func (r *Request) planCombo(u *badUnit) bool {
	if u.combo == maxCombos {
		u.state = lost
		return true
	}
	digits := u.combo
	var mirrors [maxPieces]Mirror
	var pieces int
	usable := true
	for off := 0; off < len(r.Buf); pieces++ {
		l := r.Logical + ondisk.Logical(off)
		c := r.find(l)
		in := uint64(l - c.start)
		if pieces == len(mirrors) {
			u.state = lost
			return true
		}
		mirrors[pieces] = Mirror(digits%c.copies) + 1
		digits /= c.copies
		d, phys := c.locate(in, mirrors[pieces])
		if err := r.usable(c, d); err != nil {
			usable = false
			u.note(&CopyError{Logical: l, Dev: d.id, Name: d.name(), Physical: phys, Mirror: mirrors[pieces], Err: err})
		}
		off += int(min(uint64(len(r.Buf)-off), c.extent(in)))
	}
	if digits > 0 {
		u.state = lost
		return true
	}
	if !usable {
		return false
	}
	r.countRetry(u)
	r.placeCombo(mirrors[:pieces])
	return true
}

func (r *Request) placeCombo(mirrors []Mirror) {
	off := 0
	for _, m := range mirrors {
		l := r.Logical + ondisk.Logical(off)
		c := r.find(l)
		in := uint64(l - c.start)
		n := int(min(uint64(len(r.Buf)-off), c.extent(in)))
		r.place(c, in, off, n, m, true)
		off += n
	}
}

// retryPieces plans to read everything that each piece of a unit on RAID5 or RAID6 can be made of.
func (r *Request) retryPieces(u *badUnit) {
	for u.effort < utmost {
		u.effort++
		if u.effort == broad || slices.ContainsFunc(u.rbs, (*rebuild).lacking) {
			if r.rebuildPieces(u, u.effort) {
				return
			}
		}
	}
	r.giveIn(u)
}

// lacking says whether some column was not to be had.
func (rb *rebuild) lacking() bool {
	return slices.ContainsFunc(rb.errs, func(err error) bool { return err != nil })
}

func (r *Request) rebuildPieces(u *badUnit, e effort) bool {
	var rbs []*rebuild
	for off := 0; off < len(r.Buf); {
		l := r.Logical + ondisk.Logical(off)
		c := r.find(l)
		if mappable(c) != nil || c.code == nil || len(rbs) == maxPieces {
			return false
		}
		in := uint64(l - c.start)
		n := int(min(uint64(len(r.Buf)-off), c.extent(in)))
		rb := r.newRebuild(c, in, off, n, e)
		rb.self = true
		rbs = append(rbs, rb)
		off += n
	}
	r.countRetry(u)
	u.rbs = rbs
	return true
}

// rebuildSplit tries what its pieces can be in every combination.
func (r *Request) rebuildSplit(u *badUnit, judging bool) {
	if !judging && r.judgeFirst() {
		u.rbs[0].open = true
		return
	}
	options := make([][][]byte, len(u.rbs))
	for i, rb := range u.rbs {
		if options[i] = r.options(u, rb, judging); len(options[i]) == 0 {
			r.notePieces(u)
			return
		}
	}
	for combo := range maxCombos {
		digits := combo
		for i, rb := range u.rbs {
			copy(r.Buf[rb.off:], options[i][digits%len(options[i])])
			digits /= len(options[i])
		}
		if digits > 0 {
			break
		}
		if u.cause = r.Verifier.VerifyUnit(0, r.Buf); u.cause == nil {
			u.state = good
			r.vol.opts.Stats.Repaired("parity")
			return
		}
	}
	if !judging && r.judgeable(u.rbs[0]) {
		u.rbs[0].open = true
		return
	}
	r.notePieces(u)
}

func (r *Request) notePieces(u *badUnit) {
	if u.cause == nil {
		u.cause = ErrMissing
	}
	for _, rb := range u.rbs {
		r.noteColumns(u, rb)
	}
}

// options gives the different contents that a piece can have: what its device delivered, and what can be made of
// the other columns.
func (r *Request) options(u *badUnit, rb *rebuild, judging bool) (out [][]byte) {
	cols := slices.Clone(rb.cols)
	if own := cols[rb.want]; own != nil {
		out = append(out, own)
		cols[rb.want] = nil
	}
	var bad []int
	if judging {
		bad = r.judge(rb, rb.off, rb.n)
	}
	for _, without := range r.suspects(rb, bad) {
		made := make([]byte, rb.n)
		if err := rb.c.code.Rebuild(made, omit(cols, without), rb.want); err != nil {
			u.cause = err
		} else if !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, made) }) {
			out = append(out, made)
		}
	}
	return out
}

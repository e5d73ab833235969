package volume

import (
	"errors"
	"fmt"

	"github.com/btrexport/btrexport/devio"
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
	if err := r.judgeSplit(u); err != nil {
		u.state, u.fresh = failed, true
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
		if x.read.Err != nil {
			first = x.read.Err
			u.io, u.dev = true, x.m.id
			r.noteSplit(u, x, x.read.Err)
		}
	}
	if first != nil || r.Verifier == nil {
		return first
	}
	err := r.Verifier.VerifyUnit(0, r.Buf)
	for i := range r.runs {
		if x := &r.runs[i]; err != nil {
			r.vol.opts.Stats.ChecksumFailed(uint64(x.m.id), r.Metadata)
			u.io, u.dev = false, x.m.id
			r.noteSplit(u, x, err)
		}
	}
	return err
}

func (r *Request) noteSplit(u *badUnit, x *run, err error) {
	f := &r.frags[x.first]
	u.note(&CopyError{Logical: r.Logical + ondisk.Logical(f.off), Dev: x.m.id, Name: x.m.name(), Physical: f.phys, Mirror: f.mirror, Err: err})
}

// retrySplit plans the next combination whose every device can be asked. The first round's comes again in
// its turn: which one that was, the load of the devices decided.
func (r *Request) retrySplit(u *badUnit) {
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
		if err := d.usable(r.vouched(), r.vol.opts.Degraded); err != nil {
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

var _ devio.Completer = (*run)(nil)

package volume

import (
	"bytes"
	"cmp"
	"errors"
	"slices"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

var (
	// ErrDiffers: copies of a block without a checksum are not the same.
	ErrDiffers = errors.New("copies differ, no checksum says which is right")
	// ErrParityWrong: a parity block is not what its row's data make.
	ErrParityWrong = errors.New("parity does not match its row")
	// ErrParityDiffers: the same of a row in which the wrong block may as well be one of the file's.
	ErrParityDiffers = errors.New("data and parity do not match, no checksum says which is right")
	// ErrNotJudged: parity of a row in which a data block is bad or unreadable and can't be rebuilt.
	ErrNotJudged = errors.New("parity not judged: a block of its row is bad or unreadable and can't be rebuilt")
	// ErrStaleDiffers is a block without a checksum of a device that missed writes, which is not what others hold.
	ErrStaleDiffers = errors.New("device missed writes, and the block differs from other copies")

	errNoPlace = errors.New("there is no such copy")
	errUnread  = errors.New("copy was not read in full")
)

// State is what a copy turned out to be.
type State uint8

// Good passed its check, Unverified was read and has none. Bad was refused by its check, Unreadable by its device.
const (
	Good State = iota
	Unverified
	Bad
	Unreadable
	Missing   // its device was not given
	Differs   // another copy, or the parity, is not the same, and nothing tells which is right
	NotJudged // parity that was read and can't be held against its row
	states
)

func (s State) String() string {
	return [...]string{"good", "unverified", "bad", "unreadable", "missing", "differs", "not judged"}[s]
}

// CopyState is a copy of a range, or a parity block, and what it turned out to be. Len is as far as that goes.
type CopyState struct {
	Copy
	State State
	Err   error // of the first block; nil for Good
}

// Finding is a part of an Audit's range of which not every copy is good: Len bytes at Off.
type Finding struct {
	Off, Len int
	// Copies are all copies of the part, the good ones too; or the one parity block that is not good, for the
	// first of the range's bytes in its slice.
	Copies []CopyState
	Lost   bool  // nothing serves it
	Repair bool  // no copy is good, and yet it can be read: rebuilt from parity, or by a second try
	Err    error // why, where it is not one of the copies that is to blame
}

// Tally counts blocks of one device by what they turned out to be.
type Tally [states]int64

// Blocks is how many there are in all.
func (t *Tally) Blocks() (n int64) {
	for _, s := range t {
		n += s
	}
	return n
}

// Add adds another tally.
func (t *Tally) Add(o *Tally) {
	for i := range t {
		t[i] += o[i]
	}
}

// Continues says whether b is what comes n bytes behind a on the same devices, in the same states.
func Continues(a []CopyState, n uint64, b []CopyState) bool {
	return slices.EqualFunc(a, b, func(x, y CopyState) bool {
		return x.DevID == y.DevID && x.Mirror == y.Mirror && x.Parity == y.Parity && x.State == y.State && x.Physical+devio.Physical(n) == y.Physical
	})
}

// Lengthen makes the copies n bytes longer.
func Lengthen(copies []CopyState, n uint64) {
	for i := range copies {
		copies[i].Len += n
	}
}

func verdictOf(err error) verdict {
	switch {
	case err == nil:
		return verdict{Good, nil}
	case errors.Is(err, ErrMissing):
		return verdict{Missing, err}
	case errors.Is(err, ErrNoChecksum):
		return verdict{Unverified, err}
	case errors.As(err, new(refused)):
		return verdict{Bad, err}
	}
	return verdict{Unreadable, err}
}

// tally counts a block.
func (a *Audit) tally(id devio.DevID, s State) {
	t := a.Tally[id]
	if t == nil {
		t = &Tally{}
		a.Tally[id] = t
	}
	t[s]++
}

// add appends a finding, or lengthens the last one of its kind, which it returns.
func (a *Audit) add(last *Finding, f Finding) *Finding {
	if last != nil && last.Off+last.Len == f.Off && last.Lost == f.Lost && last.Repair == f.Repair && Continues(last.Copies, uint64(last.Len), f.Copies) {
		last.Len += f.Len
		Lengthen(last.Copies, uint64(f.Len))
		return last
	}
	a.Findings = append(a.Findings, f)
	return &a.Findings[len(a.Findings)-1]
}

// report makes the findings of the copies, then those of parity, and counts every block.
func (a *Audit) report() {
	var last *Finding
	a.pieces(func(c *chunk, in uint64, off, n int) {
		for o := 0; o < n; o += a.Unit {
			u := (off + o) / a.Unit
			f := Finding{Off: off + o, Len: a.Unit, Lost: a.content[u] == lostUnit, Repair: a.content[u] == mendedUnit}
			notable := f.Lost
			if f.Lost {
				f.Err = a.lostCause(u)
			}
			if c != nil {
				notable = a.states(&f, c, in+uint64(o), u) || notable
			}
			if notable {
				last = a.add(last, f)
			}
		}
	})
	for i := range a.rows {
		a.reportRow(&a.rows[i])
	}
	slices.SortStableFunc(a.Findings, func(x, y Finding) int { return cmp.Compare(x.Off, y.Off) })
}

// lostCause gives why a unit is lost when it is not for its copies.
func (a *Audit) lostCause(u int) error {
	var l *Lost
	if errors.As(a.lost[u], &l) && l.Err != nil {
		return l.Err
	}
	return nil
}

// states fills in the copies of a unit and counts them; true when one is bad. Missing ones alone are not told:
// they would be all of the range.
func (a *Audit) states(f *Finding, c *chunk, in uint64, u int) (notable bool) {
	for m := range c.copies {
		d, phys := c.locate(in, Mirror(m+1))
		v := verdictOf(a.areas[m].errs[u])
		if v.state == Good && a.Verifier == nil {
			v.state = Unverified
		}
		if v.state == Unverified && a.areas[m].errs[u] == nil {
			v = a.compare(c, in, u, m)
		}
		if v.state == Missing {
			a.Absent++
		}
		if !a.Uncounted {
			a.tally(d.id, v.state)
		}
		notable = notable || (v.state != Good && v.state != Unverified && v.state != Missing)
		f.Copies = append(f.Copies, CopyState{Copy: Copy{Mirror: Mirror(m + 1), DevID: d.id, Name: d.name(), Missing: d.dev == nil,
			Physical: phys, Len: uint64(a.Unit)}, State: v.state, Err: plain(v.err)})
	}
	return notable
}

// plain takes the mark of a refused unit off.
func plain(err error) error {
	var r refused
	if errors.As(err, &r) {
		return r.error
	}
	return err
}

// compare holds a copy without a checksum against the others that were read. One of a device that missed writes
// is wrong where it differs from one that did not.
func (a *Audit) compare(c *chunk, in uint64, u, m int) verdict {
	mine, _ := c.locate(in, Mirror(m+1))
	for o := range c.copies {
		if o == m || a.areas[o].errs[u] != nil || bytes.Equal(a.unit(o, u), a.unit(m, u)) {
			continue
		}
		switch other, _ := c.locate(in, Mirror(o+1)); {
		case mine.stale && !other.stale:
			return verdict{Bad, ErrStaleDiffers}
		case mine.stale == other.stale:
			return verdict{Differs, ErrDiffers}
		}
	}
	return verdict{Unverified, nil}
}

// trusted says whether a copy without a checksum may serve: as member.usable has it.
func (a *Audit) trusted(u, m int) bool {
	l := a.Logical + ondisk.Logical(u*a.Unit)
	c := a.find(l)
	d, _ := c.locate(uint64(l-c.start), Mirror(m+1))
	return d.usable(false, a.vol.opts.Degraded) == nil
}

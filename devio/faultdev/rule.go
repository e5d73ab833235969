package faultdev

import (
	"io"
	"time"

	"github.com/btrexport/btrexport/devio"
)

// Rule is a fault that has been added to a Dev.
type Rule struct {
	dev    *Dev
	match  Match
	effect effect // immutable
	hangs  bool   // immutable; Release removes it

	seen int // guarded by dev.mu; reads that touched the range
	hits int // guarded by dev.mu; reads that the rule was applied to
}

// effect enters a fault into the verdict on a read, whose bytes [from, to) lie in the rule's range.
type effect func(v *verdict, from, to uint64)

// Hits is the number of reads that the rule has been applied to.
func (r *Rule) Hits() int {
	r.dev.mu.Lock()
	defer r.dev.mu.Unlock()
	return r.hits
}

// Fired reports whether the rule has been applied to a read.
func (r *Rule) Fired() bool { return r.Hits() > 0 }

// Remove ends the rule for reads to come.
func (r *Rule) Remove() { r.dev.remove(r) }

// Fail makes the reads that m matches fail as a whole with err: EIO, or ENODATA as SCSI disks say
// for a medium error. They do not reach the device below.
func (d *Dev) Fail(m Match, err error) *Rule {
	if err == nil {
		panic("faultdev: Fail without an error; Lose(nil) and Short are the silent ones")
	}
	return d.arm(&Rule{match: m, effect: func(v *verdict, _, _ uint64) { v.fail(err) }})
}

// Lose makes every read fail with err or, if that is nil, bring nothing without an error, as
// a disk that was pulled out does: devio calls that io.ErrUnexpectedEOF. Remove brings it back.
func (d *Dev) Lose(err error) *Rule {
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return d.Fail(All(), err)
}

// Short cuts the reads that m matches: they bring what lies before the range of m, and keep bytes
// of what lies in it. Without a range that is the first keep bytes. A read is not cut if that is
// all of it.
func (d *Dev) Short(m Match, keep int) *Rule {
	return d.arm(&Rule{match: m, effect: func(v *verdict, from, _ uint64) { v.cut(from + uint64(keep)) }})
}

// Corrupt changes every byte that the reads that m matches have in its range: a bad copy, which
// no error tells. A byte is changed once, however many rules concern it.
func (d *Dev) Corrupt(m Match) *Rule {
	return d.arm(&Rule{match: m, effect: func(v *verdict, from, to uint64) { v.bad = append(v.bad, span{from, to}) }})
}

// Delay makes the reads that m matches start later by wait. Of several delays the longest counts.
func (d *Dev) Delay(m Match, wait time.Duration) *Rule {
	return d.arm(&Rule{match: m, effect: func(v *verdict, _, _ uint64) { v.wait = max(v.wait, wait) }})
}

// Hang keeps the reads that m matches until Release, or until Close ends them with devio.ErrClosed.
func (d *Dev) Hang(m Match) *Rule {
	return d.arm(&Rule{match: m, hangs: true, effect: func(v *verdict, _, _ uint64) { v.hang = true }})
}

// span is [from, to) in bytes from the start of a read.
type span struct{ from, to uint64 }

// verdict is what shall happen to one read.
type verdict struct {
	err  error         // nil: let it through to the device
	keep uint64        // bytes that may arrive, if short
	less bool          // short
	bad  []span        // corrupted
	wait time.Duration // before it starts
	hang bool
}

// fail sets the error unless an earlier rule has.
func (v *verdict) fail(err error) {
	if v.err == nil {
		v.err = err
	}
}

// cut lowers the number of bytes that may arrive.
func (v *verdict) cut(keep uint64) {
	if !v.less || keep < v.keep {
		v.keep, v.less = keep, true
	}
}

// apply judges r by the rule. dev.mu is held.
func (r *Rule) apply(read *devio.Read, v *verdict) {
	from, to := r.match.touched(read)
	if from >= to {
		return
	}
	nth := r.seen
	r.seen++
	if nth < r.match.first || (r.match.count > 0 && nth >= r.match.first+r.match.count) {
		return
	}
	r.hits++
	r.effect(v, from, to)
}

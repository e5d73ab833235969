package volume

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// audited is an Audit that knows what the chunk must hold.
type audited struct {
	Audit
	want []byte // of the range
	done chan struct{}
}

func (a *audited) AuditDone(*Audit) { close(a.done) }

func (a *audited) VerifyUnit(i int, b []byte) error {
	if !bytes.Equal(b, a.want[i*a.Unit:][:a.Unit]) {
		return errBad
	}
	return nil
}

// audit audits [off, off+n) of the chunk, with checksums for all of the chunk or for nothing.
func (r *rig) audit(off, n int, sums bool, change ...func(*audited)) *audited {
	a := &audited{want: r.data[off : off+n], done: make(chan struct{})}
	a.Audit = Audit{Logical: chunkBase + ondisk.Logical(off), Len: n, Unit: testUnit, Done: a}
	if sums {
		a.Verifier = a
		a.Row = func(l ondisk.Logical, b []byte) error {
			if !bytes.Equal(b, r.data[l-chunkBase:][:testUnit]) {
				return errBad
			}
			return nil
		}
	}
	for _, c := range change {
		c(a)
	}
	r.v.Audit(&a.Audit)
	<-a.done
	return a
}

// auditAll audits the whole chunk by the steps that AuditStep says, each slice of a row once.
func (r *rig) auditAll(sums bool, change ...func(*audited)) (list []*audited) {
	seen := map[ondisk.Logical]bool{}
	once := func(a *audited) {
		a.Slice = func(at ondisk.Logical) (bool, bool) {
			was := seen[at]
			seen[at] = true
			return !was, !was
		}
	}
	for off := 0; off < len(r.data); {
		l := chunkBase + ondisk.Logical(off)
		n := r.v.AuditStep(l, uint64(len(r.data)-off))
		if cost := r.v.AuditCost(l, n); cost > maxAudit {
			r.t.Errorf("a step of %d bytes at %d takes %d bytes of buffers", n, off, cost)
		}
		list = append(list, r.audit(off, n, sums, append(change, once)...))
		off += n
	}
	return list
}

// spot is one block on one device: what an audit has to name.
type spot struct {
	dev  devio.DevID
	phys devio.Physical
}

// spots gives every block that audits named, with the state that they gave it; the good ones are left out.
func spots(t testing.TB, list []*audited) map[spot]State {
	t.Helper()
	out := map[spot]State{}
	for _, a := range list {
		for _, f := range a.Findings {
			for _, c := range f.Copies {
				for in := 0; in < f.Len; in += testUnit {
					s := spot{c.DevID, c.Physical + devio.Physical(in)}
					if c.State == Good || c.State == Unverified {
						continue
					}
					if _, twice := out[s]; twice {
						t.Errorf("%v is named twice", s)
					}
					out[s] = c.State
				}
			}
		}
	}
	return out
}

func tallies(list []*audited) map[devio.DevID]Tally {
	out := map[devio.DevID]Tally{}
	for _, a := range list {
		for id, t := range a.Tally {
			sum := out[id]
			sum.Add(t)
			out[id] = sum
		}
	}
	return out
}

// stored gives the places of everything that the chunk keeps, slice by slice: each list is what one block or, of
// RAID5 and RAID6, one unit of every column of a row has.
func (r *rig) stored() (lists [][]spot) {
	if r.c.code == nil {
		for off := 0; off < len(r.data); off += testUnit {
			var l []spot
			for m := range r.c.copies {
				d, phys := r.c.locate(uint64(off), Mirror(m+1))
				l = append(l, spot{d.id, phys})
			}
			lists = append(lists, l)
		}
		return lists
	}
	row := r.c.data() * stripeLen
	for off := 0; off < len(r.data); off += row {
		for in := 0; in < stripeLen; in += testUnit {
			var l []spot
			for i := range r.c.Stripes {
				d, phys := r.c.column(uint64(off+in), i)
				l = append(l, spot{d.id, phys})
			}
			lists = append(lists, l)
		}
	}
	return lists
}

func (r *rig) dev(s spot) *faultdev.Dev { return r.devs[s.dev-1] }

// TestAuditHealthy finds nothing, reads every block once, and counts it for its device.
func TestAuditHealthy(t *testing.T) {
	for _, s := range shapes() {
		for _, sums := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s sums %v", s, sums), func(t *testing.T) {
				r := newRig(t, s, 5, faultdev.Shuffled(1))
				for _, d := range r.devs {
					d.Record()
				}
				list := r.auditAll(sums)
				if got := spots(t, list); len(got) != 0 {
					t.Errorf("found %v", got)
				}
				want := map[devio.DevID]int64{}
				for _, l := range r.stored() {
					for _, p := range l {
						want[p.dev]++
					}
				}
				for id, tally := range tallies(list) {
					good := tally[Good] + tally[Unverified]
					if good != want[id] || tally.Blocks() != good || (sums && tally[Unverified] > 0) {
						t.Errorf("devid %d: counted %v, want %d", id, tally, want[id])
					}
					delete(want, id)
				}
				if len(want) > 0 {
					t.Errorf("never counted: %v", want)
				}
				read := 0
				for _, d := range r.devs {
					for _, l := range d.Log() {
						read += l.Size
					}
				}
				if total := len(r.stored()) * len(r.stored()[0]) * testUnit; read != total {
					t.Errorf("read %d bytes, want each of %d once", read, total)
				}
			})
		}
	}
}

// TestAuditFindsEach ruins, in random slices, as many blocks as the profile survives, parity among them, by wrong
// bytes or by errors: just these are named, and nothing is lost.
func TestAuditFindsEach(t *testing.T) {
	for _, s := range shapes() {
		if s.survives() == 0 {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			r := newRig(t, s, 6, faultdev.Shuffled(rng.Uint64()))
			want := map[spot]State{}
			for _, l := range r.stored() {
				if rng.IntN(3) > 0 {
					continue
				}
				for _, i := range rng.Perm(len(l))[:1+rng.IntN(s.survives())] {
					where := faultdev.Range(l[i].phys, testUnit)
					if want[l[i]] = Bad; rng.IntN(2) == 0 {
						want[l[i]] = Unreadable
						r.dev(l[i]).Fail(where, syscall.EIO)
					} else {
						r.dev(l[i]).Corrupt(where)
					}
				}
			}
			list := r.auditAll(true)
			for _, a := range list {
				for _, f := range a.Findings {
					if f.Lost {
						t.Errorf("lost: %+v", f)
					}
				}
			}
			r.sameSpots(list, want)
		})
	}
}

// sameSpots compares what audits named and counted with what was done.
func (r *rig) sameSpots(list []*audited, want map[spot]State) {
	r.t.Helper()
	got := spots(r.t, list)
	for s, state := range want {
		if got[s] != state {
			r.t.Errorf("%v is %v, want %v", s, got[s], state)
		}
	}
	counted := map[devio.DevID]Tally{}
	for s, state := range got {
		if _, ok := want[s]; !ok {
			r.t.Errorf("%v is %v and was never touched", s, state)
		}
		c := counted[s.dev]
		c[state]++
		counted[s.dev] = c
	}
	for id, c := range tallies(list) {
		w := counted[id]
		w[Good], w[Unverified], w[Missing] = c[Good], c[Unverified], c[Missing]
		if c != w {
			r.t.Errorf("devid %d: counted %v, found %v", id, c, w)
		}
	}
}

// TestAuditOneRange audits random ranges, and names the ruined blocks of these and of their rows' parity alone.
func TestAuditOneRange(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			r := newRig(t, s, 6)
			bad := map[spot]bool{}
			for _, l := range r.stored() {
				if i := rng.IntN(3 * len(l)); i < len(l) && s.survives() > 0 {
					bad[l[i]] = true
					r.dev(l[i]).Corrupt(faultdev.Range(l[i].phys, testUnit))
				}
			}
			for range 40 {
				from := rng.IntN(len(r.data) / testUnit)
				n := 1 + rng.IntN(len(r.data)/testUnit-from)
				want := map[spot]State{}
				note := func(d *member, phys devio.Physical) {
					if bad[spot{d.id, phys}] {
						want[spot{d.id, phys}] = Bad
					}
				}
				for u := from; u < from+n; u++ {
					for m := range r.c.copies {
						note(r.c.locate(uint64(u*testUnit), Mirror(m+1)))
					}
					for j := range r.c.parity() {
						note(r.c.column(uint64(u*testUnit), r.c.data()+j))
					}
				}
				r.sameSpots([]*audited{r.audit(from*testUnit, n*testUnit, true)}, want)
			}
		})
	}
}

// TestAuditLost ruins one more block than the profile survives: the range's own blocks of the slice are lost, and
// nothing else.
func TestAuditLost(t *testing.T) {
	for _, s := range shapes() {
		for _, io := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s io %v", s, io), func(t *testing.T) {
				if s.profile == ondisk.RAID6 && !io {
					t.Skip("the same error in two columns cancels out in parity")
				}
				r := newRig(t, s, 4)
				l := r.stored()[5]
				for _, p := range l[:s.survives()+1] {
					if io {
						r.dev(p).Fail(faultdev.Range(p.phys, testUnit), syscall.EIO)
					} else {
						r.dev(p).Corrupt(faultdev.Range(p.phys, testUnit))
					}
				}
				want := 1
				if r.c.code != nil {
					want = min(s.survives()+1, r.c.data())
					if want < s.survives()+1 {
						t.Skip("fewer data columns than may be lost: what is left is enough")
					}
				}
				lost := 0
				for _, a := range r.auditAll(true) {
					for _, f := range a.Findings {
						if f.Lost {
							lost += f.Len / testUnit
						}
					}
				}
				if lost != want {
					t.Errorf("%d blocks are lost, want %d", lost, want)
				}
			})
		}
	}
}

// TestAuditMissing takes devices away: what lay there counts as missing, what is left is judged, and only where
// too few are left something is lost.
func TestAuditMissing(t *testing.T) {
	for _, s := range shapes() {
		if s.profile == ondisk.DUP {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			r := newRig(t, s, 4)
			gone := r.v.members[0]
			gone.dev = nil
			other := r.stored()[3]
			i := slices.IndexFunc(other, func(p spot) bool { return p.dev != gone.id })
			if i >= 0 && s.survives() > 1 {
				r.dev(other[i]).Corrupt(faultdev.Range(other[i].phys, testUnit))
			}
			list := r.auditAll(true)
			lost := 0
			for _, a := range list {
				for _, f := range a.Findings {
					if f.Lost {
						lost++
					}
				}
			}
			if (lost > 0) != (s.survives() == 0) {
				t.Errorf("%d ranges are lost", lost)
			}
			count := tallies(list)
			if g := count[gone.id]; g[Missing] == 0 || g[Missing] != g.Blocks() {
				t.Errorf("the missing device counts %v", g)
			}
			for id, c := range count {
				want := int64(0)
				if i >= 0 && s.survives() > 1 && other[i].dev == id {
					want = 1
				}
				if id != gone.id && (c[Bad] != want || c[Missing]+c[Unreadable]+c[NotJudged] != 0) {
					t.Errorf("devid %d counts %v, want %d bad", id, c, want)
				}
			}
		})
	}
}

// TestAuditWithoutSums compares copies with each other, and data with parity.
func TestAuditWithoutSums(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			r := newRig(t, s, 4)
			l := r.stored()[7]
			victim := l[len(l)-1]
			r.dev(victim).Corrupt(faultdev.Range(victim.phys, testUnit))
			got := spots(t, r.auditAll(false))
			want := map[spot]State{}
			switch {
			case s.profile == ondisk.RAID6: // the last is Q, and P speaks for the data
				want[victim] = Bad
			case s.profile == ondisk.RAID5:
				want[victim] = Differs
			case len(l) > 1:
				for _, p := range l {
					want[p] = Differs
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// TestAuditStaleWithoutSums blames the copy that missed writes.
func TestAuditStaleWithoutSums(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID1, 2}, 2)
	r.v.members[1].stale = true
	p := r.stored()[9][1]
	r.dev(p).Corrupt(faultdev.Range(p.phys, testUnit))
	list := r.auditAll(false)
	if got, want := spots(t, list), (map[spot]State{p: Bad}); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := list[0].Findings[0].Copies[1].Err; !errors.Is(err, ErrStaleDiffers) {
		t.Errorf("got %v", err)
	}
}

// TestAuditWhole judges copies as wholes, as compressed extents without checksums are.
func TestAuditWhole(t *testing.T) {
	whole := func(a *audited) {
		a.Whole = func(b []byte) error {
			if !bytes.Equal(b, a.want) {
				return errBad
			}
			return nil
		}
	}
	for _, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			r := newRig(t, s, 4)
			for u, state := range map[int]State{2: Bad, 5: Unreadable} {
				d, phys := r.c.locate(uint64(u*testUnit), Mirror(r.c.copies))
				if state == Bad {
					d.dev.(*faultdev.Dev).Corrupt(faultdev.Range(phys, testUnit))
				} else {
					d.dev.(*faultdev.Dev).Fail(faultdev.Range(phys, testUnit), syscall.EIO)
				}
				if r.c.copies == 1 {
					continue
				}
				a := r.audit(0, 8*testUnit, false, whole)
				got := spots(t, []*audited{a})
				if got[spot{d.id, phys}] != state || slices.ContainsFunc(a.Findings, func(f Finding) bool { return f.Lost }) {
					t.Errorf("unit %d: got %v, want %v at %v", u, got, state, phys)
				}
			}
			if r.c.copies == 1 && s.survives() == 0 {
				a := r.audit(0, 8*testUnit, false, whole)
				lost := 0
				for _, f := range a.Findings {
					if f.Lost {
						lost += f.Len
					}
				}
				if lost != a.Len {
					t.Errorf("%d bytes are lost, want all: %+v", lost, a.Findings)
				}
			}
		})
	}
}

// TestAuditWholeOfRows names the one block that keeps an extent from passing, once parity has given the right one.
func TestAuditWholeOfRows(t *testing.T) {
	for _, s := range shapes() {
		if s.parities() == 0 {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			r := newRig(t, s, 4)
			d, phys := r.c.locate(3*testUnit, 1)
			d.dev.(*faultdev.Dev).Corrupt(faultdev.Range(phys, testUnit))
			a := r.audit(0, 8*testUnit, false, func(a *audited) {
				a.Whole = func(b []byte) error {
					if !bytes.Equal(b, a.want) {
						return errBad
					}
					return nil
				}
			})
			r.sameSpots([]*audited{a}, map[spot]State{{d.id, phys}: Bad})
			if !a.Findings[0].Repair || a.Findings[0].Lost {
				t.Errorf("got %+v", a.Findings[0])
			}
		})
	}
}

// TestAuditWholeOfParts has a bad block on either copy: what is good of both together passes, or is lost if that
// is no whole.
func TestAuditWholeOfParts(t *testing.T) {
	for _, broken := range []bool{false, true} {
		r := newRig(t, shape{ondisk.RAID1, 2}, 2)
		for m, u := range []int{1, 3} {
			d, phys := r.at(u*testUnit, Mirror(m+1))
			d.Corrupt(faultdev.Range(phys, testUnit))
		}
		a := r.audit(0, 8*testUnit, true, func(a *audited) {
			a.Whole = func(b []byte) error {
				if !bytes.Equal(b, a.want) {
					t.Error("what is judged as a whole is not what its units are")
				}
				if broken {
					return errBad
				}
				return nil
			}
		})
		if len(spots(t, []*audited{a})) != 2 {
			t.Errorf("got %+v", a.Findings)
		}
		last := a.Findings[len(a.Findings)-1]
		if last.Lost != broken || (broken && (last.Len != a.Len || !errors.Is(last.Err, errBad))) {
			t.Errorf("broken %v: got %+v", broken, last)
		}
	}
}

// TestAuditNeighbours judges parity though blocks of the row that belong to others are bad, and says so where it
// can't.
func TestAuditNeighbours(t *testing.T) {
	for _, c := range []struct {
		name  string
		s     shape
		fault func(r *rig, d *faultdev.Dev, at faultdev.Match)
		sums  bool // the neighbour's
		want  State
	}{
		{"raid5, wrong, with a checksum", shape{ondisk.RAID5, 3}, corrupt, true, Good},
		{"raid5, unreadable, with a checksum", shape{ondisk.RAID5, 3}, unreadable, true, Good},
		{"raid5, unreadable, without", shape{ondisk.RAID5, 3}, unreadable, false, NotJudged},
		{"raid5, wrong, without", shape{ondisk.RAID5, 3}, corrupt, false, Bad}, // of the parity, as far as anybody can tell
		{"raid6, unreadable, without", shape{ondisk.RAID6, 4}, unreadable, false, Good},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.s, 3)
			d, phys := r.c.column(0, 1)
			c.fault(r, d.dev.(*faultdev.Dev), faultdev.Range(phys, testUnit))
			a := r.audit(0, testUnit, true, func(a *audited) {
				if !c.sums {
					a.Row = nil
				}
			})
			p, at := r.c.column(0, r.c.data())
			want := map[spot]State{}
			if c.want != Good {
				want[spot{p.id, at}] = c.want
			}
			r.sameSpots([]*audited{a}, want)
			if c.want == Bad && !strings.Contains(a.Findings[0].Copies[0].Err.Error(), "no checksum") {
				t.Errorf("got %v, want it to say that a block has no checksum", a.Findings[0].Copies[0].Err)
			}
		})
	}
}

func corrupt(_ *rig, d *faultdev.Dev, at faultdev.Match)    { d.Corrupt(at) }
func unreadable(_ *rig, d *faultdev.Dev, at faultdev.Match) { d.Fail(at, syscall.EIO) }

// TestAuditUnmapped says that nothing is there.
func TestAuditUnmapped(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID1, 2}, 2)
	a := &audited{done: make(chan struct{}), want: make([]byte, 4*testUnit)}
	a.Audit = Audit{Logical: chunkBase + ondisk.Logical(len(r.data)) - 2*testUnit, Len: 4 * testUnit, Unit: testUnit, Done: a, Verifier: a}
	copy(a.want, r.data[len(r.data)-2*testUnit:])
	r.v.Audit(&a.Audit)
	<-a.done
	if len(a.Findings) != 1 || a.Findings[0].Off != 2*testUnit || a.Findings[0].Len != 2*testUnit || !errors.Is(a.Findings[0].Err, ErrUnmapped) {
		t.Errorf("got %+v, want the last two units unmapped", a.Findings)
	}
}

// TestAuditClosed ends with the device, and gives everything back.
func TestAuditClosed(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID5, 3}, 2)
	r.devs[0].Hang(faultdev.All())
	a := &audited{done: make(chan struct{}), want: r.data}
	a.Audit = Audit{Logical: chunkBase, Len: len(r.data), Unit: testUnit, Done: a, Verifier: a}
	r.v.Audit(&a.Audit)
	r.devs[0].Close()
	<-a.done
	if !errors.Is(a.Err, devio.ErrClosed) {
		t.Errorf("got %v", a.Err)
	}
}

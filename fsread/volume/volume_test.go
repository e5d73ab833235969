package volume

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// TestReadEveryShape reads random ranges, several in a batch, from devices that complete in any order.
func TestReadEveryShape(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			r := newRig(t, s, 7, faultdev.Shuffled(rng.Uint64()))
			for range 60 {
				var ranges [][2]int
				for range 1 + rng.IntN(5) {
					from := rng.IntN(len(r.data) / testUnit)
					n := 1 + rng.IntN(len(r.data)/testUnit-from)
					ranges = append(ranges, [2]int{from * testUnit, n * testUnit})
				}
				for _, q := range r.readAll(testUnit, true, ranges...) {
					q.mustHold(t)
				}
			}
			if n := sum(r.stats.checksum); n != 0 {
				t.Errorf("%d checksum failures on healthy devices: the verifier saw wrong bytes", n)
			}
		})
	}
}

// TestLocateFar maps addresses beyond 4 GiB of a chunk, where 32 bits do not do: by going stripe after stripe.
func TestLocateFar(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID0, 3}, {ondisk.RAID10, 4}, {ondisk.RAID1, 2}, {ondisk.Single, 1}} {
		c := &chunk{profile: s.profile, copies: copiesOf(s.profile, s.stripes)}
		for i := range s.stripes {
			c.members = append(c.members, &member{id: devio.DevID(i + 1)})
			c.Stripes = append(c.Stripes, ondisk.Stripe{Physical: devio.Physical(i+1) << 40})
		}
		columns := map[ondisk.Profile]int{ondisk.RAID0: s.stripes, ondisk.RAID10: s.stripes / 2}[s.profile]
		const far = 9<<30 + 5*stripeLen
		place := devio.Physical(0) // on its column
		col := 0
		if columns == 0 {
			place = far + 77
		} else {
			for off := uint64(0); off+stripeLen <= far; off += stripeLen {
				if col++; col == columns {
					col, place = 0, place+stripeLen
				}
			}
			place += 77
		}
		for m := Mirror(1); int(m) <= c.copies; m++ {
			i := col*c.copies + int(m) - 1
			d, phys := c.locate(far+77, m)
			if want := devio.Physical(i+1)<<40 + place; phys != want || d.id != devio.DevID(i+1) {
				t.Errorf("%s mirror %d: devid %d @%d, want devid %d @%d", s, m, d.id, phys, i+1, want)
			}
		}
	}
}

// TestRunsAreMerged counts device reads: stripes that touch on a device are one.
func TestRunsAreMerged(t *testing.T) {
	for _, c := range []struct {
		s             shape
		n, want, each int
	}{
		{shape{ondisk.RAID0, 2}, 1 << 20, 2, 512 << 10},
		{shape{ondisk.RAID0, 3}, 3 * 5 * stripeLen, 3, 5 * stripeLen},
		{shape{ondisk.Single, 1}, 512 << 10, 1, 512 << 10},
		{shape{ondisk.RAID1, 2}, 512 << 10, 1, 512 << 10},
		{shape{ondisk.RAID10, 4}, 512 << 10, -1, 0},
	} {
		r := newRig(t, c.s, 16)
		for _, d := range r.devs {
			d.Record()
		}
		r.read(0, c.n, testUnit, true).mustHold(t)
		var total int
		var sizes []int
		for _, d := range r.devs {
			for _, l := range d.Log() {
				total, sizes = total+1, append(sizes, l.Size)
			}
		}
		if c.want < 0 { // at most one for each device
			if total > len(r.devs) {
				t.Errorf("%s: %d reads of %v bytes, want at most %d", c.s, total, sizes, len(r.devs))
			}
		} else if total != c.want || sizes[0] != c.each {
			t.Errorf("%s: reads of %v bytes, want %d of %d", c.s, sizes, c.want, c.each)
		}
	}
}

// redundant gives the shapes with a second copy.
func redundant() []shape {
	return slices.DeleteFunc(shapes(), func(s shape) bool { return copiesOf(s.profile, s.stripes) < 2 })
}

// place is where a copy or a column lies.
type place struct {
	dev  *faultdev.Dev
	id   devio.DevID
	phys devio.Physical
}

// places gives every copy of the unit at off, and the parity of its row: if all are ruined, the unit is lost.
func (r *rig) places(off int) (out []place) {
	for m := Mirror(1); int(m) <= r.c.copies; m++ {
		d, phys := r.c.locate(uint64(off), m)
		out = append(out, place{d.dev.(*faultdev.Dev), d.id, phys})
	}
	for i := range r.c.parity() {
		d, phys := r.c.column(uint64(off), r.c.data()+i)
		out = append(out, place{d.dev.(*faultdev.Dev), d.id, phys})
	}
	return out
}

// at gives where copy m of the unit at off lies: the fault device and the place.
func (r *rig) at(off int, m Mirror) (*faultdev.Dev, devio.Physical) {
	d, phys := r.c.locate(uint64(off), m)
	return d.dev.(*faultdev.Dev), phys
}

// TestOneBadCopy ruins one copy, chosen at random, of random units: every byte is right, and the counters say
// exactly what was met.
func TestOneBadCopy(t *testing.T) {
	for _, s := range redundant() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			r := newRig(t, s, 6)
			rules := map[*faultdev.Rule]uint64{}
			for off := 0; off < len(r.data); off += testUnit {
				if rng.IntN(5) > 0 {
					continue
				}
				d, phys := r.at(off, Mirror(rng.IntN(r.c.copies))+1)
				rules[d.Corrupt(faultdev.Range(phys, testUnit))] = uint64(slices.Index(r.devs, d) + 1)
			}
			for off := 0; off < len(r.data); off += 64 * testUnit {
				r.read(off, min(64*testUnit, len(r.data)-off), testUnit, true).mustHold(t)
			}
			met := map[uint64]int{}
			for rule, dev := range rules {
				if hits := rule.Hits(); hits > 1 {
					t.Errorf("a bad unit was read %d times", hits)
				} else if hits == 1 {
					met[dev]++
				}
			}
			c := r.stats
			if fmt.Sprint(c.checksum) != fmt.Sprint(met) || fmt.Sprint(c.csumR) != fmt.Sprint(met) || c.repaired != sum(met) || c.lost != 0 || len(c.io) != 0 {
				t.Errorf("bad units met %v, counted %+v", met, c)
			}
			if sum(met) == 0 {
				t.Error("no bad unit was met: the test shows nothing")
			}
		})
	}
}

// TestFailNth fails the i-th read of each device, for i = 0, 1, 2, …: redundant shapes lose nothing, the others
// exactly what was read.
func TestFailNth(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			for dev := range map[bool]int{true: 1, false: s.stripes}[s.profile == ondisk.DUP] {
				for i, fired := 0, true; fired; i++ {
					r := newRig(t, s, 3)
					rule := r.devs[dev].Fail(faultdev.Nth(i), syscall.EIO)
					for off := 0; off < len(r.data); off += stripeLen / 2 {
						q := r.read(off, stripeLen/2, testUnit, true)
						for _, l := range q.Lost {
							if s.survives() > 0 || !errors.Is(&l, syscall.EIO) {
								t.Fatalf("dev %d read %d: lost %v", dev, i, &l)
							}
						}
						if len(q.Lost) == 0 {
							q.mustHold(t)
						}
					}
					fired = rule.Fired()
				}
			}
		})
	}
}

// TestNeighboursOfUnreadable has a different unit unreadable on each copy: a long read fails on all of them,
// and yet no unit is lost, since each is readable somewhere by itself.
func TestNeighboursOfUnreadable(t *testing.T) {
	for _, s := range redundant() {
		t.Run(s.String(), func(t *testing.T) {
			r := newRig(t, s, 4)
			for m := range r.c.copies {
				d, phys := r.at(m*testUnit, Mirror(m+1))
				d.Fail(faultdev.Range(phys, testUnit), syscall.ENODATA)
			}
			r.read(0, 16*testUnit, testUnit, true).mustHold(t)
			if r.stats.lost != 0 || r.stats.repaired != 16 {
				t.Errorf("repaired %d lost %d, want 16 and 0", r.stats.repaired, r.stats.lost)
			}
		})
	}
}

// TestLostExactly ruins every copy of some units, by errors and by wrong bytes: just these are lost, with the
// cause of every copy.
func TestLostExactly(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.String(), func(t *testing.T) {
			r := newRig(t, s, 2)
			bad := []int{0, 3 * testUnit, 4 * testUnit, 15 * testUnit}
			for i, off := range bad {
				for m, p := range r.places(off) {
					if (i+m)%2 == 0 {
						p.dev.Corrupt(faultdev.Range(p.phys, testUnit))
					} else {
						p.dev.Fail(faultdev.Range(p.phys, testUnit), syscall.EIO)
					}
				}
			}
			q := r.read(0, 16*testUnit, testUnit, true)
			q.mustHold(t, bad...)
			for i := range q.Lost {
				l := &q.Lost[i]
				places := r.places(l.Off)
				for _, c := range l.Copies {
					i := slices.IndexFunc(places, func(p place) bool { return p.id == c.Dev && p.phys == c.Physical })
					if i < 0 || c.Logical != chunkBase+ondisk.Logical(l.Off) {
						t.Errorf("offset %d: cause %+v is of no place that was ruined, or of one twice", l.Off, c)
					} else {
						places = slices.Delete(places, i, i+1)
					}
				}
				if len(places) > 0 {
					t.Errorf("offset %d: no cause for %v: %v", l.Off, places, l)
				}
			}
			if r.stats.lost != len(bad) {
				t.Errorf("counted %d lost, want %d", r.stats.lost, len(bad))
			}
		})
	}
}

// TestShortRead has a device end early: what lies before the end is taken, the rest read elsewhere.
func TestShortRead(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID1, 2}, 4)
	for _, d := range r.devs[:1] {
		d.Short(faultdev.Range(devBase+5*testUnit, 1<<30), 100)
	}
	r.v.members[1].load.Add(1 << 30) // so that the short one is asked first
	defer r.v.members[1].load.Add(-1 << 30)
	r.read(0, 16*testUnit, testUnit, true).mustHold(t)
	if got := r.stats.io[1]; got != 11 {
		t.Errorf("%d units retried, want the 11 that were cut", got)
	}
}

// TestUnverified takes what a device delivers where there is no checksum, but nothing from a device that
// missed writes unless the user said degraded.
func TestUnverified(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID1, 2}, 2)
	r.v.members[0].stale = true
	r.devs[0].Corrupt(faultdev.Range(devBase, 1<<20))
	for range 8 {
		r.read(0, 8*testUnit, testUnit, false).mustHold(t)
	}
	if r.read(0, 8*testUnit, testUnit, true).mustHold(t); r.stats.unverified != 8*8 {
		t.Errorf("counted %d unverified units, want %d", r.stats.unverified, 8*8)
	}
	r.devs[1].Lose(syscall.ENXIO)
	q := r.read(0, testUnit, testUnit, false)
	if r.stats.unverified != 8*8 {
		t.Errorf("a lost unit was counted as served: %d", r.stats.unverified)
	}
	if len(q.Lost) != 1 || !errors.Is(&q.Lost[0], ErrStale) || !errors.Is(&q.Lost[0], syscall.ENXIO) {
		t.Errorf("got %v, want it lost: stale, ENXIO", q.Lost)
	}
	r.v.opts.Degraded = true
	if q := r.read(testUnit, testUnit, testUnit, false); len(q.Lost) != 0 || bytes.Equal(q.Buf, q.want) {
		t.Errorf("degraded: lost %v, want the stale copy's bytes", q.Lost)
	}
}

// TestWeakVerifier has a check that can refuse but not vouch: the other copy is asked when it refuses, and a
// stale one never.
func TestWeakVerifier(t *testing.T) {
	for _, stale := range []bool{false, true} {
		r := newRig(t, shape{ondisk.RAID1, 2}, 2)
		r.v.members[0].stale = stale
		r.devs[1].Corrupt(faultdev.Range(devBase, testUnit))
		r.v.members[0].load.Add(1 << 30) // so that the bad one is asked first
		q := &result{buf: r.pool.Get(testUnit), want: r.data[:testUnit], done: make(chan struct{})}
		q.Request = Request{Logical: chunkBase, Buf: q.buf.B, Unit: testUnit, Verifier: q, Weak: true, Done: q}
		r.v.Submit([]*Request{&q.Request})
		<-q.done
		r.v.members[0].load.Add(-1 << 30)
		if stale != (len(q.Lost) > 0) || (stale && !errors.Is(&q.Lost[0], ErrStale)) {
			t.Errorf("stale %v: lost %v", stale, q.Lost)
		} else if !stale {
			q.mustHold(t)
		}
		q.buf.Release()
	}
}

// TestStaleLast asks a device that missed writes only when the other copy failed.
func TestStaleLast(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID1C3, 3}, 2)
	r.v.members[1].stale = true
	r.devs[1].Record()
	for off := 0; off < len(r.data); off += testUnit {
		r.read(off, testUnit, testUnit, true).mustHold(t)
	}
	if n := len(r.devs[1].Log()); n != 0 {
		t.Errorf("the stale device was asked %d times, its peers being good", n)
	}
	r.devs[0].Lose(nil)
	r.devs[2].Lose(syscall.EIO)
	r.read(0, 4*testUnit, testUnit, true).mustHold(t)
}

// TestMissing reads without every single device, and says of what is lost which device it misses.
func TestMissing(t *testing.T) {
	for _, s := range shapes() {
		if s.profile == ondisk.DUP {
			continue
		}
		for gone := range s.stripes {
			t.Run(fmt.Sprintf("%s without %d", s, gone+1), func(t *testing.T) {
				r := newRig(t, s, 4)
				d := r.v.members[gone].dev
				r.v.members[gone].dev = nil
				defer func() { r.v.members[gone].dev = d }()
				q := r.read(0, len(r.data), testUnit, true)
				var lost []int
				for off := 0; off < len(r.data); off += testUnit {
					if m, _ := r.c.locate(uint64(off), 1); s.survives() == 0 && m.dev == nil {
						lost = append(lost, off)
					}
				}
				q.mustHold(t, lost...)
				for i := range q.Lost {
					if !errors.Is(&q.Lost[i], ErrMissing) {
						t.Errorf("lost by %v, want ErrMissing", &q.Lost[i])
					}
				}
			})
		}
	}
}

// TestRefused covers what can't be mapped: each unit is lost with its reason, the others are read.
func TestRefused(t *testing.T) {
	r := newRig(t, shape{ondisk.Single, 1}, 1)
	wide := *r.c // RAID6 over more devices than its arithmetic has powers for
	wide.profile, wide.copies = ondisk.RAID6, 0
	wide.start, wide.end = r.c.end, r.c.end+stripeLen
	r.v.chunks = append(r.v.chunks, &wide)
	q := &result{buf: r.pool.Get(3 * testUnit), want: make([]byte, 3*testUnit), done: make(chan struct{})}
	defer q.buf.Release()
	copy(q.want, r.data[stripeLen-testUnit:])
	q.Request = Request{Logical: r.c.end - testUnit, Buf: q.buf.B, Unit: testUnit, Verifier: q, Done: q}
	r.v.Submit([]*Request{&q.Request})
	<-q.done
	q.mustHold(t, testUnit, 2*testUnit)
	if !errors.Is(&q.Lost[0], ondisk.ErrUnsupported) {
		t.Errorf("got %v, want RAID6 refused by name", &q.Lost[0])
	}
	gap := &result{buf: r.pool.Get(testUnit), want: make([]byte, testUnit), done: make(chan struct{})}
	defer gap.buf.Release()
	gap.Request = Request{Logical: chunkBase - testUnit, Buf: gap.buf.B, Unit: testUnit, Verifier: gap, Done: gap}
	r.v.Submit([]*Request{&gap.Request})
	<-gap.done
	if len(gap.Lost) != 1 || !errors.Is(&gap.Lost[0], ErrUnmapped) {
		t.Errorf("got %v, want ErrUnmapped", gap.Lost)
	}
}

// TestSplitNode reads a node that crosses a stripe: every mix of copies of its fragments may be the good one.
func TestSplitNode(t *testing.T) {
	const node = 16 << 10
	off := stripeLen - 2*testUnit
	for bad := range 16 { // a bit for each copy of each fragment
		r := newRig(t, shape{ondisk.RAID10, 4}, 2)
		for i, o := range []int{off, stripeLen} {
			for m := range 2 {
				if bad&(1<<(2*i+m)) != 0 {
					d, phys := r.at(o, Mirror(m+1))
					if i == 0 {
						d.Corrupt(faultdev.Range(phys, testUnit))
					} else {
						d.Fail(faultdev.Range(phys, testUnit), syscall.EIO)
					}
				}
			}
		}
		q := r.read(off, node, node, true)
		if readable := bad&3 != 3 && bad>>2 != 3; readable != (len(q.Lost) == 0) {
			t.Errorf("bad %04b: lost %v, readable %v", bad, q.Lost, readable)
		} else if readable {
			q.mustHold(t)
			if want := min(bad, 1); r.stats.repaired > want {
				t.Errorf("bad %04b: repaired %d, want at most %d", bad, r.stats.repaired, want)
			}
		} else if q.mustHold(t, 0); r.stats.lost != 1 {
			t.Errorf("bad %04b: counted %d lost, want 1", bad, r.stats.lost)
		}
	}
	r := newRig(t, shape{ondisk.RAID0, 2}, 2)
	r.read(off, node, node, true).mustHold(t)
}

// TestNoChecksum ends the matter for a unit without asking other copies.
func TestNoChecksum(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID1, 2}, 1)
	for _, d := range r.devs {
		d.Record()
	}
	q := &result{buf: r.pool.Get(2 * testUnit), want: bytes.Clone(r.data[:2*testUnit]), done: make(chan struct{})}
	defer q.buf.Release()
	q.Request = Request{Logical: chunkBase, Buf: q.buf.B, Unit: testUnit, Verifier: withoutSum{1, q}, Done: q}
	r.v.Submit([]*Request{&q.Request})
	<-q.done
	q.mustHold(t, testUnit)
	if n := len(r.devs[0].Log()) + len(r.devs[1].Log()); n != 1 || !errors.Is(&q.Lost[0], ErrNoChecksum) {
		t.Errorf("%d reads and %v, want 1 and ErrNoChecksum", n, &q.Lost[0])
	}
}

type withoutSum struct {
	unit int
	Verifier
}

func (w withoutSum) VerifyUnit(i int, b []byte) error {
	if i == w.unit {
		return ErrNoChecksum
	}
	return w.Verifier.VerifyUnit(i, b)
}

// TestBothMirrors spreads one stream over the copies.
func TestBothMirrors(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID1, 2}, 128)
	for _, d := range r.devs {
		d.Record()
	}
	r.read(0, len(r.data), testUnit, true).mustHold(t)
	a, b := len(r.devs[0].Log()), len(r.devs[1].Log())
	if a != b || a == 0 {
		t.Errorf("%d and %d reads of 1 MiB, want half each", a, b)
	}
}

// TestSubmitAllocatesNothing holds for a request that is used again.
func TestSubmitAllocatesNothing(t *testing.T) {
	if fsreadtest.Race {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	for _, s := range []shape{{ondisk.RAID0, 3}, {ondisk.RAID10, 4}, {ondisk.RAID1, 2}} {
		r := newRig(t, s, 8)
		r.plain()
		q := &reused{result: result{buf: r.pool.Get(stripeLen * 4), want: r.data[:stripeLen*4]}}
		q.Request = Request{Logical: chunkBase, Buf: q.buf.B, Unit: testUnit, Verifier: q, Done: q}
		reqs := []*Request{&q.Request}
		if n := testing.AllocsPerRun(200, func() { r.v.Submit(reqs) }); n != 0 {
			t.Errorf("%s: %v allocations", s, n)
		}
		q.mustHold(t)
		q.buf.Release()
	}
}

// plain takes the fault devices, which allocate, out of the way.
func (r *rig) plain() {
	for i, m := range r.v.members {
		m.dev = memory{m.dev, r.images[i]}
	}
}

// memory is a device that reads from memory at once.
type memory struct {
	Device
	data []byte
}

func (m memory) Submit(batch []*devio.Read) {
	for _, r := range batch {
		off := int(r.Off)
		for _, b := range r.Bufs {
			off += copy(b, m.data[off:])
		}
		r.N, r.Err = r.Size(), nil
		r.Done.ReadDone(r)
	}
}

type reused struct{ result }

func (q *reused) RequestDone(*Request) {}

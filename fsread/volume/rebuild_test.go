package volume

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// rows gives the shapes with parity, all from the fewest devices up.
func rows() (out []shape) {
	for n := 2; n <= 6; n++ {
		out = append(out, shape{ondisk.RAID5, n})
	}
	for n := 3; n <= 6; n++ {
		out = append(out, shape{ondisk.RAID6, n})
	}
	return out
}

// TestRows ruins random columns of random slices of every row, by errors and by wrong bytes: a unit is lost just
// where more columns of its slice are bad than there is parity, and its own is among them.
func TestRows(t *testing.T) {
	for _, s := range rows() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			for range 4 {
				r := newRig(t, s, 3*s.stripes, faultdev.Shuffled(rng.Uint64()))
				lost := r.ruinRows(rng)
				for off := 0; off < len(r.data); {
					n := min((1+rng.IntN(80))*testUnit, len(r.data)-off)
					r.read(off, n, testUnit, true).mustHold(t, lostIn(lost, off, n)...)
					off += n
				}
				if r.stats.lost != len(lost) || r.stats.parity == 0 {
					t.Errorf("counted %d lost and %d rebuilt, want %d lost and some rebuilt", r.stats.lost, r.stats.parity, len(lost))
				}
			}
		})
	}
}

// ruinRows ruins columns of one slice in four and gives the units that are then lost.
func (r *rig) ruinRows(rng *rand.Rand) (lost []int) {
	k := r.c.code.Columns()
	for row := 0; row < len(r.data); row += r.c.data() * stripeLen {
		for so := 0; so < stripeLen; so += testUnit {
			if rng.IntN(4) > 0 {
				continue
			}
			bad := rng.Perm(k)[:1+rng.IntN(min(r.c.parity()+1, k))]
			for _, i := range bad {
				m, phys := r.c.column(uint64(row+so), i)
				if rng.IntN(2) == 0 {
					r.scramble(rng, m, phys, testUnit)
				} else {
					m.dev.(*faultdev.Dev).Fail(faultdev.Range(phys, testUnit), []error{syscall.EIO, syscall.ENODATA}[rng.IntN(2)])
				}
				if len(bad) > r.c.parity() && i < r.c.data() {
					lost = append(lost, row+i*stripeLen+so)
				}
			}
		}
	}
	slices.Sort(lost)
	return lost
}

// scramble changes bytes on a device, each place in its own way: columns that all were wrong in the same way could
// make up for each other.
func (r *rig) scramble(rng *rand.Rand, m *member, phys devio.Physical, n int) {
	b := r.images[m.id-1][phys:][:n]
	for i := range b {
		b[i] ^= byte(1 + rng.IntN(255))
	}
}

// lostIn gives those of lost in [off, off+n), counted from off.
func lostIn(lost []int, off, n int) (out []int) {
	for _, l := range lost {
		if l >= off && l < off+n {
			out = append(out, l-off)
		}
	}
	return out
}

// TestEveryPairOfColumns has every column and every pair of columns silently wrong in all of a chunk.
func TestEveryPairOfColumns(t *testing.T) {
	for _, s := range rows() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			for a := range s.stripes {
				for b := range a + 1 { // a == b: one column
					if a != b && s.parities() < 2 {
						continue
					}
					r := newRig(t, s, s.stripes)
					for row := 0; row < len(r.data); row += r.c.data() * stripeLen {
						for _, i := range []int{a, b} {
							m, phys := r.c.column(uint64(row), i)
							r.scramble(rng, m, phys, stripeLen)
							if a == b {
								break
							}
						}
					}
					r.read(0, len(r.data), testUnit, true).mustHold(t)
					if r.stats.lost != 0 {
						t.Errorf("columns %d and %d: %d units lost", a, b, r.stats.lost)
					}
				}
			}
		})
	}
}

// TestMissingPairs reads without every set of devices that the profile can do without, data with and without
// checksums, nodes that cross stripes among them, and without one more.
func TestMissingPairs(t *testing.T) {
	for _, s := range rows() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			for gone := range 1 << s.stripes {
				r := newRig(t, s, 4)
				n := 0
				for i, m := range r.v.members {
					if gone>>i&1 != 0 {
						defer func(d Device) { m.dev = d }(m.dev)
						m.dev = nil
						n++
					}
				}
				if n > s.parities()+1 {
					continue
				}
				var lost []int
				for off := 0; off < len(r.data) && n > s.parities(); off += testUnit {
					if m, _ := r.c.locate(uint64(off), 1); m.dev == nil {
						lost = append(lost, off)
					}
				}
				for _, verified := range []bool{true, false} {
					off := rng.IntN(len(r.data)/testUnit) * testUnit
					size := len(r.data) - off
					r.read(off, size, testUnit, verified).mustHold(t, lostIn(lost, off, size)...)
				}
				if n > s.parities() {
					continue
				}
				const node = 16 << 10
				for range 8 {
					r.read(rng.IntN((len(r.data)-node)/testUnit)*testUnit, node, node, true).mustHold(t)
				}
			}
		})
	}
}

// TestRebuildReads counts what missing devices cost: every surviving range is read once and no more, whether one
// request wants it or all of a batch, cut anywhere.
func TestRebuildReads(t *testing.T) {
	for _, s := range rows() {
		for gone := 1; gone <= s.parities(); gone++ {
			t.Run(array{s, gone}.String(), func(t *testing.T) {
				rng := fsreadtest.Seed(t)
				for cuts := range 6 {
					r := newRig(t, s, s.stripes)
					r.lose(rng.Perm(s.stripes)[:gone]...)
					for _, d := range r.devs {
						d.Record()
					}
					for _, q := range r.readAll(testUnit, true, inOrder(rng, len(r.data), cuts*cuts)...) {
						q.mustHold(t)
					}
					// In each row as many columns as there are data.
					if got, want := r.bytesRead(t), (s.stripes-s.parities())*s.stripes*stripeLen; got != want {
						t.Errorf("%d cuts: %d bytes read to give %d, want %d", cuts*cuts, got, len(r.data), want)
					}
				}
			})
		}
	}
}

// lose takes devices away until the end of the test.
func (r *rig) lose(devs ...int) {
	for _, i := range devs {
		m := r.v.members[i]
		d := m.dev
		m.dev = nil
		r.t.Cleanup(func() { m.dev = d })
	}
}

// inOrder cuts size bytes into ranges one after the other, at cuts places.
func inOrder(rng *rand.Rand, size, cuts int) (out [][2]int) {
	at := []int{0, size}
	for range cuts {
		at = append(at, (1+rng.IntN(size/testUnit-1))*testUnit)
	}
	slices.Sort(at)
	at = slices.Compact(at)
	for i := range at[1:] {
		out = append(out, [2]int{at[i], at[i+1] - at[i]})
	}
	return out
}

// bytesRead counts what was read of all devices, and complains of what was read twice.
func (r *rig) bytesRead(t *testing.T) (total int) {
	for i, d := range r.devs {
		log := d.Log()
		slices.SortFunc(log, func(a, b faultdev.Access) int { return int(a.Off) - int(b.Off) })
		end := devio.Physical(0)
		for _, l := range log {
			if l.Off < end {
				t.Errorf("devid %d: %d is read twice", i+1, l.Off)
			}
			total, end = total+l.Size, l.Off+devio.Physical(l.Size)
		}
	}
	return total
}

// TestBatches reads batches of adjacent, overlapping and distant requests, with and without checksums, from arrays
// with missing, doubted and wrong columns, while devices complete in any order: no byte is wrong, and none is lost
// as long as no slice lacks more columns than there is parity.
func TestBatches(t *testing.T) {
	for _, s := range rows() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			for range 6 {
				r := newRig(t, s, 2*s.stripes, faultdev.Shuffled(rng.Uint64()))
				bad := rng.Perm(s.stripes)[:rng.IntN(s.parities()+1)]
				for _, i := range bad {
					switch rng.IntN(4) {
					case 0, 1:
						r.lose(i)
					case 2:
						r.v.members[i].failures.Store(doubtAfter)
						r.v.members[i].probe.Store(time.Now().Add(time.Hour).UnixNano())
					case 3:
						r.devs[i].Fail(faultdev.All(), syscall.EIO)
					}
				}
				if len(bad) < s.parities() {
					d, at := rng.IntN(s.stripes), devio.Physical(rng.IntN(2*s.stripes)*stripeLen)
					r.scramble(rng, r.v.members[d], devBase+at, stripeLen)
				}
				for range 12 {
					var ranges [][2]int
					if rng.IntN(2) == 0 {
						ranges = inOrder(rng, len(r.data), 12)[rng.IntN(3):]
					}
					for range rng.IntN(8) {
						from := rng.IntN(len(r.data) / testUnit)
						ranges = append(ranges, [2]int{from * testUnit, min(1+rng.IntN(40), len(r.data)/testUnit-from) * testUnit})
					}
					for _, q := range r.readAll(testUnit, true, ranges...) {
						q.mustHold(t)
					}
				}
			}
		})
	}
}

// TestSharedColumnFails has what one request reads for itself fail, wrong or late for its neighbour, whose rebuild
// shares it: with a second parity both get their bytes.
func TestSharedColumnFails(t *testing.T) {
	for _, how := range []string{"fails", "is wrong", "hangs"} {
		t.Run(how, func(t *testing.T) {
			r := slowRig(t, shape{ondisk.RAID6, 5}, 3)
			first, _ := r.c.column(0, 0)
			r.lose(int(first.id) - 1) // D0 of the first row
			p := r.places(stripeLen)[0]
			switch how {
			case "fails":
				p.dev.Fail(faultdev.Range(p.phys, stripeLen), syscall.EIO)
			case "is wrong":
				p.dev.Corrupt(faultdev.Range(p.phys, stripeLen))
			default:
				p.dev.Hang(faultdev.All())
			}
			p.dev.Record()
			for _, q := range r.readAll(testUnit, true, [2]int{0, stripeLen}, [2]int{stripeLen, stripeLen}) {
				q.mustHold(t)
			}
			if r.stats.lost != 0 || r.stats.repaired == 0 {
				t.Errorf("counted %+v", r.stats)
			}
			if log := p.dev.Log(); len(log) == 0 || log[0].Size != stripeLen {
				t.Errorf("reads %v of the column, want one of 64 KiB first", log)
			}
		})
	}
}

// TestOneWrongColumn holds the counters against what was damaged: one data unit of a row each.
func TestOneWrongColumn(t *testing.T) {
	for _, s := range rows() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			r := newRig(t, s, 6)
			met := map[uint64]int{}
			for row := 0; row < len(r.data); row += r.c.data() * stripeLen {
				for so := 0; so < stripeLen; so += testUnit * (1 + rng.IntN(3)) {
					p := r.places(row + rng.IntN(r.c.data())*stripeLen + so)[0]
					p.dev.Corrupt(faultdev.Range(p.phys, testUnit))
					met[uint64(p.id)]++
				}
			}
			r.read(0, len(r.data), testUnit, true).mustHold(t)
			c := r.stats
			if fmt.Sprint(c.checksum) != fmt.Sprint(met) || fmt.Sprint(c.csumR) != fmt.Sprint(met) || c.parity != sum(met) || c.repaired != sum(met) || c.lost != 0 {
				t.Errorf("bad units %v, counted %+v", met, c)
			}
		})
	}
}

// TestWrongParityIsCounted has a data unit and P wrong: Q serves, and P counts against its device.
func TestWrongParityIsCounted(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID6, 4}, 2)
	p := r.places(0)
	for _, x := range p[:2] {
		x.dev.Corrupt(faultdev.Range(x.phys, testUnit))
	}
	r.read(0, testUnit, testUnit, true).mustHold(t)
	want := map[uint64]int{uint64(p[0].id): 1, uint64(p[1].id): 1}
	if c := r.stats; fmt.Sprint(c.checksum) != fmt.Sprint(want) || fmt.Sprint(c.csumR) != fmt.Sprint(want) || c.parity != 1 {
		t.Errorf("counted %+v, want a checksum failure of devids %v", c, want)
	}
}

// TestSplitRows reads nodes that cross a stripe, with up to as many bad columns in each of the two rows or slices
// as parity can stand for.
func TestSplitRows(t *testing.T) {
	const node = 16 << 10
	for _, s := range rows() {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			for range 40 {
				r := newRig(t, s, 4)
				off := (1+rng.IntN(len(r.data)/stripeLen-1))*stripeLen - testUnit*(1+rng.IntN(3))
				for _, in := range []int{off, off/stripeLen*stripeLen + stripeLen} {
					for _, i := range rng.Perm(s.stripes)[:rng.IntN(s.parities()+1)] {
						m, phys := r.c.column(uint64(in), i)
						n := stripeLen - off%stripeLen // of the first piece, and the rest in the next stripe
						if in != off {
							n = node - n
						}
						if rng.IntN(2) == 0 {
							r.scramble(rng, m, phys, n)
						} else {
							m.dev.(*faultdev.Dev).Fail(faultdev.Range(phys, uint64(n)), syscall.EIO)
						}
					}
				}
				r.read(off, node, node, true).mustHold(t)
			}
		})
	}
}

// sumJudge knows every sector of a rig but those without a checksum.
type sumJudge struct {
	r    *rig
	none func(off int) bool
}

func (j sumJudge) Bad(logical ondisk.Logical, b []byte) bool {
	for at := 0; at < len(b); at += testUnit {
		off := int(logical-chunkBase) + at
		if !j.none(off) && !bytes.Equal(b[at:at+testUnit], j.r.data[off:off+testUnit]) {
			return true
		}
	}
	return false
}

// TestWithoutChecksum rebuilds what has no checksum only where a device failed to deliver, and only of columns
// that their own checksums do not refuse: never a wrong byte.
func TestWithoutChecksum(t *testing.T) {
	const off = stripeLen + 2*testUnit // column D1
	for _, c := range []struct {
		name    string
		s       shape
		fail    []int // columns whose device fails
		wrong   []int // columns that are silently wrong
		judge   bool
		lost    error // nil: served right
		silence bool  // the wrong byte can't be known
	}{
		{"delivered as it is", shape{ondisk.RAID5, 3}, nil, []int{1}, true, nil, true},
		{"one fails", shape{ondisk.RAID5, 3}, []int{1}, nil, true, nil, false},
		{"one fails, no judge", shape{ondisk.RAID5, 3}, []int{1}, nil, false, nil, false},
		{"neighbour wrong", shape{ondisk.RAID5, 3}, []int{1}, []int{0}, true, syscall.EIO, false},
		{"two fail", shape{ondisk.RAID6, 5}, []int{1, 2}, nil, true, nil, false},
		{"neighbour wrong, two parities", shape{ondisk.RAID6, 5}, []int{1}, []int{2}, true, nil, false},
		{"parities disagree", shape{ondisk.RAID6, 5}, []int{1}, []int{2}, false, ErrParity, false},
		{"P wrong", shape{ondisk.RAID6, 5}, []int{1}, []int{3}, true, ErrParity, false},
		{"P fails", shape{ondisk.RAID6, 5}, []int{1, 3}, nil, true, nil, false},
		{"two fail and one is wrong", shape{ondisk.RAID6, 5}, []int{1, 3}, []int{0}, true, syscall.EIO, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.s, 2)
			if c.judge {
				r.v.opts.Judge = sumJudge{r, func(o int) bool { return o == off }}
			}
			at := func(i int) (*faultdev.Dev, faultdev.Match) {
				m, phys := r.c.column(off, i)
				return m.dev.(*faultdev.Dev), faultdev.Range(phys, testUnit)
			}
			for _, i := range c.fail {
				d, m := at(i)
				d.Fail(m, syscall.EIO)
			}
			for _, i := range c.wrong {
				d, m := at(i)
				d.Corrupt(m)
			}
			q := r.read(off, testUnit, testUnit, false)
			switch {
			case c.lost != nil:
				if len(q.Lost) != 1 || !errors.Is(&q.Lost[0], c.lost) {
					t.Errorf("lost %v, want it lost by %v", q.Lost, c.lost)
				}
			case c.silence:
				if len(q.Lost) != 0 || bytes.Equal(q.Buf, q.want) {
					t.Errorf("lost %v, want what the device delivered", q.Lost)
				}
			default:
				q.mustHold(t)
			}
		})
	}
}

// TestDoubtWithoutChecksum has a device that keeps failing, and silently wrong parity: what no checksum vouches for is
// what the device delivers. What has one may be rebuilt.
func TestDoubtWithoutChecksum(t *testing.T) {
	for _, s := range rows() {
		r := newRig(t, s, 2)
		d, _ := r.c.locate(0, 1)
		d.failures.Store(doubtAfter)
		d.probe.Store(time.Now().Add(time.Hour).UnixNano())
		for i := r.c.data(); i < s.stripes; i++ {
			m, phys := r.c.column(0, i)
			m.dev.(*faultdev.Dev).Corrupt(faultdev.Range(phys, testUnit))
		}
		r.read(0, testUnit, testUnit, false).mustHold(t)
		if r.stats.parity != 0 {
			t.Errorf("%s: rebuilt %d units without a checksum, which their device delivers", s, r.stats.parity)
		}
		d.failures.Store(doubtAfter)
		r.read(0, testUnit, testUnit, true).mustHold(t)
	}
}

// TestStaleColumn has a device that missed writes: its columns serve where a checksum decides, and stand for
// missing ones where none does.
func TestStaleColumn(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID5, 3}, {ondisk.RAID6, 4}} {
		for i := range s.stripes {
			r := newRig(t, s, s.stripes)
			r.v.members[i].stale = true
			r.v.opts.Degraded = true
			r.devs[i].Corrupt(faultdev.Range(devBase, 8*testUnit))
			r.read(0, len(r.data), testUnit, false).mustHold(t)
			r.read(0, len(r.data), testUnit, true).mustHold(t)
			other := (i + 1) % s.stripes
			gone := r.v.members[other]
			d := gone.dev
			gone.dev = nil
			// What the stale device has not missed is good enough where a checksum says so.
			q := r.read(0, len(r.data), testUnit, true)
			for _, l := range q.Lost {
				if l.Off%stripeLen >= 8*testUnit || s.parities() == 2 {
					t.Errorf("%s without devid %d and with %d stale: lost %v", s, other+1, i+1, &l)
				}
			}
			gone.dev = d
		}
	}
}

// TestMemoryOfRounds rebuilds more in one request than one round takes columns for.
func TestMemoryOfRounds(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID5, 3}, 90)
	r.devs[0].Corrupt(faultdev.All())
	q := r.read(0, len(r.data), testUnit, true)
	q.mustHold(t)
	if r.stats.parity*testUnit != len(r.data)/3 {
		t.Errorf("%d units rebuilt of %d bytes, want a third", r.stats.parity, len(r.data))
	}
}

// TestFewestCauses says of a lost unit what every column of its row had.
func TestFewestCauses(t *testing.T) {
	r := newRig(t, shape{ondisk.RAID6, 5}, 2)
	for i := range 3 {
		m, phys := r.c.column(0, i)
		m.dev.(*faultdev.Dev).Fail(faultdev.Range(phys, testUnit), syscall.EIO)
	}
	q := r.read(0, testUnit, testUnit, true)
	if len(q.Lost) != 1 {
		t.Fatalf("lost %v, want one unit", q.Lost)
	}
	var got []string
	for _, c := range q.Lost[0].Copies {
		if errors.Is(c, syscall.EIO) {
			got = append(got, fmt.Sprint(c.Column, "@", c.Physical))
		}
	}
	slices.Sort(got)
	at := devio.Physical(devBase)
	if want := []string{fmt.Sprint("@", at), fmt.Sprint("D1@", at), fmt.Sprint("D2@", at)}; !slices.Equal(got, want) {
		t.Errorf("I/O errors of %v, want %v: %v", got, want, &q.Lost[0])
	}
}

// TestUnreadable counts what can't be read without every set of devices, stripe after stripe.
func TestUnreadable(t *testing.T) {
	for _, s := range shapes() {
		r := newRig(t, s, 2*s.stripes+1)
		for set := range 1 << len(r.v.members) {
			devs := make([]Device, len(r.v.members))
			gone := 0
			for i, m := range r.v.members {
				if devs[i] = m.dev; set>>i&1 != 0 {
					m.dev = nil
					gone++
				}
			}
			var want uint64
			for off := 0; off < len(r.data); off += stripeLen {
				there := 0
				for m := Mirror(1); int(m) <= r.c.copies; m++ {
					if d, _ := r.c.locate(uint64(off), m); d.dev != nil {
						there++
					}
				}
				if there == 0 && gone > s.parities() {
					want += stripeLen
				}
			}
			if got := r.v.Unreadable(chunkBase); got != want {
				t.Errorf("%s without %b: %d bytes can't be read, want %d", s, set, got, want)
			}
			for i, m := range r.v.members {
				m.dev = devs[i]
			}
		}
	}
}

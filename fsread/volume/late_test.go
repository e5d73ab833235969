package volume

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

const testSlow = 15 * time.Millisecond

// slowRig is a rig that gives devices up quickly, and lets go of what hangs before it ends.
func slowRig(t *testing.T, s shape, rows int) *rig {
	r := newRig(t, s, rows)
	r.v.watch.limit = testSlow
	t.Cleanup(func() {
		for _, d := range r.devs {
			d.Clear()
			d.Release()
		}
	})
	return r
}

// TestHang has devices that never answer, as many as the profile can do without: every byte is served, and each
// hanging read kept its buffer, whatever was read into it in the end.
func TestHang(t *testing.T) {
	for _, s := range shapes() {
		if s.survives() == 0 || s.profile == ondisk.DUP {
			continue
		}
		for n := 1; n <= s.survives(); n++ {
			t.Run(fmt.Sprintf("%s, %d hang", s, n), func(t *testing.T) {
				rng := fsreadtest.Seed(t)
				r := slowRig(t, s, 5)
				for _, i := range rng.Perm(s.stripes)[:n] {
					r.devs[i].Hang(faultdev.All())
				}
				var all []*result
				for range 6 {
					off := rng.IntN(len(r.data)/testUnit) * testUnit
					n := min((1+rng.IntN(60))*testUnit, len(r.data)-off)
					all = append(all, r.readAll(testUnit, true, [2]int{off, n}, [2]int{0, testUnit})...)
				}
				for _, q := range all {
					q.mustHold(t)
				}
				for _, d := range r.devs {
					d.Clear()
					d.Release()
				}
				for _, q := range all {
					q.mustHold(t)
				}
			})
		}
	}
}

// TestSlowIsCounted counts each unit that was not waited for against its device.
func TestSlowIsCounted(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID1, 2}, {ondisk.RAID5, 3}} {
		r := slowRig(t, s, 2)
		r.v.watch.limit = 20 * testSlow // the others must not be late on a busy machine
		for i, m := range r.v.members[1:] {
			m.load.Add(1 << 30) // so that the one that hangs is asked first
			defer r.v.members[i+1].load.Add(-1 << 30)
		}
		r.devs[0].Hang(faultdev.All())
		r.read(0, 4*testUnit, testUnit, true).mustHold(t)
		if r.stats.slow[1] != 4 || r.stats.repaired != 4 {
			t.Errorf("%s: %d units counted as slow and %d as repaired, want 4", s, r.stats.slow[1], r.stats.repaired)
		}
	}
}

// TestHangUnverified does the same where nothing vouches for what is read.
func TestHangUnverified(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID1, 2}, {ondisk.RAID5, 3}, {ondisk.RAID6, 4}} {
		r := slowRig(t, s, 4)
		r.devs[0].Hang(faultdev.All())
		r.read(0, len(r.data), testUnit, false).mustHold(t)
	}
}

// TestLateIsBetterThanNothing has one copy late and every other one bad: the late one serves.
func TestLateIsBetterThanNothing(t *testing.T) {
	for _, s := range shapes() {
		if s.survives() == 0 || s.profile == ondisk.DUP {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			for _, bad := range []string{"fails", "is wrong"} {
				r := slowRig(t, s, 3)
				places := r.places(0)
				places[0].dev.Delay(faultdev.All(), 6*testSlow)
				for _, p := range places[1:] {
					if bad == "fails" {
						p.dev.Fail(faultdev.Range(p.phys, testUnit), syscall.EIO)
					} else {
						p.dev.Corrupt(faultdev.Range(p.phys, testUnit))
					}
				}
				r.read(0, testUnit, testUnit, true).mustHold(t)
				r.read(0, 16*testUnit, testUnit, true).mustHold(t)
			}
		})
	}
}

// TestLateColumn needs a column that is late: without it the row can't be rebuilt.
func TestLateColumn(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID5, 3}, {ondisk.RAID5, 5}, {ondisk.RAID6, 4}} {
		r := slowRig(t, s, 2)
		for i := range s.parities() {
			m, phys := r.c.column(0, i)
			m.dev.(*faultdev.Dev).Corrupt(faultdev.Range(phys, stripeLen))
		}
		for i := s.parities(); i < s.stripes; i++ {
			m, _ := r.c.column(0, i)
			m.dev.(*faultdev.Dev).Delay(faultdev.All(), time.Duration(3+i)*testSlow)
		}
		r.read(0, 16*testUnit, testUnit, true).mustHold(t)
		if r.stats.lost != 0 || r.stats.parity != 16 {
			t.Errorf("%s: %d rebuilt and %d lost, want 16 and 0", s, r.stats.parity, r.stats.lost)
		}
	}
}

// TestAllLate has every device take longer than the limit: the first answer serves, whatever is known of columns.
func TestAllLate(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID1, 2}, {ondisk.RAID10, 4}, {ondisk.RAID5, 3}, {ondisk.RAID6, 4}, {ondisk.RAID6, 6}, {ondisk.RAID1C3, 3}} {
		rng := fsreadtest.Seed(t)
		for _, judge := range []bool{false, true} {
			for _, verified := range []bool{true, false} {
				r := slowRig(t, s, 3)
				if judge {
					r.v.opts.Judge = sumJudge{r, func(int) bool { return false }}
				}
				for _, d := range r.devs {
					d.Delay(faultdev.All(), time.Duration(20+rng.IntN(60))*testSlow/10)
				}
				r.read(0, len(r.data), testUnit, verified).mustHold(t)
				if r.stats.lost != 0 {
					t.Errorf("%s, judge %v, verified %v: %d lost", s, judge, verified, r.stats.lost)
				}
			}
		}
	}
}

// TestLateAndWrong lets every copy arrive late and wrong: the unit is lost, with what each brought.
func TestLateAndWrong(t *testing.T) {
	r := slowRig(t, shape{ondisk.RAID1, 2}, 1)
	for i, d := range r.devs {
		d.Delay(faultdev.All(), time.Duration(i+3)*testSlow)
		d.Corrupt(faultdev.Range(devBase, testUnit))
	}
	q := r.read(0, 2*testUnit, testUnit, true)
	q.mustHold(t, 0)
	if len(q.Lost[0].Copies) != 2 || !errors.Is(q.Lost[0].Copies[0], errBad) || !errors.Is(q.Lost[0].Copies[1], errBad) {
		t.Errorf("lost by %v, want two wrong copies", &q.Lost[0])
	}
}

// TestOnlyCopyIsWaitedFor has a slow device and nothing else to ask.
func TestOnlyCopyIsWaitedFor(t *testing.T) {
	r := slowRig(t, shape{ondisk.RAID0, 2}, 2)
	r.devs[0].Delay(faultdev.All(), 4*testSlow)
	q := r.read(0, len(r.data), testUnit, true)
	q.mustHold(t)
	if q.Moved != nil || len(r.stats.slow) != 0 {
		t.Errorf("moved %v, slow %v, want the device waited for", q.Moved != nil, r.stats.slow)
	}
}

// TestQueueIsNotSlow has reads that wait behind others: they are late if their device delivers nothing.
func TestQueueIsNotSlow(t *testing.T) {
	r := slowRig(t, shape{ondisk.RAID1, 2}, 1)
	m := r.v.members[0]
	x := run{m: m}
	now := time.Now()
	m.seenAt = now.Add(-testSlow / 2)
	if x.overdue(now, testSlow, r.v.watch.stuck(now)) {
		t.Error("a read that has not started is late although its device delivers")
	}
	m.seenAt = now.Add(-2 * testSlow)
	if !x.overdue(now, testSlow, r.v.watch.stuck(now)) {
		t.Error("a read that has not started is not late although its device delivers nothing")
	}
	m.ends.Add(1)
	if r.v.watch.look(); m.seenAt.Before(now) {
		t.Error("the watch did not see that the device has delivered")
	}
}

// TestLookHoldsOnce has a request whose giving up takes longer than the watch waits between looks: looks do not gather.
func TestLookHoldsOnce(t *testing.T) {
	r := slowRig(t, shape{ondisk.RAID1, 2}, 1)
	for _, d := range r.devs {
		d.Hang(faultdev.All())
	}
	q := &result{buf: r.pool.Get(testUnit), want: r.data[:testUnit], done: make(chan struct{})}
	q.Request = Request{Logical: chunkBase, Buf: q.buf.B, Home: q.buf, Unit: testUnit, Verifier: q, Done: q}
	q.giving.Lock()
	r.v.Submit([]*Request{&q.Request})
	for r.v.watch.tick.Load() < 4*ticks {
		time.Sleep(time.Millisecond)
	}
	if n := q.pending.Load(); n != 2 {
		t.Errorf("%d holds on a request that reads once and is given up, want 2", n)
	}
	q.giving.Unlock()
	for _, d := range r.devs {
		d.Clear()
		d.Release()
	}
	<-q.done
	q.mustHold(t)
	q.free()
}

// TestDoubt asks a device that keeps failing last, and again when the time has come: if it is well, as before.
func TestDoubt(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID1, 2}, {ondisk.RAID5, 3}} {
		t.Run(s.String(), func(t *testing.T) {
			r := newRig(t, s, 64)
			at := func(i int) int { return i % 64 * stripeLen * (len(r.data) / stripeLen / 64) }
			lose := r.devs[0].Fail(faultdev.All(), syscall.EIO)
			asked := func(n int) int {
				before := r.devs[0].Reads()
				for i := range n {
					r.read(at(i), stripeLen, testUnit, true).mustHold(t)
				}
				return r.devs[0].Reads() - before
			}
			asked(64)
			m := r.v.members[0]
			if !m.doubtful() {
				t.Fatalf("%d failures in a row, and no doubt", m.failures.Load())
			}
			if n := asked(64); n != 0 {
				t.Errorf("a doubtful device was asked %d times, its peers being good", n)
			}
			m.probe.Store(0)
			if n := asked(64); n == 0 || n > doubtAfter {
				t.Errorf("a doubtful device was asked %d times when it was time for a probe, want a few", n)
			}
			lose.Remove()
			m.probe.Store(0)
			if n := asked(64); n < 8 || m.doubtful() {
				t.Errorf("a device that is well again was asked %d times, doubtful %v", n, m.doubtful())
			}
		})
	}
}

// TestLateStorm has many requests at once over devices that hang, crawl, fail and come back.
func TestLateStorm(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID1, 2}, {ondisk.RAID1C3, 3}, {ondisk.RAID10, 4}, {ondisk.RAID5, 3}, {ondisk.RAID6, 5}} {
		t.Run(s.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			r := slowRig(t, s, 12)
			sick := r.devs[rng.IntN(s.stripes)] // one at a time, so that nothing may be lost
			var clients sync.WaitGroup
			for range 8 {
				from, to := rng.Uint64(), rng.Uint64()
				clients.Go(func() {
					q := &result{}
					for i := range 25 {
						off := int((from+uint64(i)*to)%uint64(len(r.data)/testUnit)) * testUnit
						r.again(q, off, min(40*testUnit, len(r.data)-off))
						q.mustHold(t)
						q.free()
					}
				})
			}
			done := make(chan struct{})
			go func() { clients.Wait(); close(done) }()
			for i := 0; ; i++ {
				switch i % 4 {
				case 0:
					sick.Hang(faultdev.All())
				case 1:
					sick.Release()
					sick.Delay(faultdev.All(), 2*testSlow)
				case 2:
					sick.Clear()
					sick.Fail(faultdev.All(), syscall.EIO)
				case 3:
					sick.Clear()
				}
				for _, m := range r.v.members {
					m.probe.Store(0)
				}
				select {
				case <-done:
					return
				case <-time.After(2 * testSlow):
				}
			}
		})
	}
}

// TestGivenUpAtOnce gives reads up before they, or the rest of their batch, are with a device: a machine may stand still
// for longer than a device may take. Batches share columns, whose end their requests wait for; and what a late read ends
// in the middle of a round is used again at once.
func TestGivenUpAtOnce(t *testing.T) {
	for _, a := range []array{{shape{ondisk.RAID1, 2}, 0}, {shape{ondisk.RAID5, 3}, 0}, {shape{ondisk.RAID5, 4}, 1}, {shape{ondisk.RAID6, 6}, 2}} {
		t.Run(a.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			r := slowRig(t, a.shape, 12)
			r.v.watch.limit = ticks * time.Microsecond
			r.lose(rng.Perm(a.stripes)[:a.gone]...)
			for _, d := range r.devs {
				d.Delay(faultdev.All(), time.Duration(rng.IntN(1000))*time.Microsecond)
			}
			var clients sync.WaitGroup
			for range 4 {
				from := rng.Perm(len(r.data) / testUnit)
				clients.Go(func() {
					q := &result{}
					for _, unit := range from {
						r.again(q, unit*testUnit, testUnit)
						q.mustHold(t)
						q.free()
					}
				})
			}
			for range 30 {
				for _, q := range r.readAll(testUnit, true, inOrder(rng, len(r.data), 60)...) {
					q.mustHold(t)
				}
			}
			clients.Wait()
		})
	}
}

// TestSplitHang reads nodes that cross a stripe while a device hangs.
func TestSplitHang(t *testing.T) {
	const node = 16 << 10
	for _, s := range []shape{{ondisk.RAID10, 4}, {ondisk.RAID5, 3}, {ondisk.RAID6, 5}} {
		r := slowRig(t, s, 4)
		r.devs[1].Hang(faultdev.All())
		for i := range len(r.data)/stripeLen - 1 {
			r.read((i+1)*stripeLen-2*testUnit, node, node, true).mustHold(t)
		}
	}
}

// TestLateKeepsWhatCame has a round in which one copy serves and another is late: what was served moves along.
func TestLateKeepsWhatCame(t *testing.T) {
	for _, s := range []shape{{ondisk.RAID1C3, 3}, {ondisk.RAID6, 5}} {
		r := slowRig(t, s, 2)
		for i, m := range r.v.members[1:] {
			m.load.Add(int64(i+1) << 30) // so that the first is asked first, then the second
			defer r.v.members[i+1].load.Add(-int64(i+1) << 30)
		}
		for _, unit := range []int{0, 1, 2, 8, 9, 10} {
			p := r.places(unit * testUnit)[0]
			p.dev.Corrupt(faultdev.Range(p.phys, testUnit))
		}
		r.devs[1].Hang(faultdev.Range(devBase+8*testUnit, 3*testUnit))
		r.read(0, 16*testUnit, testUnit, true).mustHold(t)
	}
}

package volume

import (
	"slices"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// disks are devices of a rig that take time by their size, on a clock that goes on when nothing else is left to do.
type disks struct {
	now     time.Duration
	waiting []pacedRead // by the time of their end
}

type pacedRead struct {
	end  time.Duration
	disk *paced
	read *devio.Read
}

// paced reads one byte after the other, so many in a second of the clock.
type paced struct {
	memory
	disks *disks
	rate  int
	busy  time.Duration // until then
	bytes int
}

func (p *paced) Submit(batch []*devio.Read) {
	for _, r := range batch {
		p.busy = max(p.busy, p.disks.now) + time.Duration(r.Size())*time.Second/time.Duration(p.rate)
		p.bytes += r.Size()
		x := pacedRead{p.busy, p, r}
		at, _ := slices.BinarySearchFunc(p.disks.waiting, x, func(a, b pacedRead) int { return int(a.end - b.end) })
		p.disks.waiting = slices.Insert(p.disks.waiting, at, x)
	}
}

// step ends the read that ends next.
func (d *disks) step() {
	x := d.waiting[0]
	d.waiting = d.waiting[1:]
	d.now = x.end
	x.disk.memory.Submit([]*devio.Read{x.read})
}

// pace gives each device of a rig its rate.
func (r *rig) pace(rates ...int) (d *disks, all []*paced) {
	d = &disks{}
	for i, m := range r.v.members {
		p := &paced{memory: memory{m.dev, r.images[i]}, disks: d, rate: rates[i%len(rates)]}
		m.dev = p
		all = append(all, p)
	}
	return d, all
}

// client keeps requests under way: each that is done is followed by the next.
type client struct {
	Request
	r       *rig
	next    func() int // place, below 0: no more
	reading int
	buf     *devio.Buffer
}

func (c *client) start() {
	if c.reading = c.next(); c.reading >= 0 {
		c.Logical = chunkBase + ondisk.Logical(c.reading)
		c.r.v.Submit([]*Request{&c.Request})
	}
}

func (c *client) RequestDone(q *Request) {
	if len(q.Lost) > 0 {
		c.r.t.Errorf("lost %v", q.Lost)
	}
	c.start()
}

func (c *client) VerifyUnit(i int, b []byte) error {
	if !slices.Equal(b, c.r.data[c.reading+i*testUnit:][:testUnit]) {
		return errBad
	}
	return nil
}

// clients starts depth requests of n bytes and lets the clock run until all is read.
func (r *rig) clients(d *disks, depth, n int, next func() int) {
	for range depth {
		c := &client{r: r, next: next, buf: r.pool.Get(n)}
		r.t.Cleanup(c.buf.Release)
		c.Request = Request{Buf: c.buf.B, Home: c.buf, Unit: testUnit, Verifier: c, Done: c}
		c.start()
	}
	for len(d.waiting) > 0 {
		d.step()
	}
}

// TestStreamUsesEveryDevice has one client read in order from devices of a limited rate: together they deliver what
// they can, both mirrors too, and without a device what is left of them.
func TestStreamUsesEveryDevice(t *testing.T) {
	const rate, n, depth = 100 << 20, 256 << 10, 16
	for _, c := range []struct {
		array
		rates []int
	}{
		{array{shape{ondisk.RAID0, 2}, 0}, []int{rate}},
		{array{shape{ondisk.RAID0, 4}, 0}, []int{rate}},
		{array{shape{ondisk.RAID1, 2}, 0}, []int{rate}},
		{array{shape{ondisk.RAID1, 2}, 0}, []int{rate, rate / 4}},
		{array{shape{ondisk.RAID1C3, 3}, 0}, []int{rate}},
		{array{shape{ondisk.RAID10, 4}, 0}, []int{rate}},
		{array{shape{ondisk.RAID5, 3}, 0}, []int{rate}},
		{array{shape{ondisk.RAID6, 4}, 0}, []int{rate}},
		{array{shape{ondisk.RAID5, 3}, 1}, []int{rate}},
		{array{shape{ondisk.RAID6, 4}, 1}, []int{rate}},
		{array{shape{ondisk.RAID6, 4}, 2}, []int{rate}},
	} {
		r := newRig(t, c.shape, 192)
		d, all := r.pace(c.rates...)
		r.lose([]int{0, 1}[:c.gone]...)
		at, done, end := 5*testUnit, -depth*n, time.Duration(0)
		r.clients(d, depth, n, func() int {
			if at+n > len(r.data) {
				return -1
			}
			at, done, end = at+n, done+n, d.now
			return at - n
		})
		sum := 0
		for _, p := range all[c.gone:] {
			sum += p.rate
		}
		share := float64(done) / end.Seconds() / float64(sum) // until the last request began
		t.Logf("%s at %d MiB/s: %.2f of what the devices deliver", c.array, sum>>20, share)
		if share < 0.9 {
			t.Errorf("%s: %.2f of what the devices deliver, want 0.9", c.array, share)
		}
	}
}

// TestSmallReadsSpread has several clients with one small read each: no mirror has much more to do than the other.
func TestSmallReadsSpread(t *testing.T) {
	for _, s := range redundant() {
		if s.profile == ondisk.DUP {
			continue
		}
		rng := fsreadtest.Seed(t)
		r := newRig(t, s, 64)
		d, all := r.pace(100 << 20)
		left := 2000
		r.clients(d, 8, testUnit, func() int {
			left--
			if left < 0 {
				return -1
			}
			return rng.IntN(len(r.data)/testUnit) * testUnit
		})
		for i, p := range all {
			if share := float64(p.bytes) * float64(len(all)) / (2000 * testUnit); share < 0.7 || share > 1.3 {
				t.Errorf("%s: devid %d has %.2f of its share of the reads", s, i+1, share)
			}
		}
	}
}

// TestSlowDiskDelaysItsOwn has one device of two take a hundred times as long: what does not need it is not delayed.
func TestSlowDiskDelaysItsOwn(t *testing.T) {
	const rate, n = 100 << 20, 64 << 10
	r := newRig(t, shape{ondisk.RAID0, 2}, 64)
	d, all := r.pace(rate/100, rate)
	slow := &client{r: r, next: noMore, buf: r.pool.Get(n)}
	fast := &client{r: r, next: noMore, buf: r.pool.Get(n)}
	for _, c := range []*client{slow, fast} {
		defer c.buf.Release()
		c.Request = Request{Buf: c.buf.B, Home: c.buf, Unit: testUnit, Verifier: c, Done: c}
	}
	slow.reading, fast.reading = 0, stripeLen
	slow.Logical, fast.Logical = chunkBase, chunkBase+stripeLen
	r.v.Submit([]*Request{&slow.Request, &fast.Request})
	d.step()
	if fast.reading >= 0 || d.now > 2*n*time.Second/rate {
		t.Errorf("after %v the fast device's read is not done", d.now)
	}
	d.step()
	if slow.reading >= 0 || all[0].bytes != all[1].bytes {
		t.Errorf("devices read %d and %d bytes", all[0].bytes, all[1].bytes)
	}
}

func noMore() int { return -1 }

var _ Device = (*paced)(nil)

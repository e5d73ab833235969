package volume

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// shape is a profile over a number of stripes.
type shape struct {
	profile ondisk.Profile
	stripes int
}

func (s shape) String() string { return fmt.Sprintf("%s-%d", s.profile, s.stripes) }

// shapes are all that are read, the degenerate ones included (RAID0 of one, RAID10 of two).
func shapes() []shape {
	return []shape{{ondisk.Single, 1}, {ondisk.DUP, 2}, {ondisk.RAID0, 1}, {ondisk.RAID0, 2}, {ondisk.RAID0, 3}, {ondisk.RAID1, 2},
		{ondisk.RAID1C3, 3}, {ondisk.RAID1C4, 4}, {ondisk.RAID10, 2}, {ondisk.RAID10, 4}, {ondisk.RAID10, 6},
		{ondisk.RAID5, 2}, {ondisk.RAID5, 3}, {ondisk.RAID5, 5}, {ondisk.RAID6, 3}, {ondisk.RAID6, 4}, {ondisk.RAID6, 6}}
}

// parities gives the number of parity columns.
func (s shape) parities() int {
	return map[ondisk.Profile]int{ondisk.RAID5: 1, ondisk.RAID6: 2}[s.profile]
}

// survives gives how many of the places of any unit may be bad at once.
func (s shape) survives() int { return copiesOf(s.profile, s.stripes) - 1 + s.parities() }

const (
	testUnit  = 4096
	chunkBase = ondisk.Logical(7 << 20)
	devBase   = 1 << 20 // where stripes start on their devices
)

var errBad = errors.New("unit is not what was written")

// rig is a volume of one chunk over devices in memory, that knows what every byte must be.
type rig struct {
	t      testing.TB
	v      *Volume
	c      *chunk
	devs   []*faultdev.Dev
	data   []byte   // the chunk's content
	images [][]byte // of the devices
	stats  *counts
	pool   *devio.Pool
}

// counts is what the volume told of failed copies.
type counts struct {
	mu                  sync.Mutex
	checksum, io, csumR map[uint64]int
	repaired, lost      int // repaired: from a mirror or from parity
	parity              int // those of repaired from parity
	slow                map[uint64]int
	unverified          int
}

func (c *counts) ChecksumFailed(devid uint64, _ bool) {
	c.mu.Lock()
	c.checksum[devid]++
	c.mu.Unlock()
}
func (c *counts) Retried(devid uint64, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch reason {
	case "io":
		c.io[devid]++
	case "slow":
		c.slow[devid]++
	case "checksum":
		c.csumR[devid]++
	default:
		panic("reason " + reason)
	}
}
func (c *counts) Repaired(source string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repaired++
	if source == "parity" {
		c.parity++
	}
}
func (c *counts) Lost(n int)       { c.mu.Lock(); c.lost += n; c.mu.Unlock() }
func (c *counts) Unverified(n int) { c.mu.Lock(); c.unverified += n; c.mu.Unlock() }

func sum(m map[uint64]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// newRig lays the chunk's bytes out as writing it would: stripe after stripe, each device filled from its
// start. That is another way to the layout than locate's arithmetic.
func newRig(t testing.TB, s shape, rows int, opts ...faultdev.MemOption) *rig {
	columns := map[ondisk.Profile]int{ondisk.RAID0: s.stripes, ondisk.RAID10: s.stripes / 2}[s.profile]
	if s.parities() > 0 {
		columns = s.stripes - s.parities()
	}
	columns = max(columns, 1)
	copies := map[ondisk.Profile]int{ondisk.DUP: 2, ondisk.RAID1: 2, ondisk.RAID1C3: 3, ondisk.RAID1C4: 4, ondisk.RAID10: 2}[s.profile]
	copies = max(copies, 1)
	r := &rig{t: t, stats: &counts{checksum: map[uint64]int{}, io: map[uint64]int{}, csumR: map[uint64]int{}, slow: map[uint64]int{}}, pool: devio.NewPool(64 << 20)}
	r.data = make([]byte, rows*columns*stripeLen)
	for i := 0; i < len(r.data); i += 512 {
		binary.LittleEndian.PutUint64(r.data[i:], uint64(i)*0x9e3779b97f4a7c15+1)
		copy(r.data[i+8:i+512], bytes.Repeat([]byte{byte(i >> 9)}, 504))
	}
	images := make([][]byte, s.stripes)
	for i := range images {
		images[i] = make([]byte, devBase)
	}
	if s.parities() > 0 {
		layRows(images, r.data, columns)
	}
	for off, col := 0, 0; off < len(r.data) && s.parities() == 0; off, col = off+stripeLen, (col+1)%columns {
		for m := range copies {
			i := col*copies + m
			images[i] = append(images[i], r.data[off:off+stripeLen]...)
		}
	}
	r.images = images
	chunkItem := ondisk.Chunk{Length: uint64(len(r.data)), StripeLen: stripeLen, SubStripes: 2}
	r.v = &Volume{super: &ondisk.Superblock{}, pool: r.pool, opts: Options{Stats: r.stats}}
	for i, img := range images {
		d := faultdev.New(faultdev.Mem(fmt.Sprintf("disk%d", i), img, opts...))
		r.devs = append(r.devs, d)
		r.v.members = append(r.v.members, &member{id: devio.DevID(i + 1), dev: d, super: r.v.super})
		chunkItem.Stripes = append(chunkItem.Stripes, ondisk.Stripe{Dev: devio.DevID(i + 1), Physical: devBase})
	}
	if s.profile == ondisk.DUP { // both copies on the first device, one behind the other
		r.devs[0] = faultdev.New(faultdev.Mem("disk0", append(images[0], images[1][devBase:]...), opts...))
		r.v.members = r.v.members[:1]
		r.v.members[0].dev = r.devs[0]
		chunkItem.Stripes[1] = ondisk.Stripe{Dev: 1, Physical: devio.Physical(len(images[0]))}
	}
	chunkItem.Type = profileBits(s.profile) | 1
	if _, err := r.v.finish([]ondisk.ChunkEntry{{Logical: chunkBase, Chunk: chunkItem}}); err != nil {
		t.Fatal(err)
	}
	r.c = r.v.chunks[0]
	t.Cleanup(func() {
		for _, d := range r.devs {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		// A round that was cut short may still be on its way to devices that nobody waits for.
		for range 500 {
			if r.quiet() == "" {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if left := r.quiet(); left != "" {
			t.Error(left)
		}
		r.pool.Close()
	})
	return r
}

// quiet says what is still lent or under way.
func (r *rig) quiet() (left string) {
	if n := r.pool.Lent(); n != 0 {
		left = fmt.Sprintf("%d buffers still lent", n)
	}
	for _, m := range r.v.members {
		if n := m.load.Load(); n != 0 {
			left += fmt.Sprintf(" devid %d: %d bytes of load left", m.id, n)
		}
	}
	return left
}

// layRows appends the rows of RAID5 or RAID6, one after the other: what is left of the images after the data is
// parity, and where a row begins moves on by one device.
func layRows(images [][]byte, data []byte, columns int) {
	for row := 0; row*columns*stripeLen < len(data); row++ {
		p, q := make([]byte, stripeLen), make([]byte, stripeLen)
		for at := range stripeLen {
			for col := columns - 1; col >= 0; col-- { // Horner: Q = D0 + 2(D1 + 2(D2 + ...))
				d := data[(row*columns+col)*stripeLen+at]
				carry := q[at] >> 7
				p[at], q[at] = p[at]^d, q[at]<<1^carry*0x1d^d
			}
		}
		for i := range images {
			col := (i - row%len(images) + len(images)) % len(images)
			switch {
			case col < columns:
				images[i] = append(images[i], data[(row*columns+col)*stripeLen:][:stripeLen]...)
			case col == columns:
				images[i] = append(images[i], p...)
			default:
				images[i] = append(images[i], q...)
			}
		}
	}
}

func profileBits(p ondisk.Profile) uint64 {
	return map[ondisk.Profile]uint64{ondisk.Single: 0, ondisk.DUP: 0x20, ondisk.RAID0: 8, ondisk.RAID1: 0x10, ondisk.RAID10: 0x40,
		ondisk.RAID1C3: 0x200, ondisk.RAID1C4: 0x400, ondisk.RAID5: 0x80, ondisk.RAID6: 0x100}[p]
}

// result is a request, what it must bring and the wait for it.
type result struct {
	Request
	buf  *devio.Buffer
	want []byte
	done chan struct{}
}

func (q *result) RequestDone(*Request) { close(q.done) }

func (q *result) VerifyUnit(i int, b []byte) error {
	if !bytes.Equal(b, q.want[i*q.Unit:][:q.Unit]) {
		return errBad
	}
	return nil
}

// read reads [off, off+n) of the chunk in one request, checked by units, or taken as it comes.
func (r *rig) read(off, n, unit int, verified bool) *result {
	qs := r.readAll(unit, verified, [2]int{off, n})
	return qs[0]
}

// readAll submits several ranges as one batch and waits for all.
func (r *rig) readAll(unit int, verified bool, ranges ...[2]int) []*result {
	var qs []*result
	var reqs []*Request
	for _, x := range ranges {
		q := &result{buf: r.pool.Get(x[1]), want: r.data[x[0] : x[0]+x[1]], done: make(chan struct{})}
		q.Request = Request{Logical: chunkBase + ondisk.Logical(x[0]), Buf: q.buf.B, Home: q.buf, Unit: unit, Done: q}
		if verified {
			q.Verifier = q
		}
		qs, reqs = append(qs, q), append(reqs, &q.Request)
	}
	r.v.Submit(reqs)
	for _, q := range qs {
		<-q.done
		r.t.Cleanup(q.buf.Release)
		if q.Moved != nil {
			r.t.Cleanup(q.Moved.Release)
		}
	}
	return qs
}

// again reads [off, off+n) by the request of an earlier read, and waits. What q holds is to be freed.
func (r *rig) again(q *result, off, n int) {
	q.buf, q.want, q.done = r.pool.Get(n), r.data[off:off+n], make(chan struct{})
	q.Logical, q.Buf, q.Home, q.Unit, q.Verifier, q.Done = chunkBase+ondisk.Logical(off), q.buf.B, q.buf, testUnit, q, q
	r.v.Submit([]*Request{&q.Request})
	<-q.done
}

// free gives the buffers back.
func (q *result) free() {
	q.buf.Release()
	if q.Moved != nil {
		q.Moved.Release()
	}
}

// mustHold checks that all but the lost units are right, and that lost ones are zero.
func (q *result) mustHold(t testing.TB, lost ...int) {
	t.Helper()
	var got []int
	want := bytes.Clone(q.want)
	for _, l := range q.Lost {
		got = append(got, l.Off)
		clear(want[l.Off : l.Off+l.Len])
	}
	if fmt.Sprint(got) != fmt.Sprint(lost) {
		t.Errorf("lost at %v, want %v (%v)", got, lost, q.Lost)
	}
	if !bytes.Equal(q.Buf, want) {
		t.Error("wrong bytes")
	}
}

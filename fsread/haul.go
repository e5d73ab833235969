package fsread

import (
	"sync/atomic"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// maxHaul bounds what is read for several extents together, in bytes: more would keep the first of them waiting
// for the last, and other workers of the device idle.
const maxHaul = 256 << 10

// haul is one read of the volume for the flights of extents that lie one behind the other, as those of a file that
// was written in one go do.
type haul struct {
	volume.Request
	fs      *FS
	buf     *devio.Buffer
	flights []*flight // by address
	size    int       // bytes of all of them
	sums    sums      // of all their sectors
	stripes []ondisk.StripeExtent
	inside  atomic.Bool  // who submits has not come back yet
	holds   atomic.Int32 // flights that have not ended, who submits, and who reads the list
}

// load adds the read of a flight's extent, which p knows the checksums of, to what will be submitted.
func (s *submission) load(f *flight, p *piece) {
	h := f.fs.inflater.hold(s, f, p)
	f.haul = h
	h.flights = append(h.flights, f)
	h.size += int(f.key.disk)
	h.stripes = append(h.stripes, p.Stripes...)
	if !f.weak {
		h.sums.appendFrom(&p.read.sums, p.first, int(f.key.disk)/int(f.fs.super.SectorSize))
	}
}

// hold gives the last haul if the extent goes on from it, else a new one. What has no checksums is one unit and
// read alone, and so is what the stripe tree maps: one of its items may hold parts of two extents.
func (in *inflater) hold(s *submission, f *flight, p *piece) *haul {
	if last := len(s.hauls) - 1; last >= 0 {
		h := s.hauls[last]
		if h.Logical+ondisk.Logical(h.size) == f.key.logical && h.size+int(f.key.disk) <= maxHaul &&
			!f.weak && !h.flights[0].weak && len(p.Stripes) == 0 && len(h.stripes) == 0 {
			return h
		}
	}
	h := in.hauls.Get().(*haul)
	h.Logical, h.size, h.flights, h.stripes = f.key.logical, 0, h.flights[:0], h.stripes[:0]
	h.sums.reset()
	s.hauls = append(s.hauls, h)
	return h
}

// request is what the volume has to do. Where there are no checksums, inflating is the only check: it can refuse a
// copy, though not vouch for one.
func (h *haul) request() *volume.Request {
	h.buf = h.fs.pool.Get(h.size)
	h.Buf, h.Home, h.Done, h.Stripes = h.buf.B, h.buf, h, h.stripes
	h.Unit, h.Verifier, h.Weak = int(h.fs.super.SectorSize), h, h.flights[0].weak
	if h.Weak {
		h.Unit = h.size
	}
	h.inside.Store(true)
	h.holds.Store(int32(len(h.flights)) + 2)
	return &h.Request
}

// submitted says that Submit has returned.
func (h *haul) submitted() {
	h.inside.Store(false)
	h.release()
}

// VerifyUnit holds a sector against its checksum, before anything is inflated.
func (h *haul) VerifyUnit(i int, b []byte) error {
	if h.Weak {
		return h.flights[0].inflate(b)
	}
	return h.sums.check(h.fs.super.CsumType, i, b)
}

// RequestDone ends the flights of extents that no copy could serve whole, and goes on with the others.
func (h *haul) RequestDone(q *volume.Request) {
	if q.Moved != nil {
		h.buf.Release()
		h.buf, q.Moved = q.Moved, nil
	}
	at, bad := 0, q.Lost
	for _, f := range h.flights {
		end := at + int(f.key.disk)
		f.disk = q.Buf[at:end]
		var lost *volume.Lost
		for ; len(bad) > 0 && bad[0].Off < end; bad = bad[1:] {
			if lost == nil {
				lost = &bad[0]
				lost.Off -= at
			}
		}
		if at = end; lost != nil {
			f.end(lost)
		} else {
			f.land()
		}
	}
	h.release()
}

// release drops one hold on what was read.
func (h *haul) release() {
	if h.holds.Add(-1) > 0 {
		return
	}
	h.buf.Release()
	h.buf, h.Buf, h.Home = nil, nil, nil
	h.fs.inflater.hauls.Put(h)
}

var _ volume.Verifier = (*haul)(nil)

package fsread

import (
	"context"
	"fmt"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/codec"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// verifyBudget bounds the buffers that a Verification has under way, in bytes: what serves beside it keeps most
// of the disks. One step that needs more, a row of a very wide RAID5 or RAID6, is read alone. verifyDepth bounds
// the steps, which may be as short as a sector.
const (
	verifyBudget = 4 << 20
	verifyDepth  = 64
)

// VerifyOptions for a Verification; the zero value is useful.
type VerifyOptions struct {
	// Progress is told of bytes of data of which every copy was read, each once.
	Progress func(bytes uint64)
}

// Verification reads every copy of every block of files, and the parity of the rows that they lie in, and judges
// each. What several files share is read once, and told for each of them. It is one caller's at a time.
type Verification struct {
	fs *FS
	o  VerifyOptions

	planned, counted, clean spans // of data, by logical address
	rows, cleanRows         spans // of parity, by volume.Audit's address of a slice
	sumCur, stripeCur       btree.Cursor

	queue []*check // by file offset
	cost  int      // bytes of the buffers of the queue
	sum   VerifySummary
	tally map[devio.DevID]*volume.Tally
}

// NewVerification begins a run over any number of files.
func (fs *FS) NewVerification(o VerifyOptions) *Verification {
	if o.Progress == nil {
		o.Progress = func(uint64) {}
	}
	return &Verification{fs: fs, o: o, tally: make(map[devio.DevID]*volume.Tally)}
}

// BlockSize is the bytes of a block: what a checksum is of.
func (v *Verification) BlockSize() uint64 { return uint64(v.fs.super.SectorSize) }

// VerifySummary is what a Verification read, and how each device did.
type VerifySummary struct {
	Bytes                uint64 // of data, each once: neither copies nor parity count
	MinCopies, MaxCopies int    // of a block; 0 before the first
	Parity               int    // blocks of parity that a row has at most
	// Repeated: the memory of what was read is full, so that what is shared since is read and counted again.
	Repeated bool
	Devices  []DeviceVerdict
}

// DeviceVerdict is a device and its blocks by what they turned out to be.
type DeviceVerdict struct {
	volume.DeviceInfo
	volume.Tally
}

// FileVerdict is what became of one file.
type FileVerdict struct {
	Bytes   uint64 // of its data on the disks, without copies
	Ranges  int    // that were reported
	Blocks  volume.Tally
	Lost    uint64 // bytes that nothing serves, of the file
	Absent  int    // copies of blocks that missing devices would have
	Checked uint64 // offset up to which all was checked: the file's size, unless an error came before
	NoSums  bool   // it has data, and no checksums
}

// BadRange is a part of a file of which not every copy is good.
type BadRange struct {
	Off, Len uint64         // in the file; of a compressed extent, all that it serves
	Logical  ondisk.Logical // of the first block
	Disk     uint64         // bytes on the disk, from each copy's Physical on
	Copies   []volume.CopyState
	Lost     bool  // nothing serves it
	Repair   bool  // no copy is good, and yet it can be read
	Err      error // why it is lost where it is not for its copies

	compressed bool
}

// check is an Audit under way for a file, with the checksums of its range and, of RAID5 and RAID6, its rows.
type check struct {
	volume.Audit
	fs    *FS
	sums  sums
	from  ondisk.Logical // of the first sector in sums
	off   uint64         // of the file
	len   uint64         // of the file: of a compressed extent, all that it serves
	fresh uint64         // bytes that were not counted before
	cost  int
	kind  codec.Kind // of a compressed extent
	ram   int        // bytes that a compressed extent inflates to; 0: plain
	done  chan struct{}
}

// AuditDone implements volume.AuditCompleter.
func (c *check) AuditDone(*volume.Audit) { close(c.done) }

// VerifyUnit implements volume.Verifier.
func (c *check) VerifyUnit(i int, b []byte) error {
	return c.sums.check(c.fs.super.CsumType, int(c.Logical-c.from)/c.Unit+i, b)
}

// row holds a sector that belongs to whomever against its checksum.
func (c *check) row(l ondisk.Logical, b []byte) error {
	if i := uint64(l-c.from) / uint64(c.Unit); l >= c.from && i < uint64(len(c.sums.have)) {
		return c.sums.check(c.fs.super.CsumType, int(i), b)
	}
	return volume.ErrNoChecksum
}

// inflate says whether a compressed extent inflates, as strictly as a read wants it.
func (c *check) inflate(b []byte) error {
	out := c.fs.pool.Get(c.ram)
	defer out.Release()
	d := c.fs.inflater.decoder()
	defer c.fs.inflater.giveBack(d)
	if c.Verifier == nil {
		return d.InflateStrict(c.kind, out.B, b, c.Unit)
	}
	return d.Inflate(c.kind, out.B, b, c.Unit)
}

// Plan gives the bytes that File will read of a file: what was planned before is not counted again.
func (v *Verification) Plan(ctx context.Context, f *File) (bytes uint64, err error) {
	err = f.Extents(ctx, 0, func(s Segment) error {
		if from, to, ok := stored(&s); ok {
			fresh, _ := v.planned.add(uint64(from), uint64(to))
			bytes += fresh
		}
		return context.Cause(ctx)
	})
	return bytes, err
}

// stored gives the range on the disk that must be read for a segment: of a compressed extent all of it.
func stored(s *Segment) (from, to ondisk.Logical, ok bool) {
	switch {
	case s.Kind == Plain:
		return s.Logical, s.Logical + ondisk.Logical(s.Len), true
	case s.Kind == Compressed && s.Extent.Type != ondisk.ExtentInline:
		return s.Extent.DiskBytenr, s.Extent.DiskBytenr + ondisk.Logical(s.Extent.DiskNumBytes), true
	}
	return 0, 0, false
}

// Verify is a Verification of this file alone.
func (f *File) Verify(ctx context.Context, o VerifyOptions, report func(BadRange)) (FileVerdict, VerifySummary, error) {
	v := f.fs.NewVerification(o)
	verdict, err := v.File(ctx, f, report)
	return verdict, v.Summary(), err
}

// File reads and judges one file. report is told of each range of which some copy is not good, in the order of
// their offsets, what lies side by side as one. Errors: ErrUnverifiable for a file without checksums on a
// filesystem that changes; *btree.BlockError; ErrClosed; the cause of a context that ended, which ends the waiting
// alone: what is under way then finishes by itself. The verdict says how far it came.
func (v *Verification) File(ctx context.Context, f *File, report func(BadRange)) (FileVerdict, error) {
	r := &verifying{Verification: v, f: f, report: report}
	err := f.Extents(ctx, 0, func(s Segment) error { return r.segment(ctx, &s) })
	for err == nil && len(v.queue) > 0 {
		err = r.finishOldest(ctx)
	}
	r.verdict.Checked = f.size
	if err != nil {
		if r.verdict.Checked = r.at; len(v.queue) > 0 {
			r.verdict.Checked = v.queue[0].off
		}
		v.queue, v.cost = nil, 0
	}
	r.flush(-1)
	return r.verdict, err
}

// verifying is a file that is being read.
type verifying struct {
	*Verification
	f       *File
	report  func(BadRange)
	at      uint64         // everything in front of it was started
	last    ondisk.Logical // the segment before; a compressed extent may have several
	held    []BadRange
	verdict FileVerdict
}

// segment starts the steps of what a segment has on the disk. What was found clean before is left out.
func (r *verifying) segment(ctx context.Context, s *Segment) error {
	from, to, ok := stored(s)
	r.at = s.Off
	if !ok {
		return context.Cause(ctx)
	}
	if r.f.noSums && r.f.fs.opts.Changing {
		return ErrUnverifiable
	}
	r.verdict.NoSums = r.f.noSums
	if s.Kind != Compressed || from != r.last {
		r.verdict.Bytes += uint64(to - from)
	}
	r.last = from
	if s.Kind == Compressed {
		if in, until := r.clean.at(uint64(from)); in && until >= uint64(to) {
			return context.Cause(ctx)
		}
		c := &check{off: s.Off, len: s.Len, kind: codec.Kind(s.Extent.Compression), ram: int(s.Extent.RAMBytes)}
		c.Logical, c.Len = from, int(to-from)
		return r.start(ctx, c)
	}
	for l := from; l < to; {
		in, until := r.clean.at(uint64(l))
		n := min(uint64(to), until) - uint64(l)
		if gone, why := r.fs.vol.Unmapped(l, n); gone > 0 {
			if err := r.unmapped(ctx, s.Off+uint64(l-from), l, gone, why); err != nil {
				return err
			}
			n = gone
		} else if !in {
			_, until = r.counted.at(uint64(l))
			n = uint64(r.fs.vol.AuditStep(l, min(n, until-uint64(l))))
			c := &check{off: s.Off + uint64(l-from), len: n}
			c.Logical, c.Len = l, int(n)
			if err := r.start(ctx, c); err != nil {
				return err
			}
		}
		l += ondisk.Logical(n)
		r.at = s.Off + uint64(l-from)
	}
	return context.Cause(ctx)
}

// unmapped tells of a part that can't be anywhere, once what is in front of it is done.
func (r *verifying) unmapped(ctx context.Context, off uint64, l ondisk.Logical, n uint64, why error) error {
	for len(r.queue) > 0 {
		if err := r.finishOldest(ctx); err != nil {
			return err
		}
	}
	r.flush(-1)
	r.held = append(r.held, BadRange{Off: off, Len: n, Logical: l, Disk: n, Lost: true, Err: why})
	r.verdict.Lost += min(n, r.f.size-min(off, r.f.size))
	fresh, kept := r.counted.add(uint64(l), uint64(l)+n)
	r.sum.Bytes, r.sum.Repeated = r.sum.Bytes+fresh, r.sum.Repeated || !kept
	r.o.Progress(fresh)
	r.flush(-1)
	return context.Cause(ctx)
}

// start waits for room, looks up what the step needs to know and submits it.
func (r *verifying) start(ctx context.Context, c *check) error {
	fs := r.fs
	c.fs, c.done, c.Done = fs, make(chan struct{}), c
	c.Unit = int(fs.super.SectorSize)
	c.cost = fs.vol.AuditCost(c.Logical, c.Len)
	for len(r.queue) > 0 && (len(r.queue) >= verifyDepth || r.cost+c.cost > verifyBudget) {
		if err := r.finishOldest(ctx); err != nil {
			return err
		}
	}
	if err := r.prepare(ctx, c); err != nil {
		return err
	}
	from, to := uint64(c.Logical), uint64(c.Logical)+uint64(c.Len)
	counted, until := r.counted.at(from)
	c.Uncounted = counted && until >= to
	fresh, kept := r.counted.add(from, to)
	c.fresh = fresh
	r.sum.Repeated = r.sum.Repeated || !kept
	c.Slice = r.slice
	r.queue, r.cost = append(r.queue, c), r.cost+c.cost
	fs.vol.Audit(&c.Audit)
	return nil
}

// prepare looks up checksums, of the rows too, and the stripe tree.
func (r *verifying) prepare(ctx context.Context, c *check) error {
	fs := r.fs
	var to ondisk.Logical
	c.from, to = fs.vol.AuditRows(c.Logical, c.Len)
	if !r.f.noSums || fs.vol.HasParity(c.Logical) {
		if err := fs.appendSums(ctx, &r.sumCur, &c.sums, c.from, int(to-c.from)/c.Unit); err != nil {
			return err
		}
		c.Row = c.row
	}
	if !r.f.noSums {
		c.Verifier = c
	}
	if c.ram > 0 {
		c.Whole = c.inflate
	}
	if !fs.vol.UsesStripeTree(c.Logical) {
		return nil
	}
	var err error
	c.Stripes, err = fs.appendStripes(ctx, &r.stripeCur, nil, c.Logical, uint64(c.Len))
	return err
}

// slice says what to do about the parity of a slice of a row: none is counted twice, and what was found good is
// not read again.
func (v *Verification) slice(at ondisk.Logical) (judge, count bool) {
	if in, _ := v.cleanRows.at(uint64(at)); in {
		return false, false
	}
	fresh, kept := v.rows.add(uint64(at), uint64(at)+uint64(v.fs.super.SectorSize))
	v.sum.Repeated = v.sum.Repeated || !kept
	return true, fresh > 0
}

// finishOldest waits for the step that was started first and takes its results over.
func (r *verifying) finishOldest(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c := r.queue[0]
	select {
	case <-c.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if c.Err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, c.Err)
	}
	r.queue, r.cost = r.queue[1:], r.cost-c.cost
	r.take(c)
	return nil
}

// take adds the results of a step up. Only what has nothing to tell is left out when another file shares it.
func (r *verifying) take(c *check) {
	if len(c.Findings) == 0 && c.Absent == 0 {
		r.clean.add(uint64(c.Logical), uint64(c.Logical)+uint64(c.Len))
	}
	for _, at := range c.Sound {
		r.cleanRows.add(uint64(at), uint64(at)+uint64(c.Unit))
	}
	for id, t := range c.Tally {
		if r.tally[id] == nil {
			r.tally[id] = &volume.Tally{}
		}
		r.tally[id].Add(t)
	}
	s := &r.sum
	if c.Copies > 0 {
		s.MaxCopies = max(s.MaxCopies, c.Copies)
		if s.MinCopies == 0 || c.Copies < s.MinCopies {
			s.MinCopies = c.Copies
		}
	}
	s.Parity = max(s.Parity, c.Parity)
	s.Bytes += c.fresh
	r.verdict.Absent += c.Absent
	lost := false
	for i := range c.Findings {
		f := &c.Findings[i]
		r.hold(c, f)
		if f.Lost && c.ram == 0 {
			r.verdict.Lost += min(uint64(f.Len), r.f.size-min(c.off+uint64(f.Off), r.f.size))
		}
		lost = lost || f.Lost
	}
	if lost && c.ram > 0 {
		r.verdict.Lost += min(c.len, r.f.size-c.off)
	}
	r.flush(int64(c.off + c.len))
	r.o.Progress(c.fresh)
}

// hold takes a finding, joined to one that it goes on from.
func (r *verifying) hold(c *check, f *volume.Finding) {
	b := BadRange{Off: c.off, Len: c.len, Logical: c.Logical + ondisk.Logical(f.Off), Disk: uint64(f.Len),
		Copies: f.Copies, Lost: f.Lost, Repair: f.Repair, Err: f.Err, compressed: c.ram > 0}
	if !b.compressed {
		b.Off, b.Len = c.off+uint64(f.Off), uint64(f.Len)
	}
	for _, x := range f.Copies {
		r.verdict.Blocks[x.State] += int64(f.Len / c.Unit)
	}
	for i := range r.held {
		h := &r.held[i]
		if !b.compressed && !h.compressed && h.Off+h.Len == b.Off && h.Logical+ondisk.Logical(h.Disk) == b.Logical &&
			h.Lost == b.Lost && h.Repair == b.Repair && volume.Continues(h.Copies, h.Disk, b.Copies) {
			h.Len, h.Disk = h.Len+b.Len, h.Disk+b.Disk
			volume.Lengthen(h.Copies, b.Disk)
			return
		}
	}
	r.held = append(r.held, b)
}

// flush reports what was held back, but for what ends at an offset, and may go on there.
func (r *verifying) flush(at int64) {
	kept := r.held[:0]
	for _, b := range r.held {
		if !b.compressed && at >= 0 && b.Off+b.Len == uint64(at) {
			kept = append(kept, b)
			continue
		}
		b.Len = min(b.Len, r.f.size-min(b.Off, r.f.size))
		r.verdict.Ranges++
		r.report(b)
	}
	r.held = kept
}

// MaxCopies is that of the summary so far.
func (v *Verification) MaxCopies() int { return v.sum.MaxCopies }

// Summary says what was read so far, and how the devices did.
func (v *Verification) Summary() VerifySummary {
	s := v.sum
	s.Devices = nil
	for _, d := range v.fs.vol.Devices() {
		dv := DeviceVerdict{DeviceInfo: d}
		if t := v.tally[d.DevID]; t != nil {
			dv.Tally = *t
		}
		s.Devices = append(s.Devices, dv)
	}
	return s
}

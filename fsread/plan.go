package fsread

import (
	"context"
	"fmt"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/codec"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// maxPlanners bounds the goroutines that wait for tree blocks on behalf of reads.
const maxPlanners = 16

// planWaiting plans a read that could not be planned without waiting, and submits it.
func (fs *FS) planWaiting(r *Read) {
	if err := r.plan(fs.life, false); err != nil {
		r.fail(err)
		return
	}
	s := fs.submit.Get().(*submission)
	s.add(r)
	s.submit(fs.vol)
	fs.submit.Put(s)
}

// plan lays out the window: zeroes and inline bytes are put in place, extents become pieces with the
// checksums of their sectors and, where that maps them, their part of the stripe tree. noWait: answer
// btree.ErrNotCached rather than read a tree block. It may be called again after an error, and starts afresh. What it
// keeps for the next use holds no tree blocks but roots.
func (r *Read) plan(ctx context.Context, noWait bool) error {
	err := r.layOut(ctx, noWait)
	r.walk.cur.Rest()
	r.sumCur.Rest()
	r.stripeCur.Rest()
	return err
}

func (r *Read) layOut(ctx context.Context, noWait bool) error {
	r.used = 0
	r.sums.reset()
	r.stripes = r.stripes[:0]
	r.zeroes = r.zeroes[:0]
	r.walk.begin(r.file, r.window, r.window+uint64(len(r.buf.B)), noWait)
	r.sumCur.NoWait, r.stripeCur.NoWait = noWait, noWait
	for {
		s, ok, err := r.walk.next(ctx)
		if !ok || err != nil {
			return err
		}
		at := int(s.Off - r.window)
		b := r.buf.B[at : at+int(s.Len)]
		switch s.Kind {
		case Hole, Prealloc:
			clear(b)
			r.addZeroes(s.Off, s.Len)
		case Inline:
			n := copy(b, s.Inline)
			clear(b[n:])
		case Compressed:
			if err := r.addCompressed(ctx, &s, at, b); err != nil {
				return err
			}
		case Plain:
			if err := r.addPiece(ctx, s.Logical, at, b); err != nil {
				return err
			}
		}
	}
}

// addPiece plans the read of b, which lies at at of the read's buffer: len(b) bytes at logical.
func (r *Read) addPiece(ctx context.Context, logical ondisk.Logical, at int, b []byte) error {
	if p := r.continued(logical, at); p != nil {
		p.n += len(b)
		p.Buf = r.buf.B[p.at : p.at+p.n]
		if r.file.noSums {
			return nil
		}
		return r.loadSums(ctx, logical, len(b)/p.Unit)
	}
	p, err := r.newPiece(at, len(b))
	if err != nil {
		return err
	}
	p.Logical, p.Buf, p.Home, p.Unit, p.Done = logical, b, r.buf, int(r.file.fs.super.SectorSize), p
	p.Verifier, p.extent = p, extentKey{}
	if err := r.loadStripes(ctx, p, logical, len(b)); err != nil {
		return err
	}
	if r.file.noSums {
		p.Verifier = nil
		return nil
	}
	return r.loadSums(ctx, logical, len(b)/p.Unit)
}

// continued gives the last piece if it ends where another is to start, in the file as on the disk: extents are cut
// where they were written or overwritten, though what is left of them may still lie side by side.
func (r *Read) continued(logical ondisk.Logical, at int) *piece {
	if r.used == 0 {
		return nil
	}
	p := r.pieces[r.used-1]
	if p.extent != (extentKey{}) || p.Stripes != nil || p.at+p.n != at || p.Logical+ondisk.Logical(p.n) != logical {
		return nil
	}
	if r.file.fs.vol.UsesStripeTree(logical) {
		return nil // its items are for one piece
	}
	return p
}

// addCompressed takes a part of a compressed extent from the cache, or plans the read of all of it.
func (r *Read) addCompressed(ctx context.Context, s *Segment, at int, b []byte) error {
	x := &s.Extent
	in := r.file.fs.inflater
	if x.Type == ondisk.ExtentInline {
		if err := in.inflateInline(s, b); err != nil {
			return fmt.Errorf("inode %d offset %d: inline extent: %w", r.file.ino, s.Off, err)
		}
		return nil
	}
	k := extentKey{logical: x.DiskBytenr, generation: x.Generation, disk: uint32(x.DiskNumBytes), ram: uint32(x.RAMBytes), kind: codec.Kind(x.Compression)}
	if in.copyCached(k, b, int(s.Skip)) {
		return nil
	}
	p, err := r.newPiece(at, len(b))
	if err != nil {
		return err
	}
	p.extent, p.skip = k, int(s.Skip)
	if err := r.loadStripes(ctx, p, x.DiskBytenr, int(x.DiskNumBytes)); err != nil {
		return err
	}
	if r.file.noSums {
		return nil
	}
	return r.loadSums(ctx, x.DiskBytenr, int(x.DiskNumBytes)/int(r.file.fs.super.SectorSize))
}

// newPiece takes the next piece of the read, used before or new.
func (r *Read) newPiece(at, n int) (*piece, error) {
	if r.file.noSums {
		if why := r.file.fs.unverifiable(); why != nil {
			return nil, why
		}
	}
	if r.used == len(r.pieces) {
		r.pieces = append(r.pieces, &piece{})
	}
	p := r.pieces[r.used]
	r.used++
	p.read, p.at, p.n, p.first, p.Moved = r, at, n, len(r.sums.have), nil
	return p, nil
}

// loadSums appends the checksums of n sectors at logical.
func (r *Read) loadSums(ctx context.Context, logical ondisk.Logical, n int) error {
	return r.file.fs.appendSums(ctx, &r.sumCur, &r.sums, logical, n)
}

// appendSums appends the checksums of n sectors at logical to s, from as many items of the checksum tree as hold
// them: where items start and end, leaf space decides. A sector that no item covers stays without.
func (fs *FS) appendSums(ctx context.Context, cur *btree.Cursor, s *sums, logical ondisk.Logical, n int) error {
	ss := uint64(fs.super.SectorSize)
	w := sumWindow{sums: s, first: len(s.have), from: uint64(logical), to: uint64(logical) + uint64(n)*ss,
		size: fs.super.CsumType.Size(), sector: ss}
	s.grow(n, w.size)
	if err := cur.Seek(ctx, fs.csums, ondisk.Key{ObjectID: ondisk.CsumObjectID, Type: ondisk.TypeExtentCsum, Offset: w.from}); err != nil {
		return err
	}
	if cur.Valid() && !w.take(cur.Key(), cur.Item()) {
		return nil
	}
	for {
		ok, err := cur.Next(ctx)
		if err != nil || !ok {
			return err
		}
		if !w.take(cur.Key(), cur.Item()) {
			return nil
		}
	}
}

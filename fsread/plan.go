package fsread

import (
	"context"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// plan lays out the window: zeroes and inline bytes are put in place, plain extents become pieces with
// the checksums of their sectors. noWait: answer btree.ErrNotCached rather than read a tree block. It may
// be called again after an error, and starts afresh.
func (r *Read) plan(ctx context.Context, noWait bool) error {
	r.used, r.sums, r.have = 0, r.sums[:0], r.have[:0]
	r.walk.begin(r.file, r.window, r.window+uint64(len(r.buf.B)), noWait)
	r.sumCur.NoWait = noWait
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
		case Inline:
			n := copy(b, s.Inline)
			clear(b[n:])
		case Compressed:
			return readable(&s.Extent)
		case Plain:
			if err := r.addPiece(ctx, s.Logical, at, b); err != nil {
				return err
			}
		}
	}
}

// addPiece plans the read of b, len(b) bytes at logical.
func (r *Read) addPiece(ctx context.Context, logical ondisk.Logical, at int, b []byte) error {
	fs := r.file.fs
	if r.file.noSums && fs.opts.Changing {
		return ErrUnverifiable
	}
	if r.used == len(r.pieces) {
		r.pieces = append(r.pieces, &piece{})
	}
	p := r.pieces[r.used]
	r.used++
	p.read, p.at, p.first = r, at, len(r.have)
	p.Logical, p.Buf, p.Unit, p.Done = logical, b, int(fs.super.SectorSize), p
	if p.Verifier = p; r.file.noSums {
		p.Verifier = nil
		return nil
	}
	return r.loadSums(ctx, logical, len(b)/p.Unit)
}

// loadSums appends the checksums of n sectors at logical, from as many items of the checksum tree as
// hold them: where items start and end, leaf space decides. A sector that no item covers stays without.
func (r *Read) loadSums(ctx context.Context, logical ondisk.Logical, n int) error {
	fs := r.file.fs
	size, ss := fs.super.CsumType.Size(), uint64(fs.super.SectorSize)
	first := len(r.have)
	for range n {
		r.have = append(r.have, false)
	}
	r.sums = extend(r.sums, n*size)
	from, to := uint64(logical), uint64(logical)+uint64(n)*ss
	if err := r.sumCur.Seek(ctx, fs.csums, ondisk.Key{ObjectID: ondisk.CsumObjectID, Type: ondisk.TypeExtentCsum, Offset: from}); err != nil {
		return err
	}
	for ok := true; ok; {
		if r.sumCur.Valid() {
			k, item := r.sumCur.Key(), r.sumCur.Item()
			if k.ObjectID == ondisk.CsumObjectID && k.Type == ondisk.TypeExtentCsum {
				if k.Offset >= to {
					return nil
				}
				r.takeSums(first, from, to, k.Offset, item)
				if k.Offset+uint64(len(item)/size)*ss >= to {
					return nil
				}
			} else if k.Compare(ondisk.Key{ObjectID: ondisk.CsumObjectID, Type: ondisk.TypeExtentCsum}) > 0 {
				return nil
			}
		}
		var err error
		if ok, err = r.sumCur.Next(ctx); err != nil {
			return err
		}
	}
	return nil
}

// takeSums copies what an item, which starts at logical start, holds of the sectors in [from, to).
func (r *Read) takeSums(first int, from, to, start uint64, item []byte) {
	fs := r.file.fs
	size, ss := fs.super.CsumType.Size(), uint64(fs.super.SectorSize)
	end := start + uint64(len(item)/size)*ss
	lo, hi := max(from, start), min(to, end)
	if lo >= hi {
		return
	}
	at, n := first+int((lo-from)/ss), int((hi-lo)/ss)
	skip := int((lo - start) / ss)
	copy(r.sums[at*size:(at+n)*size], item[skip*size:(skip+n)*size])
	for i := at; i < at+n; i++ {
		r.have[i] = true
	}
}

// extend lengthens b by n bytes of any content.
func extend(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b[:len(b)+n]
	}
	return append(b, make([]byte, n)...)
}

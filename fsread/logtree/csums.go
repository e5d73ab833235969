package logtree

import (
	"bytes"
	"context"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// csumCost is what a run of checksums takes beside them, in bytes.
const csumCost = 64

// Csums are the checksums of consecutive sectors.
type Csums struct {
	Logical ondisk.Logical
	Sums    []byte
}

// csumRun is an EXTENT_CSUM item.
type csumRun struct {
	start, end uint64 // logical
	item       []byte
}

// layout is what turns bytes of checksums into sectors.
type layout struct {
	sector uint64
	size   int
}

func csumKey(logical uint64) ondisk.Key {
	return ondisk.Key{ObjectID: ondisk.CsumObjectID, Type: ondisk.TypeExtentCsum, Offset: logical}
}

// run gives the sectors that an item speaks of; false when it is no EXTENT_CSUM.
func (l layout) run(k ondisk.Key, item []byte) (csumRun, bool) {
	if k.ObjectID != ondisk.CsumObjectID || k.Type != ondisk.TypeExtentCsum {
		return csumRun{}, false
	}
	return csumRun{start: k.Offset, end: k.Offset + uint64(len(item)/l.size)*l.sector, item: item}, true
}

// part gives the checksums of [from, to), which lies in the run.
func (l layout) part(c csumRun, from, to uint64) []byte {
	return c.item[int((from-c.start)/l.sector)*l.size : int((to-c.start)/l.sector)*l.size]
}

// takeCsums keeps what checksums the log has of an extent's sectors on the disk. Those of a compressed
// extent are of all of it.
func (r *replay) takeCsums(ctx context.Context, x *ondisk.FileExtent) error {
	if x.DiskBytenr == 0 {
		return nil
	}
	from, n := uint64(x.DiskBytenr)+x.Offset, x.NumBytes
	if x.Compression != ondisk.CompressNone {
		from, n = uint64(x.DiskBytenr), x.DiskNumBytes
	}
	if from+n < from {
		return corrupt("an extent of %d bytes at logical %d", n, from)
	}
	l := layout{uint64(r.SectorSize), r.CsumSize}
	var c btree.Cursor
	err := c.Seek(ctx, r.Log, csumKey(from))
	for ok := true; ok && err == nil; ok, err = c.Next(ctx) {
		if !c.Valid() {
			continue
		}
		if c.Key().Compare(csumKey(from+n)) >= 0 {
			return nil
		}
		run, is := l.run(c.Key(), c.Item())
		lo, hi := max(from, run.start), min(from+n, run.end)
		if !is || lo >= hi {
			continue
		}
		sums := bytes.Clone(l.part(run, lo, hi))
		if r.csumBytes += int64(csumCost + len(sums)); r.csumBytes > r.MaxBytes {
			return &btree.TooLargeError{Limit: r.MaxBytes}
		}
		r.csums = append(r.csums, Csums{Logical: ondisk.Logical(lo), Sums: sums})
	}
	return err
}

// OverlayCsums gives what the checksum tree is once the logs' checksums are in it; nil when there are none.
// Of two for one sector the later counts. They may take maxBytes, and pieces of items that they cut are
// among that. Errors: *btree.BlockError, *btree.TooLargeError.
func OverlayCsums(ctx context.Context, tree btree.Tree, sectorSize uint32, csumSize int, csums []Csums, maxBytes int64) (*btree.Overlay, error) {
	l := layout{uint64(sectorSize), csumSize}
	e := btree.NewEdit(tree, maxBytes)
	for _, c := range csums {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		from := uint64(c.Logical)
		to := from + uint64(len(c.Sums)/l.size)*l.sector
		if err := l.makeRoom(ctx, e, from, to); err != nil {
			return nil, err
		}
		if err := e.Put(csumKey(from), c.Sums); err != nil {
			return nil, err
		}
	}
	return e.Overlay(), nil
}

// makeRoom takes the sectors [from, to) out of the items that speak of them. Precondition: from < to.
func (l layout) makeRoom(ctx context.Context, e *btree.Edit, from, to uint64) error {
	k, item, ok, err := e.Floor(ctx, csumKey(to-1))
	if err != nil || !ok {
		return err
	}
	var tail []byte
	if last, is := l.run(k, item); is && last.end > to {
		tail = l.part(last, to, last.end)
	}
	if from > 0 {
		if k, item, ok, err = e.Floor(ctx, csumKey(from-1)); err != nil {
			return err
		}
		if first, is := l.run(k, item); ok && is && first.end > from {
			if err := e.Put(k, l.part(first, first.start, from)); err != nil {
				return err
			}
		}
	}
	if err := e.Delete(csumKey(from), csumKey(to-1)); err != nil || tail == nil {
		return err
	}
	return e.Put(csumKey(to), tail)
}

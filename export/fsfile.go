package export

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/btrexport/btrexport/fsread"
)

// fsFile serves a file of a btrfs filesystem. Its reads and batches are kept for the next.
type fsFile struct {
	file    *fsread.File
	reads   sync.Pool // of *fsRead
	batches sync.Pool // of *fsBatch
}

// fsRead stands in for one Read at the filesystem. It is lent from Submit until its Release.
type fsRead struct {
	fsread.Read
	file   *fsFile
	out    *Read
	zeroes []Span // kept for the next use
}

// fsBatch is what one Submit hands on.
type fsBatch struct{ reads []*fsread.Read }

// NewFile lets an export serve f. Payloads are the filesystem's own buffers, lent and not copied; a
// read that lost a part of its range fails with its *fsread.LostError and names the parts. In the steady state (tree blocks
// cached, nothing fails) a read allocates nothing.
func NewFile(f *fsread.File) File {
	x := &fsFile{file: f}
	x.reads.New = func() any {
		r := &fsRead{file: x}
		r.Done = r
		return r
	}
	x.batches.New = func() any { return &fsBatch{} }
	return x
}

// Size implements File.
func (x *fsFile) Size() uint64 { return x.file.Size() }

// Rotational implements Rotator.
func (x *fsFile) Rotational() bool { return x.file.Rotational() }

// Submit implements File: the batch stays one batch down to the devices.
func (x *fsFile) Submit(batch []*Read) {
	b := x.batches.Get().(*fsBatch)
	for _, out := range batch {
		r := x.reads.Get().(*fsRead)
		r.out, r.Off, r.Len = out, out.Offset, int(out.Length)
		b.reads = append(b.reads, &r.Read)
	}
	x.file.Submit(b.reads)
	clear(b.reads) // they are their completers' by now
	b.reads = b.reads[:0]
	x.batches.Put(b)
}

// errEnough ends a walk over extents early.
var errEnough = errors.New("enough extents")

// Extents implements File: a walk over the file's items, in tree blocks that the filesystem caches.
func (x *fsFile) Extents(ctx context.Context, off, end uint64, wait bool, list []Extent) (int, error) {
	n := 0
	take := func(s fsread.Segment) error {
		if s.Off+s.Len <= off {
			return nil
		}
		if s.Off >= end || n == len(list) {
			return errEnough
		}
		list[n] = x.extent(&s)
		list[n].Length = s.Off + s.Len - max(s.Off, off)
		n++
		return nil
	}
	var err error
	if wait {
		err = x.file.Extents(ctx, off, take)
	} else {
		err = x.file.CachedExtents(off, take)
	}
	switch {
	case n > 0, err == errEnough, err == nil:
		return n, nil
	case errors.Is(err, fsread.ErrNotCached):
		return 0, ErrWait
	default:
		return 0, err
	}
}

// extent says what clients may know of a segment. Inline bytes are covered by their tree block's checksum,
// and so is the fact that there is a hole.
func (x *fsFile) extent(s *fsread.Segment) Extent {
	switch s.Kind {
	case fsread.Hole:
		return Extent{Kind: ExtentHole}
	case fsread.Prealloc:
		return Extent{Kind: ExtentZero}
	case fsread.Plain:
		return Extent{Unverified: !x.file.Verified()}
	case fsread.Compressed:
		return Extent{Compression: Compression(s.Extent.Compression), Unverified: !x.file.Verified() && !s.InTree()}
	default:
		return Extent{}
	}
}

// ReadDone implements fsread.Completer.
func (r *fsRead) ReadDone(*fsread.Read) {
	out := r.out
	out.Payload, out.Zeroes, out.Lost, out.Err, out.Lender = nil, nil, nil, r.Err, r
	if r.Err != nil {
		out.Lost = losses(r.Err)
	}
	if r.Err == nil || len(out.Lost) > 0 {
		out.Payload, out.Zeroes = r.Payload(), r.spans()
	}
	out.Done.ReadDone(out)
}

// spans are the read's zeroes as export has them.
func (r *fsRead) spans() []Span {
	r.zeroes = r.zeroes[:0]
	for _, z := range r.Zeroes() {
		r.zeroes = append(r.zeroes, Span{Offset: z.Off, Length: z.Len})
	}
	return r.zeroes
}

// losses are the parts that a read lost; none when all of it failed.
func losses(err error) []Loss {
	lost, ok := err.(*fsread.LostError)
	if !ok {
		return nil
	}
	list := make([]Loss, 0, len(lost.Ranges))
	for i := range lost.Ranges {
		l := &lost.Ranges[i]
		list = append(list, Loss{
			Span: Span{Offset: l.Off, Length: l.Len},
			Err:  fmt.Errorf("%d bytes lost at logical %d: %w", l.Len, l.Cause.Logical, &l.Cause),
		})
	}
	return list
}

// maxKeptSpans bounds the list of zeroes that is kept for the next use.
const maxKeptSpans = 64

// Release implements Lender.
func (r *fsRead) Release(*Read) {
	r.Read.Release()
	r.out, r.Err = nil, nil
	if cap(r.zeroes) > maxKeptSpans {
		r.zeroes = nil
	}
	r.file.reads.Put(r)
}

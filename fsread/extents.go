package fsread

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// Kind is what a part of a file is made of.
type Kind uint8

// Hole and Prealloc read as zeroes; Inline is held by a tree block; Compressed and Plain lie on the disk.
const (
	Hole Kind = iota
	Prealloc
	Inline
	Plain
	Compressed
)

func (k Kind) String() string {
	return [...]string{"hole", "prealloc", "inline", "plain", "compressed"}[k]
}

// Segment is a part of a file that is of one kind: Len bytes at Off.
type Segment struct {
	Off, Len uint64
	Kind     Kind
	Logical  ondisk.Logical // of the first byte, for Plain
	Inline   []byte         // for Inline: its bytes; what they leave of Len is zero
	Skip     uint64         // for Compressed: bytes of the inflated extent in front of the part
	Extent   ondisk.FileExtent
}

// InTree says whether the part's bytes are held by a tree block, compressed or not.
func (s *Segment) InTree() bool {
	return (s.Kind == Inline || s.Kind == Compressed) && s.Extent.Type == ondisk.ExtentInline
}

// walker goes over the extents of a file from an offset on, in segments without gap. A tree block that
// can't be read is an error and never a hole: only a search that succeeded and found nothing makes one.
type walker struct {
	cur     btree.Cursor
	f       *File
	pos     uint64 // where the next segment starts
	end     uint64 // where the last one ends
	known   uint64 // the end of the last extent passed: no later one may start below it
	more    bool   // cur is on an item that was not looked at yet
	started bool
}

// begin prepares a walk over [from, to), both multiples of the sector.
func (w *walker) begin(f *File, from, to uint64, noWait bool) {
	w.f, w.pos, w.end, w.known, w.more, w.started = f, from, to, 0, false, false
	w.cur.NoWait = noWait
}

// next gives the segment at pos; false at the end.
func (w *walker) next(ctx context.Context) (Segment, bool, error) {
	if w.pos >= w.end {
		return Segment{}, false, nil
	}
	if !w.started {
		if err := w.seek(ctx); err != nil {
			return Segment{}, false, err
		}
	}
	ss := w.f.fs.super.SectorSize
	for w.more {
		k := w.cur.Key()
		if k.ObjectID != w.f.ino || k.Type != ondisk.TypeExtentData || k.Offset >= w.end {
			break
		}
		if k.Offset > w.pos {
			return w.emit(Segment{Off: w.pos, Len: k.Offset - w.pos, Kind: Hole}), true, nil
		}
		x, err := ondisk.DecodeFileExtent(w.cur.Item(), k.Offset, ss)
		if err != nil {
			return Segment{}, false, fmt.Errorf("inode %d: %w", w.f.ino, err)
		}
		span := x.Span(ss)
		if k.Offset < w.known || span == 0 || span > math.MaxUint64-k.Offset {
			return Segment{}, false, &ondisk.Error{Item: "EXTENT_DATA", Detail: fmt.Sprintf("inode %d offset %d overlaps another extent", w.f.ino, k.Offset)}
		}
		if k.Offset+span > w.pos {
			return w.emit(w.segment(&x, k.Offset, span)), true, nil
		}
		w.known = k.Offset + span
		if w.more, err = w.cur.Next(ctx); err != nil {
			return Segment{}, false, err
		}
	}
	return w.emit(Segment{Off: w.pos, Len: w.end - w.pos, Kind: Hole}), true, nil
}

// seek goes to the extent that holds pos, or the first one behind it.
func (w *walker) seek(ctx context.Context) error {
	k := ondisk.Key{ObjectID: w.f.ino, Type: ondisk.TypeExtentData, Offset: w.pos}
	if err := w.cur.Seek(ctx, w.f.sv.tree, k); err != nil {
		return err
	}
	w.more = w.cur.Valid()
	if !w.more || w.cur.Key().ObjectID != k.ObjectID || w.cur.Key().Type != k.Type {
		var err error
		if w.more, err = w.cur.Next(ctx); err != nil {
			return err
		}
	}
	w.started = true
	return nil
}

// segment is what remains of the extent at start from pos on.
func (w *walker) segment(x *ondisk.FileExtent, start, span uint64) Segment {
	in := w.pos - start
	s := Segment{Off: w.pos, Len: span - in, Extent: *x}
	switch {
	case x.Type == ondisk.ExtentPrealloc:
		s.Kind = Prealloc
	case x.Type == ondisk.ExtentRegular && x.DiskBytenr == 0:
		s.Kind = Hole
	case x.Compression != ondisk.CompressNone:
		s.Kind, s.Skip = Compressed, in
		if x.Type != ondisk.ExtentInline {
			s.Skip += x.Offset
		}
	case x.Type == ondisk.ExtentInline:
		s.Kind = Inline
		s.Inline = x.Inline[min(in, uint64(len(x.Inline))):]
	default:
		s.Kind = Plain
		s.Logical = x.DiskBytenr + ondisk.Logical(x.Offset+in)
	}
	return s
}

func (w *walker) emit(s Segment) Segment {
	s.Len = min(s.Len, w.end-w.pos)
	w.pos += s.Len
	return s
}

// Extents calls f for every part of the file from the sector of off on, without gap, to its end rounded up
// to the sector. Inline bytes alias a cached block: they are immutable. Errors: of fn, of ctx, *LayoutError.
func (f *File) Extents(ctx context.Context, off uint64, fn func(Segment) error) error {
	return f.walk(ctx, off, false, func(_ *walker, s Segment) error { return fn(s) })
}

// CachedExtents is Extents without waiting for a disk: ErrNotCached where a tree block would have to be read,
// perhaps after some calls of fn.
func (f *File) CachedExtents(off uint64, fn func(Segment) error) error {
	return f.walk(f.fs.life, off, true, func(_ *walker, s Segment) error { return fn(s) })
}

// walk calls fn with the walker still on each segment's item.
func (f *File) walk(ctx context.Context, off uint64, noWait bool, fn func(w *walker, s Segment) error) error {
	ss := uint64(f.fs.super.SectorSize)
	var w walker
	w.begin(f, off/ss*ss, roundUp(f.size, ss), noWait)
	for {
		s, ok, err := w.next(ctx)
		if err != nil {
			return w.layoutError(ctx, err)
		}
		if !ok {
			return nil
		}
		if err := fn(&w, s); err != nil {
			return err
		}
	}
}

// layoutError says how far the error reaches: to where another tree block goes on with the file's extents.
func (w *walker) layoutError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	e := &LayoutError{Inode: w.f.ino, Off: w.pos, Len: w.end - w.pos, Err: err}
	var b *btree.BlockError
	if !errors.As(err, &b) || !b.HasNext || b.Next.ObjectID != w.f.ino || b.Next.Type != ondisk.TypeExtentData {
		return e
	}
	ss := uint64(w.f.fs.super.SectorSize)
	if b.Next.Offset > w.pos && b.Next.Offset <= w.end-ss { // the end is a multiple of the sector
		e.Len = roundUp(b.Next.Offset, ss) - w.pos
	}
	return e
}

func roundUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }

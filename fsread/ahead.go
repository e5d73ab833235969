package fsread

import (
	"context"
	"errors"
	"math"
	"sync/atomic"

	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// A sequential stream comes to a tree block that is not cached every few MiB, and would wait for it. So the tree blocks
// of the next stride of the file are read while the present one is.
const (
	// stride is what is looked at together, in bytes: long enough for a disk to find some tree blocks in the time that
	// it takes to read as much.
	stride = 4 << 20
	// nearby is how far behind the end of its last use a Read may start and count as one of a stream, in bytes: what
	// a client has under way.
	nearby = 32 << 20
	// maxAhead bounds the blocks beside those of the file's own tree that are read for one look ahead.
	maxAhead = 64
	// maxLookers bounds the goroutines that wait for such blocks; of one file there is one.
	maxLookers = 4
)

// ahead is what a File remembers of looks ahead.
type ahead struct {
	busy atomic.Bool // somebody waits for tree blocks of the file
	// done holds, at a stride's place, its number and one, if its tree blocks were cached a while ago. Streams share it.
	done [64]atomic.Uint64
}

// place spreads strides so that streams at round distances do not meet.
func (a *ahead) place(n uint64) *atomic.Uint64 { return &a.done[n*0x9e3779b97f4a7c15>>58] }

// looked says whether a stride was looked at.
func (a *ahead) looked(n uint64) bool { return a.place(n).Load() == n+1 }

// note keeps that l was looked at. Errors are not told apart: who reads there meets them.
func (a *ahead) note(l look) {
	a.place(l.number).Store(l.number + 1)
	if l.from < l.number*stride {
		a.place(l.number - 1).Store(l.number)
	}
}

// look is a part of a file whose tree blocks are to be cached, up to the end of a stride.
type look struct {
	f        *File
	from, to uint64
	number   uint64 // of the last stride; from may lie in the one before
}

// next says what a stream that goes on at pos will want; false when that was looked at before.
func (f *File) next(pos uint64) (look, bool) {
	n := pos / stride
	l := look{f: f, from: (n + 1) * stride, to: min((n+2)*stride, f.size), number: n + 1}
	if !f.ahead.looked(n) {
		l.from = pos // of this one, too: the stream begins here
	}
	return l, l.from < f.size && !f.ahead.looked(n+1)
}

// follow tells what r's stream will want, if it is one: a look costs more than many a random read, and one of those
// starts nearby once in a while, but seldom twice in a row.
func (r *Read) follow(f *File) (look, bool) {
	again := r.near
	r.near = r.Off == 0 || r.seen > 0 && r.Off >= r.seen && r.Off-r.seen <= nearby
	r.seen = r.Off + uint64(r.Len)
	if r.Off > 0 && !(r.near && again) {
		return look{}, false
	}
	return f.next(r.seen)
}

// scout goes over the tree blocks that reads of a part of a file will want.
type scout struct {
	walk          walker
	sums, stripes btree.Cursor
	left          int // blocks that may still be waited for
}

// lookAhead leaves it to a goroutine to read what is not cached of l.
func (s *scout) lookAhead(l look) {
	f := l.f
	if f.ahead.busy.Load() {
		return // a later read asks again
	}
	s.left = 0
	err := s.visit(f.fs.life, l, true)
	if err != btree.ErrNotCached {
		f.ahead.note(l)
	} else if f.ahead.busy.CompareAndSwap(false, true) && !f.fs.lookers.add(l) {
		f.ahead.busy.Store(false) // the FS is closed
	}
}

// lookWaiting reads the tree blocks of l.
func (fs *FS) lookWaiting(l look) {
	s := fs.submit.Get().(*submission)
	s.scout.left = maxAhead
	_ = s.scout.visit(fs.life, l, false)
	fs.submit.Put(s)
	l.f.ahead.note(l)
	l.f.ahead.busy.Store(false)
}

// visit goes over the extents of l, and over the blocks that hold their checksums and stripes.
func (s *scout) visit(ctx context.Context, l look, noWait bool) error {
	defer s.rest()
	ss := uint64(l.f.fs.super.SectorSize)
	s.walk.begin(l.f, l.from/ss*ss, roundUp(l.to, ss), noWait)
	for {
		seg, ok, err := s.walk.next(ctx)
		if !ok || err != nil {
			return err
		}
		from, n := seg.Logical, seg.Len
		switch {
		case seg.Kind == Compressed && !seg.InTree():
			from, n = seg.Extent.DiskBytenr, seg.Extent.DiskNumBytes
		case seg.Kind != Plain:
			continue
		}
		if err := s.visitData(ctx, l.f, from, n); err != nil {
			return err
		}
	}
}

// visitData goes over the blocks that tell of n bytes at logical.
func (s *scout) visitData(ctx context.Context, f *File, logical ondisk.Logical, n uint64) error {
	end := uint64(logical) + n
	if f.fs.vol.UsesStripeTree(logical) {
		err := s.touch(ctx, &s.stripes, f.fs.stripes, ondisk.Key{ObjectID: uint64(logical), Type: ondisk.TypeRaidStripe, Offset: math.MaxUint64},
			ondisk.Key{ObjectID: end})
		if err != nil {
			return err
		}
	}
	if f.noSums {
		return nil
	}
	k := ondisk.Key{ObjectID: ondisk.CsumObjectID, Type: ondisk.TypeExtentCsum, Offset: uint64(logical)}
	to := k
	to.Offset = end
	return s.touch(ctx, &s.sums, f.fs.csums, k, to)
}

var errFarEnough = errors.New("far enough")

// touch goes over the leaves of a tree from the one that k belongs to as far as those with keys below to.
func (s *scout) touch(ctx context.Context, cur *btree.Cursor, t btree.Tree, k, to ondisk.Key) error {
	for {
		cur.NoWait = true
		err := cur.Seek(ctx, t, k)
		if err == btree.ErrNotCached && !s.walk.cur.NoWait {
			if s.left--; s.left < 0 {
				return errFarEnough
			}
			cur.NoWait = false
			err = cur.Seek(ctx, t, k)
		}
		if err != nil {
			return err
		}
		next, ok := cur.End()
		if !ok || next.Compare(to) >= 0 || next.Compare(k) <= 0 {
			return nil
		}
		k = next
	}
}

// rest lets go of tree blocks.
func (s *scout) rest() {
	s.walk.cur.Rest()
	s.sums.Rest()
	s.stripes.Rest()
}

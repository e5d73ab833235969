package fsread

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/btree"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// MaxRead is the longest Read, in bytes.
const MaxRead = 32 << 20

// Completer is told of the end of a Read.
type Completer interface{ ReadDone(r *Read) }

// Read is one read of a File: Len bytes at Off, inside the file. Submit lends it to the FS until
// Done.ReadDone is called, exactly once, perhaps before Submit returns. Then Err and Payload hold, until
// Release. A Read that is used again allocates nothing, as long as tree blocks are cached and nothing fails.
type Read struct {
	Off  uint64
	Len  int // 1..MaxRead
	Done Completer
	Err  error // nil: all of Payload is good. *LostError: all but its ranges, which are zero. Else none of it

	file   *File
	buf    *devio.Buffer // whole sectors around the range, so that head and tail are checked whole
	window uint64        // file offset of buf's first byte
	pieces []*piece      // kept for the next use; the first used are this read's
	used   int
	sums   sums // of the sectors that the pieces read
	walk   walker
	sumCur btree.Cursor

	stripes   []ondisk.StripeExtent // that the pieces' requests are mapped by
	stripeCur btree.Cursor

	zeroes []Span // of the range, that nothing is stored for

	seen uint64 // where its last use ended, in whatever file: says whether it belongs to a stream
	near bool   // its last use began shortly behind the one before, or at the beginning of the file

	pending atomic.Int32 // pieces under way, and one for whoever submits
	mu      sync.Mutex
	lost    []LostRange // guarded by mu while pieces are under way
}

// Span is Len bytes at Off of a file.
type Span struct{ Off, Len uint64 }

// piece is a part of one extent. Of a plain one it is the request for just that part, and verifies its own
// sectors; of a compressed one it waits for the flight of the whole extent.
type piece struct {
	volume.Request
	read  *Read
	at, n int // of the read's buffer
	first int // of its sectors' checksums in the read's sums

	extent extentKey // of a compressed extent; zero: plain
	skip   int       // bytes of the inflated extent in front of the part
	next   *piece    // that waits for the same flight
}

// dst is where the piece's bytes go.
func (p *piece) dst() []byte { return p.read.buf.B[p.at : p.at+p.n] }

// Payload is the bytes read, lent until Release.
func (r *Read) Payload() []byte {
	if r.buf == nil {
		return nil
	}
	in := int(r.Off - r.window)
	return r.buf.B[in : in+r.Len]
}

// Zeroes are the parts of the range that read as zeroes because nothing is stored there: holes and what is
// preallocated. By offset; no two touch. Lent until Release, like the payload.
func (r *Read) Zeroes() []Span { return r.zeroes }

// addZeroes notes a part of the window that nothing is stored for, as far as it was asked for.
func (r *Read) addZeroes(off, n uint64) {
	from, to := max(off, r.Off), min(off+n, r.Off+uint64(r.Len))
	if from >= to {
		return
	}
	if last := len(r.zeroes) - 1; last >= 0 && r.zeroes[last].Off+r.zeroes[last].Len == from {
		r.zeroes[last].Len += to - from
		return
	}
	r.zeroes = append(r.zeroes, Span{Off: from, Len: to - from})
}

// maxKept bounds the list of zeroes that a Read keeps for its next use, and maxKeptPieces its pieces and their part of
// the stripe tree (those of 2 MiB of a file in fragments of 4 KiB), and maxKeptSums its checksums.
const (
	maxKept       = 64
	maxKeptPieces = 512
	maxKeptSums   = 4096 // sectors
)

// Release gives the payload back. It must be called once for each Read that was done, failed or not.
func (r *Read) Release() {
	if r.buf != nil {
		r.buf.Release()
		r.buf = nil
	}
	if cap(r.zeroes) > maxKept {
		r.zeroes = nil
	}
	if len(r.pieces) > maxKeptPieces || cap(r.stripes) > maxKeptPieces {
		r.pieces, r.stripes = nil, nil
	}
	if cap(r.sums.have) > maxKeptSums {
		r.sums = sums{}
	}
	r.file = nil
}

// start lends a buffer for the sectors around the range.
func (r *Read) start(f *File) error {
	r.file, r.Err, r.buf, r.lost = f, nil, nil, r.lost[:0]
	if r.Len < 1 || r.Len > MaxRead || r.Off > f.size || uint64(r.Len) > f.size-r.Off {
		return fmt.Errorf("inode %d: read of %d bytes at %d is not inside its %d bytes", f.ino, r.Len, r.Off, f.size)
	}
	ss := uint64(f.fs.super.SectorSize)
	r.window = r.Off / ss * ss
	r.buf = f.fs.pool.Get(int(roundUp(r.Off+uint64(r.Len), ss) - r.window))
	return nil
}

// VerifyUnit holds one sector against its checksum.
func (p *piece) VerifyUnit(i int, b []byte) error {
	return p.read.sums.check(p.read.file.fs.super.CsumType, p.first+i, b)
}

// RequestDone takes a piece's losses over. It runs on whoever completed the piece.
func (p *piece) RequestDone(q *volume.Request) {
	r := p.read
	for _, l := range q.Lost {
		r.lose(LostRange{Off: r.window + uint64(p.at+l.Off), Len: uint64(l.Len), Cause: l})
	}
	r.release()
}

// lose notes a lost range of the window.
func (r *Read) lose(l LostRange) {
	r.mu.Lock()
	r.lost = append(r.lost, l)
	r.mu.Unlock()
}

func (r *Read) release() {
	if r.pending.Add(-1) > 0 {
		return
	}
	r.gather()
	if len(r.lost) > 0 {
		r.Err = r.lostError()
	}
	r.Done.ReadDone(r)
}

// gather makes one buffer again of pieces that had to move out of the way of a late device, which may still write
// into the one that was begun with.
func (r *Read) gather() {
	if !slices.ContainsFunc(r.pieces[:r.used], func(p *piece) bool { return p.Moved != nil }) {
		return
	}
	b := r.file.fs.pool.Get(len(r.buf.B))
	from := 0
	for _, p := range r.pieces[:r.used] { // by offset
		if p.Moved == nil {
			continue
		}
		copy(b.B[from:p.at], r.buf.B[from:p.at])
		from = p.at + copy(b.B[p.at:], p.Buf)
		p.Moved.Release()
		p.Moved = nil
	}
	copy(b.B[from:], r.buf.B[from:])
	r.buf.Release()
	r.buf = b
}

// lostError keeps what was lost of the range asked for. A block of which only bytes outside of it were
// asked is no loss of this read; there is none such, since every block of the window holds a byte of it.
func (r *Read) lostError() error {
	slices.SortFunc(r.lost, func(a, b LostRange) int { return cmp.Compare(a.Off, b.Off) })
	ranges := slices.Clone(r.lost)
	for i := range ranges {
		l := &ranges[i]
		from, to := max(l.Off, r.Off), min(l.Off+l.Len, r.Off+uint64(r.Len))
		l.Off, l.Len = from, to-from
	}
	return &LostError{Inode: r.file.ino, Ranges: ranges}
}

// submission is what one Submit gathers for the volume; kept for the next.
type submission struct {
	reqs  []*volume.Request
	hauls []*haul
	scout scout
}

// Submit starts the reads of a batch, together. It waits for no disk, except perhaps for a lone small
// read: what needs tree blocks that are not cached is planned elsewhere. The slice may be reused after.
func (f *File) Submit(batch []*Read) {
	s := f.fs.submit.Get().(*submission)
	var next look
	var more bool
	for _, r := range batch {
		if err := r.start(f); err != nil {
			r.fail(err)
			continue
		}
		if l, ok := r.follow(f); ok {
			next, more = l, true
		}
		if err := r.plan(f.fs.life, true); err == btree.ErrNotCached {
			if !f.fs.planners.add(r) {
				r.fail(ErrClosed)
			}
		} else if err != nil {
			r.fail(err)
		} else {
			s.add(r)
		}
	}
	s.submit(f.fs.vol)
	if more {
		s.scout.lookAhead(next)
	}
	f.fs.submit.Put(s)
}

// add takes a planned read; one without pieces ends here.
func (s *submission) add(r *Read) {
	if r.used == 0 {
		r.pending.Store(1)
		r.release()
		return
	}
	r.pending.Store(int32(r.used))
	in := r.file.fs.inflater
	for _, p := range r.pieces[:r.used] {
		if p.extent == (extentKey{}) {
			s.reqs = append(s.reqs, &p.Request)
		} else {
			in.start(p, s)
		}
	}
}

func (s *submission) submit(v *volume.Volume) {
	for _, h := range s.hauls {
		s.reqs = append(s.reqs, h.request())
	}
	if len(s.reqs) > 0 {
		v.Submit(s.reqs)
	}
	for _, h := range s.hauls {
		h.submitted()
	}
	clear(s.reqs)
	clear(s.hauls)
	s.reqs, s.hauls = s.reqs[:0], s.hauls[:0]
}

// fail ends a read of which nothing is good.
func (r *Read) fail(err error) {
	r.Err = err
	if r.buf != nil {
		r.buf.Release()
		r.buf = nil
	}
	r.Done.ReadDone(r)
}

var _ volume.Verifier = (*piece)(nil)

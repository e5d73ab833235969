package fsread

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/cache"
	"github.com/btrexport/btrexport/fsread/codec"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// extentKey tells compressed extents apart. The generation is among it, so that an extent that was written
// later at the same address can never match.
type extentKey struct {
	logical    ondisk.Logical
	generation uint64
	disk, ram  uint32 // bytes on the disk, and inflated
	kind       codec.Kind
}

// inflated is an extent's content. It is lent to the cache and to whoever copies from it, and goes back
// to the pool with the last of them.
type inflated struct {
	buf  *devio.Buffer
	refs atomic.Int32
	home *sync.Pool // immutable; where it waits for its next content
}

func (x *inflated) retain() { x.refs.Add(1) }

func (x *inflated) release() {
	if x.refs.Add(-1) == 0 {
		x.buf.Release()
		x.buf = nil
		x.home.Put(x)
	}
}

// inflater reads and inflates compressed extents: each once for all who wait for it, on as many goroutines
// as there are cores.
type inflater struct {
	fs    *FS // immutable
	cache *cache.Cache[extentKey, *inflated]
	spare sync.Pool // of *flight
	blank sync.Pool // of *inflated
	codes sync.Pool // of *codec.Decoder

	decoders crew[*flight] // of flights that were read

	mu      sync.Mutex
	flights map[extentKey]*flight // guarded by mu
}

// flight is one compressed extent being read and inflated.
type flight struct {
	volume.Request
	fs      *FS
	key     extentKey
	disk    *devio.Buffer
	out     *inflated
	sums    sums
	stripes []ondisk.StripeExtent
	waiters *piece // guarded by inflater.mu
}

func newInflater(fs *FS, cacheBytes int64) *inflater {
	in := &inflater{fs: fs, flights: make(map[extentKey]*flight)}
	in.cache = cache.NewCounted[extentKey](cacheBytes, (*inflated).retain, (*inflated).release)
	in.decoders.limit, in.decoders.work = runtime.GOMAXPROCS(0), (*flight).decode
	in.spare.New = func() any { return &flight{fs: fs} }
	in.blank.New = func() any { return &inflated{home: &in.blank} }
	in.codes.New = func() any { return codec.NewDecoder() }
	return in
}

// copyCached puts a part of an extent in place if it is cached.
func (in *inflater) copyCached(k extentKey, dst []byte, skip int) bool {
	x, ok := in.cache.Get(k)
	if !ok {
		return false
	}
	copy(dst, x.buf.B[skip:])
	x.release()
	return true
}

// start serves a piece from the cache, lets it wait for a flight of its extent, or begins one, whose device
// read goes into s.
func (in *inflater) start(p *piece, s *submission) {
	in.mu.Lock()
	if f := in.flights[p.extent]; f != nil {
		p.next, f.waiters = f.waiters, p
		in.mu.Unlock()
		return
	}
	// A flight that has ended since the plan was made has left its extent here.
	if in.copyCached(p.extent, p.dst(), p.skip) {
		in.mu.Unlock()
		p.read.release()
		return
	}
	f := in.spare.Get().(*flight)
	p.next = nil
	f.key, f.waiters = p.extent, p
	in.flights[p.extent] = f
	in.mu.Unlock()
	f.begin(p)
	s.reqs = append(s.reqs, &f.Request)
}

// begin prepares the read of the whole extent. Where there are no checksums, inflating is the only check:
// it can refuse a copy, though not vouch for one.
func (f *flight) begin(p *piece) {
	n := int(f.key.disk)
	f.disk = f.fs.pool.Get(n)
	f.Logical, f.Buf, f.Home, f.Done = f.key.logical, f.disk.B, f.disk, f
	f.stripes = append(f.stripes[:0], p.Stripes...)
	f.Stripes = f.stripes
	f.Unit, f.Verifier, f.Weak = int(f.fs.super.SectorSize), f, false
	if p.read.file.noSums {
		f.Unit, f.Weak = n, true
		return
	}
	f.sums.copyFrom(&p.read.sums, p.first, n/f.Unit)
}

// VerifyUnit holds a sector against its checksum, before anything is inflated.
func (f *flight) VerifyUnit(i int, b []byte) error {
	if f.Weak {
		return f.inflate(b)
	}
	return f.sums.check(f.fs.super.CsumType, i, b)
}

// inflate fills out from what was read.
func (f *flight) inflate(b []byte) error {
	in := f.fs.inflater
	if f.out == nil {
		f.out = in.blank.Get().(*inflated)
		f.out.buf = f.fs.pool.Get(int(f.key.ram))
		f.out.retain()
	}
	d := in.codes.Get().(*codec.Decoder)
	defer in.codes.Put(d)
	if f.Weak {
		return d.InflateStrict(f.key.kind, f.out.buf.B, b, int(f.fs.super.SectorSize))
	}
	return d.Inflate(f.key.kind, f.out.buf.B, b, int(f.fs.super.SectorSize))
}

// RequestDone ends the flight of an extent that no copy could serve whole, and hands others to a decoder.
func (f *flight) RequestDone(q *volume.Request) {
	if q.Moved != nil {
		f.disk.Release()
		f.disk, q.Moved = q.Moved, nil
	}
	switch {
	case len(q.Lost) > 0:
		f.end(&q.Lost[0])
	case f.Weak:
		f.end(nil)
	default:
		if !f.fs.inflater.decoders.add(f) {
			f.end(&volume.Lost{Logical: f.key.logical, Err: ErrClosed})
		}
	}
}

// decode ends a flight whose bytes are right. What does not inflate all the same was broken before it was
// written: other copies would be the same.
func (f *flight) decode() {
	if err := f.inflate(f.Buf); err != nil {
		f.fs.vol.CountLost(1)
		f.end(&volume.Lost{Logical: f.key.logical, Err: err})
		return
	}
	f.end(nil)
}

// end gives every waiter its part, or its loss: of a compressed extent all is lost or nothing.
func (f *flight) end(lost *volume.Lost) {
	in := f.fs.inflater
	if lost == nil {
		in.cache.Put(f.key, f.out, int(f.key.ram))
	}
	in.mu.Lock()
	delete(in.flights, f.key)
	p := f.waiters
	f.waiters = nil
	in.mu.Unlock()
	for p != nil {
		next := p.next
		if lost == nil {
			copy(p.dst(), f.out.buf.B[p.skip:])
		} else {
			clear(p.dst())
			p.read.lose(LostRange{Off: p.read.window + uint64(p.at), Len: uint64(p.n), Cause: *lost})
		}
		p.read.release()
		p = next
	}
	f.disk.Release()
	if f.out != nil {
		f.out.release()
	}
	f.disk, f.out = nil, nil
	in.spare.Put(f)
}

// inflateInline inflates an extent whose bytes are in the tree block.
func (in *inflater) inflateInline(s *Segment, dst []byte) error {
	x := &s.Extent
	out := in.fs.pool.Get(max(int(x.RAMBytes), 1))
	defer out.Release()
	d := in.codes.Get().(*codec.Decoder)
	defer in.codes.Put(d)
	if err := d.Inflate(codec.Kind(x.Compression), out.B[:x.RAMBytes], x.Inline, int(in.fs.super.SectorSize)); err != nil {
		return err
	}
	n := 0
	if s.Skip < x.RAMBytes {
		n = copy(dst, out.B[s.Skip:x.RAMBytes])
	}
	clear(dst[n:])
	return nil
}

// close waits for the decoders and gives the cached extents back. No flight is under way by then.
func (in *inflater) close() {
	in.decoders.close()
	in.cache.Clear()
}

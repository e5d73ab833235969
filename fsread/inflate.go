package fsread

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

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

// memoryOf is what an inflated extent takes.
func memoryOf(k extentKey) int { return devio.BufferSize(int(k.ram)) }

// inflater reads and inflates compressed extents: each once for all who wait for it, on as many goroutines
// as there are cores.
type inflater struct {
	fs    *FS // immutable
	cache *cache.Cache[extentKey, *inflated]
	spare sync.Pool // of *flight
	hauls sync.Pool // of *haul
	blank sync.Pool // of *inflated

	misses atomic.Uint64                // extents that were asked for and not cached
	took   [codec.Zstd + 1]atomic.Int64 // nanoseconds in decoders, by codec.Kind

	decoders crew[*flight] // of flights that were read
	under    atomic.Int32  // flights begun and not ended

	mu      sync.Mutex
	flights map[extentKey]*flight // guarded by mu
	codes   []*codec.Decoder      // guarded by mu; idle, at most as many as decoders
}

// flight is one compressed extent being read and inflated.
type flight struct {
	fs   *FS
	key  extentKey
	weak bool // there are no checksums: it is inflated as its own check
	haul *haul
	disk []byte // of the haul, once it was read
	out  *inflated

	waiters *piece // guarded by inflater.mu, as keep
	keep    bool   // inflate all of it, into out and the cache; else what the one waiter wants, into its place
}

func newInflater(fs *FS, cacheBytes int64) *inflater {
	in := &inflater{fs: fs, flights: make(map[extentKey]*flight)}
	in.cache = cache.NewCounted[extentKey](cacheBytes, (*inflated).retain, (*inflated).release)
	in.decoders.limit, in.decoders.work = runtime.GOMAXPROCS(0), (*flight).decode
	in.spare.New = func() any { return &flight{fs: fs} }
	in.hauls.New = func() any { return &haul{fs: fs} }
	in.blank.New = func() any { return &inflated{home: &in.blank} }
	return in
}

// decoder lends a decoder, until giveBack.
func (in *inflater) decoder() *codec.Decoder {
	in.mu.Lock()
	defer in.mu.Unlock()
	last := len(in.codes) - 1
	if last < 0 {
		return codec.NewDecoder()
	}
	d := in.codes[last]
	in.codes = in.codes[:last]
	return d
}

func (in *inflater) giveBack(d *codec.Decoder) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.codes) < in.decoders.limit {
		in.codes = append(in.codes, d)
	}
}

// clock counts what a decoder took since it began. Kinds that the format does not define fail at once.
func (in *inflater) clock(k codec.Kind, begin time.Time) {
	if int(k) < len(in.took) {
		in.took[k].Add(int64(time.Since(begin)))
	}
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

// start serves a piece from the cache, lets it wait for a flight of its extent, or begins one, which goes
// into s. Who waits for a flight that was not to be kept makes it one that is.
func (in *inflater) start(p *piece, s *submission) {
	in.mu.Lock()
	if f := in.flights[p.extent]; f != nil {
		in.misses.Add(1)
		p.next, f.waiters, f.keep = f.waiters, p, true
		in.mu.Unlock()
		return
	}
	// A flight that has ended since the plan was made has left its extent here.
	if in.copyCached(p.extent, p.dst(), p.skip) {
		in.mu.Unlock()
		p.read.release()
		return
	}
	in.misses.Add(1)
	f := in.spare.Get().(*flight)
	p.next = nil
	f.key, f.weak, f.waiters, f.keep = p.extent, p.read.file.noSums, p, in.worth(p)
	in.flights[p.extent] = f
	in.mu.Unlock()
	in.under.Add(1)
	s.load(f, p)
}

// worth says whether an extent is to be inflated whole for a piece, and cached. When the cache is full and nobody
// asked for the extent lately, only what the piece wants is inflated, if that costs less.
func (in *inflater) worth(p *piece) bool {
	if p.read.file.noSums || !p.frugal() {
		return true // without checksums, inflating all of it is the check
	}
	return in.cache.Admit(p.extent, memoryOf(p.extent))
}

// frugal says whether less work is done when only the piece's part of the extent is inflated: LZO inflates by sector,
// zlib stops behind the part, zstd has to inflate all of it. All of an extent at least needs no copy.
func (p *piece) frugal() bool {
	ram := int(p.extent.ram)
	switch {
	case p.n == ram:
		return true
	case p.extent.kind == codec.LZO:
		return p.n <= ram/4
	case p.extent.kind == codec.Zlib:
		return p.n <= ram/4 && p.skip+p.n <= ram/4*3
	}
	return false
}

// seal gives the one waiter of a flight that is not to be kept; from then on nobody else can wait for it.
func (f *flight) seal() *piece {
	in := f.fs.inflater
	in.mu.Lock()
	defer in.mu.Unlock()
	if f.keep {
		return nil
	}
	delete(in.flights, f.key)
	return f.waiters
}

// inflatePart puts a piece's part of the extent in place.
func (f *flight) inflatePart(p *piece) error {
	in := f.fs.inflater
	d := in.decoder()
	defer in.giveBack(d)
	defer in.clock(f.key.kind, time.Now())
	return d.InflateAt(f.key.kind, p.dst(), f.disk, int(f.fs.super.SectorSize), p.skip)
}

// inflate fills out from b.
func (f *flight) inflate(b []byte) error {
	in := f.fs.inflater
	if f.out == nil {
		f.out = in.blank.Get().(*inflated)
		f.out.buf = f.fs.pool.Get(int(f.key.ram))
		f.out.retain()
	}
	d := in.decoder()
	defer in.giveBack(d)
	defer in.clock(f.key.kind, time.Now())
	if f.weak {
		return d.InflateStrict(f.key.kind, f.out.buf.B, b, int(f.fs.super.SectorSize))
	}
	return d.Inflate(f.key.kind, f.out.buf.B, b, int(f.fs.super.SectorSize))
}

// land goes on with what was read and is right. The only flight is inflated by who submitted it, if its read was done
// there and then: a client that waits for one extent need not wait for another goroutine as well. What takes less
// time than a hand-off is inflated where it arrives. All else would hold up what the device brings next.
func (f *flight) land() {
	in := f.fs.inflater
	switch {
	case f.weak:
		f.end(nil)
	case in.under.Load() == 1 && f.haul.inside.Load() || f.brief():
		f.decode()
	case !in.decoders.add(f):
		f.end(&volume.Lost{Logical: f.key.logical, Err: ErrClosed})
	}
}

// brief says whether a few sectors of LZO are all that is wanted.
func (f *flight) brief() bool {
	if f.key.kind != codec.LZO {
		return false
	}
	f.fs.inflater.mu.Lock()
	defer f.fs.inflater.mu.Unlock()
	return !f.keep && f.waiters.n <= 16<<10
}

// decode ends a flight whose bytes are right. What does not inflate all the same was broken before it was
// written: other copies would be the same.
func (f *flight) decode() {
	var err error
	if p := f.seal(); p != nil {
		err = f.inflatePart(p)
	} else {
		err = f.inflate(f.disk)
	}
	if err != nil {
		f.fs.vol.CountLost(1)
		f.end(&volume.Lost{Logical: f.key.logical, Err: err})
		return
	}
	f.end(nil)
}

// end gives every waiter its part, or its loss: of a compressed extent all is lost or nothing.
func (f *flight) end(lost *volume.Lost) {
	in := f.fs.inflater
	if lost == nil && f.out != nil {
		in.cache.Put(f.key, f.out, memoryOf(f.key))
	}
	in.mu.Lock()
	if in.flights[f.key] == f {
		delete(in.flights, f.key)
	}
	p := f.waiters
	f.waiters = nil
	in.mu.Unlock()
	in.under.Add(-1)
	f.haul.release()
	for p != nil {
		next := p.next
		if lost != nil {
			clear(p.dst())
			p.read.lose(LostRange{Off: p.read.window + uint64(p.at), Len: uint64(p.n), Cause: *lost})
		} else if f.out != nil {
			copy(p.dst(), f.out.buf.B[p.skip:])
		}
		p.read.release()
		p = next
	}
	if f.out != nil {
		f.out.release()
	}
	f.haul, f.disk, f.out = nil, nil, nil
	in.spare.Put(f)
}

// inflateInline inflates an extent whose bytes are in the tree block.
func (in *inflater) inflateInline(s *Segment, dst []byte) error {
	x := &s.Extent
	out := in.fs.pool.Get(max(int(x.RAMBytes), 1))
	defer out.Release()
	d := in.decoder()
	defer in.giveBack(d)
	defer in.clock(codec.Kind(x.Compression), time.Now())
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

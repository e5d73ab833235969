package export

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// aheadStreams is how many sequences of requests of one client are told apart, and aheadRun how many
	// requests make one.
	aheadStreams, aheadRun = 4, 3
	// aheadLongest is the longest request that is helped, aheadDeep how many bytes a client may have under
	// way that still needs help: others keep the disks busy by themselves. For so many requests aheadDeepFor remembers that
	// one had more: where reads come at once, few are under way, whatever the client asks for.
	aheadLongest, aheadDeep, aheadDeepFor = 1 << 20, 512 << 10, 512
	// aheadPiece is how much is read ahead at a time, about; aheadFirst how far a stream is ahead at its
	// beginning, and aheadWindow how much a connection may hold.
	aheadPiece, aheadFirst, aheadWindow = 512 << 10, 1 << 20, 4 << 20
	// aheadTotal bounds what all connections hold; aheadIdle is when a client's part is free for others.
	aheadTotal, aheadIdle = 32 << 20, time.Second
)

// readAhead reads on where a client goes through a file in order, a little at a time, so that disks and client
// work at the same time; what it has read waits here for the request. A client that jumps gets nothing read
// beyond what its jump ends. One connection's: its reader goroutine calls it, and the server release.
type readAhead struct {
	t       *transmission // immutable
	streams [aheadStreams]stream
	last    *stream // of the batch's last request that went on with one; nil: none did
	clock   uint64  // requests so far
	shallow uint64  // by clock, when a client that had many bytes under way is thought to have fewer
	reads   []*Read // to be submitted with the batch
	some    bool    // there may be pieces
	flying  sync.WaitGroup

	mu     sync.Mutex
	pieces []*piece // guarded by mu; oldest first
	held   int64    // guarded by mu; bytes of pieces
	used   time.Time
}

// stream is a sequence of requests, each of which begins where the last one ended.
type stream struct {
	next   uint64 // where that is
	length uint64 // bytes of the last one
	run    int    // requests so far
	end    uint64 // where what was read ahead ends
	window uint64 // bytes to be ahead
	used   uint64 // when it was, by readAhead.clock
}

// piece is a part of the file that was read ahead, or is being read. It is lent by the File until the last of
// those who hold it lets go: the list, its read, each reply with a part of it.
type piece struct {
	a    *readAhead // nil: in the server's pool
	read Read
	refs atomic.Int32

	mu      sync.Mutex
	done    bool       // guarded by mu
	good    bool       // guarded by mu; once done: it is here, but for what was lost
	told    []uint64   // guarded by mu; of each loss, how far clients were told of it
	waiters []*request // guarded by mu; until done
}

// take answers q from what was read ahead, now or when that has come; false if it must be read.
func (a *readAhead) take(q *request) bool {
	r := &q.read
	a.follow(r.Offset, uint64(r.Length))
	if !a.some {
		return false
	}
	p := a.find(r.Offset, uint64(r.Length))
	if p == nil {
		return false
	}
	switch p.serve(q) {
	case aheadReady:
		q.settle()
		a.t.push(q)
	case aheadBroken:
		p.Release(nil)
		return false
	}
	return true
}

// follow notes a request in the stream that it goes on with, or begins one in place of the oldest.
func (a *readAhead) follow(off, n uint64) {
	a.clock++
	oldest := &a.streams[0]
	for i := range a.streams {
		s := &a.streams[i]
		if s.run > 0 && s.next == off {
			s.next, s.length, s.used = off+n, n, a.clock
			s.run++
			a.last = s
			return
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{next: off + n, length: n, run: 1, used: a.clock}
}

// find gives the piece with all of a range, held once more for who asks; nil if there is none. Who gets its end gets
// it out of the list.
func (a *readAhead) find(off, n uint64) *piece {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.some = len(a.pieces) > 0
	for i, p := range a.pieces {
		if !p.holds(Span{off, n}) {
			continue
		}
		if p.knows(Span{off, n}) { // who asks again wants it read again
			return nil
		}
		a.used = time.Now()
		p.refs.Add(1)
		if off+n == p.read.Offset+uint64(p.read.Length) || p.broken() {
			a.drop(i)
		}
		return p
	}
	return nil
}

// idle tells whether there is nothing to plan.
func (a *readAhead) idle() bool { return a.last == nil && len(a.reads) == 0 }

// has tells whether a piece holds all of a range.
func (a *readAhead) has(s Span) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.pieces, func(p *piece) bool { return p.holds(s) && !p.broken() })
}

// plan gives the reads to be submitted with the batch, valid until the next one: those of cache, and what the window
// of the stream that the client is on lacks. requests is how many it waits for.
func (a *readAhead) plan(requests int) []*Read {
	if s := a.last; s != nil {
		if requests > 1 && uint64(requests)*s.length > aheadDeep {
			a.shallow = a.clock + aheadDeepFor
		}
		if s.run >= aheadRun && s.length <= aheadLongest && a.clock >= a.shallow {
			a.extend(s)
		}
	}
	reads := a.reads
	a.last, a.reads = nil, a.reads[:0]
	return reads
}

// extend fills the window of a stream, which then is twice as long.
func (a *readAhead) extend(s *stream) {
	size := a.t.export.fileSize
	whole := max(aheadPiece/s.length, 1) * s.length // no request lies in two pieces then
	most := max(aheadWindow/a.active(), 2*whole) - whole
	s.end = max(s.end, s.next)
	s.window = min(max(s.window, aheadFirst), most)
	for s.end < size && s.end-s.next+whole <= s.window {
		n := min(whole, size-s.end)
		if !a.read(Span{s.end, n}) {
			return
		}
		s.end += n
	}
	s.window = min(2*s.window, most)
}

// active is how many streams the client is on.
func (a *readAhead) active() uint64 {
	n := uint64(0)
	for i := range a.streams {
		if s := &a.streams[i]; s.run >= aheadRun && a.clock-s.used < 8*aheadStreams {
			n++
		}
	}
	return max(n, 1)
}

// cache reads the beginning of a range ahead, as much of it as half of the window holds, unless it is there already,
// and returns how many bytes those are.
func (a *readAhead) cache(s Span) uint64 {
	from := s.Offset
	for s.Length > 0 && s.Offset-from+aheadPiece <= aheadWindow/2 {
		n := min(s.Length, aheadPiece)
		if !a.has(Span{s.Offset, n}) && !a.read(Span{s.Offset, n}) {
			break
		}
		s.Offset, s.Length = s.Offset+n, s.Length-n
	}
	return s.Offset - from
}

// read adds the read of a part of the file to those of the next plan; false if there is no room for it.
func (a *readAhead) read(s Span) bool {
	n := int64(s.Length)
	if !a.room(n) || !a.t.server.takeAhead(n, a) {
		return false
	}
	p := a.t.server.pieces.Get().(*piece)
	p.a, p.done, p.told = a, false, p.told[:0]
	p.read = Read{Offset: s.Offset, Length: uint32(s.Length), Done: p}
	p.refs.Store(2) // the list, and the read
	a.mu.Lock()
	a.pieces = append(a.pieces, p)
	a.held += n
	a.used = time.Now()
	a.mu.Unlock()
	a.some = true
	a.flying.Add(1)
	a.reads = append(a.reads, &p.read)
	return true
}

// room lets go of the oldest pieces for n bytes more, but not of those that are still being read.
func (a *readAhead) room(n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.held+n > aheadWindow {
		i := slices.IndexFunc(a.pieces, (*piece).ended)
		if i < 0 {
			return false
		}
		a.drop(i)
	}
	return true
}

// drop lets go of a piece. mu must be held.
func (a *readAhead) drop(i int) {
	p := a.pieces[i]
	a.pieces = slices.Delete(a.pieces, i, i+1)
	a.held -= int64(p.read.Length)
	p.Release(nil)
}

// release lets go of everything, if it has not been used for so long. Any goroutine may call it.
func (a *readAhead) release(unused time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.pieces) > 0 && time.Since(a.used) >= unused {
		a.drop(len(a.pieces) - 1)
	}
}

// close lets go of everything and waits until all reads have come back, or waiting has no more sense.
func (a *readAhead) close() {
	a.release(0)
	waitUnless(&a.flying, a.t.lost)
}

// What serve says: the request can be answered, will be when the piece has come, or must be read by itself.
type aheadState int

const (
	aheadReady aheadState = iota
	aheadLater
	aheadBroken
)

// serve gives q its part of p, or lets it wait for that. What was held for q goes with it, unless p is broken.
func (p *piece) serve(q *request) aheadState {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.done:
		p.a.t.outstanding(q)
		p.waiters = append(p.waiters, q)
		return aheadLater
	case !p.good:
		return aheadBroken
	}
	p.fill(q)
	return aheadReady
}

// fill lends q its part.
func (p *piece) fill(q *request) {
	r := &q.read
	in := r.Offset - p.read.Offset
	r.Payload, r.Lender = p.read.Payload[in:in+uint64(r.Length)], p
	if stats := p.a.t.export.Stats; stats != nil {
		stats.ReadAhead(0, int(r.Length))
	}
	q.zeroes = q.zeroes[:0]
	for _, z := range p.read.Zeroes {
		if from, to := overlap(z, Span{r.Offset, uint64(r.Length)}); from < to {
			q.zeroes = append(q.zeroes, Span{from, to - from})
		}
	}
	r.Zeroes = q.zeroes
	p.fillLosses(r)
}

// fillLosses tells a request what was lost of its part.
func (p *piece) fillLosses(r *Read) {
	part := Span{r.Offset, uint64(r.Length)}
	for i, l := range p.read.Lost {
		from, to := overlap(l.Span, part)
		if from < to {
			r.Lost = append(r.Lost, Loss{Span{from, to - from}, l.Err})
			p.told[i] = max(p.told[i], to)
			r.Err = r.Lost[0].Err
		}
	}
}

// knows tells whether a client was told already of something that a range has lost.
func (p *piece) knows(s Span) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, to := range p.told {
		if from, _ := overlap(p.read.Lost[i].Span, s); from < min(to, s.Offset+s.Length) {
			return true
		}
	}
	return false
}

// overlap gives what two ranges share: from < to, or nothing.
func overlap(a, b Span) (from, to uint64) {
	return max(a.Offset, b.Offset), min(a.Offset+a.Length, b.Offset+b.Length)
}

// ReadDone implements Completer: who has waited is answered. What failed altogether is read again as it was asked for.
func (p *piece) ReadDone(*Read) {
	t := p.a.t
	defer t.recoverPanic()
	defer p.a.flying.Done()
	defer p.Release(nil)
	p.mu.Lock()
	p.done = true
	p.good = (p.read.Err == nil || len(p.read.Lost) > 0) && len(p.read.Payload) == int(p.read.Length)
	p.told = append(p.told[:0], make([]uint64, len(p.read.Lost))...)
	waiters := p.waiters
	p.waiters = nil
	if p.good {
		for _, q := range waiters {
			p.fill(q)
		}
	}
	good := p.good
	p.mu.Unlock()
	if good {
		if t.export.Stats != nil {
			t.export.Stats.ReadAhead(int(p.read.Length), 0)
		}
		for _, q := range waiters {
			q.ReadDone(&q.read)
		}
		return
	}
	var again []*Read
	for _, q := range waiters {
		again = append(again, &q.read)
		p.Release(nil)
	}
	if len(again) > 0 {
		t.export.File.Submit(again)
	}
}

// Release implements Lender.
func (p *piece) Release(*Read) {
	if p.refs.Add(-1) > 0 {
		return
	}
	if p.read.Lender != nil {
		p.read.Lender.Release(&p.read)
	}
	s := p.a.t.server
	s.aheadBytes.Add(-int64(p.read.Length))
	p.a, p.read = nil, Read{}
	s.pieces.Put(p)
}

// holds tells whether all of a range is p's.
func (p *piece) holds(s Span) bool {
	return p.read.Offset <= s.Offset && s.Offset+s.Length <= p.read.Offset+uint64(p.read.Length)
}

func (p *piece) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

func (p *piece) broken() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done && !p.good
}

// takeAhead takes n bytes of what all connections may have read ahead, if need be from those that do not use theirs.
func (s *Server) takeAhead(n int64, asking *readAhead) bool {
	if s.aheadBytes.Add(n) <= aheadTotal {
		return true
	}
	s.aheadBytes.Add(-n)
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.serving {
		if t.ahead != asking {
			t.ahead.release(aheadIdle)
		}
	}
	return false
}

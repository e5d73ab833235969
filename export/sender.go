package export

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxRequests bounds the requests in flight of one connection, answers included that the
	// client has not taken.
	maxRequests = 64
	// maxIovecs of one writev: a header and a payload for each request, and room for padding and
	// for replies of many chunks.
	maxIovecs = 4 * maxRequests
	// gatherBytes is how much may wait for the end of Submit. More is sent at once, while it
	// is warm in the cache and so that the client has something to do. A reply of that size is long.
	gatherBytes = 64 << 10
	// flushRounds bounds the writevs of a completer in a row: it has a disk to look after.
	flushRounds = 4
)

// zeroes is what padding is sent from; nothing writes to it.
var zeroes [64 << 10]byte

// sender gathers the finished replies of one connection and sends them, one writer at a time.
// Who sets writing owns out, sending, head, part, sent and iov until the queue is empty.
type sender struct {
	out    transport
	onFail func(error)   // closes the connection; called once
	wake   chan struct{} // of capacity 1: there is work for the writer goroutine
	freed  chan struct{} // of capacity 1: slots came back while the reader waited for some
	dead   chan struct{} // closed when broken is set

	// owned by whoever set writing
	sending []*request // taken from queue
	head    int        // the first of sending that has not left wholly
	part    int        // the first of its chunks that has not
	sent    int        // bytes of that that have left
	iov     []unix.Iovec

	mu        sync.Mutex
	queue     []*request // finished, oldest first
	queued    int        // bytes of queue
	writing   bool
	handed    bool   // the writer goroutine is to go on where writing is set
	gathering uint64 // number of the batch that the reader is working on; 0: none
	atFile    int    // requests between Submit and ReadDone
	started   int    // requests with started set that have not come back
	free      []*request
	needSlots bool  // the reader waits on freed
	broken    error // why nothing is sent any more
	writevs   int   // counts, for tests and tuning
	replies   int
}

func newSender(out transport, onFail func(error)) *sender {
	return &sender{
		out:     out,
		onFail:  onFail,
		wake:    make(chan struct{}, 1),
		freed:   make(chan struct{}, 1),
		dead:    make(chan struct{}),
		sending: make([]*request, 0, maxRequests),
		queue:   make([]*request, 0, maxRequests),
		iov:     make([]unix.Iovec, 0, maxIovecs),
		free:    make([]*request, 0, maxRequests),
	}
}

// poke sets a channel of capacity 1.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// next says who sends what was just queued.
type next int

const (
	leave   next = iota // somebody will
	write               // the caller, without waiting
	handOff             // the writer goroutine
)

// push queues a finished request. mu must be held.
func (s *sender) push(q *request) {
	s.queue = append(s.queue, q)
	s.queued += q.size
}

// afterDone decides who sends a read that just ended. A batch in Submit is gathered until the
// reader flushes. Else the last read outstanding is sent by whoever completed it; while others
// are outstanding the writer goroutine is woken, and sends what has gathered when it runs: inside
// Submit only a long reply, so that one core sends while another one reads on. mu must be held.
func (s *sender) afterDone(q *request) next {
	switch {
	case s.writing:
		return leave
	case s.broken == nil && s.gathering == q.batch && s.queued < gatherBytes:
		return leave
	case s.broken == nil && s.atFile > 0 && (s.gathering != q.batch || q.size >= gatherBytes):
		return handOff
	}
	s.writing = true
	return write
}

// flush sends what is queued, for an owner that has set writing. Without wait it passes the
// rest on to the writer goroutine when the socket is full. It ends with writing unset or passed on.
func (s *sender) flush(wait bool) {
	for round := 0; s.refill(); round++ {
		if !wait && round >= flushRounds {
			s.passOn()
			return
		}
		n, err := s.out.writev(s.gatherIovecs(), wait)
		if err != nil {
			s.fail(err)
			continue // refill drops the rest
		}
		if n == 0 {
			s.passOn()
			return
		}
		s.advance(n)
	}
}

// refill makes sure that there is something to send, or ends the ownership and returns false.
// On a broken connection everything is dropped.
func (s *sender) refill() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.broken != nil {
			s.drop()
		}
		if s.head < len(s.sending) {
			return true
		}
		clear(s.sending)
		s.sending, s.head, s.part, s.sent = s.sending[:0], 0, 0, 0
		if len(s.queue) == 0 {
			s.writing = false
			return false
		}
		s.sending, s.queue = s.queue, s.sending
		s.queued = 0
	}
}

// drop gives back all of sending. mu must be held; it is let go meanwhile.
func (s *sender) drop() {
	s.mu.Unlock()
	first := s.head
	s.head = len(s.sending)
	s.finish(s.sending[first:], false)
	s.mu.Lock()
}

func (s *sender) passOn() {
	s.mu.Lock()
	s.handed = true
	s.mu.Unlock()
	poke(s.wake)
}

// gatherIovecs describes as much of sending as one writev takes.
func (s *sender) gatherIovecs() []unix.Iovec {
	s.iov = s.iov[:0]
	skip, part := s.sent, s.part
	for _, q := range s.sending[s.head:] {
		for i := part; i < len(q.chunks) && len(s.iov) < maxIovecs; i++ {
			skip = s.addChunk(&q.chunks[i], skip)
		}
		if part = 0; len(s.iov) >= maxIovecs {
			break
		}
	}
	return s.iov
}

// addChunk adds c without its first skip bytes and returns what is still to be skipped.
func (s *sender) addChunk(c *chunk, skip int) int {
	skip = s.addIovec(c.header[:c.n], skip)
	skip = s.addIovec(c.body, skip)
	for left := int(c.pad); left > 0 && len(s.iov) < maxIovecs; left -= len(zeroes) {
		skip = s.addIovec(zeroes[:min(left, len(zeroes))], skip)
	}
	return skip
}

// addIovec adds b without its first skip bytes and returns what is still to be skipped.
func (s *sender) addIovec(b []byte, skip int) int {
	if skip >= len(b) {
		return skip - len(b)
	}
	if len(s.iov) < maxIovecs {
		v := unix.Iovec{Base: &b[skip]}
		v.SetLen(len(b) - skip)
		s.iov = append(s.iov, v)
	}
	return 0
}

// advance accounts for n bytes that have left and gives back the requests that they complete.
func (s *sender) advance(n int) {
	first := s.head
	for n > 0 {
		q := s.sending[s.head]
		rest := q.chunks[s.part].length() - s.sent
		if n < rest {
			s.sent += n
			break
		}
		n -= rest
		s.sent = 0
		if s.part++; s.part == len(q.chunks) {
			s.head, s.part = s.head+1, 0
		}
	}
	s.mu.Lock()
	s.writevs++
	s.replies += s.head - first
	s.mu.Unlock()
	s.finish(s.sending[first:s.head], true)
}

// finish ends requests whose reply has left, or never will: the payload goes back to the
// File, the bytes to the budget, the slot to the reader.
func (s *sender) finish(done []*request, sent bool) {
	if len(done) == 0 {
		return
	}
	t, now := done[0].owner, time.Time{}
	if t.export.Stats != nil {
		now = time.Now()
	}
	var total charge
	started := 0
	for _, q := range done {
		if t.export.Stats != nil {
			q.count(sent, now)
		}
		if q.read.Lender != nil {
			q.read.Lender.Release(&q.read)
		}
		total.add(q.charge)
		if q.started {
			started++
		}
		q.reset()
	}
	t.share.give(total)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, done...)
	s.started -= started
	if s.needSlots {
		s.needSlots = false
		poke(s.freed)
	}
	if started > 0 && s.started == 0 {
		t.idle()
	}
}

// fail stops the connection for good, once. Whoever owns the writing drops what is queued;
// if nobody does, the next flush does.
func (s *sender) fail(err error) {
	s.mu.Lock()
	first := s.broken == nil
	if first {
		s.broken = err
		close(s.dead)
	}
	s.mu.Unlock()
	if first {
		s.onFail(err)
	}
	poke(s.wake)
}

// run is the writer goroutine. It ends when stop is closed and leaves nothing that was passed
// on to it.
func (s *sender) run(stop <-chan struct{}) {
	for {
		select {
		case <-s.wake:
			if s.own() {
				s.flush(true)
			}
		case <-stop:
			if s.own() {
				s.flush(true)
			}
			return
		}
	}
}

// own takes over the writing that was passed on, or begins it if there is something to send.
func (s *sender) own() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handed {
		s.handed = false
		return true
	}
	if s.writing || len(s.queue) == 0 {
		return false
	}
	s.writing = true
	return true
}

package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	// readBuffer holds the requests that one read of the socket brings.
	readBuffer = 64 << 10
	// hushAt lone requests in a row that waited for a disk, each for hushWait, hush the line; each that did not undoes
	// hushQuick of them, and the line is heard again when nothing is left.
	hushAt, hushQuick = 64, 8
	hushWait          = 20 * time.Microsecond
	// maxDiscard is the longest payload of a WRITE that is taken only to be refused. proto.md
	// demands 2^25; nbdkit's clients have been seen to send more.
	maxDiscard = 64 << 20
)

var (
	errDisconnected = errors.New("client disconnected")
	errStalled      = errors.New("client takes no replies")
	errAbandoned    = errors.New("closed with reads in flight")
)

// transmission is one connection after its handshake. Its reader goroutine is whoever calls
// run; that one owns buf, spare and batch.
type transmission struct {
	conn    inbound         // immutable
	line    *line           // immutable; what conn is, if that is a socket without TLS
	export  *served         // immutable
	agreed  agreed          // immutable
	server  *Server         // immutable
	share   *share          // immutable
	sender  *sender         // immutable
	client  string          // immutable
	log     *slog.Logger    // immutable
	lost    chan struct{}   // closed when waiting for the File has no more sense
	lose    func()          // closes lost, once
	life    context.Context // ends when the connection is broken or done: for what waits for a disk aside
	endLife context.CancelFunc
	aside   errands[*request] // immutable; queries that wait for their extents
	warmups errands[Span]     // immutable; ranges to read for the File's caches
	ahead   *readAhead        // immutable

	leaving atomic.Bool   // what is asked from now on gets ESHUTDOWN; set once, by drain
	heard   atomic.Uint64 // how often the client has sent something

	buf       []byte // of readBuffer bytes
	r, w      int    // buf[r:w] is read and not yet decoded
	spare     []*request
	batch     []*Read
	queries   []*request // BLOCK_STATUS, looked up with the batch
	tell      describer  // of the queries that need not wait
	tellAside describer  // of those that must; for their goroutine
	number    uint64     // of the batch; never 0
	working   bool       // a batch has begun and is not flushed
	patience  int        // how much the last requests spoke for hushing the line, up to hushAt
	arrived   time.Time
}

// newTransmission takes over conn; early is what the client sent behind the handshake.
func newTransmission(s *Server, conn net.Conn, e *served, a agreed, client string, early []byte) *transmission {
	t := &transmission{
		conn:   conn,
		export: e,
		agreed: a,
		server: s,
		share:  s.budget.newShare(),
		client: client,
		log:    s.log.With("export", e.Name, "client", client),
		lost:   make(chan struct{}),
		buf:    make([]byte, readBuffer),
		spare:  make([]*request, 0, maxRequests),
		batch:  make([]*Read, 0, maxRequests),
		number: 1,
	}
	t.life, t.endLife = context.WithCancel(context.Background())
	t.lose = sync.OnceFunc(func() { close(t.lost); t.endLife() })
	t.aside = errands[*request]{do: t.describeAside, most: maxRequests, lost: t.lost, fail: t.recoverPanic}
	t.warmups = errands[Span]{do: t.warm, most: maxWarmQueue, lost: t.lost, fail: t.recoverPanic}
	t.ahead = &readAhead{t: t}
	if t.line = newLine(conn); t.line != nil {
		t.conn = t.line
		t.sender = newSender(t.line, t.failed)
	} else {
		t.sender = newSender(newTransport(conn), t.failed)
	}
	slots := make([]request, maxRequests)
	for i := range slots {
		slots[i].owner = t
		slots[i].reset()
		t.spare = append(t.spare, &slots[i])
	}
	t.w = copy(t.buf, early)
	return t
}

// failed is called once when the connection is broken: closing wakes all who wait on it.
func (t *transmission) failed(err error) {
	t.log.Debug("connection broken", "err", err)
	t.endLife()
	_ = t.conn.Close()
}

// run serves until the client leaves, breaks the protocol, or the server shuts down. On
// return every read has come back, unless waiting for them was given up, and every reply
// was sent or dropped.
func (t *transmission) run() {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for again := true; again; {
			again = t.runWriter(stop)
		}
	}()
	defer func() {
		close(stop)
		<-stopped
		t.endLife()
		t.aside.wait()
		t.warmups.wait()
		t.ahead.close()
		t.share.close()
	}()
	defer t.recoverPanic()
	if err := t.serve(); err != nil {
		t.sender.fail(err)
		t.cancel()
	}
	t.flush()
	t.finish()
}

// runWriter returns whether the writer goroutine is to go on: after a panic it is, because
// what is queued must still be dropped.
func (t *transmission) runWriter(stop <-chan struct{}) (again bool) {
	again = true
	defer t.recoverPanic()
	t.sender.run(stop)
	return false
}

// serve takes requests until there are no more. nil means that all is to be answered before
// the end: a DISC, the end of the stream, or a drain.
func (t *transmission) serve() error {
	for {
		for t.w-t.r >= t.agreed.requestLen() {
			h, err := t.decode()
			if err != nil {
				t.log.Warn("protocol error", "err", err)
				return err
			}
			if h.Type == protocol.TRANSMISSION_TYPE_REQUEST_DISC {
				t.countDisc()
				return nil
			}
			if err := t.accept(h); err != nil {
				return err
			}
		}
		t.flush()
		if t.drained() {
			return nil
		}
		t.attune()
		switch err := t.fill(); {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && t.leaving.Load():
		default:
			return errDisconnected
		}
	}
}

// decode takes a request's header off the buffer, which holds one.
func (t *transmission) decode() (nbdwire.Request, error) {
	b := t.buf[t.r:t.w]
	t.r += t.agreed.requestLen()
	if t.agreed.extended {
		return nbdwire.DecodeExtendedRequest(b)
	}
	c, err := nbdwire.DecodeRequest(b)
	return nbdwire.Request{Flags: c.CommandFlags, Type: c.Type, Cookie: c.Handle, Offset: c.Offset, Length: uint64(c.Length)}, err
}

// fill reads what the client has sent, at least one byte.
func (t *transmission) fill() error {
	if t.r > 0 {
		t.w = copy(t.buf, t.buf[t.r:t.w])
		t.r = 0
	}
	n, err := t.conn.Read(t.buf[t.w:])
	t.w += n
	if n > 0 {
		t.heard.Add(1)
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// accept answers one request or adds it to the batch.
func (t *transmission) accept(h nbdwire.Request) error {
	q, err := t.slot()
	if err != nil {
		return err
	}
	p, err := t.payload(h)
	if err != nil {
		t.putBack(q)
		return err
	}
	t.begin(q)
	q.plan(h, p)
	if q.err == nil && t.leaving.Load() {
		q.err = errShuttingDown
	}
	if q.err != nil {
		q.logRefusal()
	}
	if q.err == nil && q.command == nbdwire.CmdCache {
		t.prefetch(q)
	}
	n := q.cost()
	if q.err != nil || n == 0 {
		t.answer(q)
		return nil
	}
	if err := t.charge(q, n); err != nil {
		t.putBack(q)
		return err
	}
	if q.command == nbdwire.CmdBlockStatus {
		t.queries = append(t.queries, q)
	} else if !t.ahead.take(q) {
		t.batch = append(t.batch, &q.read)
	}
	return nil
}

// begin makes q part of the batch, which begins with it if there is none.
func (t *transmission) begin(q *request) {
	if !t.working {
		t.working = true
		t.number++
		if t.export.Stats != nil {
			t.arrived = time.Now()
		}
		s := t.sender
		s.mu.Lock()
		s.gathering = t.number
		s.mu.Unlock()
	}
	q.batch, q.arrived = t.number, t.arrived
}

// answer queues the reply to a request that needs no data of the file.
func (t *transmission) answer(q *request) {
	q.seal()
	t.push(q)
}

// charge takes n bytes for q's payload from the budget. Before it waits for them it submits
// what it has: those reads are what the bytes will come from.
func (t *transmission) charge(q *request, n int64) error {
	var ok bool
	if q.charge, ok = t.share.try(n); ok {
		return nil
	}
	t.flush()
	if q.charge, ok = t.share.take(n, t.sender.dead, func() { t.server.evictStalled(t) }); !ok {
		return errDisconnected
	}
	t.begin(q)
	return nil
}

// slot returns an unused request, waiting for one if all are in flight.
func (t *transmission) slot() (*request, error) {
	for len(t.spare) == 0 {
		if t.reclaim(1) {
			break
		}
		t.flush()
		select {
		case <-t.sender.freed:
		case <-t.sender.dead:
			return nil, errDisconnected
		}
	}
	q := t.spare[len(t.spare)-1]
	t.spare = t.spare[:len(t.spare)-1]
	return q, nil
}

// putBack returns a slot that was not used.
func (t *transmission) putBack(q *request) {
	q.reset()
	t.spare = append(t.spare, q)
}

// reclaim takes the slots that have come back and tells whether there are at least want now.
// If not, freed will be signalled when one comes.
func (t *transmission) reclaim(want int) bool {
	s := t.sender
	s.mu.Lock()
	defer s.mu.Unlock()
	t.spare = append(t.spare, s.free...)
	clear(s.free)
	s.free = s.free[:0]
	s.needSlots = len(t.spare) < want
	return !s.needSlots
}

// flush submits the batch and sends what has been finished by then.
func (t *transmission) flush() {
	if !t.working {
		return
	}
	s := t.sender
	t.submit()
	t.lookUp()
	t.working = false
	s.mu.Lock()
	s.gathering = 0
	mine := !s.writing && len(s.queue) > 0
	s.writing = s.writing || mine
	s.mu.Unlock()
	if mine {
		s.flush(false)
	}
}

// submit hands the batch to the File, and what is to be read ahead with it.
func (t *transmission) submit() {
	if len(t.batch) == 0 && t.ahead.idle() {
		return
	}
	for _, r := range t.batch {
		r.Done.(*request).begun()
	}
	s := t.sender
	s.mu.Lock()
	s.atFile += len(t.batch)
	s.started += len(t.batch)
	waiting := s.atFile
	s.mu.Unlock()
	lone := waiting == 1 && len(t.batch) == 1
	t.batch = append(t.batch, t.ahead.plan(waiting)...)
	switch {
	case lone && len(t.batch) == 1:
		t.submitLone()
	case len(t.batch) > 0:
		t.patience = 0
		t.export.File.Submit(t.batch)
	}
	clear(t.batch)
	t.batch = t.batch[:0]
}

// submitLone hands in the only read that the client waits for, and judges what that says of hushing the line.
func (t *transmission) submitLone() {
	q, begin := t.batch[0].Done.(*request), time.Now()
	limit := hushWait + time.Duration(q.read.Length)/4 // bytes that were at hand are copied and checked in less
	t.export.File.Submit(t.batch)
	switch {
	case q.atFile.Load():
		t.patience = 0
	case time.Since(begin) >= limit:
		t.patience = min(t.patience+1, hushAt)
	default:
		t.patience = max(t.patience-hushQuick, 0)
	}
}

// attune hushes the line of a client that is alone and waits for a disk with each of its requests, and ends that when it does so
// no more. A thread waits for a hushed one, and keeps one of Go's processors for a while: so there is never more than one.
func (t *transmission) attune() {
	l := t.line
	if l == nil {
		return
	}
	hushed := l.hushed()
	fit := hushed && t.patience > 0 || t.patience == hushAt && t.server.cores > 1
	switch hush := fit && t.server.transmitting.Load() == 1; {
	case hush == hushed:
	case !hush:
		_ = l.hear() // if there is no descriptor for that: it is served hushed as well
	case !t.owes() && !l.hush():
		t.patience = 0
	}
}

// inFlight is how many requests the client waits for, but for those that are answered at once.
func (t *transmission) inFlight() int {
	t.sender.mu.Lock()
	defer t.sender.mu.Unlock()
	return t.sender.started
}

// outstanding notes that q waits for a read of somebody else.
func (t *transmission) outstanding(q *request) {
	q.begun()
	s := t.sender
	s.mu.Lock()
	s.atFile++
	s.started++
	s.mu.Unlock()
}

// lookUp answers the queries whose extents are at hand and leaves the others to aside.
func (t *transmission) lookUp() {
	for i, q := range t.queries {
		t.queries[i] = nil
		err := t.tell.describe(t.life, q, false)
		if errors.Is(err, ErrWait) {
			t.waitAside(q)
			continue
		}
		q.described(err)
		t.push(q)
	}
	t.queries = t.queries[:0]
}

// push queues a sealed reply that the next flush sends.
func (t *transmission) push(q *request) {
	s := t.sender
	s.mu.Lock()
	s.push(q)
	s.mu.Unlock()
}

// ended queues the reply to what was outstanding, and sends it if that is the caller's turn.
func (t *transmission) ended(q *request) {
	s := t.sender
	s.mu.Lock()
	s.atFile--
	s.push(q)
	next := s.afterDone(q)
	s.mu.Unlock()
	switch next {
	case write:
		s.flush(false)
	case handOff:
		poke(s.wake)
	}
}

// cancel drops the batch: the connection is broken, no one would take the data.
func (t *transmission) cancel() {
	for _, r := range t.batch {
		q := r.Done.(*request)
		q.err = errDisconnected
		t.answer(q)
	}
	for _, q := range t.queries {
		q.err = errDisconnected
		t.answer(q)
	}
	clear(t.batch)
	clear(t.queries)
	t.batch, t.queries = t.batch[:0], t.queries[:0]
}

// payload takes what follows the header of h off the stream. That of a BLOCK_STATUS is returned, as long
// as it can be a list of our contexts; it is valid until the buffer is filled again.
func (t *transmission) payload(h nbdwire.Request) ([]byte, error) {
	most := uint64(maxDiscard)
	switch {
	case !t.agreed.extended:
		if h.Type != protocol.TRANSMISSION_TYPE_REQUEST_WRITE {
			return nil, nil
		}
	case h.Flags&nbdwire.CmdFlagPayloadLen == 0:
		return nil, nil
	default:
		most = MaxRead
	}
	if h.Length > most {
		t.log.Warn("protocol error", "err", fmt.Errorf("payload of %d bytes, at most %d are read", h.Length, most))
		return nil, errLength
	}
	if h.Type != nbdwire.CmdBlockStatus || h.Length > uint64(maxFilter) {
		return nil, t.discard(h.Length)
	}
	for n := int(h.Length); t.w-t.r < n; {
		if err := t.more(); err != nil {
			return nil, err
		}
	}
	p := t.buf[t.r : t.r+int(h.Length)]
	t.r += len(p)
	return p, nil
}

// discard takes n bytes of payload from the stream.
func (t *transmission) discard(n uint64) error {
	left := int(n)
	for {
		have := min(left, t.w-t.r)
		t.r += have
		if left -= have; left == 0 {
			return nil
		}
		if err := t.more(); err != nil {
			return err
		}
	}
}

// more fills the buffer inside of a request. Nothing else may wait meanwhile, so the batch goes first.
func (t *transmission) more() error {
	t.flush()
	err := t.fill()
	if errors.Is(err, os.ErrDeadlineExceeded) && t.leaving.Load() {
		// A drain wakes readers that wait for a request. This one is inside of one: let
		// it end, the drain's own time limits it.
		err = t.conn.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return errDisconnected
	}
	return nil
}

func (t *transmission) countDisc() {
	if t.export.Stats != nil {
		t.export.Stats.RequestDone("disc", true, 0, 0)
	}
}

// drain ends the connection once the client is owed no more data.
func (t *transmission) drain() {
	t.leaving.Store(true)
	t.wakeReader()
}

// wakeReader makes the reader look at drained.
func (t *transmission) wakeReader() { _ = t.conn.SetReadDeadline(time.Unix(1, 0)) }

// idle is called when no read is outstanding any more. sender.mu is held.
func (t *transmission) idle() {
	if t.leaving.Load() {
		t.wakeReader()
	}
}

// drained tells whether the connection is to end and the client is owed no more data. Until then
// the reader goes on: whatever is asked meanwhile gets ESHUTDOWN.
func (t *transmission) drained() bool {
	if !t.leaving.Load() {
		return false
	}
	// First the deadline, then the look: idle does it the other way round.
	_ = t.conn.SetReadDeadline(time.Time{})
	t.sender.mu.Lock()
	defer t.sender.mu.Unlock()
	return t.sender.started == 0
}

// finish waits until every reply has left or was dropped, then closes. A client that takes
// nothing for the server's stall time is left.
func (t *transmission) finish() {
	if t.line != nil && t.line.hushed() {
		_ = t.line.hear() // for closeGently
	}
	tick := time.NewTicker(max(t.server.limits.Stall/8, time.Millisecond))
	defer tick.Stop()
	for !t.reclaim(maxRequests) {
		select {
		case <-t.sender.freed:
		case now := <-tick.C:
			if t.sender.out.blockedFor(now) >= t.server.limits.Stall {
				t.sender.fail(errStalled)
			}
		case <-t.lost:
			t.sender.fail(errAbandoned)
			return
		}
	}
	select {
	case <-t.sender.dead:
	default:
		closeGently(t.conn)
	}
}

// recoverPanic is deferred wherever a panic must end one connection and not the server. Reads
// that were in the hands of the panicking code may never come back, so nobody waits for them.
func (t *transmission) recoverPanic() {
	v := recover()
	if v == nil {
		return
	}
	t.server.stats.Panicked()
	t.log.LogAttrs(context.Background(), slog.LevelError, "internal error",
		slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
	t.lose()
	t.sender.fail(errAbandoned)
}

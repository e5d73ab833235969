package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"go.uber.org/goleak"

	"github.com/btrexport/btrexport/export/nbdwire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test; nothing asserts how much of it was needed.
const patience = 20 * time.Second

// fakeFile serves bytes in memory and counts what it lends.
type fakeFile struct {
	data  []byte
	size  uint64              // when not len(data): nothing is read then
	async bool                // complete in random order from other goroutines
	hold  chan struct{}       // async: nothing completes before it is closed
	fail  func(*Read) error   // what to fail a read with
	holes []Span              // where nothing is stored; data is zero there
	bad   []Span              // what every read loses
	parts []Extent            // what it is made of from its start; behind them: data, but for holes
	waits bool                // its extents are not at hand
	slow  func()              // called by Extents that may wait
	start func(batch []*Read) // called first in Submit

	lent     atomic.Int64 // reads not released
	bytes    atomic.Int64 // of them
	peak     atomic.Int64
	reads    atomic.Int64
	batches  atomic.Int64
	queries  atomic.Int64
	released atomic.Int64
}

func (f *fakeFile) Size() uint64 {
	if f.size != 0 {
		return f.size
	}
	return uint64(len(f.data))
}

func (f *fakeFile) Submit(batch []*Read) {
	f.batches.Add(1)
	f.reads.Add(int64(len(batch)))
	if f.start != nil {
		f.start(batch)
	}
	if !f.async {
		for _, r := range batch {
			f.complete(r)
		}
		return
	}
	mine := append([]*Read(nil), batch...)
	rand.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
	go func() {
		if f.hold != nil {
			<-f.hold
		}
		for _, r := range mine {
			f.complete(r)
		}
	}()
}

func (f *fakeFile) complete(r *Read) {
	f.lent.Add(1)
	n := f.bytes.Add(int64(r.Length))
	for p := f.peak.Load(); n > p && !f.peak.CompareAndSwap(p, n); p = f.peak.Load() {
	}
	r.Lender = f
	if f.fail != nil {
		r.Err = f.fail(r)
	}
	if r.Err == nil {
		r.Payload = f.data[r.Offset : r.Offset+uint64(r.Length)]
		r.Zeroes = within(f.holes, r)
		for _, s := range within(f.bad, r) {
			r.Lost = append(r.Lost, Loss{Span: s, Err: fmt.Errorf("no good copy at %d", s.Offset)})
			r.Err = errLostPart
		}
	}
	r.Done.ReadDone(r)
}

func (f *fakeFile) Extents(ctx context.Context, off, end uint64, wait bool, list []Extent) (int, error) {
	f.queries.Add(1)
	if f.waits && !wait {
		return 0, ErrWait
	}
	if wait && f.slow != nil {
		f.slow()
	}
	return fillExtents(f.parts, f.holes, off, end, list), ctx.Err()
}

// fillExtents does what File.Extents is to do for a file made of parts, or of data with holes.
func fillExtents(parts []Extent, holes []Span, off, end uint64, list []Extent) int {
	n, at := 0, uint64(0)
	put := func(x Extent, to uint64) {
		if to > off && max(at, off) < end && n < len(list) && to > at {
			x.Length = to - max(at, off)
			list[n] = x
			n++
		}
		at = max(at, to)
	}
	for _, p := range parts {
		put(p, at+p.Length)
	}
	for _, h := range holes {
		if h.Offset+h.Length > at {
			put(Extent{}, h.Offset)
			put(Extent{Kind: ExtentHole}, h.Offset+h.Length)
		}
	}
	if at < end {
		put(Extent{}, end)
	}
	return n
}

var errLostPart = errors.New("a part was lost")

// within clips a list of spans to a read.
func within(list []Span, r *Read) []Span {
	var out []Span
	for _, s := range list {
		from, to := max(s.Offset, r.Offset), min(s.Offset+s.Length, r.Offset+uint64(r.Length))
		if from < to {
			out = append(out, Span{from, to - from})
		}
	}
	return out
}

func (f *fakeFile) Release(r *Read) {
	f.bytes.Add(-int64(r.Length))
	f.lent.Add(-1)
	f.released.Add(1)
}

var pattern = sync.OnceValue(func() []byte {
	b := make([]byte, 40<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	return b
})

// fixture is a server on a unix socket.
type fixture struct {
	t      *testing.T
	server *Server
	path   string
	log    *logBuffer
}

// logBuffer collects log lines from any goroutine.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start serves o.Exports until the test ends, then checks that every payload was returned. Unless o says otherwise, a handshake
// may take longer than a test waits: its end by time is not to be taken for a refusal.
func start(t *testing.T, o Options) *fixture {
	t.Helper()
	fx := &fixture{t: t, log: &logBuffer{}}
	if o.Limits.Handshake == 0 {
		o.Limits.Handshake = 2 * patience
	}
	o.Log = slog.New(slog.NewTextHandler(fx.log, nil))
	var err error
	if fx.server, err = NewServer(o); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	fx.path = filepath.Join(dir, "s")
	a, err := ParseAddress("unix://" + fx.path)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(context.Background(), a)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- fx.server.Serve(context.Background(), l, nil) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := fx.server.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		for _, e := range o.Exports {
			if f, ok := e.File.(*fakeFile); ok {
				waitFor(t, "payloads to be released", func() bool { return f.lent.Load() == 0 })
			}
		}
		if free := fx.server.budget.free; free != fx.server.budget.total {
			t.Errorf("budget: %d bytes free of %d", free, fx.server.budget.total)
		}
	})
	return fx
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// rawConn speaks NBD byte by byte.
type rawConn struct {
	net.Conn
	t        *testing.T
	extended bool   // headers
	sent     uint64 // offset of the request in flight, which extended replies repeat
}

func (fx *fixture) dial() *rawConn {
	fx.t.Helper()
	conn, err := net.Dial("unix", fx.path)
	if err != nil {
		fx.t.Fatal(err)
	}
	fx.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &rawConn{Conn: conn, t: fx.t}
}

// waitForDrain returns when every connection knows of the shutdown: what is asked then is refused.
func (fx *fixture) waitForDrain() {
	fx.t.Helper()
	waitFor(fx.t, "the drain", func() bool {
		fx.server.mu.Lock() // which is held until they do
		defer fx.server.mu.Unlock()
		return fx.server.draining.Load()
	})
}

// greeted is a connection past the flags.
func (fx *fixture) greeted() *rawConn {
	fx.t.Helper()
	c := fx.dial()
	c.hello(3)
	return c
}

// ready is a connection that may read name.
func (fx *fixture) ready(name string) *rawConn {
	fx.t.Helper()
	c := fx.greeted()
	c.choose(name)
	return c
}

func (c *rawConn) put(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *rawConn) get(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c, b); err != nil {
		c.t.Fatalf("read %d bytes: %v", n, err)
	}
	return b
}

func (c *rawConn) hello(flags uint32) {
	c.t.Helper()
	got, err := nbdwire.DecodeGreeting(c.get(nbdwire.GreetingLen))
	if err != nil || got != 3 {
		c.t.Fatalf("greeting: flags %#x, %v; want 3", got, err)
	}
	c.put(nbdwire.AppendClientFlags(nil, flags))
}

func (c *rawConn) option(id uint32, data []byte) {
	c.t.Helper()
	c.put(nbdwire.AppendOption(nil, id, data))
}

// reply reads one reply to option and checks its type.
func (c *rawConn) reply(option, typ uint32) []byte {
	c.t.Helper()
	h, err := nbdwire.DecodeOptionReply(c.get(nbdwire.OptionReplyLen))
	if err != nil {
		c.t.Fatal(err)
	}
	if h.Length > 1<<20 {
		c.t.Fatalf("reply of %d bytes", h.Length)
	}
	data := c.get(int(h.Length))
	if h.ID != option || h.Type != typ {
		c.t.Fatalf("reply to option %d of type %#x %q; want option %d type %#x", h.ID, h.Type, data, option, typ)
	}
	if typ&nbdwire.RepErrFlag != 0 && (len(data) == 0 || nbdwire.CheckString(string(data)) != nil) {
		c.t.Fatalf("error text %q", data)
	}
	return data
}

func infoRequest(name string, types ...uint16) []byte {
	return nbdwire.AppendInfoRequest(nil, nbdwire.InfoRequest{Name: name, Types: types})
}

// infos sends INFO or GO and returns the pieces of information up to the ACK.
func (c *rawConn) infos(option uint32, name string, types ...uint16) []nbdwire.Info {
	c.t.Helper()
	c.option(option, infoRequest(name, types...))
	var all []nbdwire.Info
	for {
		h, err := nbdwire.DecodeOptionReply(c.get(nbdwire.OptionReplyLen))
		if err != nil || h.ID != option {
			c.t.Fatalf("reply %+v, %v", h, err)
		}
		data := c.get(int(h.Length))
		if h.Type == protocol.NEGOTIATION_TYPE_REPLY_ACK {
			return all
		}
		if h.Type != protocol.NEGOTIATION_TYPE_REPLY_INFO {
			c.t.Fatalf("reply type %#x %q", h.Type, data)
		}
		info, err := nbdwire.DecodeInfo(data)
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, info)
	}
}

func (c *rawConn) choose(name string) {
	c.t.Helper()
	c.infos(protocol.NEGOTIATION_ID_OPTION_GO, name)
}

func requestBytes(typ, flags uint16, cookie, off uint64, length uint32) []byte {
	return nbdwire.AppendRequest(nil, protocol.TransmissionRequestHeader{
		Type: typ, CommandFlags: flags, Handle: cookie, Offset: off, Length: length})
}

func readRequest(cookie, off uint64, length uint32) []byte {
	return requestBytes(protocol.TRANSMISSION_TYPE_REQUEST_READ, 0, cookie, off, length)
}

// answer reads one simple reply's header.
func (c *rawConn) answer() (cookie uint64, errno uint32) {
	c.t.Helper()
	h, err := nbdwire.DecodeSimpleReply(c.get(nbdwire.SimpleReplyLen))
	if err != nil {
		c.t.Fatal(err)
	}
	return h.Handle, h.Error
}

// wantAnswer reads one simple reply and checks it.
func (c *rawConn) wantAnswer(cookie uint64, errno uint32, payload []byte) {
	c.t.Helper()
	gotCookie, gotErrno := c.answer()
	if gotCookie != cookie || gotErrno != errno {
		c.t.Fatalf("cookie %d errno %d, want %d and %d", gotCookie, gotErrno, cookie, errno)
	}
	if got := c.get(len(payload)); !bytes.Equal(got, payload) {
		c.t.Fatalf("cookie %d: wrong bytes", cookie)
	}
}

// alive checks that the connection still serves.
func (c *rawConn) alive(data []byte) {
	c.t.Helper()
	const cookie = 0xa11fe
	c.put(readRequest(cookie, 512, 64))
	c.wantAnswer(cookie, 0, data[512:576])
}

// wantClosed checks that nothing more comes.
func (c *rawConn) wantClosed() {
	c.t.Helper()
	var b [1]byte
	n, err := c.Read(b[:])
	if n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("read %d bytes, %v; want a closed connection", n, err)
	}
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

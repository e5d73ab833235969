package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export/nbdwire"
)

func oneExport(f File) []Export { return []Export{{Name: "disk", File: f}} }

// reset makes the next close of c send an RST on TCP and drop unread bytes on a unix socket.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// startTCP adds a TCP listener to a fixture and returns its address.
func (fx *fixture) startTCP(stats ListenerStats) string {
	fx.t.Helper()
	a, err := ParseAddress("tcp://127.0.0.1:0")
	if err != nil {
		fx.t.Fatal(err)
	}
	l, err := Listen(context.Background(), a)
	if err != nil {
		fx.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- fx.server.Serve(context.Background(), l, stats) }()
	fx.t.Cleanup(func() {
		_ = fx.server.Shutdown(context.Background())
		if err := <-served; err != nil {
			fx.t.Errorf("Serve: %v", err)
		}
	})
	return l.Addr().String()
}

// TestByteCut closes, and resets, after every byte of a valid session (CVE-2013-7441,
// CVE-2017-7539): the server lives, and no goroutine or payload is left.
func TestByteCut(t *testing.T) {
	data := pattern()[:1<<20]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data, async: true})})
	addr := fx.startTCP(nil)
	session := nbdwire.AppendClientFlags(nil, 3)
	session = nbdwire.AppendOption(session, optList, nil)
	session = nbdwire.AppendOption(session, optInfo, infoRequest("disk", 3))
	session = nbdwire.AppendOption(session, optGo, infoRequest("disk", 1, 3))
	session = append(session, readRequest(1, 0, 300000)...)
	session = append(session, requestBytes(cmdWrite, 0, 2, 0, 20)...)
	session = append(session, make([]byte, 20)...)
	session = append(session, readRequest(3, 5, 100)...)
	session = append(session, requestBytes(cmdDisc, 0, 4, 0, 0)...)
	for cut := range len(session) + 1 {
		for _, closeIt := range []func(net.Conn){func(c net.Conn) { _ = c.Close() }, reset} {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(session[:cut])
			closeIt(c)
		}
	}
	fx.ready("disk").alive(data)
}

// TestResetDuringReply drops connections inside of 32 MiB replies, at random places.
func TestResetDuringReply(t *testing.T) {
	data := pattern()
	f := &fakeFile{data: data, async: true}
	fx := start(t, Options{Exports: oneExport(f)})
	addr := fx.startTCP(nil)
	rng := newRand(10)
	for i := range 12 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		raw := &rawConn{Conn: c, t: t}
		raw.hello(3)
		raw.choose("disk")
		raw.put(bytes.Repeat(readRequest(1, uint64(i), MaxRead), 3))
		raw.get(1 + rng.IntN(MaxRead>>rng.IntN(12)))
		reset(c)
	}
	fx.ready("disk").alive(data)
}

// TestSilentSockets is CVE-2024-7409: a thousand that say nothing, and a client that reads; then the server stops, with all of
// them open.
func TestSilentSockets(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data}), Limits: Limits{Handshakes: 50}})
	first := fx.ready("disk")
	for i := range 1000 {
		c, err := net.Dial("unix", fx.path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if i%250 == 0 {
			fx.ready("disk").alive(data)
		}
	}
	fx.ready("disk").alive(data)
	first.alive(data)
	fx.server.mu.Lock()
	n := len(fx.server.handshakes)
	fx.server.mu.Unlock()
	if n > 50 {
		t.Errorf("%d handshakes under way, at most 50 allowed", n)
	}
	if lines := strings.Count(fx.log.String(), "too many handshakes"); lines == 0 || lines > 30 {
		t.Errorf("%d log lines about evicted handshakes, want a few", lines)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := fx.server.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestSpeakersOutliveTheSilent: a client in its handshake is not the one to go.
func TestSpeakersOutliveTheSilent(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data}), Limits: Limits{Handshakes: 5}})
	speaker := fx.greeted()
	speaker.option(99, nil)
	speaker.reply(99, repUnsup)
	var silent []*rawConn
	for range 20 {
		silent = append(silent, fx.dial())
	}
	if _, err := io.Copy(io.Discard, silent[0]); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest silent client is still there")
	}
	speaker.choose("disk")
	speaker.alive(data)
}

func TestHandshakeLimit(t *testing.T) {
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: make([]byte, 9)}), Limits: Limits{Handshake: 50 * time.Millisecond}})
	c := fx.dial()
	c.get(nbdwire.GreetingLen)
	c.wantClosed()
	slow := fx.greeted()
	_, _ = slow.Write([]byte("IHAVE"))
	slow.wantClosed()
}

func TestConnectionLimit(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data}), Limits: Limits{Connections: 2}})
	late, later := fx.greeted(), fx.greeted() // in the handshake before the server is full
	a, b := fx.ready("disk"), fx.ready("disk")
	fx.dial().wantClosed()
	late.option(optGo, infoRequest("disk"))
	late.reply(optGo, nbdwire.RepErrPolicy)
	later.option(1, []byte("disk"))
	later.wantClosed()
	a.alive(data)
	_ = a.Close()
	waitFor(t, "a place", func() bool { fx.server.mu.Lock(); defer fx.server.mu.Unlock(); return fx.server.established < 2 })
	late.choose("disk")
	late.alive(data)
	b.alive(data)
	if !strings.Contains(fx.log.String(), "connection limit") {
		t.Error("the refused connection is not in the log")
	}
}

type countConns struct {
	now, most atomic.Int64

	mu      sync.Mutex
	refused map[string]int // guarded by mu
}

func (c *countConns) Refused(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused == nil {
		c.refused = make(map[string]int)
	}
	c.refused[reason]++
}

func (c *countConns) Connections(delta int) {
	if n := c.now.Add(int64(delta)); n > c.most.Load() {
		c.most.Store(n)
	}
}

func TestListenerStats(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data})})
	stats := &countConns{}
	c, err := net.Dial("tcp", fx.startTCP(stats))
	if err != nil {
		t.Fatal(err)
	}
	raw := &rawConn{Conn: c, t: t}
	raw.hello(3)
	raw.choose("disk")
	raw.alive(data)
	_ = c.Close()
	waitFor(t, "the connection to be counted out", func() bool { return stats.now.Load() == 0 })
	if got := stats.most.Load(); got != 1 {
		t.Errorf("most connections %d, want 1", got)
	}
}

// TestRefusedStats: every limit counts whom it keeps out.
func TestRefusedStats(t *testing.T) {
	for reason, limits := range map[string]Limits{
		"connections": {Connections: 1},
		"address":     {PerAddress: 1},
		"handshakes":  {Handshakes: 1},
		"timeout":     {Handshake: 20 * time.Millisecond},
	} {
		t.Run(reason, func(t *testing.T) {
			fx := start(t, Options{Exports: oneExport(&fakeFile{data: pattern()[:4096]}), Limits: limits})
			stats := &countConns{}
			addr := fx.startTCP(stats)
			for i := range 2 {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				c := &rawConn{Conn: conn, t: t}
				if i == 0 && reason != "timeout" {
					c.get(nbdwire.GreetingLen)
					if reason == "connections" {
						c.put(nbdwire.AppendClientFlags(nil, 3))
						c.choose("disk")
					}
				}
			}
			want := map[string]int{reason: 1}
			if reason == "timeout" {
				want[reason] = 2
			}
			waitFor(t, "the count", func() bool {
				stats.mu.Lock()
				defer stats.mu.Unlock()
				return maps.Equal(stats.refused, want)
			})
		})
	}
}

// TestDrain is items 11 and 86: what was asked before is answered, what comes later is
// refused, then the connection ends.
func TestDrain(t *testing.T) {
	data := pattern()[:1<<20]
	f := &fakeFile{data: data, async: true, hold: make(chan struct{})}
	fx := start(t, Options{Exports: oneExport(f)})
	busy, idle, listing, naming := fx.ready("disk"), fx.ready("disk"), fx.greeted(), fx.greeted()
	busy.put(append(readRequest(1, 0, 100000), readRequest(2, 7, 9)...))
	waitFor(t, "2 reads", func() bool { return f.reads.Load() == 2 })
	ended := make(chan error, 1)
	go func() { ended <- fx.server.Shutdown(context.Background()) }()
	fx.waitForDrain()
	listing.option(optList, nil)
	listing.reply(optList, nbdwire.RepErrShutdown)
	listing.option(optGo, infoRequest("disk"))
	listing.reply(optGo, nbdwire.RepErrShutdown)
	listing.option(optAbort, nil)
	listing.reply(optAbort, repAck)
	naming.option(1, []byte("disk"))
	naming.wantClosed()
	idle.wantClosed()
	busy.put(append(readRequest(3, 0, 10), requestBytes(cmdWrite, 0, 4, 0, 0)...))
	busy.wantAnswer(3, nbdwire.ESHUTDOWN, nil)
	busy.wantAnswer(4, eperm, nil)
	close(f.hold)
	for range 2 {
		cookie, errno := busy.answer()
		want := map[uint64][]byte{1: data[:100000], 2: data[7:16]}[cookie]
		if got := busy.get(len(want)); errno != 0 || !bytes.Equal(got, want) {
			t.Fatalf("cookie %d errno %d", cookie, errno)
		}
	}
	busy.wantClosed()
	if err := <-ended; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if _, err := net.Dial("unix", fx.path); err == nil {
		t.Error("the server still accepts")
	}
}

// TestDrainOptions is item 11: each option but ABORT, with its data, gets ERR_SHUTDOWN in a handshake that a shutdown meets.
func TestDrainOptions(t *testing.T) {
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: make([]byte, 4096)})})
	c := fx.greeted()
	c.option(optSR, nil)
	c.reply(optSR, repAck)
	ended := make(chan error, 1)
	go func() { ended <- fx.server.Shutdown(context.Background()) }()
	fx.waitForDrain()
	var options []byte // in one piece: the time for them is short
	ids := []uint32{optList, optInfo, optGo, nbdwire.OptStartTLS, optSR, optEH, optListMeta, optSetMeta, 99}
	for _, id := range ids {
		for _, data := range [][]byte{nil, infoRequest("disk"), make([]byte, 1000)} {
			options = nbdwire.AppendOption(options, id, data)
		}
	}
	c.put(nbdwire.AppendOption(options, optAbort, []byte("bye")))
	for i := range 3 * len(ids) {
		c.reply(ids[i/3], nbdwire.RepErrShutdown)
	}
	c.reply(optAbort, repAck)
	c.wantClosed()
	if err := <-ended; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// TestDrainChunks is item 86 with structured replies and extended headers: ESHUTDOWN is an error chunk.
func TestDrainChunks(t *testing.T) {
	data := pattern()[:1<<20]
	for _, extended := range []bool{false, true} {
		t.Run(fmt.Sprintf("extended headers %t", extended), func(t *testing.T) {
			f := &fakeFile{data: data, async: true, hold: make(chan struct{})}
			fx := start(t, Options{Exports: oneExport(f)})
			open := fx.mapped
			if extended {
				open = fx.extended
			}
			c, _ := open("disk", base)
			ask := func(cookie uint64, typ uint16, n uint32) {
				if c.sent = 0; extended {
					c.put(nbdwire.AppendExtendedRequest(nil, nbdwire.Request{Type: typ, Cookie: cookie, Length: uint64(n)}))
				} else {
					c.put(requestBytes(typ, 0, cookie, 0, n))
				}
			}
			ask(1, cmdRead, 100000)
			waitFor(t, "the read", func() bool { return f.reads.Load() == 1 })
			ended := make(chan error, 1)
			go func() { ended <- fx.server.Shutdown(context.Background()) }()
			fx.waitForDrain()
			for cookie, command := range map[uint64]uint16{2: cmdRead, 3: cmdStatus, 4: cmdCache} {
				ask(cookie, command, 4096)
				c.wantError(cookie, nbdwire.ReplyError, nbdwire.ESHUTDOWN)
			}
			ask(5, nbdwire.CmdTrim, 4096)
			c.wantError(5, nbdwire.ReplyError, eperm)
			close(f.hold)
			if list := c.parts(1); len(list) != 1 || !bytes.Equal(list[0].data, data[:100000]) {
				t.Fatalf("the read from before: %d chunks", len(list))
			}
			c.wantClosed()
			if err := <-ended; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
}

// TestDrainIsBounded: reads that do not end do not hold the server, and return what they
// were lent when they end at last.
func TestDrainIsBounded(t *testing.T) {
	f := &fakeFile{data: pattern()[:1<<20], async: true, hold: make(chan struct{})}
	server, err := NewServer(Options{Exports: oneExport(f)})
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- server.ServeConn(far, nil) }()
	c := &rawConn{Conn: near, t: t}
	c.hello(3)
	c.choose("disk")
	c.put(bytes.Repeat(readRequest(1, 0, 1000), 5))
	waitFor(t, "5 reads", func() bool { return f.reads.Load() == 5 })
	ctx, cancel := context.WithCancelCause(context.Background())
	enough := errors.New("enough")
	cancel(enough)
	if err := server.Shutdown(ctx); !errors.Is(err, enough) || !strings.Contains(err.Error(), "1 connections") {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("ServeConn: %v", err)
	}
	_ = near.Close()
	close(f.hold)
	waitFor(t, "payloads to be released", func() bool { return f.released.Load() == 5 })
	if err := server.Serve(context.Background(), &net.UnixListener{}, nil); !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

// TestStalledClient: one that takes no replies holds the whole pool. Small reads of others
// go on, and when a large one waits the stalled client is closed; alone it may stay.
func TestStalledClient(t *testing.T) {
	data := pattern()
	f := &fakeFile{data: data}
	limits := Limits{Memory: MaxRead, Stall: 100 * time.Millisecond}
	fx := start(t, Options{Exports: oneExport(f), Limits: limits})
	stalled := fx.ready("disk")
	stalled.put(readRequest(1, 0, MaxRead))
	stalled.put(readRequest(2, 0, MaxRead))
	waitFor(t, "the pool to be taken", func() bool {
		fx.server.budget.mu.Lock()
		defer fx.server.budget.mu.Unlock()
		return fx.server.budget.free == 0
	})
	other := fx.ready("disk")
	for range 10 {
		other.alive(data)
	}
	other.put(readRequest(3, 1, 5<<20))
	other.wantAnswer(3, 0, data[1:1+5<<20])
	_, _ = io.Copy(io.Discard, stalled)
	if !strings.Contains(fx.log.String(), "takes no replies") {
		t.Errorf("log: %s", fx.log)
	}
}

// TestStallAfterDisc: a client that leaves without taking its replies does not stay for ever.
func TestStallAfterDisc(t *testing.T) {
	f := &fakeFile{data: pattern()}
	fx := start(t, Options{Exports: oneExport(f), Limits: Limits{Stall: 50 * time.Millisecond}})
	c := fx.ready("disk")
	c.put(append(readRequest(1, 0, MaxRead), requestBytes(cmdDisc, 0, 2, 0, 0)...))
	waitFor(t, "the payload to be given up", func() bool { return f.released.Load() == 1 })
}

// TestManyClients reads with 64 at once. What is lent at any time stays within the budget.
func TestManyClients(t *testing.T) {
	data := pattern()
	f := &fakeFile{data: data, async: true}
	fx := start(t, Options{Exports: oneExport(f)})
	var wg sync.WaitGroup
	for i := range 64 {
		c := fx.ready("disk")
		wg.Add(2)
		rng := rand.New(rand.NewPCG(uint64(i), 0))
		var requests []byte
		want := make(map[uint64][2]uint64)
		for k := range uint64(24) {
			n := 1 + rng.Uint64N(1<<10)
			if k%6 == 0 {
				n = 1 + rng.Uint64N(2<<20)
			}
			off := rng.Uint64N(uint64(len(data)) - n)
			want[k] = [2]uint64{off, n}
			requests = append(requests, readRequest(k, off, uint32(n))...)
		}
		go func() { defer wg.Done(); _, _ = c.Write(requests) }()
		go func() {
			defer wg.Done()
			var h [nbdwire.SimpleReplyLen]byte
			buf := make([]byte, 2<<20)
			for range len(want) {
				if _, err := io.ReadFull(c, h[:]); err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				r, _ := nbdwire.DecodeSimpleReply(h[:])
				w := want[r.Handle]
				if _, err := io.ReadFull(c, buf[:w[1]]); err != nil || r.Error != 0 || !bytes.Equal(buf[:w[1]], data[w[0]:w[0]+w[1]]) {
					t.Errorf("client %d cookie %d: errno %d, %v, or wrong bytes", i, r.Handle, r.Error, err)
					return
				}
			}
		}()
	}
	wg.Wait()
	if most, bound := f.peak.Load(), int64(64<<20+64*512<<10); most > bound {
		t.Errorf("%d bytes lent at once, at most %d allowed", most, bound)
	}
}

// TestServeEndsWithContext: the listener's socket goes with it, connections stay.
func TestServeEndsWithContext(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data})})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- fx.server.Serve(ctx, l, nil) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := &rawConn{Conn: conn, t: t}
	c.hello(3)
	c.choose("disk")
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	c.alive(data)
}

// TestKeepalive: the kernel finds out that a client is gone whose machine died, by TCP's own probes.
func TestKeepalive(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data})})
	conn, err := net.Dial("tcp", fx.startTCP(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := &rawConn{Conn: conn, t: t}
	c.hello(3)
	c.choose("disk")
	c.alive(data)
	fx.server.mu.Lock()
	defer fx.server.mu.Unlock()
	for _, client := range fx.server.serving {
		control(client.conn, func(fd int) {
			for _, o := range []struct {
				name               string
				level, opt, lo, hi int
			}{
				{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, 1},
				{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1, 1},
				{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1, 60},
				{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1, 15},
				{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 1, 9},
			} {
				if got, err := unix.GetsockoptInt(fd, o.level, o.opt); err != nil || got < o.lo || got > o.hi {
					t.Errorf("%s: %d, %v; want %d to %d", o.name, got, err, o.lo, o.hi)
				}
			}
		})
	}
	if n := len(fx.server.serving); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

package export

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	cmdRead  = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc  = protocol.TRANSMISSION_TYPE_REQUEST_DISC

	eperm, einval = 1, 22
)

// TestRequests names the items of the protocol checklist. Each request gets its errno, or
// the bytes that it asks for, and the connection goes on.
func TestRequests(t *testing.T) {
	data := pattern()[:34<<20]
	size := uint64(len(data))
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}}})
	cases := []struct {
		name    string
		request []byte
		payload int // bytes behind the request
		errno   uint32
		want    []byte
	}{
		{name: "6 57 first byte", request: readRequest(0, 0, 1), want: data[:1]},
		{name: "37 unaligned", request: readRequest(math.MaxUint64, 1001, 3000), want: data[1001:4001]},
		{name: "last byte", request: readRequest(3, size-1, 1), want: data[size-1:]},
		{name: "longest read", request: readRequest(3, 5, MaxRead), want: data[5 : 5+MaxRead]},
		{name: "58 beyond the end", request: readRequest(4, size-512, 1024), errno: einval},
		{name: "58 at the end", request: readRequest(4, size, 1), errno: einval},
		{name: "58 offset 2^63", request: readRequest(4, 1<<63, 16), errno: einval},
		{name: "58 offset overflows", request: readRequest(4, math.MaxUint64, 2), errno: einval},
		{name: "59 unknown command with a length", request: requestBytes(77, 0, 5, 0, 4096), errno: einval},
		{name: "75 BLOCK_STATUS without a context", request: requestBytes(7, 0, 5, 0, 4096), errno: einval},
		{name: "60 unknown flag", request: requestBytes(cmdRead, 1<<4, 6, 0, 16), errno: einval},
		{name: "60 FUA is not advertised", request: requestBytes(cmdRead, 1, 6, 0, 16), errno: einval},
		{name: "60 DF is not advertised", request: requestBytes(cmdRead, 1<<2, 6, 0, 16), errno: einval},
		{name: "62 74 READ of 0 bytes", request: readRequest(7, 0, 0), errno: einval},
		{name: "62 TRIM of 0 bytes", request: requestBytes(4, 0, 7, 0, 0), errno: eperm},
		{name: "64 66 WRITE 4 KiB", request: requestBytes(cmdWrite, 0, 8, 0, 4096), payload: 4096, errno: eperm},
		{name: "64 WRITE of 0 bytes", request: requestBytes(cmdWrite, 0, 8, 0, 0), errno: eperm},
		{name: "64 WRITE 33 MiB", request: requestBytes(cmdWrite, 0, 8, 0, 33<<20), payload: 33 << 20, errno: eperm},
		{name: "66 WRITE beyond the end", request: requestBytes(cmdWrite, 0, 8, 1<<63, 512), payload: 512, errno: eperm},
		{name: "66 WRITE_ZEROES", request: requestBytes(6, 0, 8, 0, math.MaxUint32), errno: eperm},
		{name: "66 TRIM", request: requestBytes(4, 0, 8, size, 1), errno: eperm},
		{name: "73 READ above the maximum", request: readRequest(9, 0, MaxRead+1), errno: einval},
		{name: "73 READ of 4 GiB - 1", request: readRequest(9, 0, math.MaxUint32), errno: einval},
		{name: "83 CACHE", request: requestBytes(5, 0, 10, 0, 4096)},
		{name: "83 CACHE of all", request: requestBytes(5, 0, 10, 0, uint32(size))},
		{name: "83 CACHE with a flag", request: requestBytes(5, 1, 10, 0, 4096), errno: einval},
		{name: "83 CACHE over the end", request: requestBytes(5, 0, 10, size-512, 1024), errno: einval},
		{name: "83 CACHE of 4 GiB - 1", request: requestBytes(5, 0, 10, 0, math.MaxUint32), errno: einval},
		{name: "62 CACHE of 0 bytes", request: requestBytes(5, 0, 10, 0, 0), errno: einval},
		{name: "84 FLUSH", request: requestBytes(3, 0, 11, 0, 0)},
		{name: "84 FLUSH with a range", request: requestBytes(3, 0, 11, 0, 512), errno: einval},
		{name: "84 FLUSH with a flag", request: requestBytes(3, 1, 11, 0, 0), errno: einval},
	}
	c := fx.ready("disk")
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c.t = t
			c.put(tc.request)
			c.put(make([]byte, tc.payload))
			h, _ := nbdwire.DecodeRequest(tc.request)
			c.wantAnswer(h.Handle, tc.errno, tc.want)
			c.alive(data)
		})
	}
}

func TestRequestsThatClose(t *testing.T) {
	data := pattern()[:4096]
	cases := []struct {
		name string
		send []byte
	}{
		{"56 bad magic", make([]byte, 28)},
		{"56 structured request", append([]byte{0x21, 0xe4, 0x1c, 0x71}, make([]byte, 28)...)},
		{"64 WRITE above 64 MiB", requestBytes(cmdWrite, 0, 1, 0, maxDiscard+1)},
		{"85 DISC", requestBytes(cmdDisc, 0, 1, 0, 0)},
		{"85 DISC with flags and a range", requestBytes(cmdDisc, 99, 1, 1, 1)},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}}})
			c := fx.ready("disk")
			c.alive(data)
			c.put(tc.send)
			c.wantClosed()
		})
	}
}

// TestDisconnectAnswersAll is item 85: a DISC, or the end of the stream, behind 8 reads.
func TestDisconnectAnswersAll(t *testing.T) {
	data := pattern()[:1<<20]
	for _, end := range []string{"DISC", "half close"} {
		t.Run(end, func(t *testing.T) {
			f := &fakeFile{data: data, async: true, hold: make(chan struct{})}
			fx := start(t, Options{Exports: []Export{{Name: "disk", File: f}}})
			c := fx.ready("disk")
			var b []byte
			for i := range uint64(8) {
				b = append(b, readRequest(i, i*8192, 4096)...) // not in order: nothing is read ahead
			}
			if end == "DISC" {
				b = append(b, requestBytes(cmdDisc, 0, 9, 0, 0)...)
			}
			c.put(b)
			if end != "DISC" {
				_ = c.Conn.(*net.UnixConn).CloseWrite()
			}
			waitFor(t, "8 reads", func() bool { return f.reads.Load() == 8 })
			close(f.hold)
			seen := make(map[uint64]bool)
			for range 8 {
				cookie, errno := c.answer()
				if got := c.get(4096); errno != 0 || seen[cookie] || !bytes.Equal(got, data[cookie*8192:][:4096]) {
					t.Fatalf("cookie %d errno %d seen %t", cookie, errno, seen[cookie])
				}
				seen[cookie] = true
			}
			c.wantClosed()
		})
	}
}

// TestOutOfOrder reads random ranges, many in flight, completed in random order (items 57, 63).
func TestOutOfOrder(t *testing.T) {
	data := pattern()[:4<<20]
	bad := errors.New("no good copy")
	f := &fakeFile{data: data, async: true, fail: func(r *Read) error {
		if r.Offset%7 == 0 {
			return bad
		}
		return nil
	}}
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: f}}})
	c := fx.ready("disk")
	rng := rand.New(rand.NewPCG(1, 2))
	type ask struct {
		off uint64
		n   uint32
	}
	const total = 3000
	asks := make([]ask, total)
	for i := range asks {
		n := rng.Uint32N(40000) + 1
		asks[i] = ask{rng.Uint64N(uint64(len(data)) - uint64(n)), n}
	}
	go func() {
		for i, a := range asks {
			_, _ = c.Write(readRequest(uint64(i), a.off, a.n))
		}
	}()
	seen := make([]bool, total)
	for range total {
		cookie, errno := c.answer()
		if cookie >= total || seen[cookie] {
			t.Fatalf("cookie %d came twice or was never sent", cookie)
		}
		seen[cookie] = true
		a := asks[cookie]
		if want := a.off%7 == 0; want != (errno == nbdwire.EIO) {
			t.Fatalf("offset %d: errno %d", a.off, errno)
		}
		if errno == 0 && !bytes.Equal(c.get(int(a.n)), data[a.off:][:a.n]) {
			t.Fatalf("offset %d length %d: wrong bytes", a.off, a.n)
		}
	}
	if log := fx.log.String(); !strings.Contains(log, "no good copy") || strings.Count(log, "read failed") > 30 {
		t.Errorf("log of failed reads: %d lines", strings.Count(log, "read failed"))
	}
}

// TestDuplicateCookies is item 57: the cookie is the client's business alone.
func TestDuplicateCookies(t *testing.T) {
	data := pattern()[:1<<16]
	f := &fakeFile{data: data, async: true}
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: f}}})
	c := fx.ready("disk")
	c.put(bytes.Repeat(readRequest(5, 100, 50), 40))
	for range 40 {
		c.wantAnswer(5, 0, data[100:150])
	}
}

// TestRoundUp compares reads around the file's end with the file padded by hand.
func TestRoundUp(t *testing.T) {
	for _, tc := range []struct{ size, roundUp int }{{1, 512}, {512, 512}, {513, 512}, {1000, 4096}, {0, 512}, {100000, 3 << 20}, {5000, 1}, {5000, 0}} {
		data := pattern()[:tc.size]
		fx := start(t, Options{Exports: []Export{{Name: "d", File: &fakeFile{data: data}, RoundUp: uint32(tc.roundUp)}}})
		unit := max(tc.roundUp, 1)
		padded := make([]byte, (tc.size+unit-1)/unit*unit)
		copy(padded, data)
		c := fx.greeted()
		if got := c.infos(optGo, "d")[0].Size; got != uint64(len(padded)) {
			t.Fatalf("%+v: size %d, want %d", tc, got, len(padded))
		}
		if len(padded) == 0 {
			continue
		}
		c.put(readRequest(1, 0, uint32(len(padded))))
		c.wantAnswer(1, 0, padded)
		for range 50 {
			off := rand.IntN(len(padded))
			n := 1 + rand.IntN(len(padded)-off)
			c.put(readRequest(2, uint64(off), uint32(n)))
			c.wantAnswer(2, 0, padded[off:off+n])
		}
		c.put(readRequest(3, uint64(len(padded)), 1))
		c.wantAnswer(3, einval, nil)
	}
}

// TestBatches: what one read of the socket brings is submitted together and answered by few
// writevs.
func TestBatches(t *testing.T) {
	data := pattern()[:1<<20]
	for _, async := range []bool{false, true} {
		hold := make(chan struct{})
		f := &fakeFile{data: data, async: async, hold: hold}
		fx := start(t, Options{Exports: []Export{{Name: "disk", File: f}}})
		c := fx.ready("disk")
		var s *sender
		waitFor(t, "the connection", func() bool {
			fx.server.mu.Lock()
			defer fx.server.mu.Unlock()
			for tr := range fx.server.serving {
				s = tr.sender
			}
			return s != nil
		})
		c.put(bytes.Repeat(readRequest(5, 4096, 4096), 32))
		waitFor(t, "32 reads", func() bool { return f.reads.Load() == 32 })
		close(hold)
		for range 32 {
			c.wantAnswer(5, 0, data[4096:8192])
		}
		waitFor(t, "32 replies", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.replies == 32 })
		// A loaded machine may cut the bytes in two; one by one they never come.
		if n := f.batches.Load(); n > 4 {
			t.Errorf("async %t: 32 pipelined requests made %d batches", async, n)
		}
		s.mu.Lock()
		if s.writevs > 16 {
			t.Errorf("async %t: 32 replies took %d writevs", async, s.writevs)
		}
		s.mu.Unlock()
	}
}

// brokenFile breaks File's contract in one way.
type brokenFile struct {
	fakeFile
	submit func(batch []*Read)
}

func (f *brokenFile) Submit(batch []*Read) { f.submit(batch) }

// TestBrokenFiles: a defect of a File costs a read or a connection, never the server or a
// wrong byte.
func TestBrokenFiles(t *testing.T) {
	data := pattern()[:4096]
	cases := []struct {
		name   string
		submit func(batch []*Read)
		closed bool
	}{
		{"panic in Submit", func([]*Read) { panic("boom") }, true},
		{"short payload", func(b []*Read) { b[0].Payload = data[:3]; b[0].Done.ReadDone(b[0]) }, false},
		{"long payload", func(b []*Read) { b[0].Payload = data; b[0].Done.ReadDone(b[0]) }, false},
		{"panic in Release", func(b []*Read) {
			b[0].Payload, b[0].Lender = data[:b[0].Length], panicLender{}
			b[0].Done.ReadDone(b[0])
		}, true},
		{"completed twice", func(b []*Read) {
			b[0].Err = io.ErrUnexpectedEOF
			b[0].Done.ReadDone(b[0])
			b[0].Done.ReadDone(b[0])
		}, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			stats := &serverStats{}
			fx := start(t, Options{Stats: stats, Exports: []Export{
				{Name: "bad", File: &brokenFile{fakeFile: fakeFile{data: data}, submit: tc.submit}},
				{Name: "good", File: &fakeFile{data: data}}}})
			c := fx.ready("bad")
			c.put(readRequest(1, 0, 100))
			if tc.closed {
				_, _ = io.Copy(io.Discard, c)
				waitFor(t, "the log line", func() bool { return strings.Contains(fx.log.String(), "internal error") })
			} else {
				c.wantAnswer(1, nbdwire.EIO, nil)
				c.put(requestBytes(3, 0, 2, 0, 0))
				c.wantAnswer(2, 0, nil)
			}
			fx.ready("good").alive(data)
			if got := stats.panics.Load() > 0; got != tc.closed {
				t.Errorf("a panic was counted: %v, want %v", got, tc.closed)
			}
		})
	}
}

type panicLender struct{}

func (panicLender) Release(*Read) { panic("boom") }

// countStats counts RequestDone by command and outcome.
type countStats struct {
	mu          sync.Mutex
	n           map[string]int
	bytes       int
	ahead, used int
}

func (s *countStats) ReadAhead(bytes, used int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += bytes
	s.used += used
}

// read is how many bytes were read ahead.
func (s *countStats) read() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ahead
}

func (s *countStats) RequestDone(command string, ok bool, bytes int, _ time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok {
		command += " error"
	}
	s.n[command]++
	s.bytes += bytes
}

func TestStats(t *testing.T) {
	data := pattern()[:1000]
	stats := &countStats{n: make(map[string]int)}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: &fakeFile{data: data}, RoundUp: 512, Stats: stats}}})
	c := fx.ready("d")
	for _, r := range [][]byte{readRequest(1, 0, 1024), readRequest(1, 9999, 1), requestBytes(3, 0, 1, 0, 0),
		requestBytes(4, 0, 1, 0, 0), requestBytes(5, 0, 1, 0, 0), requestBytes(5, 0, 1, 0, 1), requestBytes(6, 0, 1, 0, 0), requestBytes(7, 0, 1, 0, 0),
		requestBytes(cmdWrite, 0, 1, 0, 0), requestBytes(cmdDisc, 0, 1, 0, 0)} {
		c.put(r)
	}
	_, _ = io.Copy(io.Discard, c)
	want := map[string]int{"read": 1, "read error": 1, "flush": 1, "trim error": 1, "cache": 1, "cache error": 1,
		"write_zeroes error": 1, "block_status error": 1, "write error": 1, "disc": 1}
	waitFor(t, "all requests to be counted", func() bool { stats.mu.Lock(); defer stats.mu.Unlock(); return len(stats.n) == len(want) })
	for k, n := range want {
		if stats.n[k] != n {
			t.Errorf("%s: %d, want %d", k, stats.n[k], n)
		}
	}
	if stats.bytes != 1024 {
		t.Errorf("%d bytes, want 1024", stats.bytes)
	}
}

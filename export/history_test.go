package export

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// What has gone wrong in other servers: each test is named for what it does and says which report it is about.
// More of them: TestByteCut, TestSilentSockets, TestExtensionOrders, TestHugeHoles, TestAccess, TestTLSForgets.

// claims are sessions that announce n bytes where a name or a query stands, and send four.
func claims(n uint32) map[string][]byte {
	option := func(id, length uint32, data ...byte) []byte {
		return append(append(nbdwire.AppendOption(nil, id, nil)[:12], be32(length)...), data...)
	}
	name := slices.Concat(be32(n), []byte("disk"), make([]byte, 8))
	query := slices.Concat(be32(4), []byte("disk"), be32(1), be32(n), []byte("base"))
	count := slices.Concat(be32(4), []byte("disk"), be32(n), be32(4), []byte("base"))
	m := map[string][]byte{"EXPORT_NAME": option(1, n, []byte("disk")...)}
	for _, id := range []uint32{optList, optInfo, optGo, optSR, optEH, optListMeta, optSetMeta, nbdwire.OptStartTLS, 99} {
		m[fmt.Sprintf("option %d, its length", id)] = option(id, n, []byte("disk")...)
		m[fmt.Sprintf("option %d, a name", id)] = option(id, uint32(len(name)), name...)
		m[fmt.Sprintf("option %d, a query", id)] = option(id, uint32(len(query)), query...)
		m[fmt.Sprintf("option %d, a number of queries", id)] = option(id, uint32(len(count)), count...)
	}
	return m
}

// TestClaimedLengths is CVE-2022-26495 and CVE-2017-15119: whatever length a client claims, the server allocates no more than
// the cap of an option's data for it.
func TestClaimedLengths(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data})})
	for _, n := range []uint32{0, 4096, 4097, 65536, 65537, math.MaxInt32, math.MaxUint32} {
		for name, session := range claims(n) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c := fx.greeted()
			c.option(optSR, nil)
			c.reply(optSR, repAck)
			c.put(session)
			_ = c.Conn.(*net.UnixConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
			runtime.ReadMemStats(&after)
			// A connection costs some 100 KiB, the test's own end included.
			if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
				t.Errorf("%s of %d bytes: %d bytes were allocated", name, n, got)
			}
			_ = c.Close()
		}
	}
	fx.ready("disk").alive(data)
}

// TestOptionLengths is CVE-2022-26496: an option whose length is not that of its content, both ways, gets ERR_INVALID and has
// its data consumed; one whose length is not what is sent loses the connection and nothing else.
func TestOptionLengths(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data})})
	query := nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: "disk", Queries: []string{base}})
	for _, tc := range []struct {
		name   string
		option uint32
		data   []byte
	}{
		{"LIST", optList, nil},
		{"INFO", optInfo, infoRequest("disk", 1)},
		{"GO", optGo, infoRequest("disk", 1)},
		{"STARTTLS", nbdwire.OptStartTLS, nil},
		{"STRUCTURED_REPLY", optSR, nil},
		{"EXTENDED_HEADERS", optEH, nil},
		{"LIST_META_CONTEXT", optListMeta, query},
		{"SET_META_CONTEXT", optSetMeta, query},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, by := range []int{-3, -2, -1, 1, 2, 4, 5000} {
				wrong := append(bytes.Clone(tc.data), make([]byte, max(by, 0))...)
				if by < 0 {
					if len(tc.data) < -by {
						continue
					}
					wrong = tc.data[:len(tc.data)+by]
				}
				c := fx.greeted()
				c.t = t
				c.option(optEH, nil)
				c.reply(optEH, repAck)
				c.option(tc.option, wrong)
				c.reply(tc.option, nbdwire.RepErrInvalid)
				c.option(99, nil)
				c.reply(99, repUnsup)
				_ = c.Close()
			}
			// More bytes than the length says are the next option's, and no option.
			c := fx.greeted()
			c.t = t
			c.put(append(nbdwire.AppendOption(nil, tc.option, tc.data), make([]byte, 32)...))
			_, _ = io.Copy(io.Discard, c)
			// Fewer: the connection waits for the rest, and what comes next is taken for it.
			c = fx.greeted()
			c.t = t
			c.put(append(nbdwire.AppendOption(nil, tc.option, nil)[:12], be32(uint32(len(tc.data)+16))...))
			c.put(tc.data)
			c.option(99, nil)
			c.reply(tc.option, nbdwire.RepErrInvalid)
			_ = c.Close()
		})
	}
	fx.ready("disk").alive(data)
}

// TestUnknownNames is CVE-2013-7441: a thousand unknown names, asked for in every way, cost a connection at most.
func TestUnknownNames(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data})})
	for i := range 1000 {
		name := fmt.Sprintf("nope-%d", i)
		c := fx.greeted()
		switch i % 3 {
		case 0:
			c.option(1, []byte(name))
			c.wantClosed()
		case 1:
			c.option(optGo, infoRequest(name))
			c.reply(optGo, repUnknown)
		default:
			c.option(optInfo, infoRequest(name))
			c.reply(optInfo, repUnknown)
			c.choose("disk")
			c.alive(data)
		}
		_ = c.Close()
	}
	waitFor(t, "the connections to end", func() bool { established, handshakes := fx.server.Clients(); return established+handshakes == 0 })
}

// TestEndlessOptions is CVE-2017-15119 again: ten thousand options in one go.
func TestEndlessOptions(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data})})
	for _, option := range [][]byte{nbdwire.AppendOption(nil, 99, nil), nbdwire.AppendOption(nil, optList, nil),
		nbdwire.AppendOption(nil, optInfo, infoRequest("disk")), nbdwire.AppendOption(nil, optGo, infoRequest("nope")),
		nbdwire.AppendOption(nil, optSetMeta, make([]byte, 1000))} {
		c := fx.greeted()
		_, _ = c.Write(bytes.Repeat(option, 10000)) // fails when the server has closed by then
		answers, _ := io.ReadAll(c)                 // a reset may cut them
		if most := (maxOptions + maxOptionsPerExport) * 200; len(answers) > most {
			t.Errorf("%d bytes of answers, at most %d wanted", len(answers), most)
		}
	}
	fx.ready("disk").alive(data)
}

// TestForgedLog is a note of nbdkit 1.40: what a client calls an export stands quoted in the log, and shortened.
func TestForgedLog(t *testing.T) {
	data := pattern()[:4096]
	forged := "x\"\n" + `time=2026-01-01T00:00:00.000Z level=ERROR msg="all is lost"` + "\x1b[31m"
	for _, name := range []string{forged, strings.Repeat("\x1b\n", 2048)} {
		fx := start(t, Options{Exports: oneExport(&fakeFile{data: data})}) // of one server a line a second
		c := fx.greeted()
		c.option(optGo, infoRequest(name))
		c.reply(optGo, repUnknown)
		c.option(1, []byte(name))
		c.wantClosed()
		waitFor(t, "a line", func() bool { return strings.Contains(fx.log.String(), "\n") })
		for line := range strings.Lines(fx.log.String()) {
			if !strings.Contains(line, "level=WARN") || strings.Contains(line, "\x1b") || len(line) > 1000 {
				t.Errorf("log line %.300q", line)
			}
		}
	}
}

// TestAbortUnread is item 18: a client that says ABORT and does not wait for the answer has made no mistake.
func TestAbortUnread(t *testing.T) {
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: make([]byte, 4096)})})
	addr := fx.startTCP(nil)
	for range 50 {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c := &rawConn{Conn: conn, t: t}
		c.hello(3)
		c.option(optAbort, nil)
		reset(conn)
	}
	waitFor(t, "the connections to end", func() bool { established, handshakes := fx.server.Clients(); return established+handshakes == 0 })
	if log := fx.log.String(); log != "" {
		t.Errorf("log: %s", log)
	}
}

// TestNoDelay is item 1.
func TestNoDelay(t *testing.T) {
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: make([]byte, 4096)})})
	conn, err := net.Dial("tcp", fx.startTCP(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := &rawConn{Conn: conn, t: t}
	c.hello(3)
	c.choose("disk")
	waitFor(t, "the connection", func() bool { fx.server.mu.Lock(); defer fx.server.mu.Unlock(); return len(fx.server.serving) == 1 })
	fx.server.mu.Lock()
	defer fx.server.mu.Unlock()
	for _, client := range fx.server.serving {
		control(client.conn, func(fd int) {
			if on, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); err != nil || on == 0 {
				t.Errorf("TCP_NODELAY: got %d, %v", on, err)
			}
		})
	}
}

// TestListedNames is item 21: GO accepts what LIST shows and nothing else.
func TestListedNames(t *testing.T) {
	file := func() File { return &fakeFile{data: pattern()[:4096]} }
	nobody := Access{Networks: networks("192.0.2.1/32")}
	exports := []Export{{Name: "disk", File: file()}, {Name: "disk ", File: file()}, {Name: "Disk", File: file()}, {Name: "a/b\nc\"", File: file()},
		{Name: strings.Repeat("ä", 2048), File: file()}, {Name: "hidden", File: file(), Allow: nobody}, {Name: "", File: file()}}
	fx := start(t, Options{Exports: exports})
	c := fx.greeted()
	c.option(optList, nil)
	var listed []string
	for range len(exports) - 1 {
		name, _, err := nbdwire.DecodeListEntry(c.reply(optList, 2))
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, name)
	}
	c.reply(optList, repAck)
	for _, name := range listed {
		got := fx.greeted().infos(optGo, name, 1)
		if len(got) != 2 || got[1].Text != name {
			t.Errorf("GO of %.20q: %+v", name, got)
		}
	}
	for _, name := range []string{"hidden", "dis", "disk\n", "DISK", "a", "disk  "} {
		c.option(optGo, infoRequest(name))
		c.reply(optGo, repUnknown)
		if slices.Contains(listed, name) {
			t.Errorf("%q is listed", name)
		}
	}
}

// TestOneContent is item 87: all connections of an export read one File, and when another one takes its name nobody sees
// bytes of both.
func TestOneContent(t *testing.T) {
	old, next := &fakeFile{data: bytes.Repeat([]byte{1}, 1<<20)}, &fakeFile{data: bytes.Repeat([]byte{2}, 1<<20)}
	fx := start(t, Options{Exports: oneExport(old)})
	var all []*rawConn
	for range 8 {
		all = append(all, fx.ready("disk"))
	}
	for i, c := range all {
		c.put(readRequest(1, uint64(i)*4096, 9000))
		c.wantAnswer(1, 0, old.data[:9000])
	}
	if n := old.reads.Load(); n != 8 {
		t.Errorf("%d reads of the one File, want 8", n)
	}
	fx.update(Options{Exports: oneExport(next)})
	late := fx.ready("disk")
	late.put(readRequest(2, 0, 9000))
	late.wantAnswer(2, 0, next.data[:9000])
	for _, c := range all {
		_, _ = c.Write(readRequest(3, 0, 9000)) // it may be closed already
		rest, _ := io.ReadAll(c)
		if bytes.IndexByte(rest[min(len(rest), nbdwire.SimpleReplyLen):], 2) >= 0 {
			t.Error("a connection of the old File got bytes of the new one")
		}
	}
}

// TestSimpleErrors is item 67: a simple reply with an error has no payload, also when most of the bytes are good.
func TestSimpleErrors(t *testing.T) {
	f := &fakeFile{data: pattern()[:1<<20], bad: []Span{{8192, 4096}}}
	c := start(t, Options{Exports: oneExport(f)}).ready("disk")
	for _, off := range []uint64{0, 8191, 8192, 12287} {
		c.put(readRequest(off, off, 16384))
		c.wantAnswer(off, nbdwire.EIO, nil)
		c.alive(f.data)
	}
	c.put(readRequest(1, 12288, 16384))
	c.wantAnswer(1, 0, f.data[12288:12288+16384])
}

// TestSilentConnection closes who says nothing in the time of a handshake, which is 10 seconds unless told otherwise.
func TestSilentConnection(t *testing.T) {
	if got := (Limits{}).withDefaults().Handshake.Seconds(); got != 10 {
		t.Errorf("handshake: got %v s, want 10", got)
	}
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: make([]byte, 9)}), Limits: Limits{Handshake: 50e6}})
	for _, sent := range [][]byte{nil, {0}, nbdwire.AppendClientFlags(nil, 3), nbdwire.AppendOption(nbdwire.AppendClientFlags(nil, 3), optList, nil)} {
		c := fx.dial()
		c.put(sent)
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("after %d bytes: %v", len(sent), err)
		}
	}
	if strings.Contains(fx.log.String(), "ERROR") {
		t.Errorf("log: %s", fx.log)
	}
}

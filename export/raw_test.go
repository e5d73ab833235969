package export

import (
	"bytes"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// TestRawSessions are the sessions in which servers have been seen to differ, with the answers that
// are wanted of this one.
func TestRawSessions(t *testing.T) {
	data := pattern()[:1<<20]
	header := func(id, length uint32) []byte {
		return append(nbdwire.AppendOption(nil, id, nil)[:12], be32(length)...)
	}
	refused := func(c *rawConn, id uint32, data []byte, want uint32) {
		c.t.Helper()
		c.option(id, data)
		c.reply(id, want)
	}
	for _, tc := range []struct {
		name string
		run  func(fx *fixture, c *rawConn)
	}{
		{"client flags 7: close", func(_ *fixture, c *rawConn) { c.hello(7); c.wantClosed() }},
		{"client flags 0, LIST: served", func(_ *fixture, c *rawConn) {
			c.hello(0)
			c.option(optList, nil)
			c.reply(optList, protocol.NEGOTIATION_TYPE_REPLY_SERVER)
			c.reply(optList, repAck)
		}},
		{"LIST with 4 bytes: INVALID", func(_ *fixture, c *rawConn) { c.hello(3); refused(c, optList, make([]byte, 4), nbdwire.RepErrInvalid) }},
		{"unknown option with 1000 bytes: UNSUP", func(_ *fixture, c *rawConn) { c.hello(3); refused(c, 99, make([]byte, 1000), repUnsup) }},
		{"unknown option of 4 GiB: close", func(_ *fixture, c *rawConn) { c.hello(3); c.put(header(99, math.MaxUint32)); c.wantClosed() }},
		{"GO with a name of 5000 bytes in 16: INVALID", func(_ *fixture, c *rawConn) {
			c.hello(3)
			refused(c, optGo, append(be32(5000), make([]byte, 12)...), nbdwire.RepErrInvalid)
		}},
		{"GO, four malformed ones: INVALID", func(_ *fixture, c *rawConn) {
			c.hello(3)
			for _, data := range [][]byte{infoRequest(strings.Repeat("x", 4097)), infoRequest("d\x00"), append(infoRequest("d"), 0, 1), {0, 0}} {
				refused(c, optGo, data, nbdwire.RepErrInvalid)
			}
		}},
		{"SET_META without SR, SR with data: INVALID", func(_ *fixture, c *rawConn) {
			c.hello(3)
			refused(c, optSetMeta, nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: "d"}), nbdwire.RepErrInvalid)
			refused(c, optSR, []byte{1}, nbdwire.RepErrInvalid)
		}},
		{"STARTTLS without TLS: POLICY", func(_ *fixture, c *rawConn) { c.hello(3); refused(c, nbdwire.OptStartTLS, nil, nbdwire.RepErrPolicy) }},
		{"ABORT with data: ACK", func(_ *fixture, c *rawConn) { c.hello(3); refused(c, optAbort, []byte("bye"), repAck); c.wantClosed() }},
		{"endless unknown options: bounded", func(_ *fixture, c *rawConn) {
			c.hello(3)
			for range maxOptions + maxOptionsPerExport {
				refused(c, 99, nil, repUnsup)
			}
			c.wantClosed()
		}},
		{"EXPORT_NAME unknown: close", func(_ *fixture, c *rawConn) { c.hello(3); c.option(1, []byte("x")); c.wantClosed() }},
		{"EXPORT_NAME without NO_ZEROES: 10 and 124 bytes", func(_ *fixture, c *rawConn) {
			c.hello(1)
			c.option(1, []byte("d"))
			if b := c.get(134); !bytes.Equal(b[10:], make([]byte, 124)) {
				c.t.Fatal("not zeroes")
			}
			c.alive(data)
		}},
		{"bad request magic: close", func(_ *fixture, c *rawConn) { c.hello(3); c.choose("d"); c.put(make([]byte, 28)); c.wantClosed() }},
		{"WRITE of 4 KiB, then READ: EPERM, ok", func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.choose("d")
			c.put(append(requestBytes(cmdWrite, 0, 1, 0, 4096), make([]byte, 4096)...))
			c.wantAnswer(1, eperm, nil)
			c.alive(data)
		}},
		{"WRITE of 33 MiB, then READ: EPERM, ok", func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.choose("d")
			c.put(append(requestBytes(cmdWrite, 0, 1, 0, 33<<20), make([]byte, 33<<20)...))
			c.wantAnswer(1, eperm, nil)
			c.alive(data)
		}},
		{"command 77 with length 4096, then READ: EINVAL, ok", func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.choose("d")
			c.put(requestBytes(77, 0, 1, 0, 4096))
			c.wantAnswer(1, einval, nil)
			c.alive(data)
		}},
		{"8 READs and DISC: 8 answered", func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.choose("d")
			c.put(append(bytes.Repeat(readRequest(1, 0, 4096), 8), requestBytes(cmdDisc, 0, 1, 0, 0)...))
			for range 8 {
				c.wantAnswer(1, 0, data[:4096])
			}
			c.wantClosed()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fx := start(t, Options{Exports: []Export{{Name: "d", File: &fakeFile{data: data, async: true}}}})
			tc.run(fx, fx.dial())
		})
	}
}

// TestExtensionOrders runs every order of four options that change replies against a model of them:
// what READ and BLOCK_STATUS get then (CVE-2019-14851).
func TestExtensionOrders(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}, {Name: "other", File: &fakeFile{data: data}}}})
	type model struct{ sr, eh, context bool }
	query := nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: "disk", Queries: []string{base}})
	steps := []func(c *rawConn, m *model){
		func(c *rawConn, m *model) {
			c.option(optSR, nil)
			if m.eh {
				c.reply(optSR, nbdwire.RepErrExtHeaderReqd)
				return
			}
			c.reply(optSR, repAck)
			m.sr = true
		},
		func(c *rawConn, m *model) { c.option(optEH, nil); c.reply(optEH, repAck); m.eh = true },
		func(c *rawConn, m *model) {
			c.option(optSetMeta, query)
			if m.context = m.sr || m.eh; m.context {
				c.reply(optSetMeta, nbdwire.RepMetaContext)
				c.reply(optSetMeta, repAck)
			} else {
				c.reply(optSetMeta, nbdwire.RepErrInvalid)
			}
		},
		func(c *rawConn, m *model) {
			c.option(optSetMeta, nil)
			c.reply(optSetMeta, nbdwire.RepErrInvalid)
			m.context = false
		},
		func(c *rawConn, _ *model) { c.infos(optInfo, "other", 3) },
		func(c *rawConn, _ *model) { c.option(optGo, infoRequest("nope")); c.reply(optGo, repUnknown) },
	}
	n := len(steps)
	for code := range n * n * n * n {
		c, m := fx.greeted(), model{}
		for depth, rest := 0, code; depth < 4; depth, rest = depth+1, rest/n {
			steps[rest%n](c, &m)
		}
		c.choose("disk")
		if !m.sr && !m.eh {
			c.put(requestBytes(cmdStatus, 0, 77, 0, 512))
			c.wantAnswer(77, einval, nil)
			c.alive(data)
			_ = c.Close()
			continue
		}
		if c.extended = m.eh; m.eh {
			c.ask(cmdStatus, 0, 0, 512)
		} else {
			c.put(requestBytes(cmdStatus, 0, 77, 0, 512))
		}
		if list := c.parts(77); (list[0].typ == nbdwire.ReplyError) == m.context {
			t.Fatalf("order %d: %+v, model %+v", code, list, m)
		}
		_ = c.Close()
	}
}

// TestExtensionByteCut closes, and resets, after every byte of sessions with structured replies and
// extended headers: no goroutine and nothing lent is left.
func TestExtensionByteCut(t *testing.T) {
	f := sparse(newRand(8), 20000, 0.4, 0.2)
	f.waits = true
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f, RoundUp: 4096}}})
	for _, session := range extensionSeeds()[:3] {
		for cut := range len(session) + 1 {
			c, err := dialUnix(fx.path)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(session[:cut])
			if cut%2 == 0 {
				reset(c)
			}
			_ = c.Close()
		}
	}
	c, _ := fx.mapped("d", base)
	c.put(readRequest(1, 0, 512))
	c.parts(1)
}

// TestHugeLengths: what clients claim costs no memory. Each claim is of 4 GiB or more.
func TestHugeLengths(t *testing.T) {
	f := &fakeFile{size: 1 << 50, holes: []Span{{0, 1 << 50}}, waits: true}
	f.fail = func(*Read) error { return errLostPart } // there are no bytes to read
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c, _ := fx.extended("d", base, ourKind, ourSure)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range 2000 {
		length := uint64(1) << (32 + i%18)
		for _, command := range []uint16{cmdRead, cmdStatus, cmdCache, nbdwire.CmdTrim, 77} {
			c.ask(command, 0, 0, length)
			c.parts(77)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 32<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	// A claim of option data or a payload of 4 GiB closes before any of it is read.
	for _, b := range [][]byte{
		append(nbdwire.AppendOption(nil, optSetMeta, nil)[:12], be32(math.MaxUint32)...),
		append(nbdwire.AppendOption(nil, optSR, nil)[:12], be32(1<<31)...),
	} {
		c := fx.greeted()
		c.put(b)
		c.wantClosed()
	}
}

// TestResetDuringChunks drops connections inside of long structured replies.
func TestResetDuringChunks(t *testing.T) {
	f := &fakeFile{data: pattern()[:8<<20], async: true}
	for off := uint64(0); off < 8<<20; off += 16384 {
		f.holes = append(f.holes, Span{off, 4096})
	}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	rng := newRand(9)
	for range 40 {
		c := fx.structured("d")
		c.put(slices.Concat(readRequest(1, 0, 8<<20), readRequest(2, 0, 8<<20)))
		c.get(1 + rng.IntN(4<<20))
		reset(c.Conn)
		_ = c.Close()
	}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, seed)) }

func dialUnix(path string) (net.Conn, error) { return net.Dial("unix", path) }

package export

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	optEH       = nbdwire.OptExtendedHeaders
	flagPayload = nbdwire.CmdFlagPayloadLen
)

// extended is a connection with extended headers and these contexts of name.
func (fx *fixture) extended(name string, queries ...string) (*rawConn, map[string]uint32) {
	fx.t.Helper()
	c := fx.greeted()
	c.option(optEH, nil)
	c.reply(optEH, repAck)
	ids := c.meta(optSetMeta, name, queries...)
	c.choose(name)
	c.extended = true
	return c, ids
}

// ask sends a request with its payload.
func (c *rawConn) ask(typ, flags uint16, off, length uint64, payload ...byte) {
	c.t.Helper()
	c.sent = off
	c.put(append(nbdwire.AppendExtendedRequest(nil, nbdwire.Request{Type: typ, Flags: flags, Cookie: 77, Offset: off, Length: length}), payload...))
}

// TestExtendedOptions names the items of the protocol checklist.
func TestExtendedOptions(t *testing.T) {
	data := pattern()[:100000]
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}}})
	const flags = transmissionFlags | nbdwire.FlagSendDF
	for _, tc := range []struct {
		name string
		run  func(c *rawConn)
	}{
		{"41 data", func(c *rawConn) { c.option(optEH, []byte{1}); c.reply(optEH, nbdwire.RepErrInvalid) }},
		{"44 SR after EH", func(c *rawConn) {
			for range 2 {
				c.option(optEH, nil)
				c.reply(optEH, repAck)
			}
			c.option(optSR, nil)
			c.reply(optSR, nbdwire.RepErrExtHeaderReqd)
			c.choose("disk")
			c.extended = true
			c.ask(cmdRead, 0, 5, 100)
			if list := c.parts(77); len(list) != 1 || !bytes.Equal(list[0].data, data[5:105]) {
				c.t.Fatalf("read: %+v", list)
			}
		}},
		{"44 EH after SR", func(c *rawConn) {
			c.option(optSR, nil)
			c.reply(optSR, repAck)
			c.option(optEH, nil)
			c.reply(optEH, repAck)
			c.choose("disk")
			c.extended = true
			c.ask(nbdwire.CmdFlush, 0, 0, 0)
			if list := c.parts(77); len(list) != 1 || list[0].typ != nbdwire.ReplyNone {
				c.t.Fatalf("flush: %+v", list)
			}
		}},
		{"17 EXPORT_NAME after EH", func(c *rawConn) {
			c.option(optEH, nil)
			c.reply(optEH, repAck)
			c.option(1, []byte("disk"))
			c.wantClosed()
		}},
		{"45 flags", func(c *rawConn) {
			c.option(optEH, nil)
			c.reply(optEH, repAck)
			if got := c.infos(optInfo, "disk")[0].Flags; got != flags {
				c.t.Fatalf("flags %#x without contexts", got)
			}
			c.meta(optSetMeta, "disk", base) // 46: never ERR_EXT_HEADER_REQD, 48
			for _, option := range []uint32{optInfo, optGo} {
				if got := c.infos(option, "disk")[0].Flags; got != flags|nbdwire.FlagBlockStatusPayload {
					c.t.Fatalf("flags %#x with contexts", got)
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := fx.greeted()
			c.t = t
			tc.run(c)
		})
	}
}

// TestExtendedReads: the same as with structured replies, with the request's offset in every chunk (43).
func TestExtendedReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 6))
	f := sparse(rng, 500_001, 0.4, 0.1)
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f, RoundUp: 65536}}})
	want := make([]byte, 512<<10)
	copy(want, f.data)
	c, _ := fx.extended("d")
	for range 300 {
		off := rng.Uint64N(uint64(len(want)))
		n := 1 + rng.Uint64N(min(uint64(len(want))-off, 100_000))
		flags := uint16(rng.IntN(2)) * flagDF
		c.ask(cmdRead, flags, off, n)
		checkParts(t, f, c.parts(77), want, off, n, flags)
	}
}

// TestExtendedRequests names the items of the protocol checklist. The connection lives on.
func TestExtendedRequests(t *testing.T) {
	data := pattern()[:34<<20]
	size := uint64(len(data))
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}}})
	c, ids := fx.extended("disk", base, ourKind)
	filter := func(length uint64, ids ...uint32) []byte {
		b := binary.BigEndian.AppendUint64(nil, length)
		for _, id := range ids {
			b = binary.BigEndian.AppendUint32(b, id)
		}
		return b
	}
	for _, tc := range []struct {
		name    string
		typ     uint16
		flags   uint16
		off     uint64
		length  uint64
		payload []byte
		errno   uint32
	}{
		{name: "58 beyond the end", typ: cmdRead, off: size - 5, length: 6, errno: einval},
		{name: "58 length 2^64 - 1", typ: cmdRead, off: 5, length: math.MaxUint64, errno: einval},
		{name: "58 CACHE of 2^63", typ: cmdCache, length: 1 << 63, errno: einval},
		{name: "58 status of 2^64 - 1", typ: cmdStatus, off: 1, length: math.MaxUint64, errno: einval},
		{name: "73 above the maximum", typ: cmdRead, length: MaxRead + 1, errno: nbdwire.EOVERFLOW},
		{name: "74 length 0", typ: cmdRead, errno: einval},
		{name: "65 WRITE without the flag", typ: cmdWrite, length: 4096, errno: einval},
		{name: "65 66 WRITE", typ: cmdWrite, flags: flagPayload, payload: make([]byte, 4096), errno: eperm},
		{name: "65 WRITE of the maximum", typ: cmdWrite, flags: flagPayload, payload: make([]byte, MaxRead), errno: eperm},
		{name: "65 READ with a payload", typ: cmdRead, flags: flagPayload, payload: make([]byte, 5000), errno: einval},
		{name: "65 FLUSH with a payload", typ: nbdwire.CmdFlush, flags: flagPayload, payload: make([]byte, 1), errno: einval},
		{name: "65 unknown command with a payload", typ: 77, flags: flagPayload, payload: make([]byte, 99), errno: einval},
		{name: "65 payload of 0 bytes", typ: cmdRead, flags: flagPayload, errno: einval},
		{name: "66 TRIM of 2^64 - 1", typ: nbdwire.CmdTrim, length: math.MaxUint64, errno: eperm},
		{name: "59 unknown command of 2^40", typ: 77, length: 1 << 40, errno: einval},
		{name: "81 unknown id", typ: cmdStatus, flags: flagPayload, payload: filter(512, 99), errno: einval},
		{name: "81 id 0", typ: cmdStatus, flags: flagPayload, payload: filter(512, 0), errno: einval},
		{name: "81 id that was not selected", typ: cmdStatus, flags: flagPayload, payload: filter(512, contextID(2)), errno: einval},
		{name: "81 id twice", typ: cmdStatus, flags: flagPayload, payload: filter(512, ids[base], ids[base]), errno: einval},
		{name: "81 no id", typ: cmdStatus, flags: flagPayload, payload: filter(512), errno: einval},
		{name: "81 no length", typ: cmdStatus, flags: flagPayload, payload: make([]byte, 4), errno: einval},
		{name: "81 odd length", typ: cmdStatus, flags: flagPayload, payload: append(filter(512, ids[base]), 0), errno: einval},
		{name: "81 10000 ids", typ: cmdStatus, flags: flagPayload, payload: filter(512, slices.Repeat([]uint32{1}, 10000)...), errno: einval},
		{name: "81 effect length 0", typ: cmdStatus, flags: flagPayload, payload: filter(0, ids[base]), errno: einval},
		{name: "81 effect beyond the end", typ: cmdStatus, flags: flagPayload, payload: filter(size+1, ids[base]), errno: einval},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.t = t
			c.ask(tc.typ, tc.flags, tc.off, max(tc.length, uint64(len(tc.payload))), tc.payload...)
			c.wantError(77, nbdwire.ReplyError, tc.errno)
			c.ask(cmdRead, 0, 9, 99)
			if list := c.parts(77); len(list) != 1 || !bytes.Equal(list[0].data, data[9:108]) {
				t.Fatalf("then %+v", list)
			}
		})
	}
	c.t = t
	c.ask(cmdStatus, flagPayload|flagReqOne, 512, 12, filter(1024, ids[ourKind])...)
	if list := c.parts(77); len(list) != 1 || list[0].context != ids[ourKind] || fmt.Sprint(list[0].list) != "[{1024 0}]" {
		t.Errorf("81 filtered: %+v", list)
	}
	c.ask(cmdStatus, flagPayload, 0, 16, filter(size, ids[ourKind], ids[base])...)
	if list := c.parts(77); len(list) != 2 {
		t.Errorf("81 both: %+v", list)
	}
	c.ask(cmdCache, 0, 0, size)
	if list := c.parts(77); len(list) != 1 || list[0].typ != nbdwire.ReplyNone {
		t.Errorf("CACHE: %+v", list)
	}
}

func TestExtendedRequestsThatClose(t *testing.T) {
	request := func(typ, flags uint16, length uint64) []byte {
		return nbdwire.AppendExtendedRequest(nil, nbdwire.Request{Type: typ, Flags: flags, Length: length})
	}
	for _, tc := range []struct {
		name string
		send []byte
	}{
		{"43 compact request", append(readRequest(1, 0, 512), 0, 0, 0, 0)},
		{"65 payload above the maximum", request(cmdWrite, flagPayload, MaxRead+1)},
		{"65 payload of 2^64 - 1", request(cmdStatus, flagPayload, math.MaxUint64)},
		{"85 DISC", request(cmdDisc, 0, 0)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fx := start(t, Options{Exports: []Export{{Name: "d", File: &fakeFile{data: pattern()[:4096]}}}})
			c, _ := fx.extended("d", base)
			c.put(tc.send)
			c.wantClosed()
		})
	}
}

// TestExtendedHugeHoles is item 80: 64-bit lengths, each hole in one piece.
func TestExtendedHugeHoles(t *testing.T) {
	for _, size := range []uint64{3 << 30, 4<<30 - 1, 4 << 30, 4<<30 + 1, 5 << 30, math.MaxInt64} {
		f := &fakeFile{size: size, parts: []Extent{{Length: size, Kind: ExtentHole}}}
		if size >= 5<<30 {
			f.parts[0].Length = 1 << 63 // a hole may end behind the file
		}
		c, _ := start(t, Options{Exports: []Export{{Name: "d", File: f}}}).extended("d", base)
		for _, flags := range []uint16{0, flagReqOne} {
			c.ask(cmdStatus, flags, 0, size)
			if p := c.parts(77)[0]; p.typ != nbdwire.ReplyBlockStatusExt || fmt.Sprint(p.list) != fmt.Sprintf("[{%d 3}]", size) {
				t.Errorf("size %d: %+v", size, p)
			}
		}
	}
}

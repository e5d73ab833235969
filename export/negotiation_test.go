package export

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	optAbort = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList  = protocol.NEGOTIATION_ID_OPTION_LIST
	optInfo  = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo    = protocol.NEGOTIATION_ID_OPTION_GO

	repAck     = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repUnsup   = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repUnknown = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
)

// TestHandshake names the items of the protocol checklist that it checks.
func TestHandshake(t *testing.T) {
	data := pattern()[:100000]
	one := []Export{{Name: "disk", Description: "the disk", File: &fakeFile{data: data}}}
	two := append([]Export{{Name: "other", File: &fakeFile{data: data[:7]}}}, one...)
	closes := func(c *rawConn, b []byte) { c.put(b); c.wantClosed() }
	cases := []struct {
		name    string
		exports []Export
		run     func(fx *fixture, c *rawConn)
	}{
		{"2 greeting", one, func(_ *fixture, c *rawConn) {
			if got := string(c.get(nbdwire.GreetingLen)); got != "NBDMAGICIHAVEOPT\x00\x03" {
				c.t.Fatalf("got %q", got)
			}
		}},
		{"3 unknown client flag closes", one, func(_ *fixture, c *rawConn) { c.hello(7); c.wantClosed() }},
		{"4 client flags 0, LIST", one, func(_ *fixture, c *rawConn) { c.hello(0); c.option(optList, nil); c.reply(optList, 2) }},
		{"7 wrong option magic closes", one, func(_ *fixture, c *rawConn) { c.hello(3); closes(c, make([]byte, 16)) }},
		{"8 unknown options are consumed", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			for _, n := range []int{0, 1, 1000, 65536} {
				for _, id := range []uint32{4, 12, 12345, math.MaxUint32} {
					c.option(id, make([]byte, n))
					c.reply(id, repUnsup)
				}
			}
			c.choose("disk")
			c.alive(data)
		}},
		{"10 option data above the cap closes", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			closes(c, append(nbdwire.AppendOption(nil, 99, nil)[:12], 0, 1, 0, 1))
		}},
		{"10 option length 0xffffffff closes", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			closes(c, append(nbdwire.AppendOption(nil, 99, nil)[:12], 0xff, 0xff, 0xff, 0xff))
		}},
		{"10 endless unknown options are bounded", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			for range maxOptions + maxOptionsPerExport {
				c.option(99, nil)
				c.reply(99, repUnsup)
			}
			c.wantClosed()
		}},
		{"12 long unknown name is shortened in the text", two, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(optGo, infoRequest(strings.Repeat("ä", 2048)))
			if text := c.reply(optGo, repUnknown); len(text) > 400 || !bytes.Contains(text, []byte("disk")) {
				c.t.Fatalf("text of %d bytes: %s", len(text), text)
			}
		}},
		{"14 EXPORT_NAME of an unknown export closes", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(1, []byte("nope"))
			c.wantClosed()
		}},
		{"15 EXPORT_NAME without NO_ZEROES", one, func(_ *fixture, c *rawConn) {
			c.hello(1)
			c.option(1, []byte("disk"))
			want := append(binary.BigEndian.AppendUint64(nil, uint64(len(data))), 5, 7)
			if got := c.get(134); !bytes.Equal(got, append(want, make([]byte, 124)...)) {
				c.t.Fatalf("got % x", got)
			}
			c.alive(data)
		}},
		{"15 EXPORT_NAME with NO_ZEROES", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(1, []byte("disk"))
			c.get(10)
			c.alive(data)
		}},
		{"16 EXPORT_NAME of the default", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(1, nil)
			c.get(10)
			c.alive(data)
		}},
		{"16 no default among several", two, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(optGo, infoRequest(""))
			text := string(c.reply(optGo, repUnknown))
			if !strings.Contains(text, `"other"`) || !strings.Contains(text, `"disk"`) {
				c.t.Fatalf("text %q names no exports", text)
			}
		}},
		{"18 ABORT with data", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(optAbort, []byte("bye"))
			c.reply(optAbort, repAck)
			c.wantClosed()
		}},
		{"19 LIST", two, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(optList, nil)
			for _, want := range two {
				name, description, err := nbdwire.DecodeListEntry(c.reply(optList, 2))
				if err != nil || name != want.Name || description != want.Description {
					c.t.Fatalf("%q %q %v, want %q %q", name, description, err, want.Name, want.Description)
				}
			}
			c.reply(optList, repAck)
		}},
		{"20 LIST with data", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(optList, []byte("1234"))
			c.reply(optList, nbdwire.RepErrInvalid)
			c.choose("disk")
		}},
		{"22 STARTTLS with data", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(5, []byte{1})
			c.reply(5, nbdwire.RepErrInvalid)
		}},
		{"23 STARTTLS without TLS", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(5, nil)
			c.reply(5, nbdwire.RepErrPolicy)
			c.choose("disk")
		}},
		{"32 unknown export, then a known one", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			c.option(optInfo, infoRequest("nope"))
			c.reply(optInfo, repUnknown)
			c.option(optGo, infoRequest("nope"))
			c.reply(optGo, repUnknown)
			c.choose("disk")
			c.alive(data)
		}},
		{"33 GO without requests gets the size", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			want := nbdwire.Info{Type: 0, Size: uint64(len(data)), Flags: 0x507}
			if got := c.infos(optGo, "disk"); len(got) != 1 || got[0] != want {
				c.t.Fatalf("got %+v, want %+v", got, want)
			}
		}},
		{"34 35 36 each information once", one, func(_ *fixture, c *rawConn) {
			c.hello(3)
			got := c.infos(optInfo, "", 1, 1, 2, 3, 3, 0, 0, 77, 2)
			want := []nbdwire.Info{{Type: 0, Size: uint64(len(data)), Flags: 0x507}, {Type: 1, Text: "disk"},
				{Type: 2, Text: "the disk"}, {Type: 3, Blocks: nbdwire.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: 1 << 25}}}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				c.t.Fatalf("got %+v, want %+v", got, want)
			}
		}},
		{"88 flags by what was agreed on", one, func(fx *fixture, c *rawConn) {
			flags := func(c *rawConn) uint16 { return c.infos(optInfo, "disk")[0].Flags }
			c.hello(3)
			got := []uint16{flags(c)}
			c.option(optSR, nil)
			c.reply(optSR, repAck)
			got = append(got, flags(c))
			c.option(optEH, nil)
			c.reply(optEH, repAck)
			c.meta(optSetMeta, "disk", base)
			if got = append(got, flags(c)); fmt.Sprintf("%x", got) != "[507 587 1587]" {
				c.t.Fatalf("got %x", got)
			}
		}},
		{"88 ROTATIONAL when the devices say so", []Export{{Name: "disk", File: rotator{true}}, {Name: "flash", File: rotator{}}}, func(fx *fixture, c *rawConn) {
			c.hello(3)
			for name, want := range map[string]uint16{"disk": 0x507 | 1<<4, "flash": 0x507} {
				if got := c.infos(optInfo, name)[0].Flags; got != want {
					c.t.Fatalf("%s: flags %#x, want %#x", name, got, want)
				}
			}
			c.option(1, []byte("disk"))
			if got := binary.BigEndian.Uint16(c.get(10)[8:]); got != 0x507|1<<4 {
				c.t.Fatalf("EXPORT_NAME: flags %#x", got)
			}
		}},
		{"38 INFO and GO agree, 39 no zeroes behind GO", one, func(_ *fixture, c *rawConn) {
			c.hello(1)
			info, chosen := c.infos(optInfo, "disk", 3), c.infos(optGo, "disk", 3)
			if fmt.Sprint(info) != fmt.Sprint(chosen) {
				c.t.Fatalf("INFO %+v, GO %+v", info, chosen)
			}
			c.alive(data)
		}},
		{"requests sent ahead of the ACK are served", one, func(_ *fixture, c *rawConn) {
			b := nbdwire.AppendClientFlags(nil, 3)
			b = nbdwire.AppendOption(b, 1, []byte("disk"))
			for i := range uint64(200) {
				b = append(b, readRequest(i, i, 9)...)
			}
			c.put(b)
			c.get(nbdwire.GreetingLen + 10)
			for i := range uint64(200) {
				c.wantAnswer(i, 0, data[i:i+9])
			}
		}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			fx := start(t, Options{Exports: tc.exports})
			tc.run(fx, fx.dial())
		})
	}
}

// rotator is a File that is asked for no bytes.
type rotator struct{ spins bool }

func (r rotator) Rotational() bool { return r.spins }
func (rotator) Size() uint64       { return 4096 }
func (rotator) Submit([]*Read)     { panic("no read was expected") }
func (rotator) Extents(context.Context, uint64, uint64, bool, []Extent) (int, error) {
	panic("no query was expected")
}

// TestMalformedNames is items 5, 13 and 31, and the names of CVE-2022-26495.
func TestMalformedNames(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}}})
	long := strings.Repeat("x", 4097)
	cases := []struct {
		name string
		data []byte
		want uint32
	}{
		{"two bytes", []byte{0, 0}, nbdwire.RepErrInvalid},
		{"empty", nil, nbdwire.RepErrInvalid},
		{"4097 bytes", infoRequest(long), nbdwire.RepErrInvalid},
		{"4096 bytes", infoRequest(long[1:]), repUnknown},
		{"257 bytes", infoRequest(long[:257]), repUnknown},
		{"NUL", infoRequest("di\x00k"), nbdwire.RepErrInvalid},
		{"not UTF-8", infoRequest("\xff\xfe"), nbdwire.RepErrInvalid},
		{"length 5000 in 16 bytes", append(be32(5000), make([]byte, 12)...), nbdwire.RepErrInvalid},
		{"length 0x7fffffff", append(be32(math.MaxInt32), make([]byte, 12)...), nbdwire.RepErrInvalid},
		{"length 0xffffffff", append(be32(math.MaxUint32), make([]byte, 12)...), nbdwire.RepErrInvalid},
		{"more requests than there are", append(infoRequest("disk")[:8], 0, 2, 0, 1), nbdwire.RepErrInvalid},
		{"fewer requests than there are", append(infoRequest("disk"), 0, 1), nbdwire.RepErrInvalid},
		{"odd byte behind", append(infoRequest("disk", 1), 0), nbdwire.RepErrInvalid},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := fx.greeted()
			c.t = t
			for _, option := range []uint32{optInfo, optGo} {
				c.option(option, tc.data)
				c.reply(option, tc.want)
			}
			c.choose("disk")
			c.alive(data)
		})
	}
	for _, n := range []int{4096, 4097, 65536} {
		t.Run(fmt.Sprintf("EXPORT_NAME of %d bytes", n), func(t *testing.T) {
			c := fx.greeted()
			c.t = t
			c.put(append(nbdwire.AppendOption(nil, 1, nil)[:12], be32(uint32(n))...))
			_, _ = c.Write(bytes.Repeat([]byte("x"), n)) // the server may have closed by then
			c.wantClosed()
		})
	}
}

// TestOptionOrders runs every order of up to four options against a model of the answers.
func TestOptionOrders(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}}})
	steps := []func(c *rawConn){
		func(c *rawConn) { c.infos(optInfo, "disk", 3) },
		func(c *rawConn) { c.option(optGo, infoRequest("nope")); c.reply(optGo, repUnknown) },
		func(c *rawConn) { c.option(optList, nil); c.reply(optList, 2); c.reply(optList, repAck) },
		func(c *rawConn) {
			c.option(nbdwire.OptSetMetaContext, make([]byte, 8))
			c.reply(10, nbdwire.RepErrInvalid)
		},
		func(c *rawConn) { c.option(optGo, []byte("bad")); c.reply(optGo, nbdwire.RepErrInvalid) },
	}
	n := len(steps)
	for code := range n * n * n * n {
		c := fx.greeted()
		for depth, rest := 0, code; depth < 4; depth, rest = depth+1, rest/n {
			steps[rest%n](c)
		}
		c.choose("disk")
		c.alive(data)
		_ = c.Close()
	}
}

func TestRefusedExports(t *testing.T) {
	f := &fakeFile{data: make([]byte, 10)}
	cases := []struct {
		name    string
		exports []Export
		want    string
	}{
		{"none", nil, "nothing to export"},
		{"twice", []Export{{Name: "a", File: f}, {Name: "a", File: f}}, `"a" is defined twice`},
		{"no file", []Export{{Name: "a"}}, "no file"},
		{"NUL", []Export{{Name: "a\x00", File: f}}, "NUL"},
		{"long name", []Export{{Name: strings.Repeat("x", 4097), File: f}}, "4097 bytes"},
		{"long description", []Export{{Name: "a", Description: strings.Repeat("x", 4097), File: f}}, "4097 bytes"},
		{"size 2^63", []Export{{Name: "a", File: &fakeFile{size: 1 << 63}}}, "2^63-1"},
		{"size 2^64-1", []Export{{Name: "a", File: &fakeFile{size: math.MaxUint64}, RoundUp: 512}}, "2^63-1"},
		{"rounded to 2^63", []Export{{Name: "a", File: &fakeFile{size: math.MaxInt64}, RoundUp: 512}}, "2^63-1"},
		{"round up by 33 MiB", []Export{{Name: "a", File: f, RoundUp: 33 << 20}}, "round_up"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := NewServer(Options{Exports: tc.exports}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := NewServer(Options{Exports: []Export{{Name: "a", File: &fakeFile{size: math.MaxInt64}}}}); err != nil {
		t.Fatalf("size 2^63-1: %v", err)
	}
}

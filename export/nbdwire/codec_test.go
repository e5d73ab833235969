package nbdwire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/pojntfx/go-nbd/pkg/protocol"
	"pgregory.net/rapid"
)

// TestBytes pins every encoder to bytes written by hand from the NBD document.
func TestBytes(t *testing.T) {
	var simple [SimpleReplyLen]byte
	PutSimpleReply(&simple, EIO, 0x0102030405060708)
	cases := []struct {
		name string
		got  []byte
		want string
	}{
		{"greeting", AppendGreeting(nil, 3), "4e42444d41474943 49484156454f5054 0003"},
		{"client flags", AppendClientFlags(nil, 1), "00000001"},
		{"option", AppendOption(nil, OptExportName, []byte("ab")), "49484156454f5054 00000001 00000002 6162"},
		{"option reply", AppendOptionReply(nil, 7, RepErrPolicy, []byte("no")), "0003e889045565a9 00000007 80000002 00000002 6e6f"},
		{"list entry", AppendListEntry(nil, "a", "bc"), "0003e889045565a9 00000003 00000002 00000007 00000001 61 6263"},
		{"info request", AppendInfoRequest(nil, InfoRequest{Name: "a", Types: []uint16{1, 3}}), "00000001 61 0002 0001 0003"},
		{"info export", AppendInfoExport(nil, 7, 512, 0x107), "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000000200 0107"},
		{"info name", AppendInfoString(nil, 6, 1, "a"), "0003e889045565a9 00000006 00000003 00000003 0001 61"},
		{"info block size", AppendInfoBlockSize(nil, 6, BlockSizes{1, 4096, 1 << 25}), "0003e889045565a9 00000006 00000003 0000000e 0003 00000001 00001000 02000000"},
		{"export name", AppendExportName(nil, 512, 7, false), "0000000000000200 0007"},
		{"export name with zeroes", AppendExportName(nil, 512, 7, true), "0000000000000200 0007" + strings.Repeat("00", 124)},
		{"request", AppendRequest(nil, protocol.TransmissionRequestHeader{CommandFlags: 1, Type: 3, Handle: 5, Offset: 7, Length: 9}),
			"25609513 0001 0003 0000000000000005 0000000000000007 00000009"},
		{"simple reply", simple[:], "67446698 00000005 0102030405060708"},
	}
	for _, tc := range cases {
		if want := strings.ReplaceAll(tc.want, " ", ""); hex.EncodeToString(tc.got) != want {
			t.Errorf("%s: %x, want %s", tc.name, tc.got, want)
		}
	}
}

func TestMalformed(t *testing.T) {
	name := func(n uint32, rest string) []byte {
		return append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, rest...)
	}
	info := func(b []byte) error { _, err := DecodeInfoRequest(b); return err }
	rep := func(b []byte) error { _, err := DecodeInfo(b); return err }
	entry := func(b []byte) error { _, _, err := DecodeListEntry(b); return err }
	greet := func(b []byte) error { _, err := DecodeGreeting(b); return err }
	cases := []struct {
		name string
		got  error
		want error
	}{
		{"info of 5 bytes", info(make([]byte, 5)), ErrShort},
		{"info name 2^32-1", info(name(math.MaxUint32, "\x00\x00")), ErrLength},
		{"info name 2^31", info(name(1<<31, "\x00\x00")), ErrLength},
		{"info name eats the count", info(name(2, "ab")), ErrLength},
		{"info count too large", info(name(0, "\xff\xff")), ErrLength},
		{"info count too small", info(name(0, "\x00\x00\x00\x01")), ErrLength},
		{"info NUL", info(name(1, "\x00\x00\x00")), ErrName},
		{"info not UTF-8", info(name(1, "\xff\x00\x00")), ErrName},
		{"info 4097 bytes", info(name(4097, strings.Repeat("a", 4097)+"\x00\x00")), ErrName},
		{"reply of 1 byte", rep([]byte{0}), ErrShort},
		{"export of 11 bytes", rep(make([]byte, 11)), ErrLength},
		{"export of 13 bytes", rep(make([]byte, 13)), ErrLength},
		{"block size of 13 bytes", rep(append([]byte{0, 3}, make([]byte, 11)...)), ErrLength},
		{"block sizes 0", rep(append([]byte{0, 3}, make([]byte, 12)...)), ErrLength},
		{"description not UTF-8", rep([]byte{0, 2, 0xff}), ErrName},
		{"list entry of 3 bytes", entry(make([]byte, 3)), ErrShort},
		{"list name too long", entry(name(3, "ab")), ErrLength},
		{"list name 2^32-1", entry(name(math.MaxUint32, "ab")), ErrLength},
		{"short greeting", greet(make([]byte, 17)), ErrShort},
		{"no NBDMAGIC", greet(make([]byte, 18)), ErrMagic},
		{"oldstyle", greet(append([]byte("NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"), 0, 0)), ErrMagic},
	}
	for _, tc := range cases {
		if !errors.Is(tc.got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, tc.got, tc.want)
		}
	}
	for _, s := range []BlockSizes{{3, 4096, 1 << 20}, {1 << 17, 1 << 17, 1 << 20}, {1, 256, 1 << 20}, {4096, 512, 1 << 20}, {1, 3000, 1 << 20}, {1, 4096, 512}} {
		if err := s.check(); !errors.Is(err, ErrLength) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if _, err := DecodeClientFlags(AppendClientFlags(nil, 7), 3); !errors.Is(err, ErrFlags) {
		t.Errorf("flags 7 of 3: %v", err)
	}
}

// TestRoundTrip: what is encoded is decoded to the same.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-zä/ ]{0,20}`)
		req := InfoRequest{Name: text.Draw(t, "name"), Types: rapid.SliceOfN(rapid.Uint16(), 0, 9).Draw(t, "types")}
		got, err := DecodeInfoRequest(AppendInfoRequest(nil, req))
		if req.Types == nil {
			req.Types = []uint16{}
		}
		if err != nil || !cmp.Equal(got, req) {
			t.Fatalf("%+v %v, want %+v", got, err, req)
		}
		for _, typ := range req.Types {
			if !got.Wants(typ) {
				t.Fatalf("type %d was asked for and is not wanted", typ)
			}
		}
		h := protocol.TransmissionRequestHeader{
			RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST,
			CommandFlags: rapid.Uint16().Draw(t, "flags"), Type: rapid.Uint16().Draw(t, "type"),
			Handle: rapid.Uint64().Draw(t, "cookie"), Offset: rapid.Uint64().Draw(t, "offset"), Length: rapid.Uint32().Draw(t, "length")}
		if got, err := DecodeRequest(AppendRequest(nil, h)); err != nil || got != h {
			t.Fatalf("%+v %v, want %+v", got, err, h)
		}
		var b [SimpleReplyLen]byte
		PutSimpleReply(&b, h.Length, h.Handle)
		if r, err := DecodeSimpleReply(b[:]); err != nil || r.Error != h.Length || r.Handle != h.Handle {
			t.Fatalf("%+v %v", r, err)
		}
		description := text.Draw(t, "description")
		n, d, err := DecodeListEntry(AppendListEntry(nil, req.Name, description)[OptionReplyLen:])
		if err != nil || n != req.Name || d != description {
			t.Fatalf("%q %q %v", n, d, err)
		}
	})
}

func TestShorten(t *testing.T) {
	for _, tc := range []struct {
		in   string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "..."}, {"abcdef", 5, "ab..."}, {"aäöü", 6, "aä..."}, {"äöü", 4, "..."}, {"", 3, ""}} {
		if got := Shorten(tc.in, tc.n); got != tc.want || len(got) > tc.n || !utf8.ValidString(got) {
			t.Errorf("Shorten(%q, %d) = %q, want %q", tc.in, tc.n, got, tc.want)
		}
	}
}

// FuzzDecode feeds every decoder: none panics, and what is accepted encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	f.Add(AppendGreeting(nil, 3))
	f.Add(AppendOption(nil, 7, nil))
	f.Add(AppendOptionReply(nil, 7, 1, nil))
	f.Add(AppendInfoRequest(nil, InfoRequest{Name: "disk", Types: []uint16{1, 2, 3}}))
	f.Add(AppendInfoBlockSize(nil, 7, BlockSizes{1, 4096, 1 << 25})[OptionReplyLen:])
	f.Add(AppendInfoExport(nil, 7, 1, 1)[OptionReplyLen:])
	f.Add(AppendListEntry(nil, "a", "b")[OptionReplyLen:])
	f.Add(AppendRequest(nil, protocol.TransmissionRequestHeader{Length: 5}))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, again []byte) {
			if !bytes.HasPrefix(b, again) {
				t.Fatalf("%s: % x became % x", what, b, again)
			}
		}
		if flags, err := DecodeGreeting(b); err == nil {
			same("greeting", AppendGreeting(nil, flags))
		}
		if flags, err := DecodeClientFlags(b, 3); err == nil {
			same("flags", AppendClientFlags(nil, flags))
		}
		if h, err := DecodeOption(b); err == nil {
			same("option", AppendOption(nil, h.ID, nil)[:12])
		}
		if h, err := DecodeOptionReply(b); err == nil {
			same("option reply", AppendOptionReply(nil, h.ID, h.Type, nil)[:16])
		}
		if r, err := DecodeInfoRequest(b); err == nil {
			same("info request", AppendInfoRequest(nil, r))
			if len(AppendInfoRequest(nil, r)) != len(b) {
				t.Fatalf("info request: bytes behind the end of % x", b)
			}
		}
		if i, err := DecodeInfo(b); err == nil && i.Type == protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE && i.Blocks.Preferred == 0 {
			t.Fatal("accepted a preferred block size of 0")
		}
		if name, description, err := DecodeListEntry(b); err == nil {
			same("list entry", AppendListEntry(nil, name, description)[OptionReplyLen:])
		}
		if h, err := DecodeRequest(b); err == nil {
			same("request", AppendRequest(nil, h))
		}
		if h, err := DecodeSimpleReply(b); err == nil {
			var again [SimpleReplyLen]byte
			PutSimpleReply(&again, h.Error, h.Handle)
			same("simple reply", again[:])
		}
	})
}

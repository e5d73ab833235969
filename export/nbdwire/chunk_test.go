package nbdwire

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestChunkLayout holds the encoders against bytes written by hand from the document.
func TestChunkLayout(t *testing.T) {
	for _, tc := range []struct {
		name string
		got  []byte
		want string
	}{
		{"extended request", AppendExtendedRequest(nil, Request{Flags: 0x20, Type: 7, Cookie: 1, Offset: 2, Length: 3}),
			"\x21\xe4\x1c\x71\x00\x20\x00\x07\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03"},
		{"chunk", AppendChunk(nil, Chunk{Flags: 1, Type: ReplyOffsetData, Cookie: 5, Offset: 6, Length: 7}),
			"\x66\x8e\x33\xef\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x07"},
		{"extended chunk", AppendExtendedChunk(nil, Chunk{Flags: 1, Type: ReplyErrorOffset, Cookie: 5, Offset: 6, Length: 7}),
			"\x6e\x8a\x27\x8c\x00\x01\x80\x02\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00\x07"},
		{"error", AppendErrorChunk(nil, ReplyError, ErrorChunk{Errno: 22, Text: "no"}), "\x00\x00\x00\x16\x00\x02no"},
		{"error with an offset", AppendErrorChunk(nil, ReplyErrorOffset, ErrorChunk{Errno: 5, Text: "no", Offset: 9}),
			"\x00\x00\x00\x05\x00\x02no\x00\x00\x00\x00\x00\x00\x00\x09"},
		{"block status", AppendBlockStatus(nil, false, 3, []Descriptor{{4, 5}}), "\x00\x00\x00\x03\x00\x00\x00\x04\x00\x00\x00\x05"},
		{"extended block status", AppendBlockStatus(nil, true, 3, []Descriptor{{4, 5}}),
			"\x00\x00\x00\x03\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x05"},
		{"meta context", AppendMetaContext(nil, 10, 7, "a:b")[OptionReplyLen:], "\x00\x00\x00\x07a:b"},
		{"meta query", AppendMetaQuery(nil, MetaQuery{Name: "d", Queries: []string{"a:"}}),
			"\x00\x00\x00\x01d\x00\x00\x00\x01\x00\x00\x00\x02a:"},
	} {
		if string(tc.got) != tc.want {
			t.Errorf("%s: got % x, want % x", tc.name, tc.got, tc.want)
		}
	}
}

func TestChunkRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u64 := rapid.Uint64()
		r := Request{Flags: rapid.Uint16().Draw(t, "flags"), Type: rapid.Uint16().Draw(t, "type"), Cookie: u64.Draw(t, "cookie"),
			Offset: u64.Draw(t, "offset"), Length: u64.Draw(t, "length")}
		if got, err := DecodeExtendedRequest(AppendExtendedRequest(nil, r)); err != nil || got != r {
			t.Fatalf("%+v %v, want %+v", got, err, r)
		}
		c := Chunk(r)
		if got, err := DecodeExtendedChunk(AppendExtendedChunk(nil, c)); err != nil || got != c {
			t.Fatalf("%+v %v, want %+v", got, err, c)
		}
		c.Offset, c.Length = 0, c.Length&math.MaxUint32
		if got, err := DecodeChunk(AppendChunk(nil, c)); err != nil || got != c {
			t.Fatalf("%+v %v, want %+v", got, err, c)
		}
		text := rapid.StringMatching(`[a-zä/: ]{0,20}`)
		e := ErrorChunk{Errno: max(1, uint32(r.Type)), Text: text.Draw(t, "text"), Offset: r.Offset}
		if got, err := DecodeErrorChunk(ReplyErrorOffset, AppendErrorChunk(nil, ReplyErrorOffset, e)); err != nil || got != e {
			t.Fatalf("%+v %v, want %+v", got, err, e)
		}
		q := MetaQuery{Name: text.Draw(t, "name"), Queries: rapid.SliceOfN(text, 1, 5).Draw(t, "queries")}
		if got, err := DecodeMetaQuery(AppendMetaQuery(nil, q)); err != nil || !cmp.Equal(got, q) {
			t.Fatalf("%+v %v, want %+v", got, err, q)
		}
		list := []Descriptor{{max(1, uint64(uint32(r.Length))), uint64(r.Type)}, {1, 2}}
		for typ, extended := range map[uint16]bool{ReplyBlockStatus: false, ReplyBlockStatusExt: true} {
			if id, got, err := DecodeBlockStatus(typ, AppendBlockStatus(nil, extended, 9, list)); err != nil || id != 9 || !cmp.Equal(got, list) {
				t.Fatalf("%d %+v %v, want %+v", id, got, err, list)
			}
		}
	})
}

func TestMalformedChunks(t *testing.T) {
	query := func(data string) error { _, err := DecodeMetaQuery([]byte(data)); return err }
	status := func(typ uint16, data string) error { _, _, err := DecodeBlockStatus(typ, []byte(data)); return err }
	fault := func(typ uint16, data string) error { _, err := DecodeErrorChunk(typ, []byte(data)); return err }
	for _, tc := range []struct {
		name string
		got  error
		want error
	}{
		{"query of 3 bytes", query("\x00\x00\x00"), ErrShort},
		{"name beyond the end", query("\x00\x00\x00\x05disk"), ErrLength},
		{"name of 4 GiB", query("\xff\xff\xff\xffdisk\x00"), ErrLength},
		{"no count", query("\x00\x00\x00\x04disk"), ErrShort},
		{"4 G queries", query("\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"), ErrLength},
		{"query beyond the end", query("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x05base"), ErrLength},
		{"bytes behind", query("\x00\x00\x00\x00\x00\x00\x00\x00x"), ErrLength},
		{"NUL in a query", query("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00"), ErrName},
		{"no descriptor", status(ReplyBlockStatus, "\x00\x00\x00\x01"), ErrLength},
		{"half a descriptor", status(ReplyBlockStatus, "\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00"), ErrLength},
		{"descriptor of 0 bytes", status(ReplyBlockStatus, "\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01"), ErrLength},
		{"wrong count", status(ReplyBlockStatusExt, "\x00\x00\x00\x01\x00\x00\x00\x02"+string(make([]byte, 15))+"\x01"), ErrLength},
		{"short error", fault(ReplyError, "\x00\x00\x00\x05\x00"), ErrShort},
		{"text beyond the end", fault(ReplyError, "\x00\x00\x00\x05\x00\x05abc"), ErrLength},
		{"text over the offset", fault(ReplyErrorOffset, "\x00\x00\x00\x05\x00\x03abc\x00\x00\x00\x00"), ErrShort},
		{"errno 0", fault(ReplyError, "\x00\x00\x00\x00\x00\x00"), ErrLength},
		{"text that is not UTF-8", fault(ReplyError, "\x00\x00\x00\x05\x00\x01\xff"), ErrName},
	} {
		if !errors.Is(tc.got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, tc.got, tc.want)
		}
	}
	for _, b := range [][]byte{AppendChunk(nil, Chunk{Type: 9}), AppendExtendedChunk(nil, Chunk{Type: 9})} {
		SetDone(b)
		if b[4] != 0 || b[5] != 1 || b[7] != 9 {
			t.Errorf("SetDone made % x", b)
		}
	}
	if !IsSimpleReply(make([]byte, 16)) || IsSimpleReply(AppendChunk(nil, Chunk{})) {
		t.Error("IsSimpleReply confuses the magics")
	}
}

// FuzzDecodeChunk: no decoder panics, and what is accepted encodes to the same bytes.
func FuzzDecodeChunk(f *testing.F) {
	f.Add(AppendExtendedRequest(nil, Request{Length: 1}))
	f.Add(AppendChunk(nil, Chunk{Length: 1}))
	f.Add(AppendExtendedChunk(nil, Chunk{Length: 1}))
	f.Add(AppendMetaQuery(nil, MetaQuery{Name: "d", Queries: []string{"base:"}}))
	f.Add(AppendErrorChunk(nil, ReplyErrorOffset, ErrorChunk{Errno: 5, Text: "x"}))
	f.Add(AppendBlockStatus(nil, true, 1, []Descriptor{{1, 1}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, again []byte, whole bool) {
			if !bytes.HasPrefix(b, again) || (whole && len(again) != len(b)) {
				t.Fatalf("%s: % x became % x", what, b, again)
			}
		}
		if r, err := DecodeExtendedRequest(b); err == nil {
			same("request", AppendExtendedRequest(nil, r), false)
		}
		if c, err := DecodeChunk(b); err == nil {
			same("chunk", AppendChunk(nil, c), false)
		}
		if c, err := DecodeExtendedChunk(b); err == nil {
			same("extended chunk", AppendExtendedChunk(nil, c), false)
		}
		if q, err := DecodeMetaQuery(b); err == nil {
			same("meta query", AppendMetaQuery(nil, q), true)
		}
		if e, err := DecodeErrorChunk(ReplyErrorOffset, b); err == nil {
			same("error", AppendErrorChunk(nil, ReplyErrorOffset, e), true)
		}
		if id, list, err := DecodeBlockStatus(ReplyBlockStatus, b); err == nil {
			same("block status", AppendBlockStatus(nil, false, id, list), true)
		}
		if id, list, err := DecodeBlockStatus(ReplyBlockStatusExt, b); err == nil {
			same("extended block status", AppendBlockStatus(nil, true, id, list), true)
		}
		_, _, _ = DecodeMetaContext(b)
		_, _ = DecodeErrorChunk(ReplyError, b)
	})
}

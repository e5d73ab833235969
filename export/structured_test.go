package export

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	optSR = nbdwire.OptStructuredReply

	flagDF = nbdwire.CmdFlagDF
	// typSimple stands for a simple reply among types of chunks.
	typSimple = uint16(0xffff)
)

// part is one decoded chunk.
type part struct {
	typ     uint16
	offset  uint64 // of data, hole or error
	data    []byte
	hole    uint64
	fault   nbdwire.ErrorChunk
	context uint32
	list    []nbdwire.Descriptor
}

// structured is a connection with structured replies that may read name.
func (fx *fixture) structured(name string) *rawConn {
	fx.t.Helper()
	c := fx.greeted()
	c.option(optSR, nil)
	c.reply(optSR, repAck)
	c.choose(name)
	return c
}

// chunk reads one chunk of the form that was agreed on, or a simple reply.
func (c *rawConn) chunk() nbdwire.Chunk {
	c.t.Helper()
	if c.extended {
		h, err := nbdwire.DecodeExtendedChunk(c.get(nbdwire.ExtendedChunkLen))
		if err != nil || h.Offset != c.sent {
			c.t.Fatalf("%+v %v, want offset %d", h, err, c.sent)
		}
		return h
	}
	b := c.get(nbdwire.SimpleReplyLen)
	if nbdwire.IsSimpleReply(b) {
		h, err := nbdwire.DecodeSimpleReply(b)
		if err != nil {
			c.t.Fatal(err)
		}
		if h.Error != 0 {
			c.t.Fatalf("simple reply with errno %d: errors are to be chunks", h.Error)
		}
		return nbdwire.Chunk{Flags: nbdwire.ReplyFlagDone, Type: typSimple, Cookie: h.Handle}
	}
	h, err := nbdwire.DecodeChunk(append(b, c.get(nbdwire.ChunkLen-len(b))...))
	if err != nil {
		c.t.Fatal(err)
	}
	return h
}

// parts reads the whole reply to the one request in flight.
func (c *rawConn) parts(cookie uint64) []part {
	c.t.Helper()
	var list []part
	for {
		h := c.chunk()
		if h.Cookie != cookie || h.Length > MaxRead+8 || h.Flags&^nbdwire.ReplyFlagDone != 0 {
			c.t.Fatalf("chunk %+v, want cookie %d", h, cookie)
		}
		list = append(list, c.decodePart(h.Type, c.get(int(h.Length))))
		if h.Flags == nbdwire.ReplyFlagDone {
			return list
		}
	}
}

func (c *rawConn) decodePart(typ uint16, b []byte) part {
	c.t.Helper()
	p := part{typ: typ}
	var err error
	switch {
	case typ == nbdwire.ReplyOffsetData && len(b) > 8:
		p.offset, p.data = binary.BigEndian.Uint64(b), b[8:]
	case typ == nbdwire.ReplyOffsetHole && len(b) == 12:
		p.offset, p.hole = binary.BigEndian.Uint64(b), uint64(binary.BigEndian.Uint32(b[8:]))
		if p.hole == 0 {
			c.t.Fatal("hole of 0 bytes")
		}
	case typ == nbdwire.ReplyError, typ == nbdwire.ReplyErrorOffset:
		p.fault, err = nbdwire.DecodeErrorChunk(typ, b)
		p.offset = p.fault.Offset
	case typ == nbdwire.ReplyBlockStatus, typ == nbdwire.ReplyBlockStatusExt:
		p.context, p.list, err = nbdwire.DecodeBlockStatus(typ, b)
	case (typ == nbdwire.ReplyNone || typ == typSimple) && len(b) == 0:
	default:
		c.t.Fatalf("chunk of type %d with %d bytes", typ, len(b))
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// wantError reads a reply that is one error chunk.
func (c *rawConn) wantError(cookie uint64, typ uint16, errno uint32) nbdwire.ErrorChunk {
	c.t.Helper()
	list := c.parts(cookie)
	if len(list) != 1 || list[0].typ != typ || list[0].fault.Errno != errno || list[0].fault.Text == "" {
		c.t.Fatalf("got %+v, want one chunk of type %#x with errno %d and a text", list, typ, errno)
	}
	return list[0].fault
}

// assembled is a read put together again.
type assembled struct {
	b     []byte
	known []bool // bytes that content chunks gave
	sent  int    // bytes that travelled as data
	holes int
	lost  []uint64 // offsets of errors
}

// assemble checks chunks against the rules: disjoint, inside of the request.
func assemble(t *testing.T, list []part, off, n uint64) assembled {
	t.Helper()
	a := assembled{b: make([]byte, n), known: make([]bool, n)}
	for _, p := range list {
		if p.typ&nbdwire.ReplyErrorFlag != 0 {
			if p.offset < off || p.offset >= off+n || a.known[p.offset-off] {
				t.Fatalf("error at %d, read of %d at %d", p.offset, n, off)
			}
			a.lost = append(a.lost, p.offset)
			continue
		}
		size := p.hole + uint64(len(p.data))
		if p.offset < off || p.offset+size > off+n {
			t.Fatalf("chunk of %d bytes at %d, read of %d at %d", size, p.offset, n, off)
		}
		in := p.offset - off
		for i := in; i < in+size; i++ {
			if a.known[i] {
				t.Fatalf("byte %d came twice", off+i)
			}
			a.known[i] = true
		}
		copy(a.b[in:], p.data)
		a.sent += len(p.data)
		if p.hole > 0 {
			a.holes++
		}
	}
	return a
}

// sparse is a file of n bytes of data with holes and lost parts at random, by sectors of 4 KiB.
func sparse(rng *rand.Rand, n int, hole, bad float64) *fakeFile {
	f := &fakeFile{data: bytes.Clone(pattern()[:n]), async: true}
	add := func(list []Span, s Span) []Span {
		if i := len(list) - 1; i >= 0 && list[i].Offset+list[i].Length == s.Offset {
			list[i].Length += s.Length
			return list
		}
		return append(list, s)
	}
	for off := 0; off < n; off += 4096 {
		s := Span{uint64(off), uint64(min(4096, n-off))}
		switch x := rng.Float64(); {
		case x < hole:
			clear(f.data[off : off+int(s.Length)])
			f.holes = add(f.holes, s)
		case x < hole+bad:
			f.bad = append(f.bad, s) // each for itself: the server is to join them
		}
	}
	return f
}

// TestStructuredReads reads random ranges of random sparse files with lost sectors, padded, with and
// without DF, and puts the chunks together: items 42, 68, 70, 71, 72, 73.
func TestStructuredReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for round := range 12 {
		n := 1 + rng.IntN(600_000)
		if round%3 == 0 {
			n = n/4096*4096 + 4096
		}
		f := sparse(rng, n, 0.4, []float64{0, 0.1, 0.5}[round%3])
		pad := []uint32{0, 512, 65536}[round/3%3]
		fx := start(t, Options{Exports: []Export{{Name: "d", File: f, RoundUp: pad}}})
		size, _ := roundUp(uint64(n), uint64(pad))
		want := make([]byte, size)
		copy(want, f.data)
		c := fx.structured("d")
		for range 200 {
			off := rng.Uint64N(size)
			length := 1 + rng.Uint64N(min(size-off, 100_000))
			flags := uint16(rng.IntN(2)) * flagDF
			c.put(requestBytes(cmdRead, flags, 7, off, uint32(length)))
			list := c.parts(7)
			checkParts(t, f, list, want, off, length, flags)
		}
	}
}

// checkParts holds a reply against what the file is known to be.
func checkParts(t *testing.T, f *fakeFile, list []part, want []byte, off, n uint64, flags uint16) {
	t.Helper()
	a := assemble(t, list, off, n)
	r := &Read{Offset: off, Length: uint32(n)}
	lost := within(f.bad, r)
	if flags&flagDF != 0 {
		if len(list) != 1 || a.holes > 0 || (len(lost) > 0) != (len(a.lost) > 0) || (len(lost) > 0 && a.lost[0] != lost[0].Offset) {
			t.Fatalf("DF: %d chunks, %d holes, lost at %v, want %v", len(list), a.holes, a.lost, lost)
		}
		if len(lost) == 0 && !bytes.Equal(a.b, want[off:off+n]) {
			t.Fatal("DF: wrong bytes")
		}
		return
	}
	checkBounds(t, f, list, off, n)
	bad := make([]bool, n)
	var starts []uint64
	for _, s := range lost {
		if in := s.Offset - off; in == 0 || !bad[in-1] {
			starts = append(starts, s.Offset)
		}
		for i := s.Offset; i < s.Offset+s.Length; i++ {
			bad[i-off] = true
		}
	}
	for i := range bad {
		if bad[i] == a.known[i] || (a.known[i] && a.b[i] != want[off+uint64(i)]) {
			t.Fatalf("offset %d length %d: byte %d: lost %t, sent %t, %#x, want %#x", off, n, i, bad[i], a.known[i], a.b[i], want[off+uint64(i)])
		}
	}
	if len(starts) != len(a.lost) {
		t.Fatalf("errors at %v, want %v", a.lost, starts)
	}
	stored := int(n)
	for _, s := range append(within(f.holes, r), lost...) {
		stored -= int(s.Length)
	}
	if behind := int(off+n) - max(int(off), len(f.data)); behind > 0 {
		stored -= behind
	}
	if a.sent < stored || a.sent >= stored+sectorBytes {
		t.Fatalf("%d bytes travelled, %d are stored", a.sent, stored)
	}
}

// checkBounds wants every bound of data and holes at a multiple of 512 bytes, but for those of the request and that of a lost
// part which ends with the file: item 73.
func checkBounds(t *testing.T, f *fakeFile, list []part, off, n uint64) {
	t.Helper()
	for _, p := range list {
		if p.typ&nbdwire.ReplyErrorFlag != 0 {
			continue
		}
		from, to := p.offset, p.offset+p.hole+uint64(len(p.data))
		lostEnd := len(f.bad) > 0 && from == f.Size()
		if from%512 != 0 && from != off && !lostEnd || to%512 != 0 && to != off+n {
			t.Fatalf("read of %d at %d: chunk from %d to %d", n, off, from, to)
		}
	}
}

// TestStructuredRefusals names the checklist's items: every error is a chunk with a text, and the
// connection goes on.
func TestStructuredRefusals(t *testing.T) {
	data := pattern()[:34<<20]
	size := uint64(len(data))
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}}})
	c := fx.structured("disk")
	for _, tc := range []struct {
		name    string
		request []byte
		payload int
		errno   uint32
	}{
		{"42 unknown flag", requestBytes(cmdRead, 1<<4, 1, 0, 16), 0, einval},
		{"42 60 FUA", requestBytes(cmdRead, 1, 1, 0, 16), 0, einval},
		{"58 beyond the end", readRequest(1, size-512, 1024), 0, einval},
		{"58 offset 2^63", readRequest(1, 1<<63, 16), 0, einval},
		{"59 unknown command", requestBytes(77, 0, 1, 0, 4096), 0, einval},
		{"61 72 DF above the maximum", requestBytes(cmdRead, flagDF, 1, 0, MaxRead+1), 0, nbdwire.EOVERFLOW},
		{"73 above the maximum", readRequest(1, 0, MaxRead+1), 0, nbdwire.EOVERFLOW},
		{"73 4 GiB - 1 is beyond the end", readRequest(1, 0, 1<<32-1), 0, einval},
		{"74 length 0", readRequest(1, 0, 0), 0, einval},
		{"64 66 WRITE", requestBytes(cmdWrite, 0, 1, 0, 4096), 4096, eperm},
		{"66 TRIM", requestBytes(4, 0, 1, 0, 4096), 0, eperm},
		{"84 FLUSH with a range", requestBytes(3, 0, 1, 0, 512), 0, einval},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.t = t
			c.put(append(tc.request, make([]byte, tc.payload)...))
			c.wantError(1, nbdwire.ReplyError, tc.errno)
			c.put(readRequest(2, 512, 64))
			if list := c.parts(2); len(list) != 1 || !bytes.Equal(list[0].data, data[512:576]) {
				t.Fatalf("then %+v", list)
			}
		})
	}
	c.t = t
	c.put(requestBytes(3, 0, 9, 0, 0))
	if list := c.parts(9); list[0].typ != typSimple {
		t.Errorf("FLUSH: %+v", list)
	}
	c.put(requestBytes(cmdRead, flagDF, 5, 1, MaxRead))
	if list := c.parts(5); len(list) != 1 || !bytes.Equal(list[0].data, data[1:1+MaxRead]) {
		t.Error("72 DF of the longest read")
	}
}

// TestStructuredOption: what the option changes, and in which order it may come.
func TestStructuredOption(t *testing.T) {
	data := pattern()[:100000]
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: &fakeFile{data: data}}}})
	c := fx.greeted()
	c.option(optSR, []byte{1})
	c.reply(optSR, nbdwire.RepErrInvalid) // 41
	if got := c.infos(optInfo, "disk")[0].Flags; got != transmissionFlags {
		t.Errorf("45 flags %#x before SR", got)
	}
	for range 2 { // 41: again
		c.option(optSR, nil)
		c.reply(optSR, repAck)
	}
	for _, option := range []uint32{optInfo, optGo} {
		if got := c.infos(option, "disk")[0].Flags; got != transmissionFlags|nbdwire.FlagSendDF {
			t.Errorf("45 flags %#x after SR", got)
		}
	}
	c = fx.greeted()
	c.option(optSR, nil)
	c.reply(optSR, repAck)
	c.option(1, []byte("disk"))
	c.get(10)
	c.put(readRequest(3, 0, 5000))
	if list := c.parts(3); len(list) != 1 || !bytes.Equal(list[0].data, data[:5000]) {
		t.Errorf("EXPORT_NAME after SR: %+v", list)
	}
}

// TestErrorTexts: the text of a lost part is a string of bounded length, whatever the File says.
func TestErrorTexts(t *testing.T) {
	data := pattern()[:1<<20]
	says := []string{"devid 1: crc32c", strings.Repeat("ä", 5000), "a\x00b\x1b[31m\xff\n", "x"}
	f := &fakeFile{data: data, fail: func(r *Read) error { return errors.New(says[r.Offset/4096]) }}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.structured("d")
	for i := range uint64(len(says)) {
		c.put(readRequest(1, i*4096, 512))
		e := c.wantError(1, nbdwire.ReplyErrorOffset, nbdwire.EIO)
		if e.Offset != i*4096 || len(e.Text) > maxErrorText || strings.ContainsAny(e.Text, "\x00\x1b\n") {
			t.Errorf("%+v", e)
		}
	}
	many := &fakeFile{data: data}
	for off := uint64(0); off < uint64(len(data)); off += 8192 {
		many.bad = append(many.bad, Span{off, 4096})
	}
	fx = start(t, Options{Exports: []Export{{Name: "d", File: many}}})
	c = fx.structured("d")
	c.put(readRequest(1, 0, 1<<20))
	texts, list := 0, c.parts(1)
	for _, p := range list {
		if p.fault.Text != "" {
			texts++
		}
	}
	if a := assemble(t, list, 0, 1<<20); len(a.lost) != 128 || a.sent != 1<<19 || texts != maxErrorTexts {
		t.Errorf("%d errors, %d bytes, %d texts", len(a.lost), a.sent, texts)
	}
}

// TestBrokenParts: a File whose lists can't be right fails the read and nothing else.
func TestBrokenParts(t *testing.T) {
	data := pattern()[:8192]
	for name, r := range map[string]Read{
		"zero behind the end":  {Zeroes: []Span{{4096, 8192}}},
		"zeroes out of order":  {Zeroes: []Span{{4096, 512}, {0, 512}}},
		"zeroes overlap":       {Zeroes: []Span{{0, 1024}, {512, 1024}}},
		"zero of 2^64 bytes":   {Zeroes: []Span{{4096, 1<<64 - 1}}},
		"loss behind the end":  {Lost: []Loss{{Span: Span{8192, 1}}}},
		"loss over the end":    {Lost: []Loss{{Span: Span{0, 4096}}, {Span: Span{4096, 4097}}}},
		"zero and loss at one": {Zeroes: []Span{{0, 512}}, Lost: []Loss{{Span: Span{0, 512}}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &brokenFile{fakeFile: fakeFile{data: data}, submit: func(b []*Read) {
				b[0].Payload, b[0].Zeroes, b[0].Lost = data, r.Zeroes, r.Lost
				if len(r.Lost) > 0 {
					b[0].Err = errLostPart
				}
				b[0].Done.ReadDone(b[0])
			}}
			c := start(t, Options{Exports: []Export{{Name: "d", File: f}}}).structured("d")
			c.put(readRequest(1, 0, 8192))
			c.wantError(1, nbdwire.ReplyErrorOffset, nbdwire.EIO)
			c.put(requestBytes(3, 0, 2, 0, 0))
			c.parts(2)
		})
	}
}

// TestStructuredReadsDoNotAllocate: a read with holes, and a refusal, in the steady state.
func TestStructuredReadsDoNotAllocate(t *testing.T) {
	m := &memory{data: pattern(), zeroes: []Span{{8192, 4096}, {16384, 4096}}}
	conn, end := session(t, m, optSR)
	defer end()
	const depth = 32
	requests := append(bytes.Repeat(readRequest(1, 4096, 20480), depth), readRequest(2, 0, 0)...)
	refusal := nbdwire.ChunkLen + 6 + len(errLength.Error()) // it needs no data and goes first
	replies := make([]byte, refusal+depth*(5*nbdwire.ChunkLen+5*8+2*4+3*4096))
	round := func() {
		_, _ = conn.Write(requests)
		_, _ = io.ReadFull(conn, replies)
	}
	for range 20 {
		round()
	}
	if got := testing.AllocsPerRun(500, round); got >= 1 {
		t.Errorf("%v allocations for %d reads, want none", got, depth)
	}
	if typ := binary.BigEndian.Uint16(replies[refusal+6:]); typ != nbdwire.ReplyOffsetData {
		t.Errorf("first chunk has type %d", typ)
	}
}

// TestManyChunks: a read of alternating sectors makes thousands of chunks, in one reply.
func TestManyChunks(t *testing.T) {
	f := &fakeFile{data: make([]byte, MaxRead), async: true}
	for off := 0; off < MaxRead; off += 8192 {
		copy(f.data[off:], pattern()[off:off+4096])
		f.holes = append(f.holes, Span{uint64(off) + 4096, 4096})
	}
	c := start(t, Options{Exports: []Export{{Name: "d", File: f}}}).structured("d")
	for range 2 {
		c.put(readRequest(8, 0, MaxRead))
		list := c.parts(8)
		if a := assemble(t, list, 0, MaxRead); len(list) != 8192 || a.sent != MaxRead/2 || !bytes.Equal(a.b, f.data) {
			t.Fatalf("%d chunks, %d bytes", len(list), a.sent)
		}
	}
}

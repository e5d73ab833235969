package export

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// socketPair returns both ends of a unix socket.
func socketPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return ends[0], ends[1]
}

// FuzzConn plays whole sessions: what the server sends always parses, with structured replies, extended headers
// and metadata contexts too, nothing is lent at the end, no more is allocated than goes over the wire and a fixed sum, and
// there is an end.
func FuzzConn(f *testing.F) {
	hello := nbdwire.AppendClientFlags(nil, 3)
	chosen := nbdwire.AppendOption(bytes.Clone(hello), optGo, infoRequest("d", 1, 2, 3))
	// The shapes that others begin with: flags, EXPORT_NAME, GO, each with reads and a write behind it, cut ones too.
	f.Add(hello)
	f.Add(chosen)
	f.Add(append(bytes.Clone(chosen), readRequest(1, 0, 0)...))
	f.Add(append(bytes.Clone(chosen), readRequest(1, 0, 4)[:nbdwire.RequestLen-4]...))
	f.Add(nbdwire.AppendOption(nbdwire.AppendClientFlags(nil, 1), 1, []byte("d")))
	f.Add(append(nbdwire.AppendOption(bytes.Clone(hello), 1, nil), readRequest(1, 0, 4)...))
	f.Add(append(bytes.Clone(chosen), readRequest(1, 0, 4)...))
	f.Add(append(bytes.Clone(chosen), bytes.Repeat(readRequest(1, 9, 5000), 70)...))
	f.Add(append(bytes.Clone(chosen), requestBytes(cmdDisc, 0, 1, 0, 0)...))
	f.Add(append(append(bytes.Clone(chosen), requestBytes(cmdWrite, 0, 1, 0, 8)...), "12345678"...))
	f.Add(nbdwire.AppendOption(nbdwire.AppendOption(bytes.Clone(hello), optList, nil), optAbort, nil))
	f.Add(nbdwire.AppendOption(nbdwire.AppendOption(bytes.Clone(hello), 11, nil), 10, []byte("\x00\x00\x00\x01d\x00\x00\x00\x00")))
	for _, seed := range extensionSeeds() {
		f.Add(seed)
	}
	file := sparse(rand.New(rand.NewPCG(7, 7)), 20000, 0.4, 0.2)
	file.waits = true
	server, err := NewServer(Options{Exports: []Export{{Name: "d", Description: "x", File: file, RoundUp: 4096}}, Limits: Limits{Handshake: patience}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		near, far := socketPair(t)
		defer func() { _ = near.Close() }()
		_ = near.SetDeadline(time.Now().Add(patience))
		ended := make(chan struct{})
		go func() { defer close(ended); _ = server.ServeConn(far, nil) }()
		go func() { _, _ = near.Write(b); _ = near.(*net.UnixConn).CloseWrite() }()
		out, err := io.ReadAll(near)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the session does not end")
		}
		<-ended
		runtime.ReadMemStats(&after)
		// Replies are read into a buffer that grows; 4 MiB are for the connection and an option's data that never came.
		if got, most := after.TotalAlloc-before.TotalAlloc, uint64(4<<20+64*(len(b)+len(out))); got > most {
			t.Fatalf("%d bytes were allocated for %d received and %d sent", got, len(b), len(out))
		}
		// A server that closes with bytes unread resets, which may cut its last words.
		checkStream(t, b, out, err == nil)
		if n := file.lent.Load(); n != 0 {
			t.Fatalf("%d payloads still lent", n)
		}
		if free := server.budget.free; free != server.budget.total {
			t.Fatalf("%d bytes of the budget free, of %d", free, server.budget.total)
		}
	})
}

// extensionSeeds are sessions with structured replies, extended headers and metadata contexts.
func extensionSeeds() [][]byte {
	hello := nbdwire.AppendClientFlags(nil, 3)
	query := nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: "d", Queries: []string{base, ourKind, "x:y"}})
	options := func(ids ...uint32) []byte {
		b := bytes.Clone(hello)
		for _, id := range ids {
			b = nbdwire.AppendOption(b, id, nil)
		}
		b = nbdwire.AppendOption(b, optListMeta, nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: "d", Queries: []string{"x-btrexport:"}}))
		b = nbdwire.AppendOption(b, optSetMeta, query)
		return nbdwire.AppendOption(b, optGo, infoRequest("d", 3))
	}
	compact := slices.Concat(readRequest(1, 0, 20000), requestBytes(cmdRead, flagDF, 2, 5, 9000), requestBytes(cmdStatus, 0, 3, 0, 20480),
		requestBytes(cmdStatus, flagReqOne, 4, 4096, 5), requestBytes(cmdCache, 0, 5, 0, 20000), readRequest(6, 0, 0), requestBytes(cmdDisc, 0, 7, 0, 0))
	wide := func(typ, flags uint16, off, n uint64, payload ...byte) []byte {
		return append(nbdwire.AppendExtendedRequest(nil, nbdwire.Request{Type: typ, Flags: flags, Cookie: 9, Offset: off, Length: n}), payload...)
	}
	filter := []byte("\x00\x00\x00\x00\x00\x00\x50\x00\x00\x00\x00\x02")
	extended := slices.Concat(wide(cmdRead, 0, 1, 19000), wide(cmdRead, flagDF, 4096, 4096), wide(cmdStatus, 0, 0, 20480),
		wide(cmdStatus, flagPayload, 0, uint64(len(filter)), filter...), wide(cmdWrite, flagPayload, 0, 3, 'a', 'b', 'c'),
		wide(cmdRead, 0, 0, 1<<63), wide(cmdCache, 0, 0, 20480), wide(nbdwire.CmdFlush, 0, 0, 0), wide(cmdDisc, 0, 0, 0))
	return [][]byte{
		append(options(optSR), compact...),
		append(options(optEH), extended...),
		append(options(optSR, optEH, optSR), extended...),
		append(options(optEH), compact...),
		append(options(optSR), extended...),
		append(options(), compact...),
	}
}

// checkStream parses what a server sent in answer to in.
func checkStream(t *testing.T, in, out []byte, whole bool) {
	t.Helper()
	take := func(n int) []byte {
		if n > len(out) {
			if whole {
				t.Fatalf("stream ends %d bytes early", n-len(out))
			}
			n = len(out)
		}
		b := out[:n]
		out = out[n:]
		return b
	}
	if b := take(nbdwire.GreetingLen); len(b) == nbdwire.GreetingLen {
		if _, err := nbdwire.DecodeGreeting(b); err != nil {
			t.Fatal(err)
		}
	}
	acked := make(map[uint32]bool) // options without data that change the replies
	for len(out) >= 8 && binary.BigEndian.Uint64(out) == protocol.NEGOTIATION_MAGIC_REPLY {
		h, err := nbdwire.DecodeOptionReply(take(nbdwire.OptionReplyLen))
		if err != nil && whole {
			t.Fatal(err)
		}
		take(int(h.Length))
		acked[h.ID] = acked[h.ID] || h.Type == repAck
	}
	if len(out) >= 10 && binary.BigEndian.Uint32(out) == 0 { // reply to EXPORT_NAME: a size below 2^32
		take(10)
		if in[3]&nbdwire.FlagNoZeroes == 0 {
			take(nbdwire.ZeroesLen)
		}
	}
	lengths := readLengths(in)
	for len(out) > 0 {
		if acked[optEH] || acked[optSR] && (len(out) < 4 || !nbdwire.IsSimpleReply(out)) {
			takeChunk(t, take, acked[optEH])
			continue
		}
		h, err := nbdwire.DecodeSimpleReply(take(nbdwire.SimpleReplyLen))
		if err != nil {
			if whole {
				t.Fatal(err)
			}
			return
		}
		if acked[optSR] && h.Error != 0 {
			t.Fatalf("simple reply with errno %d", h.Error)
		}
		if h.Error != 0 || acked[optSR] {
			continue
		}
		n, ok := lengths[h.Handle]
		if !ok {
			return // cookies that repeat with other lengths: not to be told apart here
		}
		take(n)
	}
}

// takeChunk parses one chunk, of a file of 20000 bytes padded to 20480. A stream that was cut may end in it.
func takeChunk(t *testing.T, take func(int) []byte, extended bool) {
	t.Helper()
	length, decode := nbdwire.ChunkLen, nbdwire.DecodeChunk
	if extended {
		length, decode = nbdwire.ExtendedChunkLen, nbdwire.DecodeExtendedChunk
	}
	b := take(length)
	if len(b) < length {
		return
	}
	h, err := decode(b)
	if err != nil || h.Flags&^nbdwire.ReplyFlagDone != 0 || h.Length > 1<<20 {
		t.Fatalf("chunk %+v, %v", h, err)
	}
	b = take(int(h.Length))
	if len(b) < int(h.Length) {
		return
	}
	const size = 20480
	p := (&rawConn{t: t}).decodePart(h.Type, b)
	if p.offset > size || p.hole+uint64(len(p.data)) > size-p.offset {
		t.Fatalf("chunk %+v is not inside of the export", p)
	}
	total := uint64(0)
	for _, d := range p.list {
		total += d.Length
	}
	if total > size || extended && h.Type == nbdwire.ReplyBlockStatusExt && total > size-h.Offset {
		t.Fatalf("status of %d bytes at %d", total, h.Offset)
	}
}

// readLengths finds what looks like a request anywhere in a session and returns what each
// cookie would get; cookies with several answers are left out.
func readLengths(in []byte) map[uint64]int {
	lengths, twice := make(map[uint64]int), make(map[uint64]bool)
	for i := 0; i+nbdwire.RequestLen <= len(in); i++ {
		h, err := nbdwire.DecodeRequest(in[i:])
		if err != nil {
			continue
		}
		n := int(h.Length)
		if h.Type != cmdRead {
			n = 0
		}
		if old, ok := lengths[h.Handle]; ok && old != n {
			twice[h.Handle] = true
		}
		lengths[h.Handle] = n
	}
	for cookie := range twice {
		delete(lengths, cookie)
	}
	return lengths
}

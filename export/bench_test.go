package export

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// session is a connection past its handshake, in which options without data were asked for, for loops that must not allocate.
func session(tb testing.TB, f File, options ...uint32) (io.ReadWriter, func()) {
	tb.Helper()
	server, err := NewServer(Options{Exports: []Export{{Name: "d", File: f}}})
	if err != nil {
		tb.Fatal(err)
	}
	near, far := socketPair(tb)
	go func() { _ = server.ServeConn(far, nil) }()
	b := nbdwire.AppendClientFlags(nil, 3)
	for _, id := range options {
		b = nbdwire.AppendOption(b, id, nil)
	}
	b = nbdwire.AppendOption(b, 1, []byte("d"))
	if _, err := near.Write(b); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(near, make([]byte, nbdwire.GreetingLen+len(options)*nbdwire.OptionReplyLen+10)); err != nil {
		tb.Fatal(err)
	}
	return near, func() { _ = near.Close(); _ = server.Shutdown(context.Background()) }
}

// memory is a File without any bookkeeping. lag completes each batch from another goroutine.
type memory struct {
	data   []byte
	zeroes []Span // of every read
	lag    chan *Read
}

func (m *memory) Size() uint64 { return uint64(len(m.data)) }

func (m *memory) Submit(batch []*Read) {
	for _, r := range batch {
		r.Payload = m.data[r.Offset : r.Offset+uint64(r.Length)]
		r.Zeroes = m.zeroes
		if m.lag != nil {
			m.lag <- r
		} else {
			r.Done.ReadDone(r)
		}
	}
}

func (m *memory) Extents(_ context.Context, off, end uint64, _ bool, list []Extent) (int, error) {
	return fillExtents(nil, m.zeroes, off, end, list), nil
}

func (m *memory) complete() {
	for r := range m.lag {
		r.Done.ReadDone(r)
	}
}

func benchmark(b *testing.B, depth, length int, async bool) {
	m := &memory{data: pattern()}
	if async {
		m.lag = make(chan *Read, maxRequests)
		go m.complete()
		defer close(m.lag)
	}
	conn, end := session(b, m)
	defer end()
	requests := bytes.Repeat(readRequest(1, 4096, uint32(length)), depth)
	replies := make([]byte, depth*(nbdwire.SimpleReplyLen+length))
	b.SetBytes(int64(depth * length))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(requests); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, replies); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead4KQD1(b *testing.B)       { benchmark(b, 1, 4096, false) }
func BenchmarkRead4KQD32(b *testing.B)      { benchmark(b, 32, 4096, false) }
func BenchmarkRead4KQD32Async(b *testing.B) { benchmark(b, 32, 4096, true) }
func BenchmarkRead256KQD16(b *testing.B)    { benchmark(b, 16, 256<<10, false) }

// TestReadsDoNotAllocate: neither served inline nor from another goroutine.
func TestReadsDoNotAllocate(t *testing.T) {
	for _, async := range []bool{false, true} {
		m := &memory{data: pattern()}
		if async {
			m.lag = make(chan *Read, maxRequests)
			go m.complete()
		}
		conn, end := session(t, m)
		const depth = 32
		requests := bytes.Repeat(readRequest(1, 4096, 4096), depth)
		replies := make([]byte, depth*(nbdwire.SimpleReplyLen+4096))
		got := testing.AllocsPerRun(500, func() {
			_, _ = conn.Write(requests)
			_, _ = io.ReadFull(conn, replies)
		})
		end()
		if async {
			close(m.lag)
		}
		if got >= 1 {
			t.Errorf("async %t: %v allocations for %d reads, want none", async, got, depth)
		}
	}
}

package export

import (
	"bytes"
	"context"
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// TestReadAhead: who reads in order gets most of it from what was read before it asked, in large reads.
func TestReadAhead(t *testing.T) {
	for _, length := range []uint64{4096, 128 << 10, 1 << 20, 100_000, 512} {
		t.Run(strconv.FormatUint(length, 10), func(t *testing.T) {
			data := pattern()[:min(10<<20, 2000*length)]
			stats := &countStats{n: make(map[string]int)}
			f := &fakeFile{data: data, async: true}
			fx := start(t, Options{Exports: []Export{{Name: "d", File: f, Stats: stats}}})
			c := fx.ready("d")
			for off := uint64(0); off < uint64(len(data)); off += length {
				n := min(length, uint64(len(data))-off)
				c.put(readRequest(off, off, uint32(n)))
				c.wantAnswer(off, 0, data[off:off+n])
			}
			most := int64(aheadRun) + int64(len(data))/int64(max(aheadPiece/length, 1)*length) + 1
			if n := f.reads.Load(); n > most {
				t.Errorf("%d reads, want at most %d", n, most)
			}
			want := len(data) - aheadRun*int(length)
			waitFor(t, "the count", func() bool { return stats.read() == want })
			if stats.used != want {
				t.Errorf("%d bytes of %d used that were read ahead", stats.used, want)
			}
			if peak := f.peak.Load(); peak > aheadWindow+2*int64(length) {
				t.Errorf("%d bytes lent at once", peak)
			}
		})
	}
}

// TestNoReadAhead: nothing is read for who jumps, or has enough under way by itself.
func TestNoReadAhead(t *testing.T) {
	data := pattern()
	deep := bytes.Buffer{}
	for i := range uint64(32) {
		deep.Write(readRequest(i, i*(64<<10), 64<<10))
	}
	jumps := bytes.Buffer{}
	for i := range uint64(32) {
		jumps.Write(readRequest(i, i*7%32*8192, 4096))
		jumps.Write(readRequest(100+i, i*7%32*8192+4096, 4096)) // two in a row are no stream
	}
	for name, requests := range map[string]*bytes.Buffer{"deep": &deep, "jumps": &jumps} {
		t.Run(name, func(t *testing.T) {
			f := &fakeFile{data: data, async: true, hold: make(chan struct{})}
			fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
			c := fx.ready("d")
			n := int64(requests.Len() / nbdwire.RequestLen)
			c.put(requests.Bytes())
			waitFor(t, "the reads", func() bool { return f.reads.Load() >= n })
			close(f.hold)
			for range n {
				cookie, _ := c.answer()
				length := 4096
				if name == "deep" {
					length = 64 << 10
				}
				off := cookie * uint64(length)
				if name == "jumps" {
					off = cookie % 100 * 7 % 32 * 8192
					if cookie >= 100 {
						off += 4096
					}
				}
				if !bytes.Equal(c.get(length), data[off:][:length]) {
					t.Fatalf("cookie %d: wrong bytes", cookie)
				}
			}
			if got := f.reads.Load(); got != n {
				t.Errorf("%d reads, want %d", got, n)
			}
		})
	}
}

// TestReadAheadAfterDeep: who had many requests under way needs no help when reads come so fast that only one is left at a time,
// but for one that goes on so.
func TestReadAheadAfterDeep(t *testing.T) {
	const length = 64 << 10
	data := pattern()[:2<<20]
	f := &fakeFile{data: data}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.ready("d")
	asked := uint64(0)
	ask := func(n uint64) {
		var b []byte
		for i := range n {
			b = append(b, readRequest(i, (asked+i)*length%uint64(len(data)), length)...)
		}
		c.put(b)
		for i := range n {
			at := (asked + i) * length % uint64(len(data))
			c.wantAnswer(i, 0, data[at:at+length])
		}
		asked += n
	}
	for asked < 2*aheadDeepFor {
		ask(12)
		for range 50 {
			ask(1)
		}
	}
	if got := f.reads.Load(); got != int64(asked) {
		t.Errorf("%d reads of a client that goes deep now and then, want %d", got, asked)
	}
	for range 2 * aheadDeepFor {
		ask(1)
	}
	if got := uint64(f.reads.Load()); got > asked-aheadDeepFor/2 {
		t.Errorf("%d reads for %d requests: nothing was read ahead of who does no more", got, asked)
	}
}

// TestReadAheadRandom mixes streams, jumps and CACHE on files with holes and losses: every read gets its bytes, or an error if and
// only if it asks for a lost one.
func TestReadAheadRandom(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("BTREXPORT_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("BTREXPORT_SEED=%d", seed)
	rng := newRand(seed)
	data := append([]byte(nil), pattern()[:6<<20]...)
	var holes, bad []Span
	for at := uint64(rng.IntN(1 << 20)); at < uint64(len(data))-(1<<18); at += uint64(rng.IntN(2 << 20)) {
		n := uint64(rng.IntN(1<<17) + 1)
		if rng.IntN(3) == 0 {
			bad = append(bad, Span{at, n})
		} else {
			holes = append(holes, Span{at, n})
			clear(data[at : at+n])
		}
		at += n
	}
	f := &fakeFile{data: data, async: true, holes: holes, bad: bad}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.ready("d")
	type ask struct{ off, n uint64 } // n 0: a CACHE
	var cookie uint64
	streams := make([]uint64, 3)
	for round := range 400 {
		asks := make(map[uint64]ask)
		var b []byte
		at, length := &streams[rng.IntN(len(streams))], uint64(1)<<(9+rng.IntN(8)) // 8 of the longest are not too deep
		for range rng.IntN(8) + 1 {
			if *at >= uint64(len(data)) {
				*at = 0
			}
			a := ask{*at, min(length, uint64(len(data))-*at)}
			switch rng.IntN(10) {
			case 0: // a jump to somewhere
				a.off = rng.Uint64N(uint64(len(data)))
				a.n = min(rng.Uint64N(200_000)+1, uint64(len(data))-a.off)
			case 1:
				cookie++
				asks[cookie] = ask{}
				b = append(b, requestBytes(cmdCache, 0, cookie, a.off, uint32(min(10*a.n, uint64(len(data))-a.off)))...)
				fallthrough
			default:
				*at += a.n
			}
			cookie++
			asks[cookie] = a
			b = append(b, readRequest(cookie, a.off, uint32(a.n))...)
		}
		c.put(b)
		for range len(asks) {
			got, errno := c.answer()
			a, asked := asks[got]
			delete(asks, got)
			lost := len(within(bad, &Read{Offset: a.off, Length: uint32(a.n)})) > 0
			if !asked || lost != (errno == nbdwire.EIO) {
				t.Fatalf("round %d: cookie %d asked %t: %d bytes at %d: errno %d, lost %t", round, got, asked, a.n, a.off, errno, lost)
			}
			if !lost && !bytes.Equal(c.get(int(a.n)), data[a.off:a.off+a.n]) {
				t.Fatalf("round %d: %d bytes at %d: wrong", round, a.n, a.off)
			}
		}
	}
}

// TestReadAheadHoles: holes of what was read ahead travel as such.
func TestReadAheadHoles(t *testing.T) {
	data := append([]byte(nil), pattern()[:2<<20]...)
	holes := []Span{{600_000, 300_000}, {1_000_000, 512}, {1 << 20, 1 << 19}}
	for _, h := range holes {
		clear(data[h.Offset : h.Offset+h.Length])
	}
	f := &fakeFile{data: data, async: true, holes: holes}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.structured("d")
	const length = 64 << 10
	for off := uint64(0); off < uint64(len(data)); off += length {
		c.put(readRequest(off, off, length))
		got, zeroes := make([]byte, length), uint64(0)
		for _, p := range c.parts(off) {
			copy(got[p.offset-off:], p.data)
			zeroes += p.hole
		}
		if !bytes.Equal(got, data[off:off+length]) {
			t.Fatalf("wrong bytes at %d", off)
		}
		var want uint64
		for _, h := range within(holes, &Read{Offset: off, Length: length}) {
			want += h.Length
		}
		if zeroes > want || zeroes+1024 < want { // bounds are multiples of 512
			t.Errorf("offset %d: %d bytes of holes, want %d", off, zeroes, want)
		}
	}
}

// TestReadAheadShared: clients that stopped using what was read for them leave room for others.
func TestReadAheadShared(t *testing.T) {
	data := pattern()
	f := &fakeFile{data: data}
	stats := &countStats{n: make(map[string]int)}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f, Stats: stats}}})
	for range aheadTotal/aheadWindow*2 + 2 {
		c := fx.ready("d")
		for off := uint64(0); off < 8<<20; off += 64 << 10 {
			c.put(readRequest(off, off, 64<<10))
			c.wantAnswer(off, 0, data[off:off+64<<10])
		}
	}
	if n := f.bytes.Load(); n > aheadTotal+64<<10 { // one reply is perhaps not accounted for yet
		t.Fatalf("%d bytes held, want at most %d", n, aheadTotal)
	}
	c := fx.ready("d")
	off, round := uint64(0), uint64(64<<10)
	waitFor(t, "room", func() bool {
		before := stats.read()
		for range 2 * aheadRun {
			c.put(readRequest(off, off, uint32(round)))
			c.wantAnswer(off, 0, data[off:off+round])
			if off += round; off == uint64(len(data)) {
				off = 0
			}
		}
		return stats.read() > before
	})
}

// TestReadAheadReturns: a connection that ends, or is drained, with reads ahead under way.
func TestReadAheadReturns(t *testing.T) {
	for _, how := range []string{"disconnect", "reset", "drain"} {
		t.Run(how, func(t *testing.T) {
			data := pattern()[:8<<20]
			hold := make(chan struct{})
			f := &fakeFile{data: data, async: true, hold: hold}
			fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
			c := fx.ready("d")
			for i := range uint64(aheadRun + 1) { // the last one waits for what is read ahead
				c.put(readRequest(i, i*4096, 4096))
			}
			waitFor(t, "reads ahead", func() bool { return f.reads.Load() > aheadRun+1 })
			waitFor(t, "the last request", func() bool { return fx.server.InFlight()["d"] == aheadRun+1 })
			shutdown := make(chan error, 1)
			switch how {
			case "disconnect":
				c.put(requestBytes(cmdDisc, 0, 9, 0, 0))
			case "reset":
				_ = c.Close()
			case "drain":
				go func() { shutdown <- fx.server.Shutdown(context.Background()) }()
				fx.waitForDrain()
			}
			close(hold)
			if how != "reset" {
				for range aheadRun + 1 {
					cookie, errno := c.answer()
					if errno != 0 || !bytes.Equal(c.get(4096), data[cookie*4096:][:4096]) {
						t.Errorf("cookie %d errno %d", cookie, errno)
					}
				}
				c.wantClosed()
			}
			if how == "drain" {
				if err := <-shutdown; err != nil {
					t.Error(err)
				}
			}
			waitFor(t, "the connection to end", func() bool { n, _ := fx.server.Clients(); return n == 0 })
			waitFor(t, "what was read ahead", func() bool { return fx.server.aheadBytes.Load() == 0 })
		})
	}
}

// TestReadAheadDoesNotAllocate: a stream of small reads.
func TestReadAheadDoesNotAllocate(t *testing.T) {
	m := &memory{data: pattern()}
	conn, end := session(t, m)
	defer end()
	const length = 16 << 10
	reply := make([]byte, nbdwire.SimpleReplyLen+length)
	var requests []byte
	for off := uint64(0); off < uint64(len(m.data)); off += length {
		requests = append(requests, readRequest(1, off, length)...)
	}
	if got := testing.AllocsPerRun(1000, func() {
		_, _ = conn.Write(requests[:nbdwire.RequestLen])
		_, _ = io.ReadFull(conn, reply)
		requests = requests[nbdwire.RequestLen:]
	}); got >= 1 {
		t.Errorf("%v allocations a read", got)
	}
}

func BenchmarkReadAhead(b *testing.B) {
	m := &memory{data: pattern()}
	conn, end := session(b, m)
	defer end()
	const length = 128 << 10
	reply := make([]byte, nbdwire.SimpleReplyLen+length)
	off := uint64(0)
	b.SetBytes(length)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = conn.Write(readRequest(1, off, length))
		_, _ = io.ReadFull(conn, reply)
		if off += length; off == uint64(len(m.data)) {
			off = 0
		}
	}
}

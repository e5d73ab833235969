package export

import (
	"sync"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const cmdCache = nbdwire.CmdCache

// TestCacheReadsAhead: the beginning of the range is kept for who asks for it.
func TestCacheReadsAhead(t *testing.T) {
	data := pattern()[:1<<20]
	f := &fakeFile{data: data, async: true}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f, RoundUp: 1 << 21}}})
	c := fx.ready("d")
	for range 3 { // once is enough
		c.put(requestBytes(cmdCache, 0, 1, 300_000, 2<<20-300_000)) // into the padding
		c.wantAnswer(1, 0, nil)
	}
	c.put(readRequest(2, 700_000, 100_000)) // in any order, perhaps before it has been read
	c.wantAnswer(2, 0, data[700_000:800_000])
	waitFor(t, "all of it to be read", func() bool { return f.bytes.Load() == 1<<20-300_000 })
	c.put(readRequest(3, 300_000, 77))
	c.wantAnswer(3, 0, data[300_000:300_077])
	if n := f.reads.Load(); n != 2 {
		t.Errorf("%d reads, want 2", n)
	}
	c.alive(data)
	c.put(requestBytes(cmdCache, 0, 1, 1<<20, 4096)) // nothing of the file
	c.wantAnswer(1, 0, nil)
	c.alive(data)
}

// TestCacheWarms: what is beyond what is kept is read, a part at a time, and given back.
func TestCacheWarms(t *testing.T) {
	const size, kept = 8 << 20, aheadWindow / 2
	var mu sync.Mutex
	seen := make(map[uint64]uint32)
	f := &fakeFile{data: pattern()[:size], async: true, start: func(b []*Read) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range b {
			seen[r.Offset] = r.Length
		}
	}}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.ready("d")
	c.put(requestBytes(cmdCache, 0, 1, 0, size))
	c.wantAnswer(1, 0, nil)
	waitFor(t, "all of it to be read", func() bool {
		return f.bytes.Load() == kept && f.released.Load() == (size-kept)/warmBytes
	})
	mu.Lock()
	defer mu.Unlock()
	at := uint64(0)
	for n := seen[at]; n > 0 && (at < kept || n <= warmBytes); n = seen[at] {
		at += uint64(n)
	}
	if at != size {
		t.Errorf("read ahead up to %d, want %d: %v", at, size, seen)
	}
}

// TestCacheIsBounded: a client that asks for everything all the time holds its window and one read more.
func TestCacheIsBounded(t *testing.T) {
	data := pattern()
	f := &fakeFile{data: data, async: true}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.ready("d")
	for i := range uint64(500) {
		c.put(requestBytes(cmdCache, 0, i, i*4096, uint32(len(data)-500*4096)))
	}
	for i := range uint64(500) {
		c.wantAnswer(i, 0, nil)
	}
	if peak := f.peak.Load(); peak > aheadWindow+warmBytes {
		t.Errorf("%d bytes lent at once, want at most %d", peak, aheadWindow+warmBytes)
	}
	c.put(requestBytes(cmdDisc, 0, 0, 0, 0))
	c.wantClosed()
}

// TestCacheStopsAtALoss: a range that can't be read ends there. What is lost of what is kept is told once, and read again
// for who asks again.
func TestCacheStopsAtALoss(t *testing.T) {
	const kept = aheadWindow / 2
	f := &fakeFile{data: pattern()[:8<<20], bad: []Span{{4096, 4096}, {kept + warmBytes, 4096}}}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.ready("d")
	c.put(requestBytes(cmdCache, 0, 1, 0, 8<<20))
	c.wantAnswer(1, 0, nil)
	const reads = kept/aheadPiece + 2
	waitFor(t, "two reads beyond what is kept", func() bool { return f.released.Load() == 2 && f.reads.Load() == reads })
	for i, want := range []struct {
		off   uint64
		errno uint32
		reads int64
	}{{0, 0, 0}, {12288, 0, 0}, {4096, nbdwire.EIO, 0}, {6000, nbdwire.EIO, 1}, {4096, nbdwire.EIO, 2}} { // who asks again is not told the same
		c.put(readRequest(2, want.off, 4096))
		if want.errno != 0 {
			c.wantAnswer(2, want.errno, nil)
		} else {
			c.wantAnswer(2, 0, f.data[want.off:want.off+4096])
		}
		if n := f.reads.Load(); n != reads+want.reads {
			t.Errorf("request %d: %d reads, want %d", i, n, reads+want.reads)
		}
	}
}

// TestCacheNeedsMemory: with no memory left nothing is read ahead, and the command succeeds.
func TestCacheNeedsMemory(t *testing.T) {
	f := &fakeFile{data: pattern(), async: true, hold: make(chan struct{})}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}, Limits: Limits{Memory: MaxRead, Floor: 1}})
	c := fx.ready("d")
	c.put(readRequest(1, 0, MaxRead)) // all there is
	waitFor(t, "the read", func() bool { return f.reads.Load() == 1 })
	fx.server.aheadBytes.Store(aheadTotal)
	c.put(requestBytes(cmdCache, 0, 2, 0, 1<<20))
	c.wantAnswer(2, 0, nil)
	close(f.hold)
	c.wantAnswer(1, 0, f.data[:MaxRead])
	c.put(requestBytes(cmdDisc, 0, 0, 0, 0))
	c.wantClosed()
	if n := f.reads.Load(); n != 1 {
		t.Errorf("%d reads, want 1", n)
	}
}

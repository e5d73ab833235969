package export

import (
	"sync"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const cmdCache = nbdwire.CmdCache

// TestCacheReadsAhead: the range is read, a part at a time, and given back; a later read is the same.
func TestCacheReadsAhead(t *testing.T) {
	data := pattern()[:1<<20]
	var mu sync.Mutex
	seen := make(map[uint64]uint32)
	f := &fakeFile{data: data, async: true, start: func(b []*Read) {
		mu.Lock()
		defer mu.Unlock()
		for _, r := range b {
			seen[r.Offset] = r.Length
		}
	}}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f, RoundUp: 1 << 21}}})
	c := fx.ready("d")
	c.put(requestBytes(cmdCache, 0, 1, 300_000, 2<<20-300_000)) // into the padding
	c.wantAnswer(1, 0, nil)
	waitFor(t, "all of it to be read", func() bool { return f.bytes.Load() == 0 && f.released.Load() == 6 })
	mu.Lock()
	at := uint64(300_000)
	for n := seen[at]; n > 0 && n <= aheadBytes; n = seen[at] {
		at += uint64(n)
	}
	mu.Unlock()
	if at != uint64(len(data)) {
		t.Errorf("read ahead up to %d, want %d: %v", at, len(data), seen)
	}
	c.alive(data)
	c.put(requestBytes(cmdCache, 0, 1, 1<<20, 4096)) // nothing of the file
	c.wantAnswer(1, 0, nil)
	c.alive(data)
}

// TestCacheIsBounded: a client that asks for everything all the time holds one read at a time, and a
// range that can't be read stops there.
func TestCacheIsBounded(t *testing.T) {
	data := pattern()
	f := &fakeFile{data: data, async: true}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.ready("d")
	for i := range uint64(500) {
		c.put(requestBytes(cmdCache, 0, i, 0, uint32(len(data))))
	}
	for i := range uint64(500) {
		c.wantAnswer(i, 0, nil)
	}
	if peak := f.peak.Load(); peak > aheadBytes {
		t.Errorf("%d bytes lent at once, want at most %d", peak, aheadBytes)
	}
	c.put(requestBytes(cmdDisc, 0, 0, 0, 0))
	c.wantClosed()
}

func TestCacheStopsAtALoss(t *testing.T) {
	f := &fakeFile{data: pattern()[:4<<20], bad: []Span{{aheadBytes, 4096}}}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c := fx.ready("d")
	c.put(requestBytes(cmdCache, 0, 1, 0, 4<<20))
	c.wantAnswer(1, 0, nil)
	waitFor(t, "two reads", func() bool { return f.released.Load() == 2 })
	c.put(readRequest(2, 0, 4096))
	c.wantAnswer(2, 0, f.data[:4096])
	if n := f.reads.Load(); n != 3 {
		t.Errorf("%d reads, want 3", n)
	}
}

// TestCacheNeedsMemory: with no memory left nothing is read ahead, and the command succeeds.
func TestCacheNeedsMemory(t *testing.T) {
	f := &fakeFile{data: pattern(), async: true, hold: make(chan struct{})}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}, Limits: Limits{Memory: MaxRead, Floor: 1}})
	c := fx.ready("d")
	c.put(readRequest(1, 0, MaxRead)) // all there is
	waitFor(t, "the read", func() bool { return f.reads.Load() == 1 })
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

package export

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	cmdStatus  = nbdwire.CmdBlockStatus
	flagReqOne = nbdwire.CmdFlagReqOne
)

// mapped is a connection that may ask for the status of name in these contexts.
func (fx *fixture) mapped(name string, queries ...string) (*rawConn, map[string]uint32) {
	fx.t.Helper()
	c := fx.greeted()
	c.option(optSR, nil)
	c.reply(optSR, repAck)
	ids := c.meta(optSetMeta, name, queries...)
	c.choose(name)
	return c, ids
}

// expand gives the status of every unit of 512 bytes, of a reply of one context.
func expand(t *testing.T, list []nbdwire.Descriptor, off, limit uint64) (status []uint64, total uint64) {
	t.Helper()
	for i, d := range list {
		if d.Length == 0 || i > 0 && list[i-1].Status == d.Status {
			t.Fatalf("descriptor %d of %v is empty or like the one before it", i, list)
		}
		for at := total; at < total+d.Length && at < limit; at += sectorBytes - (off+at)%sectorBytes {
			status = append(status, d.Status)
		}
		total += d.Length
	}
	return status, total
}

// TestBlockStatus asks random files of all kinds for the status of random ranges and holds every
// descriptor against the file: items 55, 76, 77, 78, 82.
func TestBlockStatus(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for round := range 12 {
		f := &fakeFile{waits: round%2 == 1}
		for n := rng.IntN(60); n >= 0; n-- {
			f.parts = append(f.parts, Extent{Length: 4096 * (1 + rng.Uint64N(5)), Kind: ExtentKind(rng.IntN(3)),
				Compression: Compression(rng.IntN(4)), Unverified: rng.IntN(2) == 0})
			f.size += f.parts[len(f.parts)-1].Length
		}
		f.size -= rng.Uint64N(4096) // the last extent ends behind the file
		pad := []uint32{0, 512, 1 << 20}[round%3]
		size, _ := roundUp(f.size, uint64(pad))
		fx := start(t, Options{Exports: []Export{{Name: "d", File: f, RoundUp: pad}}})
		c, ids := fx.mapped("d", base, ourKind, ourSure)
		for range 100 {
			off := rng.Uint64N(size)
			if rng.IntN(2) == 0 {
				off = off / 512 * 512
			}
			n := 1 + rng.Uint64N(size-off)
			flags := uint16(rng.IntN(2)) * flagReqOne
			c.put(requestBytes(cmdStatus, flags, 3, off, uint32(n)))
			list := c.parts(3)
			if len(list) != 3 {
				t.Fatalf("%d chunks for 3 contexts", len(list))
			}
			for _, p := range list {
				checkStatus(t, f, ids, p, off, n, size, flags)
			}
		}
	}
}

// checkStatus holds the answer of one context against the file.
func checkStatus(t *testing.T, f *fakeFile, ids map[string]uint32, p part, off, n, size uint64, flags uint16) {
	t.Helper()
	got, total := expand(t, p.list, off, n)
	if total == 0 || total > n || off+total > size || flags != 0 && len(p.list) != 1 {
		t.Fatalf("status of %d at %d (flags %d): %v", n, off, flags, p.list)
	}
	if end := off + total; end%512 != 0 && end != size && end-end%512 > off {
		t.Fatalf("status of %d at %d ends at %d", n, off, end)
	}
	if flags == 0 && total < n && (off+n)-(off+n)%512 > off && total != (off+n)-(off+n)%512-off {
		t.Fatalf("status of %d at %d: %d bytes told", n, off, total)
	}
	for i, at := 0, off; at < off+total; i, at = i+1, at+sectorBytes-at%sectorBytes {
		if want := statusAt(f, ids, p.context, at, off); got[i] != want {
			t.Fatalf("context %d at %d: got %d, want %d", p.context, at, got[i], want)
		}
	}
}

// statusAt is the status of one byte, looked up by walking.
func statusAt(f *fakeFile, ids map[string]uint32, context uint32, at, off uint64) uint64 {
	x := Extent{Kind: ExtentHole}
	// The rest of the file's last sector goes with the file, for who asks from before its end.
	if at < f.size || off < f.size && at < (f.size+511)/512*512 {
		pos := uint64(0)
		for _, e := range f.parts {
			if pos += e.Length; at < pos {
				x = e
				break
			}
		}
	}
	switch context {
	case ids[base]:
		return [...]uint64{0, 3, 2}[x.Kind]
	case ids[ourKind]:
		return uint64(x.Compression)
	default:
		if x.Unverified {
			return 0
		}
		return 1
	}
}

// TestBlockStatusRequests names the items of the protocol checklist.
func TestBlockStatusRequests(t *testing.T) {
	const size = 64 << 20
	fx := start(t, Options{Exports: []Export{{Name: "d", File: &fakeFile{size: size}}}})
	c, _ := fx.mapped("d", base)
	for _, tc := range []struct {
		name  string
		flags uint16
		off   uint64
		n     uint32
	}{
		{"60 unknown flag", 1 << 4, 0, 512},
		{"60 FUA", 1, 0, 512},
		{"60 DF", flagDF, 0, 512},
		{"62 length 0", 0, 0, 0},
		{"75 at the end", 0, size, 1},
		{"75 beyond the end", 0, size - 512, 1024},
		{"75 offset 2^64 - 1", 0, math.MaxUint64, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.t = t
			c.put(requestBytes(cmdStatus, tc.flags, 1, tc.off, tc.n))
			c.wantError(1, nbdwire.ReplyError, einval)
			c.put(requestBytes(cmdStatus, 0, 2, 0, 4096))
			if list := c.parts(2); len(list) != 1 || fmt.Sprint(list[0].list) != "[{4096 0}]" {
				t.Fatalf("then %+v", list)
			}
		})
	}
}

// TestHugeHoles is item 79 and CVE-2025-47711, CVE-2025-47712: lengths at the edge of 32 bits.
func TestHugeHoles(t *testing.T) {
	for _, size := range []uint64{3 << 30, 4<<30 - 1, 4 << 30, 4<<30 + 1, 5 << 30, math.MaxInt64} {
		f := &fakeFile{size: size, parts: []Extent{{Length: size, Kind: ExtentHole}}}
		if size == math.MaxInt64 {
			f.parts[0].Length = math.MaxUint64 // a hole may end behind the file
		} else if size == 5<<30 {
			f.parts[0].Length = 1 << 63
		}
		fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
		c, _ := fx.mapped("d", base)
		for _, flags := range []uint16{0, flagReqOne} {
			n := min(size, math.MaxUint32)
			want := n
			if n != size {
				want = n / 512 * 512
			}
			c.put(requestBytes(cmdStatus, flags, 1, 0, uint32(n)))
			if p := c.parts(1)[0]; len(p.list) != 1 || p.list[0] != (nbdwire.Descriptor{Length: want, Status: 3}) {
				t.Errorf("size %d: %v, want %d bytes of hole", size, p.list, want)
			}
			c.put(requestBytes(cmdStatus, flags, 1, size-1, 1))
			if p := c.parts(1)[0]; len(p.list) != 1 || p.list[0].Length != 1 {
				t.Errorf("size %d: last byte %v", size, p.list)
			}
		}
	}
}

// TestStatusIsBounded: a file of tiny parts is told in pieces, each of which makes progress.
func TestStatusIsBounded(t *testing.T) {
	f := &fakeFile{}
	for i := range 20000 {
		f.parts = append(f.parts, Extent{Length: 4096, Kind: ExtentKind(i % 2), Unverified: i%4 < 2})
		f.size += 4096
	}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	for _, queries := range [][]string{{base}, {ourKind}, {base, ourKind, ourSure}} {
		c, _ := fx.mapped("d", queries...)
		rounds := 0
		for at := uint64(0); at < f.size; rounds++ {
			before := f.queries.Load()
			c.put(requestBytes(cmdStatus, 0, 1, at, uint32(f.size-at)))
			list := c.parts(1)
			for _, p := range list {
				if len(p.list) > maxDescriptors {
					t.Fatalf("%d descriptors", len(p.list))
				}
			}
			_, total := expand(t, list[0].list, at, 0)
			at += total
			if n := f.queries.Load() - before; n > maxExtents/extentsAtOnce+1 {
				t.Fatalf("%d queries of the file for one request", n)
			}
		}
		if rounds < 2 || rounds > 20 {
			t.Errorf("%v: told in %d rounds", queries, rounds)
		}
	}
}

// failingMap can't tell its extents from some offset on.
type failingMap struct {
	fakeFile
	from uint64
}

func (f *failingMap) Extents(_ context.Context, off, end uint64, wait bool, list []Extent) (int, error) {
	switch {
	case off < f.from:
		list[0] = Extent{Length: f.from - off}
		return 1, nil
	case wait:
		return 0, fmt.Errorf("tree block at %d is lost", off)
	}
	return 0, ErrWait
}

// TestLostExtents: what is known is told, what is not is an error with a text, and is logged.
func TestLostExtents(t *testing.T) {
	f := &failingMap{fakeFile: fakeFile{data: pattern()[:1<<20]}, from: 8192}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c, _ := fx.mapped("d", base)
	c.put(requestBytes(cmdStatus, 0, 1, 4096, 65536))
	if p := c.parts(1)[0]; len(p.list) != 1 || p.list[0].Length != 4096 {
		t.Errorf("known part: %+v", p)
	}
	c.put(requestBytes(cmdStatus, 0, 2, 8192, 512))
	if e := c.wantError(2, nbdwire.ReplyErrorOffset, nbdwire.EIO); !strings.Contains(e.Text, "tree block at 8192") {
		t.Errorf("%+v", e)
	}
	if !strings.Contains(fx.log.String(), "block status failed") {
		t.Error("nothing was logged")
	}
}

// TestStatusWaitsAside: reads go on while extents are waited for, and a DISC waits for the answer (85).
func TestStatusWaitsAside(t *testing.T) {
	hold := make(chan struct{})
	once := sync.OnceFunc(func() { close(hold) })
	defer once()
	f := &fakeFile{data: pattern()[:1<<20], waits: true, slow: func() { <-hold }}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c, _ := fx.mapped("d", base)
	for i := range uint64(8) {
		c.put(requestBytes(cmdStatus, 0, i, i*4096, 4096))
	}
	c.put(readRequest(99, 0, 512))
	if list := c.parts(99); len(list) != 1 || len(list[0].data) != 512 {
		t.Fatalf("read while the status waits: %+v", list)
	}
	c.put(requestBytes(cmdDisc, 0, 0, 0, 0))
	once()
	for i := range uint64(8) {
		if list := c.parts(i); len(list) != 1 || list[0].list[0].Length != 4096 {
			t.Fatalf("status %d: %+v", i, list)
		}
	}
	c.wantClosed()
}

// TestStatusOfALostClient: nobody waits for extents on behalf of a client that is gone.
func TestStatusOfALostClient(t *testing.T) {
	reached := make(chan struct{}, 1)
	f := &fakeFile{data: pattern()[:1<<20], waits: true, slow: func() { poke(reached) }}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	for range 20 {
		c, _ := fx.mapped("d", base, ourKind)
		for i := range uint64(64) {
			c.put(requestBytes(cmdStatus, 0, i, i*4096, 1<<16))
		}
		<-reached
		_ = c.Close()
	}
}

// TestStatusFlood: a client that asks and takes nothing holds a bounded part of the budget.
func TestStatusFlood(t *testing.T) {
	f := &fakeFile{}
	for i := range 4096 {
		f.parts = append(f.parts, Extent{Length: 4096, Kind: ExtentKind(i % 2)})
		f.size += 4096
	}
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f}}})
	c, _ := fx.mapped("d", base, ourKind, ourSure)
	go func() {
		for i := range uint64(500) {
			if _, err := c.Write(requestBytes(cmdStatus, 0, i, 0, uint32(f.size))); err != nil {
				return
			}
		}
	}()
	for i := range uint64(500) {
		if list := c.parts(i); len(list) != 3 || len(list[0].list) != maxDescriptors {
			t.Fatalf("status %d: %d chunks", i, len(list))
		}
	}
}

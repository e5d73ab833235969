package fsread

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/codec"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
)

// zlibOf is p as a zlib stream.
func zlibOf(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// lzoOf is p, whole sectors, in LZO segments of literals alone.
func lzoOf(_ testing.TB, p []byte) []byte {
	out := make([]byte, 4)
	for ; len(p) > 0; p = p[4096:] {
		if left := -len(out) & 4095; left < 4 {
			out = append(out, make([]byte, left)...)
		}
		run := append([]byte{0}, make([]byte, 15)...)
		run = append(run, 4096-3-15-15*255)
		run = append(append(run, p[:4096]...), 17, 0, 0)
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(run))), run...)
	}
	binary.LittleEndian.PutUint32(out, uint32(len(out)))
	return out
}

// manyExtents makes a file of n extents of ram bytes of a kind, which are written as encode says; each is damaged by
// damage before its checksums are made.
func (b *builder) manyExtents(n, ram int, kind codec.Kind, encode func(testing.TB, []byte) []byte, damage func([]byte)) (want []byte) {
	b.size(uint64(n*ram), 0)
	b.fan = 60
	at := ondisk.Logical(3 << 20) // 6 MiB are left of the chunk
	for i := range n {
		p := pattern(ram, byte(i))
		rand.NewChaCha8([32]byte{byte(i), 1}).Read(p[ram/8 : ram/2])
		disk := encode(b.t, p)
		disk = append(disk, make([]byte, -len(disk)&4095)...)
		damage(disk)
		b.data(at, disk, true)
		b.extent(uint64(i*ram), ondisk.FileExtent{Type: ondisk.ExtentRegular, Compression: uint8(kind), RAMBytes: uint64(ram), DiskBytenr: at,
			DiskNumBytes: uint64(len(disk)), NumBytes: uint64(ram)})
		want = append(want, p...)
		at += ondisk.Logical(len(disk))
	}
	return want
}

// TestPartialReads reads small parts of more extents than the cache holds, from many goroutines, some of them parts of
// the same extent at the same time, and whole extents in between.
func TestPartialReads(t *testing.T) {
	for _, c := range []struct {
		kind   codec.Kind
		ram    int
		encode func(testing.TB, []byte) []byte
	}{{codec.Zlib, 128 << 10, zlibOf}, {codec.LZO, 64 << 10, lzoOf}, {codec.Zstd, 128 << 10, deflated}} {
		t.Run(c.kind.String(), func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			b := newBuilder(t)
			want := b.manyExtents(5<<20/c.ram, c.ram, c.kind, c.encode, func([]byte) {})
			f, _ := b.recorded(Options{CacheBytes: 1}, faultdev.Shuffled(rng.Uint64()))
			var wg sync.WaitGroup
			for range 4 {
				own := rand.New(rand.NewPCG(rng.Uint64(), 1))
				wg.Go(func() { readParts(t, own, f, want, c.ram) })
			}
			wg.Wait()
			if n := f.fs.inflater.cache.Bytes(); n > 2<<20 {
				t.Errorf("%d bytes cached, at most 2 MiB are to be", n)
			}
		})
	}
}

func readParts(t *testing.T, rng *rand.Rand, f *File, want []byte, ram int) {
	for range 400 {
		n := 1 + rng.IntN(1<<rng.IntN(15))
		off := rng.IntN(len(want) - n)
		switch rng.IntN(4) {
		case 0: // a few extents that all ask for
			off %= 4 * ram
		case 1:
			n = ram
			off = rng.IntN(len(want)/ram) * ram
		}
		p := make([]byte, n)
		if _, err := f.ReadAt(context.Background(), p, uint64(off)); err != nil || !bytes.Equal(p, want[off:off+n]) {
			t.Errorf("offset %d length %d: wrong bytes, or %v", off, n, err)
			return
		}
	}
}

// TestPartialStops inflates no more than is wanted when the cache is full of other extents: the front of an extent
// whose back is no zlib is served, under right checksums. With room in the cache the whole is inflated, and lost.
func TestPartialStops(t *testing.T) {
	b := newBuilder(t)
	damage := false
	want := b.manyExtents(40, 128<<10, codec.Zlib, zlibOf, func(disk []byte) {
		if damage {
			for i := range disk[len(disk)/2:] {
				disk[len(disk)/2+i] = 0xFF
			}
		}
		damage = true // all but the first
	})
	f, _ := b.recorded(Options{CacheBytes: 1})
	p := make([]byte, 4096)
	var lost *LostError
	if _, err := f.ReadAt(t.Context(), p, 128<<10); !errors.As(err, &lost) {
		t.Errorf("with room in the cache: %v, want the extent to be lost", err)
	}
	for i := range 20 { // the first fills the cache, under as many keys
		k := extentKey{logical: ondisk.Logical(i + 1), ram: 128 << 10}
		x := &inflated{buf: f.fs.pool.Get(128 << 10), home: &f.fs.inflater.blank}
		x.retain()
		f.fs.inflater.cache.Put(k, x, 128<<10)
		x.release()
	}
	if _, err := f.ReadAt(t.Context(), p, 256<<10); err != nil || !bytes.Equal(p, want[256<<10:][:4096]) {
		t.Errorf("without: %v, or wrong bytes", err)
	}
	if _, err := f.ReadAt(t.Context(), p, 256<<10); !errors.As(err, &lost) {
		t.Errorf("asked for again: %v, want the extent to be lost", err)
	}
	if _, err := f.ReadAt(t.Context(), p, 384<<10-4096); !errors.As(err, &lost) {
		t.Errorf("the back: %v, want the extent to be lost", err)
	}
}

package fsread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/codec"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// deflated is p as a zstd frame.
func deflated(t testing.TB, p []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(p, nil)
}

// compressed puts p on the disk at at, padded to sectors by pad, and gives the extent that is ram bytes long.
func (b *builder) compressed(at ondisk.Logical, p []byte, ram uint64, pad byte, sums bool) ondisk.FileExtent {
	b.t.Helper()
	frame := deflated(b.t, p)
	disk := roundUp(uint64(len(frame)), 4096)
	frame = append(frame, bytes.Repeat([]byte{pad}, int(disk)-len(frame))...)
	b.data(at, frame, sums)
	return ondisk.FileExtent{Type: ondisk.ExtentRegular, Compression: ondisk.CompressZstd, RAMBytes: ram, DiskBytenr: at, DiskNumBytes: disk, NumBytes: ram}
}

// TestCompressedShapes reads compressed extents of every shape that the kernel writes or once wrote.
func TestCompressedShapes(t *testing.T) {
	a, z := pattern(128<<10, 5), zeroes
	for _, c := range []struct {
		name  string
		size  uint64
		flags uint64
		make  func(b *builder)
		want  []byte
	}{
		{"whole", 128 << 10, 0, func(b *builder) { b.extent(0, b.compressed(dataStart, a, 128<<10, 0, true)) }, a},
		{"padding that is not zero", 8192, 0, func(b *builder) { b.extent(0, b.compressed(dataStart, a[:8192], 8192, 0xee, true)) }, a[:8192]},
		{"inflates to less than ram_bytes", 16384, 0, func(b *builder) { b.extent(0, b.compressed(dataStart, a[:9000], 16384, 0, true)) }, cat(a[:9000], z[:7384])},
		{"inflates to more than ram_bytes", 4096, 0, func(b *builder) { b.extent(0, b.compressed(dataStart, a[:8192], 4096, 0, true)) }, a[:4096]},
		{"parts of one extent, in another order, beside plain ones", 40960, 0, func(b *builder) {
			x := b.compressed(dataStart, a, 128<<10, 0, true)
			b.data(dataStart+1<<19, a[:4096], true)
			part := func(off, from, n uint64) { x.Offset, x.NumBytes = from, n; b.extent(off, x) }
			part(0, 100<<10, 8192)
			part(8192, 4096, 4096)
			b.extent(12288, plain(dataStart+1<<19, 4096, 0, 4096))
			part(20480, 0, 20480)
		}, cat(a[100<<10:108<<10], a[4096:8192], a[:4096], z[:4096], a[:20480])},
		{"inline", 1500, 0, func(b *builder) {
			b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentInline, Compression: ondisk.CompressZstd, RAMBytes: 1500, Inline: deflated(b.t, a[:1500])})
		}, a[:1500]},
		{"inline that inflates to a whole sector", 1500, 0, func(b *builder) {
			b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentInline, Compression: ondisk.CompressZstd, RAMBytes: 1500, Inline: deflated(b.t, cat(a[:1500], z[:2596]))})
		}, a[:1500]},
		{"inline in front of a larger file", 6000, 0, func(b *builder) {
			b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentInline, Compression: ondisk.CompressZstd, RAMBytes: 1000, Inline: deflated(b.t, a[:1000])})
		}, cat(a[:1000], z[:5000])},
		{"without checksums, and NODATASUM says so", 128 << 10, ondisk.InodeNoDataSum, func(b *builder) { b.extent(0, b.compressed(dataStart, a, 128<<10, 0, false)) }, a},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBuilder(t)
			b.size(c.size, c.flags)
			c.make(b)
			checkRanges(t, b.file(), c.want)
		})
	}
}

// checkRanges reads a file whole and in unaligned pieces.
func checkRanges(t *testing.T, f *File, want []byte) {
	t.Helper()
	for _, step := range []int{len(want), 1237, 20001} {
		for off := 0; off < len(want); off += step {
			p := make([]byte, min(len(want)-off, step+3000))
			if _, err := f.ReadAt(t.Context(), p, uint64(off)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, want[off:off+len(p)]) {
				t.Errorf("offset %d length %d: wrong bytes", off, len(p))
			}
		}
	}
}

// TestCompressedLost loses all of an extent when one of its sectors is bad, and nothing beside it.
func TestCompressedLost(t *testing.T) {
	a := pattern(128<<10, 6)
	rand.NewChaCha8([32]byte{}).Read(a[:64<<10]) // so that it takes many sectors
	for _, c := range []struct {
		name   string
		flags  uint64
		damage func(b *builder)
		kind   error
	}{
		{"a bad sector", 0, func(b *builder) { b.disk[dataStart+20000] ^= 1 }, ondisk.ErrChecksum},
		{"a missing checksum", 0, func(b *builder) {
			at := uint64(dataStart)
			b.replace(ondisk.TreeCsum, ondisk.CsumObjectID, ondisk.TypeExtentCsum, at, b.trees[ondisk.TreeCsum][0].Data[:8])
		}, volume.ErrNoChecksum},
		{"no frame under right checksums", 0, func(b *builder) {
			b.trees[ondisk.TreeCsum] = b.trees[ondisk.TreeCsum][1:]
			b.data(dataStart, bytes.Repeat([]byte{7}, 128<<10), true)
		}, codec.ErrCorrupt},
		{"no frame and no checksums", ondisk.InodeNoDataSum, func(b *builder) { clear(b.disk[dataStart : dataStart+4096]) }, codec.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBuilder(t)
			b.size(136<<10, c.flags)
			x := b.compressed(dataStart, a, 128<<10, 0, true)
			x.NumBytes = 64 << 10
			b.extent(4096, x)
			b.data(dataStart+1<<19, a[:4096], true)
			b.extent(0, plain(dataStart+1<<19, 4096, 0, 4096))
			b.extent(68<<10, plain(dataStart+1<<19, 4096, 0, 4096))
			c.damage(b)
			f := b.file()
			got := make([]byte, 80<<10)
			n, err := f.ReadAt(t.Context(), got, 0)
			var lost *LostError
			if !errors.As(err, &lost) || !errors.Is(err, c.kind) || len(lost.Ranges) != 1 || lost.Ranges[0].Off != 4096 || lost.Ranges[0].Len != 64<<10 {
				t.Fatalf("got %v, want [4096, 68 KiB) lost by %v", err, c.kind)
			}
			if n != 4096 || !bytes.Equal(got[:4096], a[:4096]) || !bytes.Equal(got[68<<10:72<<10], a[:4096]) || !bytes.Equal(got[4096:68<<10], zeroes) {
				t.Error("wrong bytes around the lost extent, or some in it")
			}
		})
	}
}

// TestOneInflation has many readers ask for one extent at once: it is read once for all of them, and not at
// all afterwards.
func TestOneInflation(t *testing.T) {
	a := pattern(128<<10, 7)
	b := newBuilder(t)
	b.size(128<<10, 0)
	b.extent(0, b.compressed(dataStart, a, 128<<10, 0, true))
	b.build()
	dev := faultdev.New(faultdev.Mem("disk", b.disk))
	f, err := Open(context.Background(), []volume.Device{dev}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	file, err := s.OpenFile(t.Context(), "file")
	if err != nil {
		t.Fatal(err)
	}
	dev.Record()
	hang := dev.Hang(faultdev.Range(devio.Physical(dataStart), 1<<20))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			p := make([]byte, 5000)
			if _, err := file.ReadAt(context.Background(), p, uint64(i)*6000); err != nil || !bytes.Equal(p, a[i*6000:][:5000]) {
				t.Errorf("reader %d: wrong bytes or %v", i, err)
			}
		})
	}
	for dev.Hanging() == 0 {
		time.Sleep(time.Millisecond)
	}
	hang.Remove()
	dev.Release()
	wg.Wait()
	p := make([]byte, 128<<10)
	if _, err := file.ReadAt(t.Context(), p, 0); err != nil || !bytes.Equal(p, a) {
		t.Errorf("from the cache: wrong bytes or %v", err)
	}
	n := 0
	for _, l := range dev.Log() {
		if l.Off >= devio.Physical(dataStart) {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the extent was read %d times", n)
	}
}

// TestCompressedFaults fails every read in turn, over images of each compression.
func TestCompressedFaults(t *testing.T) {
	for _, name := range []string{"zlib", "lzo", "zstd"} {
		img := fsreadtest.Load(t, name)
		r := newRig(t, img)
		f, err := r.open(Options{})
		if err != nil {
			t.Fatal(err)
		}
		truth := files(t, f, 256<<10)
		r.close(t, f)
		for i, fired := 0, true; fired; i += 3 {
			fired = failOne(t, img, truth, 0, i, false)
		}
	}
}

// TestSmallCache reads compressed files at random through a cache that holds a few extents only.
func TestSmallCache(t *testing.T) {
	for _, name := range []string{"zlib", "lzo", "zstd"} {
		t.Run(name, func(t *testing.T) {
			rng := fsreadtest.Seed(t)
			f := mustOpen(t, newRig(t, fsreadtest.Load(t, name)), Options{CacheBytes: 1})
			truth := files(t, f, 4<<20)
			for range 3 {
				if err := eachFile(f, func(path string, file *File) error {
					if want, ok := truth[path]; ok {
						return randomBatches(rng, path, file, want, 4)
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestCompressedAllocatesNothing holds for reads that the cache answers.
func TestCompressedAllocatesNothing(t *testing.T) {
	if fsreadtest.Race {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	a := pattern(128<<10, 8)
	b := newBuilder(t)
	b.size(128<<10, 0)
	b.extent(0, b.compressed(dataStart, a, 128<<10, 0, true))
	f := b.file()
	done := make(signal, 1)
	r := &Read{Off: 5000, Len: 9000, Done: done}
	batch := []*Read{r}
	one := func() {
		f.Submit(batch)
		<-done
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		r.Release()
	}
	one()
	if n := testing.AllocsPerRun(100, one); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCompressed(b *testing.B) {
	for _, name := range []string{"zlib", "lzo", "zstd"} {
		b.Run(name, func(b *testing.B) {
			f := openPlain(b, fsreadtest.Load(b, name))
			var file *File
			if err := eachFile(f, func(_ string, c *File) error {
				if c.size == 200001 { // all of it compressed, two extents
					file = c
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
			p := make([]byte, file.size)
			b.SetBytes(int64(file.size))
			b.ReportAllocs()
			for b.Loop() {
				f.inflater.cache.Clear()
				if _, err := file.ReadAt(context.Background(), p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCompressedRandom4K reads 4 KiB at random inside compressed extents, with the default cache of
// 64 MiB: of a file that it holds, and of one more than twice as large.
func BenchmarkCompressedRandom4K(b *testing.B) {
	for _, extents := range []int{256, 1024} { // of 128 KiB
		b.Run(fmt.Sprintf("%dMiB", extents/8), func(b *testing.B) {
			bd := newBuilder(b)
			bd.fan = 60
			bd.size(uint64(extents)<<17, 0)
			first := ondisk.Logical(3 << 20)
			for i := range extents {
				x := bd.compressed(first+ondisk.Logical(i)<<12, bytes.Repeat(pattern(4096, byte(i)), 32), 128<<10, 0, true)
				bd.extent(uint64(i)<<17, x)
			}
			f := bd.file()
			done := make(signal, 1)
			r := &Read{Len: 4096, Done: done}
			batch := []*Read{r}
			rng := rand.New(rand.NewPCG(1, 3))
			b.SetBytes(4096)
			b.ReportAllocs()
			for b.Loop() {
				r.Off = rng.Uint64N(f.size/4096) * 4096
				f.Submit(batch)
				<-done
				if r.Err != nil {
					b.Fatal(r.Err)
				}
				r.Release()
			}
		})
	}
}

package fsread

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/volume"
)

// reseal redoes the crc32c of a superblock or tree block.
func reseal(b []byte) {
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[32:], crc32.MakeTable(crc32.Castagnoli)))
}

// TestRandomRanges reads random unaligned ranges of every file, in batches that complete in any order, and
// compares each with the file read whole.
func TestRandomRanges(t *testing.T) {
	for _, name := range smallNames(fsreadtest.Names(t)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := fsreadtest.Seed(t)
			f := mustOpen(t, newRig(t, fsreadtest.Load(t, name)), Options{})
			truth := files(t, f, 64<<20)
			if err := eachFile(f, func(path string, file *File) error {
				want, ok := truth[path]
				if !ok {
					return nil
				}
				return randomBatches(rng, path, file, want, 3)
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// zeroesByWalk finds a read's zeroes by the extents of the file, without and then with waiting.
func zeroesByWalk(file *File, r *Read) ([]Span, error) {
	var list []Span
	end := r.Off + uint64(r.Len)
	walk := func(s Segment) error {
		from, to := max(s.Off, r.Off), min(s.Off+s.Len, end)
		switch {
		case s.Off >= end:
			return io.EOF
		case s.Kind != Hole && s.Kind != Prealloc || from >= to:
		case len(list) > 0 && list[len(list)-1].Off+list[len(list)-1].Len == from:
			list[len(list)-1].Len += to - from
		default:
			list = append(list, Span{from, to - from})
		}
		return nil
	}
	err := file.CachedExtents(r.Off, walk)
	if errors.Is(err, ErrNotCached) {
		list = nil
		err = file.Extents(context.Background(), r.Off, walk)
	}
	if err == io.EOF {
		err = nil
	}
	return list, err
}

// randomBatches submits batches of random reads and compares what they bring.
func randomBatches(rng *rand.Rand, path string, file *File, want []byte, batches int) error {
	for range batches {
		var wg sync.WaitGroup
		var batch []*Read
		for range 1 + rng.IntN(8) {
			r := &Read{Off: rng.Uint64N(file.size), Done: (*group)(&wg)}
			r.Len = 1 + rng.IntN(int(min(file.size-r.Off, 300<<10)))
			if rng.IntN(4) == 0 {
				r.Off, r.Len = r.Off/4096*4096, int(min(file.size-r.Off/4096*4096, 4096))
			}
			batch = append(batch, r)
			wg.Add(1)
		}
		file.Submit(slices.Clone(batch))
		wg.Wait()
		for _, r := range batch {
			if r.Err != nil {
				return fmt.Errorf("offset %d length %d: %w", r.Off, r.Len, r.Err)
			}
			if err := mustEqual(path, r.Payload(), want[r.Off:r.Off+uint64(r.Len)], r.Off, nil); err != nil {
				return err
			}
			if want, err := zeroesByWalk(file, r); err != nil || !slices.Equal(r.Zeroes(), want) {
				return fmt.Errorf("%s offset %d length %d: zeroes %v, want %v (%v)", path, r.Off, r.Len, r.Zeroes(), want, err)
			}
			r.Release()
		}
	}
	return nil
}

// group is a wait group that counts completions down.
type group sync.WaitGroup

func (g *group) ReadDone(*Read) { (*sync.WaitGroup)(g).Done() }

// TestReadAtEdges holds ReadAt against io.ReaderAt's rules.
func TestReadAtEdges(t *testing.T) {
	f := mustOpen(t, newRig(t, fsreadtest.Load(t, "single")), Options{})
	if err := eachFile(f, func(path string, file *File) error {
		if file.size == 0 || file.size > 16<<20 {
			return nil
		}
		want := make([]byte, file.size)
		if n, err := file.ReadAt(context.Background(), want, 0); uint64(n) != file.size || (err != nil && (err != io.EOF || n > 0)) {
			return fmt.Errorf("whole: %d bytes of %d, %v", n, file.size, err)
		}
		for _, c := range []struct {
			off uint64
			n   int
		}{{file.size, 1}, {file.size + 1, 1}, {1 << 63, 1}, {file.size / 2, int(file.size)}, {0, int(file.size) + 5}, {file.size - min(1, file.size), 1}} {
			p := bytes.Repeat([]byte{0xee}, c.n)
			n, err := file.ReadAt(context.Background(), p, c.off)
			left := 0
			if c.off < file.size {
				left = int(min(uint64(c.n), file.size-c.off))
			}
			if n != left || (err == io.EOF) != (left < c.n) || (err != nil && err != io.EOF) {
				return fmt.Errorf("offset %d length %d: %d bytes, %v", c.off, c.n, n, err)
			}
			if left > 0 && !bytes.Equal(p[:n], want[c.off:c.off+uint64(n)]) {
				return fmt.Errorf("offset %d length %d: wrong bytes", c.off, c.n)
			}
			if len(bytes.Trim(p[n:], "\xee")) > 0 {
				return fmt.Errorf("offset %d length %d: bytes behind the end were touched", c.off, c.n)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestSubmitRefuses ends reads that are not inside the file, without a buffer.
func TestSubmitRefuses(t *testing.T) {
	f := mustOpen(t, newRig(t, fsreadtest.Load(t, "single")), Options{})
	_, file, _ := plainSegment(t, f, 1<<14)
	for _, c := range []struct {
		off uint64
		n   int
	}{{0, 0}, {0, -1}, {file.size, 1}, {file.size - 1, 2}, {1<<64 - 1, 1}, {0, MaxRead + 1}} {
		var wg sync.WaitGroup
		r := &Read{Off: c.off, Len: c.n, Done: (*group)(&wg)}
		wg.Add(1)
		file.Submit([]*Read{r})
		wg.Wait()
		if r.Err == nil || r.Payload() != nil {
			t.Errorf("offset %d length %d: error %v and %d bytes", c.off, c.n, r.Err, len(r.Payload()))
		}
		r.Release()
	}
}

// TestColdReads reads with a cache that holds next to nothing, so that planners do the planning.
func TestColdReads(t *testing.T) {
	f := mustOpen(t, newRig(t, fsreadtest.Load(t, imageName(t, "deep"))), Options{CacheBytes: 1})
	rng := fsreadtest.Seed(t)
	if err := eachFile(f, func(path string, file *File) error {
		if file.size == 0 || file.size > 64<<20 || rng.IntN(20) > 0 && file.size < 1<<20 {
			return nil
		}
		want := make([]byte, file.size)
		if _, err := file.ReadAt(context.Background(), want, 0); err != nil {
			return err
		}
		return randomBatches(rng, path, file, want, 20)
	}); err != nil {
		t.Error(err)
	}
}

// TestReadAllocatesNothing holds for a read that is used again, aligned or not, on plain extents and holes.
func TestReadAllocatesNothing(t *testing.T) {
	if fsreadtest.Race {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	f := openPlain(t, fsreadtest.Load(t, "single"))
	_, file, seg := plainSegment(t, f, 1<<16)
	for _, c := range []struct{ off, n int }{{0, 4096}, {100, 5000}, {0, 60000}} {
		done := make(signal, 1)
		r := &Read{Off: seg.Off + uint64(c.off), Len: c.n, Done: done}
		batch := []*Read{r}
		one := func() {
			file.Submit(batch)
			<-done
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			r.Release()
		}
		one()
		if n := testing.AllocsPerRun(100, one); n != 0 {
			t.Errorf("offset %d length %d: %v allocations", c.off, c.n, n)
		}
	}
}

// openPlain opens an image without fault devices, which allocate.
func openPlain(t testing.TB, img *fsreadtest.Image) *FS {
	t.Helper()
	var devs []volume.Device
	for _, p := range img.Devices {
		q, err := devio.Open(p, devio.Options{Engine: fsreadtest.Engine(t)})
		if err != nil {
			t.Fatal(err)
		}
		devs = append(devs, q)
	}
	f, err := Open(context.Background(), devs, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// signal is a channel that a read's end is sent to.
type signal chan struct{}

func (s signal) ReadDone(*Read) { s <- struct{}{} }

// TestExtentsCover goes over the extents of every file: no gap, no overlap, from any start.
func TestExtentsCover(t *testing.T) {
	for _, name := range []string{"single", "no-holes-off", "deep", "huge"} {
		f := mustOpen(t, newRig(t, fsreadtest.Load(t, imageName(t, name))), Options{})
		kinds := map[Kind]int{}
		if err := eachFile(f, func(path string, file *File) error {
			for _, from := range []uint64{0, file.size / 3, file.size} {
				pos := from / 4096 * 4096
				if err := file.Extents(context.Background(), from, func(s Segment) error {
					if s.Off != pos || s.Len == 0 {
						return fmt.Errorf("segment %+v, want one at %d", s, pos)
					}
					kinds[s.Kind]++
					pos += s.Len
					return nil
				}); err != nil {
					return err
				}
				if pos < file.size || pos > roundUp(file.size, 4096) {
					return fmt.Errorf("from %d: segments end at %d, size %d", from, pos, file.size)
				}
			}
			return nil
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if kinds[Plain] == 0 || kinds[Hole] == 0 {
			t.Errorf("%s: kinds %v", name, kinds)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	f := openPlain(b, fsreadtest.Load(b, imageName(b, "raid1-2")))
	_, file, seg := plainSegment(b, f, 256<<10)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name string
		n    int
		off  func() uint64
	}{
		{"random4K", 4096, func() uint64 { return seg.Off + rng.Uint64N(64)*4096 }},
		{"sequential256K", 256 << 10, func() uint64 { return seg.Off }},
	} {
		b.Run(c.name, func(b *testing.B) {
			done := make(signal, 1)
			r := &Read{Len: c.n, Done: done}
			batch := []*Read{r}
			b.SetBytes(int64(c.n))
			b.ReportAllocs()
			for b.Loop() {
				r.Off = c.off()
				file.Submit(batch)
				<-done
				if r.Err != nil {
					b.Fatal(r.Err)
				}
				r.Release()
			}
		})
	}
}

// TestCachedExtents gives what Extents gives once the tree blocks were read, and reads nothing.
func TestCachedExtents(t *testing.T) {
	r := newRig(t, fsreadtest.Load(t, "raid1-2"))
	f := mustOpen(t, r, Options{})
	found := false
	if err := eachFile(f, func(path string, file *File) error {
		if file.Size() < 1<<20 || found {
			return nil
		}
		found = true
		count := func(n *int) func(Segment) error { return func(Segment) error { *n++; return nil } }
		var waited, cached int
		if err := file.Extents(t.Context(), 0, count(&waited)); err != nil {
			return err
		}
		if err := file.CachedExtents(0, count(&cached)); err != nil || cached != waited || cached == 0 {
			return fmt.Errorf("%s: %d extents cached (%v), want %d", path, cached, err, waited)
		}
		return nil
	}); err != nil || !found {
		t.Error(found, err)
	}
}

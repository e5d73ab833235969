package fsread

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// TestFailNthRead fails the i-th read of each device, i = 0, 1, 2, …, through open, path walk and read: the
// bytes are right or the error is of a promised kind, and where the profile has another copy nothing is lost.
func TestFailNthRead(t *testing.T) {
	for _, name := range []string{"single", "dup", "raid0-2", "raid1-2", "raid1c3", "raid1c4", "raid10-4", "raid5-2", "raid6-3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, imageName(t, name))
			r := newRig(t, img)
			f, err := r.open(Options{})
			if err != nil {
				t.Fatal(err)
			}
			truth := files(t, f, 1<<20)
			redundant := len(mustCopies(t, f)) > 1
			r.close(t, f)
			for dev := range img.Devices {
				for i, fired := 0, true; fired; i++ {
					fired = failOne(t, img, truth, dev, i, redundant)
				}
			}
		})
	}
}

// mustCopies gives the copies of the first byte of the metadata.
func mustCopies(t testing.TB, f *FS) []volume.Copy {
	t.Helper()
	c, _ := f.vol.Copies(f.super.Root)
	if len(c) == 0 {
		t.Fatal("the root tree is not mapped")
	}
	return c
}

// failOne opens the image and reads its files while read i of one device fails; it says whether that read came.
func failOne(t *testing.T, img *fsreadtest.Image, truth map[string][]byte, dev, i int, redundant bool) bool {
	r := newRig(t, img)
	rule := r.devs[dev].Fail(faultdev.Nth(i), syscall.EIO)
	f, err := r.open(Options{})
	defer func() { r.close(t, f) }()
	if err != nil {
		// A superblock has copies on its device, but which of them is needed is not for this test to say.
		if !typed(err) && !errors.Is(err, syscall.EIO) {
			t.Fatalf("dev %d read %d: open: untyped error %v", dev, i, err)
		}
		return rule.Fired()
	}
	err = eachFile(f, func(path string, file *File) error {
		want, ok := truth[path]
		if !ok {
			return nil
		}
		got := make([]byte, len(want))
		_, err := file.ReadAt(context.Background(), got, 0)
		if bad := mustEqual(path, got, want, 0, err); bad != nil {
			t.Fatalf("dev %d read %d: %v", dev, i, bad)
		}
		return err
	})
	if err != nil && (redundant || !typed(err)) {
		t.Fatalf("dev %d read %d: %v", dev, i, err)
	}
	return rule.Fired()
}

// imageName finds a golden image by the start of its name.
func imageName(t testing.TB, prefix string) string {
	t.Helper()
	names := fsreadtest.Names(t)
	if slices.Contains(names, prefix) {
		return prefix
	}
	for _, n := range names {
		if strings.HasPrefix(n, prefix) {
			return n
		}
	}
	t.Fatalf("no golden image %s", prefix)
	return ""
}

// ruin is which 4 KiB blocks of which device were overwritten.
type ruin map[devio.DevID]map[devio.Physical]bool

// ruinOneCopy overwrites, for a share of the 64 KiB ranges of every chunk, some blocks of one copy.
func ruinOneCopy(t testing.TB, rng *rand.Rand, img *fsreadtest.Image, f *FS) ruin {
	t.Helper()
	bad := ruin{}
	junk := make([]byte, 4096)
	supers := ondisk.SuperblockOffsets()
	f.vol.Chunks(func(start ondisk.Logical, c *ondisk.Chunk) {
		for in := uint64(0); in < c.Length; in += 64 << 10 {
			if rng.IntN(3) == 0 {
				continue
			}
			copies, _ := f.vol.Copies(start + ondisk.Logical(in))
			victim := copies[rng.IntN(len(copies))]
			for b := devio.Physical(0); b < 64<<10; b += 4096 {
				if rng.IntN(2) > 0 || slices.Contains(supers[:], uint64(victim.Physical+b)) {
					continue // chunks may hold a copy of the superblock, which is not theirs
				}
				for i := range junk {
					junk[i] = byte(rng.Uint32())
				}
				pwrite(t, img.Devices[victim.DevID-1], int64(victim.Physical+b), junk)
				if bad[victim.DevID] == nil {
					bad[victim.DevID] = map[devio.Physical]bool{}
				}
				bad[victim.DevID][victim.Physical+b] = true
			}
		}
	})
	return bad
}

// TestRuinedCopies ruins one copy of random blocks, data and metadata: every byte of every file is still
// right, and the counters are exactly what the devices' own log of reads says was met.
func TestRuinedCopies(t *testing.T) {
	for _, name := range []string{"dup", "raid1-2", "raid1c3", "raid1c4", "raid10"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := fsreadtest.Seed(t)
			img := fsreadtest.Load(t, imageName(t, name))
			r := newRig(t, img)
			f := mustOpen(t, r, Options{})
			truth := files(t, f, 64<<20)
			bad := ruinOneCopy(t, rng, img, f)

			stats := newCounts()
			ruined := newRig(t, img)
			for _, d := range ruined.devs {
				d.Record()
			}
			g := mustOpen(t, ruined, Options{Stats: stats})
			if err := eachFile(g, func(path string, file *File) error {
				if !file.Verified() || file.size == 0 {
					return nil // nothing tells a ruined copy of what has no checksum
				}
				got := make([]byte, file.size)
				if _, err := file.ReadAt(context.Background(), got, 0); err != nil {
					return err
				}
				return mustEqual(path, got, truth[path], 0, nil)
			}); err != nil {
				t.Fatal(err)
			}
			met := ruined.met(g, bad)
			if got := fmt.Sprint(stats.data, stats.meta); got != fmt.Sprint(met.data, met.meta) {
				t.Errorf("checksum failures %s, the log says %v %v", got, met.data, met.meta)
			}
			all := total(met.data) + total(met.meta)
			if stats.repaired != all || total(stats.csum) != all || stats.lost != 0 || len(stats.io) != 0 {
				t.Errorf("met %d bad units, counted %+v", all, stats)
			}
			if all == 0 {
				t.Errorf("met %v %v: the test shows nothing", met.data, met.meta)
			}
		})
	}
}

// met counts the units that the devices delivered from ruined blocks: sectors of data, nodes of metadata.
func (r *rig) met(f *FS, bad ruin) *counts {
	c := newCounts()
	meta := map[devio.DevID][][2]devio.Physical{}
	f.vol.Chunks(func(start ondisk.Logical, ch *ondisk.Chunk) {
		for _, s := range ch.Stripes {
			if !ch.IsData() {
				meta[s.Dev] = append(meta[s.Dev], [2]devio.Physical{s.Physical, s.Physical + devio.Physical(ch.StripeLength())})
			}
		}
	})
	for i, d := range r.devs {
		id := devio.DevID(i + 1)
		for _, a := range d.Log() {
			n := 0
			for b := devio.Physical(0); b < devio.Physical(a.Size); b += 4096 {
				if bad[id][a.Off+b] {
					n++
				}
			}
			isMeta := slices.ContainsFunc(meta[id], func(x [2]devio.Physical) bool { return a.Off >= x[0] && a.Off < x[1] })
			if n > 0 && isMeta {
				c.meta[uint64(id)]++
			} else if n > 0 {
				c.data[uint64(id)] += n
			}
		}
	}
	return c
}

func total(m map[uint64]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// TestLostRange ruins both copies of one block of a file: a read that touches it says so, exactly, and
// everything around it is read.
func TestLostRange(t *testing.T) {
	img := fsreadtest.Load(t, imageName(t, "raid1-2"))
	r := newRig(t, img)
	f := mustOpen(t, r, Options{})
	path, file, seg := plainSegment(t, f, 16<<12)
	want := files(t, f, 64<<20)[path]
	at := seg.Off + 5<<12
	copies, _ := f.vol.Copies(seg.Logical + 5<<12)
	for _, c := range copies {
		pwrite(t, img.Devices[c.DevID-1], int64(c.Physical), []byte("ruined"))
	}
	from := seg.Off + 3<<12 + 100
	got := make([]byte, 8<<12)
	n, err := file.ReadAt(t.Context(), got, from)
	var lost *LostError
	if !errors.As(err, &lost) || len(lost.Ranges) != 1 || lost.Ranges[0].Off != at || lost.Ranges[0].Len != 4096 || len(lost.Ranges[0].Cause.Copies) != 2 {
		t.Fatalf("got %v, want 4096 bytes at %d lost on two copies", err, at)
	}
	if uint64(n) != at-from {
		t.Errorf("good prefix of %d bytes, want %d", n, at-from)
	}
	if err := mustEqual(path, got, want[from:from+uint64(len(got))], from, err); err != nil {
		t.Error(err)
	}
	if !errors.Is(err, ondisk.ErrChecksum) {
		t.Errorf("got %v, want ErrChecksum among the causes", err)
	}
	// A read that ends inside the lost block says which of its own bytes are lost.
	_, err = file.ReadAt(t.Context(), got[:10], at+4090)
	if !errors.As(err, &lost) || lost.Ranges[0].Off != at+4090 || lost.Ranges[0].Len != 6 {
		t.Errorf("got %v, want 6 bytes at %d lost", err, at+4090)
	}
	if _, err = file.ReadAt(t.Context(), got[:10], at+4096); err != nil {
		t.Errorf("behind the lost block: %v", err)
	}
}

// plainSegment finds a plain segment of at least n bytes in a file with checksums.
func plainSegment(t testing.TB, f *FS, n uint64) (string, *File, Segment) {
	t.Helper()
	var path string
	var file *File
	var seg Segment
	if err := eachFile(f, func(p string, fl *File) error {
		return fl.Extents(context.Background(), 0, func(s Segment) error {
			if s.Kind == Plain && fl.Verified() && min(s.Off+s.Len, fl.size) >= s.Off+n && file == nil {
				path, file, seg = p, fl, s
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if file == nil {
		t.Fatalf("no plain segment of %d bytes", n)
	}
	return path, file, seg
}

// TestLostDevice pulls a device of a redundant filesystem out while files are read.
func TestLostDevice(t *testing.T) {
	for _, cause := range []error{nil, syscall.EIO, syscall.ENODATA} {
		img := fsreadtest.Load(t, imageName(t, "raid1c3"))
		r := newRig(t, img)
		f := mustOpen(t, r, Options{CacheBytes: 1})
		truth := files(t, f, 4<<20)
		r.devs[0].Lose(cause)
		if err := eachFile(f, func(path string, file *File) error {
			if _, ok := truth[path]; !ok {
				return nil
			}
			got := make([]byte, file.size)
			if _, err := file.ReadAt(context.Background(), got, 0); err != nil {
				return err
			}
			return mustEqual(path, got, truth[path], 0, nil)
		}); err != nil {
			t.Errorf("cause %v: %v", cause, err)
		}
	}
}

// TestContextEndsWaiting gives up on a device that hangs; the bytes that it delivers later harm nobody.
func TestContextEndsWaiting(t *testing.T) {
	img := fsreadtest.Load(t, "single")
	r := newRig(t, img)
	f := mustOpen(t, r, Options{})
	_, file, seg := plainSegment(t, f, 16<<12)
	hang := r.devs[0].Hang(faultdev.All())
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("client is gone")
	p := make([]byte, 16<<12)
	done := make(chan error)
	go func() {
		_, err := file.ReadAt(ctx, p, seg.Off)
		done <- err
	}()
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("got %v, want the context's cause", err)
	}
	hang.Remove()
	r.devs[0].Release()
}

// TestCloseEndsReads closes a filesystem whose device hangs: every read ends with an error.
func TestCloseEndsReads(t *testing.T) {
	img := fsreadtest.Load(t, "single")
	r := newRig(t, img)
	f, err := r.open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, file, seg := plainSegment(t, f, 16<<12)
	r.devs[0].Hang(faultdev.All())
	done := make(chan error)
	go func() {
		_, err := file.ReadAt(context.Background(), make([]byte, 4096), seg.Off)
		done <- err
	}()
	for r.devs[0].Depth() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.close(t, f)
	if err := <-done; !errors.Is(err, devio.ErrClosed) && !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

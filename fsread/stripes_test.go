package fsread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
)

// The chunk of stripeBuilder: its own stripes point at bytes that are not the file's.
const (
	scatterStart = ondisk.Logical(64 << 20)
	scatterLen   = 1 << 20
	wrongPlace   = 10 << 20 // where the chunk's stripes start on each device
	diskEnd      = 16 << 20
)

// stripeBuilder makes a filesystem of two devices whose data lie where the stripe tree says. Everything else
// is on the first device.
type stripeBuilder struct {
	*builder
	disks map[devio.DevID][]byte
	free  map[devio.DevID]int // where the next item ends: later ones lie before earlier ones
	dev2  ondisk.DevItem
	items []ondisk.StripeExtent
}

func newStripeBuilder(t testing.TB, chunkType uint64, devs ...devio.DevID) *stripeBuilder {
	b := &stripeBuilder{builder: newBuilder(t), free: map[devio.DevID]int{1: diskEnd, 2: diskEnd}}
	b.sb.Incompat |= ondisk.IncompatRaidStripeTree
	b.sb.NumDevices = 2
	b.disk = bytes.Repeat([]byte{0xbd}, diskEnd)
	clear(b.disk[:1<<20])
	b.disks = map[devio.DevID][]byte{1: b.disk, 2: bytes.Clone(b.disk)}
	b.dev2 = b.sb.Dev
	b.dev2.DevID, b.dev2.UUID = 2, ondisk.UUID{0xde, 2}
	b.put(ondisk.TreeChunk, ondisk.DevItemsObjectID, ondisk.TypeDevItem, 2, ondisktest.DevItem(b.dev2))
	c := ondisk.Chunk{Length: scatterLen, Owner: ondisk.TreeExtent, StripeLen: ondisk.StripeLen, Type: chunkType, SubStripes: 2, SectorSize: 4096}
	uuids := map[devio.DevID]ondisk.UUID{1: b.sb.Dev.UUID, 2: b.dev2.UUID}
	for _, d := range devs {
		c.Stripes = append(c.Stripes, ondisk.Stripe{Dev: d, Physical: wrongPlace, DevUUID: uuids[d]})
	}
	b.put(ondisk.TreeChunk, ondisk.FirstChunkTreeObjectID, ondisk.TypeChunkItem, uint64(scatterStart), ondisktest.Chunk(c))
	b.trees[ondisk.TreeRaidStripe] = nil
	return b
}

// item writes p to each of the devices and says so in the stripe tree.
func (b *stripeBuilder) item(at ondisk.Logical, p []byte, devs ...devio.DevID) {
	s := ondisk.StripeExtent{Logical: at, Length: uint64(len(p)), Count: len(devs)}
	for i, d := range devs {
		s.Strides[i].Dev = d
		if b.disks[d] != nil {
			b.free[d] -= len(p)
			s.Strides[i].Physical = devio.Physical(b.free[d])
			copy(b.disks[d][b.free[d]:], p)
		}
	}
	b.items = append(b.items, s)
	b.put(ondisk.TreeRaidStripe, uint64(at), ondisk.TypeRaidStripe, s.Length, ondisktest.StripeExtent(s))
}

// drop takes an item out of the tree.
func (b *stripeBuilder) drop(s ondisk.StripeExtent) {
	b.trees[ondisk.TreeRaidStripe] = slices.DeleteFunc(b.trees[ondisk.TreeRaidStripe], func(i ondisktest.Item) bool {
		return i.Key.ObjectID == uint64(s.Logical)
	})
}

// scatter writes p at at in items of 1 to 9 sectors. devs gives the devices of the i-th item.
func (b *stripeBuilder) scatter(r *rand.Rand, at ondisk.Logical, p []byte, devs func(i int) []devio.DevID) {
	for i := 0; len(p) > 0; i++ {
		n := min(len(p), (1+r.IntN(9))*4096)
		b.item(at, p[:n], devs(i)...)
		at, p = at+ondisk.Logical(n), p[n:]
	}
}

func (b *stripeBuilder) sums(at ondisk.Logical, p []byte) {
	b.put(ondisk.TreeCsum, ondisk.CsumObjectID, ondisk.TypeExtentCsum, uint64(at), ondisktest.Csums(p, 4096, csum.CRC32C))
}

// openDisks builds the filesystem and opens it over some of its devices.
func (b *stripeBuilder) openDisks(o Options, ids ...devio.DevID) (*FS, error) {
	b.t.Helper()
	b.build()
	sb := *b.sb
	sb.Dev = b.dev2
	copy(b.disks[2][64<<10:], ondisktest.Super(&sb))
	var devs []volume.Device
	for _, id := range ids {
		devs = append(devs, faultdev.Mem(fmt.Sprintf("disk%d", id), b.disks[id]))
	}
	f, err := Open(context.Background(), devs, o)
	if err != nil {
		for _, d := range devs {
			d.Close()
		}
		return nil, err
	}
	b.t.Cleanup(func() { f.Close() })
	return f, nil
}

func (b *stripeBuilder) fileOn(o Options, ids ...devio.DevID) *File {
	b.t.Helper()
	f, err := b.openDisks(o, ids...)
	if err != nil {
		b.t.Fatal(err)
	}
	s, err := f.SubvolumeByID(context.Background(), ondisk.TreeFS)
	if err != nil {
		b.t.Fatal(err)
	}
	file, err := s.OpenFile(context.Background(), "/file")
	if err != nil {
		b.t.Fatal(err)
	}
	return file
}

// noise is n bytes that do not compress.
func noise(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// layout is a profile and the devices of each item.
type layout struct {
	name   string
	typ    uint64
	chunk  []devio.DevID
	copies func(i int) []devio.DevID
}

func always(devs ...devio.DevID) func(int) []devio.DevID {
	return func(int) []devio.DevID { return devs }
}

func layouts() []layout {
	return []layout{
		{"DUP", ondisk.BlockGroupDUP, []devio.DevID{1, 1}, always(1, 1)},
		{"RAID1", ondisk.BlockGroupRAID1, []devio.DevID{1, 2}, always(1, 2)},
		{"RAID1C3", ondisk.BlockGroupRAID1C3, []devio.DevID{1, 2, 1}, always(1, 2, 1)},
		{"RAID1C4", ondisk.BlockGroupRAID1C4, []devio.DevID{1, 2, 1, 2}, always(2, 1, 2, 1)},
		{"RAID0", ondisk.BlockGroupRAID0, []devio.DevID{1, 2}, func(i int) []devio.DevID { return []devio.DevID{devio.DevID(1 + i%2)} }},
		{"RAID10", ondisk.BlockGroupRAID10, []devio.DevID{1, 2}, always(2, 1)},
	}
}

// checkRandom reads a file at random places.
func checkRandom(t *testing.T, r *rand.Rand, f *File, want []byte) {
	t.Helper()
	for range 200 {
		off := r.IntN(len(want))
		p := make([]byte, 1+r.IntN(min(len(want)-off, 40<<10)))
		if _, err := f.ReadAt(t.Context(), p, uint64(off)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, want[off:off+len(p)]) {
			t.Fatalf("offset %d length %d: wrong bytes", off, len(p))
		}
	}
}

// TestStripeTree reads a file whose extents and items of the stripe tree start and end in different places.
func TestStripeTree(t *testing.T) {
	for _, l := range layouts() {
		for _, flags := range []uint64{0, ondisk.InodeNoDataSum} {
			t.Run(fmt.Sprintf("%s flags %d", l.name, flags), func(t *testing.T) {
				r := fsreadtest.Seed(t)
				b := newStripeBuilder(t, ondisk.BlockGroupData|l.typ, l.chunk...)
				p := noise(r, 320<<10)
				b.scatter(r, scatterStart+4096, p, l.copies)
				if flags == 0 {
					b.sums(scatterStart+4096, p)
				}
				b.size(300<<10-77, flags)
				b.extent(0, plain(scatterStart+4096, 200<<10, 20<<10, 100<<10))
				b.extent(100<<10, plain(scatterStart+4096+200<<10, 120<<10, 0, 120<<10))
				b.extent(220<<10, plain(scatterStart+4096, 200<<10, 4096, 80<<10))
				want := cat(p[20<<10:120<<10], p[200<<10:320<<10], p[4096:84<<10])[:300<<10-77]
				f := b.fileOn(Options{}, 2, 1)
				checkRanges(t, f, want)
				checkRandom(t, r, f, want)
				checkStripeCopies(t, b, f.fs, p)
			})
		}
	}
}

// checkStripeCopies holds what Copies says of each sector against the disks.
func checkStripeCopies(t *testing.T, b *stripeBuilder, f *FS, p []byte) {
	t.Helper()
	for at := 0; at < len(p); at += 4096 {
		l := scatterStart + 4096 + ondisk.Logical(at)
		s := b.items[slices.IndexFunc(b.items, func(s ondisk.StripeExtent) bool { return s.End() > l })]
		list, err := f.Copies(l)
		if err != nil || len(list) != s.Count {
			t.Fatalf("logical %d: got %d copies, %v, want %d", l, len(list), err, s.Count)
		}
		for i, c := range list {
			if c.DevID != s.Strides[i].Dev || c.Len != uint64(s.End()-l) || !bytes.Equal(b.disks[c.DevID][c.Physical:][:4096], p[at:at+4096]) {
				t.Errorf("logical %d: mirror %d is not at devid %d @%d for %d bytes", l, c.Mirror, c.DevID, c.Physical, c.Len)
			}
		}
	}
}

// TestStripeTreeIsNotAsked reads chunks that the stripe tree has no say in by their own stripes.
func TestStripeTreeIsNotAsked(t *testing.T) {
	for name, typ := range map[string]uint64{
		"single": ondisk.BlockGroupData,
		"mixed":  ondisk.BlockGroupData | ondisk.BlockGroupMetadata | ondisk.BlockGroupRAID1,
	} {
		t.Run(name, func(t *testing.T) {
			devs := []devio.DevID{1, 2}
			if name == "single" {
				devs = devs[:1]
			}
			b := newStripeBuilder(t, typ, devs...)
			want := noise(fsreadtest.Seed(t), 64<<10)
			b.item(scatterStart, zeroes, devs...)
			for _, d := range devs {
				copy(b.disks[d][wrongPlace:], want)
			}
			b.size(64<<10, ondisk.InodeNoDataSum)
			b.extent(0, plain(scatterStart, 64<<10, 0, 64<<10))
			f := b.fileOn(Options{}, 1, 2)
			checkRanges(t, f, want)
			if list, err := f.fs.Copies(scatterStart + 4096); err != nil || list[0].Physical != wrongPlace+4096 {
				t.Errorf("got copies %+v, %v", list, err)
			}
		})
	}
}

// TestStripeTreeGap loses exactly what an item that is missing would map.
func TestStripeTreeGap(t *testing.T) {
	for _, l := range layouts() {
		for _, place := range []string{"first", "middle", "last"} {
			t.Run(l.name+" "+place, func(t *testing.T) {
				r := fsreadtest.Seed(t)
				b := newStripeBuilder(t, ondisk.BlockGroupData|l.typ, l.chunk...)
				p := noise(r, 128<<10)
				b.scatter(r, scatterStart, p, l.copies)
				b.sums(scatterStart, p)
				b.size(128<<10, 0)
				b.extent(0, plain(scatterStart, 128<<10, 0, 128<<10))
				gone := b.items[map[string]int{"first": 0, "middle": len(b.items) / 2, "last": len(b.items) - 1}[place]]
				b.drop(gone)
				checkLost(t, b.fileOn(Options{}, 1, 2), p, []ondisk.StripeExtent{gone}, volume.ErrNoStripe, "no item of the RAID stripe tree")
			})
		}
	}
}

// checkLost reads a file whose extent starts at scatterStart: what the items map is lost by kind, and no more.
func checkLost(t *testing.T, f *File, want []byte, gone []ondisk.StripeExtent, kind error, word string) {
	t.Helper()
	want = bytes.Clone(want)
	lost := make([]bool, len(want))
	for _, s := range gone {
		for i := s.Logical - scatterStart; i < s.End()-scatterStart; i++ {
			want[i], lost[i] = 0, true
		}
	}
	got := make([]byte, len(want))
	_, err := f.ReadAt(t.Context(), got, 0)
	var le *LostError
	if !errors.As(err, &le) || !errors.Is(err, kind) || !strings.Contains(err.Error(), word) {
		t.Fatalf("got %v, want kind %v and %q", err, kind, word)
	}
	for _, r := range le.Ranges {
		for i := r.Off; i < r.Off+r.Len; i++ {
			if !lost[i] {
				t.Fatalf("offset %d is lost, and should not be", i)
			}
			lost[i] = false
		}
	}
	if i := slices.Index(lost, true); i >= 0 {
		t.Errorf("offset %d is not reported as lost", i)
	}
	if !bytes.Equal(got, want) {
		t.Error("wrong bytes")
	}
}

// TestStripeTreeRepairs ruins the copies on one device, then on the other.
func TestStripeTreeRepairs(t *testing.T) {
	repaired := 0
	for _, ruined := range []devio.DevID{1, 2} {
		r := rand.New(rand.NewPCG(1, 2))
		b := newStripeBuilder(t, ondisk.BlockGroupData|ondisk.BlockGroupRAID1, 1, 2)
		p := noise(r, 256<<10)
		b.scatter(r, scatterStart, p, always(1, 2))
		b.sums(scatterStart, p)
		b.size(256<<10, 0)
		b.extent(0, plain(scatterStart, 256<<10, 0, 256<<10))
		clear(b.disks[ruined][diskEnd-256<<10:])
		stats := newCounts()
		f := b.fileOn(Options{Stats: stats}, 1, 2)
		checkRanges(t, f, p)
		checkRandom(t, r, f, p)
		repaired += stats.repaired
		if stats.lost > 0 {
			t.Errorf("devid %d ruined: %d units lost", ruined, stats.lost)
		}
	}
	if repaired == 0 {
		t.Error("nothing was repaired")
	}
}

// TestStripeTreeMissingDevice reads what another device has as well, and loses what none of those given has.
func TestStripeTreeMissingDevice(t *testing.T) {
	for _, l := range layouts() {
		t.Run(l.name, func(t *testing.T) {
			r := fsreadtest.Seed(t)
			b := newStripeBuilder(t, ondisk.BlockGroupData|l.typ, l.chunk...)
			p := noise(r, 128<<10)
			b.scatter(r, scatterStart, p, l.copies)
			b.sums(scatterStart, p)
			b.size(128<<10, 0)
			b.extent(0, plain(scatterStart, 128<<10, 0, 128<<10))
			f := b.fileOn(Options{Degraded: true}, 1)
			if l.typ != ondisk.BlockGroupRAID0 {
				checkRanges(t, f, p)
				return
			}
			gone := slices.DeleteFunc(slices.Clone(b.items), func(s ondisk.StripeExtent) bool { return s.Strides[0].Dev == 1 })
			checkLost(t, f, p, gone, volume.ErrMissing, "devid 2 (missing)")
		})
	}
}

// TestStripeTreeUnknownDevice: a devid that the chunk tree does not know is a missing device.
func TestStripeTreeUnknownDevice(t *testing.T) {
	b := newStripeBuilder(t, ondisk.BlockGroupData|ondisk.BlockGroupRAID1, 1, 2)
	p := noise(fsreadtest.Seed(t), 64<<10)
	b.item(scatterStart, p[:32<<10], 7, 2)
	b.item(scatterStart+32<<10, p[32<<10:], 7, 8)
	b.sums(scatterStart, p)
	b.extent(0, plain(scatterStart, 64<<10, 0, 64<<10))
	checkLost(t, b.fileOn(Options{}, 1, 2), p, b.items[1:], volume.ErrMissing, "devid 8 (missing)")
}

// TestStripeTreeCompressed reads compressed extents that lie in several items, the second time from part of
// an item; where one is missing, all of the extent is lost.
func TestStripeTreeCompressed(t *testing.T) {
	for _, l := range layouts() {
		for _, flags := range []uint64{0, ondisk.InodeNoDataSum} {
			for _, gap := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s flags %d gap %t", l.name, flags, gap), func(t *testing.T) {
					r := fsreadtest.Seed(t)
					b := newStripeBuilder(t, ondisk.BlockGroupData|l.typ, l.chunk...)
					want := cat(noise(r, 90<<10), bytes.Repeat([]byte{7}, 38<<10))
					frame := deflated(t, want)
					disk := roundUp(uint64(len(frame)), 4096)
					on := cat(noise(r, 8192), frame, make([]byte, int(disk)-len(frame)))
					b.scatter(r, scatterStart, on, l.copies)
					if flags == 0 {
						b.sums(scatterStart, on)
					}
					if gap {
						b.drop(b.items[len(b.items)-1])
					}
					b.size(128<<10, flags)
					b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentRegular, Compression: ondisk.CompressZstd, RAMBytes: 128 << 10,
						DiskBytenr: scatterStart + 8192, DiskNumBytes: disk, NumBytes: 128 << 10})
					f := b.fileOn(Options{}, 1, 2)
					if !gap {
						checkRanges(t, f, want)
						return
					}
					whole := ondisk.StripeExtent{Logical: scatterStart, Length: 128 << 10}
					checkLost(t, f, want, []ondisk.StripeExtent{whole}, volume.ErrNoStripe, "no item of the RAID stripe tree")
				})
			}
		}
	}
}

// TestStripeTreeRefuses names what is wrong with a stripe tree.
func TestStripeTreeRefuses(t *testing.T) {
	p := make([]byte, 8192)
	raid1 := func(t *testing.T) *stripeBuilder {
		b := newStripeBuilder(t, ondisk.BlockGroupData|ondisk.BlockGroupRAID1, 1, 2)
		b.size(64<<10, ondisk.InodeNoDataSum)
		b.extent(0, plain(scatterStart, 64<<10, 0, 64<<10))
		return b
	}
	for _, c := range []struct {
		name string
		make func(b *stripeBuilder)
		kind error
		word string
	}{
		{"no item", func(*stripeBuilder) {}, volume.ErrNoStripe, "offset 0"},
		{"items overlap", func(b *stripeBuilder) {
			b.item(scatterStart, p, 1, 2)
			b.item(scatterStart+4096, p, 1, 2)
		}, ondisk.ErrCorrupt, "overlaps another item"},
		{"half a stride", func(b *stripeBuilder) {
			b.put(ondisk.TreeRaidStripe, uint64(scatterStart), ondisk.TypeRaidStripe, 4096, p[:24])
		}, ondisk.ErrCorrupt, "24 bytes"},
		{"only items before and after", func(b *stripeBuilder) {
			b.item(scatterStart-8192, p, 1, 2)
			b.item(scatterStart+64<<10, p, 1, 2)
		}, volume.ErrNoStripe, "and 15 more ranges"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := raid1(t)
			c.make(b)
			f := b.fileOn(Options{}, 1, 2)
			if _, err := f.ReadAt(t.Context(), make([]byte, 64<<10), 0); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.word) {
				t.Errorf("got %v, want kind %v and %q", err, c.kind, c.word)
			}
			if _, err := f.fs.Copies(scatterStart + 60<<10); c.kind == volume.ErrNoStripe && !errors.Is(err, c.kind) {
				t.Errorf("copies: got %v, want %v", err, c.kind)
			}
		})
	}
	t.Run("no root", func(t *testing.T) {
		b := raid1(t)
		delete(b.trees, ondisk.TreeRaidStripe)
		if _, err := b.openDisks(Options{}, 1, 2); err == nil || !strings.Contains(err.Error(), "RAID stripe tree: ") {
			t.Errorf("got %v, want an error of the RAID stripe tree", err)
		}
	})
}

// checkedFrame is p as a zstd frame whose every bit matters to whoever inflates it.
func checkedFrame(t testing.TB, p []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true), zstd.WithEncoderCRC(true))
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(p, nil)
}

// TestStripeTreeCompressedRepairs: where no checksum says which copy of which item is bad, the mixes of copies
// are tried until one inflates. A crafted tree has more mixes than anybody should try: that ends as a loss.
func TestStripeTreeCompressedRepairs(t *testing.T) {
	for _, c := range []struct {
		name    string
		sectors int // of an item
		ruined  []int
		lost    bool
	}{
		{"one bad item of four", 8, []int{1}, false},
		{"two bad items of four", 8, []int{0, 2}, false},
		{"every sector an item, and no mix is good", 1, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			b := newStripeBuilder(t, ondisk.BlockGroupData|ondisk.BlockGroupRAID1C4, 1, 2, 1, 2)
			want := cat(noise(r, 120<<10), zeroes[:8<<10])
			on := checkedFrame(t, want)
			on = append(on, make([]byte, int(roundUp(uint64(len(on)), 4096))-len(on))...)
			if c.lost {
				clear(on)
			}
			for at, n := 0, 0; at < len(on); at += n {
				n = min(c.sectors*4096, len(on)-at)
				b.item(scatterStart+ondisk.Logical(at), on[at:at+n], 1, 2, 1, 2)
			}
			for _, i := range c.ruined {
				for m, s := range b.items[i].Strides {
					if m != i {
						clear(b.disks[s.Dev][s.Physical:][:b.items[i].Length])
					}
				}
			}
			b.size(128<<10, ondisk.InodeNoDataSum)
			b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentRegular, Compression: ondisk.CompressZstd, RAMBytes: 128 << 10,
				DiskBytenr: scatterStart, DiskNumBytes: uint64(len(on)), NumBytes: 128 << 10})
			f := b.fileOn(Options{}, 1, 2)
			if !c.lost {
				checkRanges(t, f, want)
				return
			}
			var le *LostError
			if _, err := f.ReadAt(t.Context(), make([]byte, 4096), 0); !errors.As(err, &le) {
				t.Errorf("got %v, want a *LostError", err)
			}
		})
	}
}

// TestStripeTreeAllocatesNothing holds for reads that are used again, once their tree blocks are cached.
func TestStripeTreeAllocatesNothing(t *testing.T) {
	if fsreadtest.Race {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	b := newStripeBuilder(t, ondisk.BlockGroupData|ondisk.BlockGroupRAID1, 1, 2)
	r := fsreadtest.Seed(t)
	p := noise(r, 128<<10)
	b.scatter(r, scatterStart, p, always(1, 2))
	b.sums(scatterStart, p)
	b.size(128<<10, 0)
	b.extent(0, plain(scatterStart, 128<<10, 0, 128<<10))
	f := b.fileOn(Options{}, 1, 2)
	done := make(signal, 1)
	read := &Read{Off: 100, Len: 120 << 10, Done: done}
	batch := []*Read{read}
	one := func() {
		f.Submit(batch)
		<-done
		if read.Err != nil {
			t.Fatal(read.Err)
		}
		read.Release()
	}
	for range 20 {
		one() // which mirror is asked depends on their load, and so how many runs there are
	}
	if n := testing.AllocsPerRun(100, one); n >= 1 {
		t.Errorf("%v allocations", n)
	}
}

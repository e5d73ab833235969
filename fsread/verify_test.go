package fsread

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/codec"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// verified is what a Verification said of one file.
type verified struct {
	FileVerdict
	ranges []BadRange
}

// verifyAll verifies every file of the top level in one run.
func verifyAll(t testing.TB, f *FS) (map[string]verified, VerifySummary) {
	t.Helper()
	v := f.NewVerification(VerifyOptions{})
	out := map[string]verified{}
	if err := eachFile(f, func(path string, file *File) error {
		var got verified
		var err error
		got.FileVerdict, err = v.File(context.Background(), file, func(b BadRange) { got.ranges = append(got.ranges, b) })
		if got.Checked != file.Size() && err == nil {
			t.Errorf("%s: checked up to %d of %d", path, got.Checked, file.Size())
		}
		out[path] = got
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out, v.Summary()
}

// TestVerifyGolden finds nothing in any golden image, reads what Plan says, and no copy or parity block twice.
func TestVerifyGolden(t *testing.T) {
	for _, name := range fsreadtest.Names(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, name)
			r := newRig(t, img)
			f := mustOpen(t, r, Options{})
			planner := f.NewVerification(VerifyOptions{})
			var planned uint64
			if err := eachFile(f, func(_ string, file *File) error {
				n, err := planner.Plan(t.Context(), file)
				planned += n
				return err
			}); err != nil {
				t.Fatal(err)
			}
			got, sum := verifyAll(t, f)
			for path, v := range got {
				if len(v.ranges) > 0 || v.Ranges > 0 || v.Absent > 0 || v.Lost > 0 {
					t.Errorf("%s: %+v", path, v)
				}
			}
			if sum.Bytes != planned || sum.Repeated {
				t.Errorf("read %d bytes, planned %d", sum.Bytes, planned)
			}
			var blocks, good int64
			for _, d := range sum.Devices {
				blocks, good = blocks+d.Blocks(), good+d.Tally[volume.Good]+d.Tally[volume.Unverified]
			}
			least := int64(sum.Bytes) / int64(f.super.SectorSize) * int64(sum.MinCopies)
			if blocks != good || blocks < least || (planned > 0) != (blocks > 0) {
				t.Errorf("%d blocks, %d good, want at least %d", blocks, good, least)
			}
		})
	}
}

// blockAt is a block on a device.
type blockAt struct {
	dev  devio.DevID
	phys devio.Physical
}

// TestVerifyFindsRuined ruins one copy of random blocks, parity too: the blocks of files that have checksums are
// named, each once for every file that has it, and nothing else; no file loses anything.
func TestVerifyFindsRuined(t *testing.T) {
	for _, name := range []string{"dup", "raid1-2", "raid1c3", "raid1c4", "raid10-4", "raid5", "raid6"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := fsreadtest.Seed(t)
			img := fsreadtest.Load(t, imageName(t, name))
			r := newRig(t, img)
			f := mustOpen(t, r, Options{})
			bad := ruinBlocks(t, rng, f)
			want := map[string]map[blockAt]bool{}
			if err := eachFile(f, func(path string, file *File) error {
				if !file.Verified() {
					return nil
				}
				var err error
				want[path], err = ruinedOf(f, file, bad)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			got, sum := verifyAll(t, f)
			all := map[blockAt]bool{}
			for path, blocks := range want {
				have := map[blockAt]bool{}
				for _, b := range got[path].ranges {
					for _, c := range b.Copies {
						for in := uint64(0); in < b.Disk && c.State == volume.Bad; in += uint64(f.super.SectorSize) {
							have[blockAt{c.DevID, c.Physical + devio.Physical(in)}] = true
						}
						if c.State != volume.Bad && c.State != volume.Good {
							t.Errorf("%s: %+v", path, b)
						}
					}
					if b.Lost {
						t.Errorf("%s: lost %+v", path, b)
					}
				}
				for b := range blocks {
					all[b] = true
					if !have[b] {
						t.Errorf("%s: %v was ruined and is not named", path, b)
					}
				}
				for b := range have {
					if !blocks[b] {
						t.Errorf("%s: %v is named and was not ruined", path, b)
					}
				}
			}
			var counted int64
			for _, d := range sum.Devices {
				// Parity counts by what it was for the first file that it covers: that may be one without checksums.
				counted += d.Tally[volume.Bad] + d.Tally[volume.Differs]
			}
			if counted != int64(len(all)) || len(all) == 0 {
				t.Errorf("%d bad blocks are counted, %d were ruined", counted, len(all))
			}
		})
	}
}

// ruinBlocks overwrites, at random, one copy of blocks of files with checksums, or of RAID5 and RAID6 one block
// of a slice.
func ruinBlocks(t *testing.T, rng *rand.Rand, f *FS) map[blockAt]bool {
	t.Helper()
	bad := map[blockAt]bool{}
	touched := map[blockAt]bool{} // slices of RAID5 and RAID6, by their last parity
	ss := int(f.super.SectorSize)
	if err := eachFile(f, func(_ string, file *File) error {
		if !file.Verified() {
			return nil
		}
		return file.Extents(t.Context(), 0, func(s Segment) error {
			from, to, ok := stored(&s)
			for l := from; ok && l < to; l += ondisk.Logical(ss) {
				copies, err := f.Copies(l)
				if err != nil {
					return err
				}
				c := copies[rng.IntN(len(copies))]
				at := blockAt{c.DevID, c.Physical}
				last := copies[len(copies)-1]
				slice := blockAt{last.DevID, last.Physical}
				seen := slices.ContainsFunc(copies, func(c volume.Copy) bool { return bad[blockAt{c.DevID, c.Physical}] })
				if seen || touched[slice] || rng.IntN(6) > 0 {
					continue
				}
				if f.vol.HasParity(l) {
					touched[slice] = true
				}
				bad[at] = true
				junk := make([]byte, ss)
				for i := range junk {
					junk[i] = byte(rng.Uint32())
				}
				i := slices.IndexFunc(f.vol.Devices(), func(d volume.DeviceInfo) bool { return d.DevID == c.DevID })
				pwrite(t, f.vol.Devices()[i].Name, int64(c.Physical), junk)
			}
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	return bad
}

// ruinedOf gives the ruined blocks among the copies and the parity of a file.
func ruinedOf(f *FS, file *File, bad map[blockAt]bool) (map[blockAt]bool, error) {
	out := map[blockAt]bool{}
	err := file.Extents(context.Background(), 0, func(s Segment) error {
		from, to, ok := stored(&s)
		for l := from; ok && l < to; l += ondisk.Logical(f.super.SectorSize) {
			copies, err := f.Copies(l)
			if err != nil {
				return err
			}
			for _, c := range copies {
				if at := (blockAt{c.DevID, c.Physical}); bad[at] {
					out[at] = true
				}
			}
		}
		return nil
	})
	return out, err
}

// TestVerifyLost ruins every copy of one block: the range is lost, and says of both copies why.
func TestVerifyLost(t *testing.T) {
	img := fsreadtest.Load(t, "raid1-2")
	r := newRig(t, img)
	f := mustOpen(t, r, Options{})
	path, file, seg := plainSegment(t, f, 16<<12)
	at := seg.Off + 5<<12
	copies, _ := f.Copies(seg.Logical + 5<<12)
	for _, c := range copies {
		pwrite(t, img.Devices[c.DevID-1], int64(c.Physical), []byte("ruined"))
	}
	var got []BadRange
	verdict, sum, err := file.Verify(t.Context(), VerifyOptions{}, func(b BadRange) { got = append(got, b) })
	if err != nil || len(got) != 1 {
		t.Fatalf("%s: got %+v, error %v", path, got, err)
	}
	b := got[0]
	if !b.Lost || b.Off != at || b.Len != 4096 || len(b.Copies) != 2 || !errors.Is(b.Copies[1].Err, ondisk.ErrChecksum) || verdict.Lost != 4096 {
		t.Errorf("%s: got %+v of %+v, want 4096 bytes at %d lost", path, b, verdict, at)
	}
	for _, d := range sum.Devices {
		if d.Tally[volume.Bad] != 1 {
			t.Errorf("devid %d: %v", d.DevID, d.Tally)
		}
	}
}

// TestVerifyJoins tells blocks that lie side by side as one range, across steps too.
func TestVerifyJoins(t *testing.T) {
	r := newRig(t, fsreadtest.Load(t, imageName(t, "raid1c4")))
	f := mustOpen(t, r, Options{})
	_, file, seg := plainSegment(t, f, 384<<10) // a step takes 256 KiB of four copies
	copies, _ := f.Copies(seg.Logical)
	r.devs[copies[0].DevID-1].Fail(faultdev.All(), syscall.EIO)
	var got []BadRange
	if _, _, err := file.Verify(t.Context(), VerifyOptions{}, func(b BadRange) { got = append(got, b) }); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(got, func(b BadRange) bool { return b.Off <= seg.Off && b.Off+b.Len >= min(seg.Off+seg.Len, file.size) })
	if i < 0 {
		t.Fatalf("got %+v, want one that holds all of %+v", got, seg)
	}
	for _, c := range got[i].Copies {
		if c.Len != got[i].Disk || (c.State == volume.Unreadable) != (c.DevID == copies[0].DevID) || (c.State == volume.Good) != (c.DevID != copies[0].DevID) {
			t.Errorf("got %+v", c)
		}
	}
}

// TestVerifyStops gives up on a device that hangs, says how far it came, and leaves nothing behind.
func TestVerifyStops(t *testing.T) {
	img := fsreadtest.Load(t, "raid1-2")
	r := newRig(t, img)
	f := mustOpen(t, r, Options{})
	_, file, seg := plainSegment(t, f, 16<<12)
	copies, _ := f.Copies(seg.Logical)
	var sum VerifySummary
	hang := r.devs[1].Hang(faultdev.Range(copies[1].Physical, 4096))
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("user has gone")
	v := f.NewVerification(VerifyOptions{})
	done := make(chan error)
	var verdict FileVerdict
	go func() {
		var err error
		verdict, err = v.File(ctx, file, func(BadRange) {})
		sum = v.Summary()
		done <- err
	}()
	for !hang.Fired() {
		time.Sleep(time.Millisecond)
	}
	cancel(gone)
	if err := <-done; !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	if verdict.Checked > seg.Off || len(sum.Devices) != 2 {
		t.Errorf("checked up to %d, the device hangs at %d; %+v", verdict.Checked, seg.Off, sum)
	}
	hang.Remove()
	r.devs[1].Release()
	for r.pool.Lent() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// TestVerifyBesideReads verifies while the same files are read.
func TestVerifyBesideReads(t *testing.T) {
	img := fsreadtest.Load(t, "raid10-4")
	r := newRig(t, img)
	f := mustOpen(t, r, Options{})
	truth := files(t, f, 4<<20)
	done := make(chan error)
	go func() {
		done <- eachFile(f, func(path string, file *File) error {
			want, ok := truth[path]
			if !ok {
				return nil
			}
			got := make([]byte, len(want))
			_, err := file.ReadAt(context.Background(), got, 0)
			return errors.Join(err, mustEqual(path, got, want, 0, err))
		})
	}()
	got, _ := verifyAll(t, f)
	if err := <-done; err != nil {
		t.Error(err)
	}
	for path, v := range got {
		if len(v.ranges) > 0 {
			t.Errorf("%s: %+v", path, v.ranges)
		}
	}
}

// TestVerifyCompressed judges an extent by the checksums of its sectors, by whether it inflates where there are
// none, and by both where what was written was broken already.
func TestVerifyCompressed(t *testing.T) {
	a := pattern(128<<10, 6)
	rand.NewChaCha8([32]byte{}).Read(a[:64<<10]) // so that it takes many sectors
	for _, c := range []struct {
		name   string
		flags  uint64
		damage func(b *builder)
		kind   error
		disk   uint64 // bytes that are named
	}{
		{"good", 0, func(*builder) {}, nil, 0},
		{"good, no checksums", ondisk.InodeNoDataSum, func(*builder) {}, nil, 0},
		{"a bad sector", 0, func(b *builder) { b.disk[dataStart+20000] ^= 1 }, ondisk.ErrChecksum, 4096},
		{"a missing checksum", 0, func(b *builder) {
			sums := b.trees[ondisk.TreeCsum][0].Data
			b.replace(ondisk.TreeCsum, ondisk.CsumObjectID, ondisk.TypeExtentCsum, uint64(dataStart), sums[:len(sums)-4])
		}, volume.ErrNoChecksum, 4096},
		{"no frame under right checksums", 0, func(b *builder) {
			b.trees[ondisk.TreeCsum] = nil
			b.data(dataStart, bytes.Repeat([]byte{7}, 128<<10), true)
		}, codec.ErrCorrupt, 0},
		{"no frame, no checksums", ondisk.InodeNoDataSum, func(b *builder) {
			copy(b.disk[dataStart:], bytes.Repeat([]byte{7}, 128<<10))
		}, codec.ErrCorrupt, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBuilder(t)
			b.size(128<<10, c.flags)
			x := b.compressed(dataStart, a, 128<<10, 0, c.flags == 0)
			b.extent(0, x)
			c.damage(b)
			var got []BadRange
			verdict, sum, err := b.file().Verify(t.Context(), VerifyOptions{}, func(b BadRange) { got = append(got, b) })
			if err != nil || sum.Bytes != x.DiskNumBytes || verdict.NoSums != (c.flags != 0) {
				t.Fatalf("read %d bytes of %d, %+v, error %v", sum.Bytes, x.DiskNumBytes, verdict, err)
			}
			if c.kind == nil {
				if len(got) > 0 || verdict.Lost > 0 {
					t.Errorf("got %+v", got)
				}
				return
			}
			if len(got) != 1 || got[0].Off != 0 || got[0].Len != 128<<10 || !got[0].Lost || verdict.Lost != 128<<10 {
				t.Fatalf("got %+v, %+v, want all of the extent lost", got, verdict)
			}
			all := []error{got[0].Err}
			for _, x := range got[0].Copies {
				all = append(all, x.Err)
			}
			if want := c.disk; !errors.Is(errors.Join(all...), c.kind) || (want > 0 && got[0].Disk != want) || (want == 0 && got[0].Disk != x.DiskNumBytes) {
				t.Errorf("got %v of %d bytes, want %v of %d", all, got[0].Disk, c.kind, want)
			}
		})
	}
}

// TestVerifyStripeTree finds what is ruined where the RAID stripe tree put it, and loses what it says nothing of.
func TestVerifyStripeTree(t *testing.T) {
	for _, l := range layouts() {
		t.Run(l.name, func(t *testing.T) {
			r := fsreadtest.Seed(t)
			b := newStripeBuilder(t, ondisk.BlockGroupData|l.typ, l.chunk...)
			p := noise(r, 256<<10)
			b.scatter(r, scatterStart, p, l.copies)
			b.sums(scatterStart, p)
			b.size(256<<10, 0)
			b.extent(0, plain(scatterStart, 256<<10, 0, 256<<10))
			item := b.items[r.IntN(len(b.items))]
			at := item.Strides[item.Count-1]
			clear(b.disks[at.Dev][at.Physical : uint64(at.Physical)+item.Length])
			gone := b.items[len(b.items)-1]
			if gone.Logical != item.Logical {
				b.drop(gone)
			}
			var bad, lost uint64
			file := b.fileOn(Options{}, 1, 2)
			if _, _, err := file.Verify(t.Context(), VerifyOptions{}, func(x BadRange) {
				for _, c := range x.Copies {
					if c.State == volume.Bad && c.DevID == at.Dev && c.Physical >= at.Physical && uint64(c.Physical)+x.Disk <= uint64(at.Physical)+item.Length {
						bad += x.Disk
					} else if c.State != volume.Good {
						t.Errorf("got %+v", x)
					}
				}
				if x.Lost {
					lost += x.Disk
				}
			}); err != nil {
				t.Fatal(err)
			}
			wantLost := uint64(0)
			if gone.Logical != item.Logical {
				wantLost = gone.Length
			}
			if item.Count == 1 {
				wantLost += item.Length
			}
			if bad != item.Length || lost != wantLost {
				t.Errorf("%d bytes are bad and %d lost, want %d and %d", bad, lost, item.Length, wantLost)
			}
		})
	}
}

// TestVerifyZlib takes the checksum inside a zlib extent for one where there is no other, as a read does.
func TestVerifyZlib(t *testing.T) {
	for _, flags := range []uint64{0, ondisk.InodeNoDataSum} {
		var frame bytes.Buffer
		w := zlib.NewWriter(&frame)
		if _, err := w.Write(pattern(16<<10, 3)); err != nil || w.Close() != nil {
			t.Fatal(err)
		}
		frame.Bytes()[frame.Len()-1] ^= 1
		b := newBuilder(t)
		b.size(16<<10, flags)
		n := roundUp(uint64(frame.Len()), 4096)
		b.data(dataStart, append(frame.Bytes(), make([]byte, n-uint64(frame.Len()))...), flags == 0)
		b.extent(0, ondisk.FileExtent{Type: ondisk.ExtentRegular, Compression: ondisk.CompressZlib, RAMBytes: 16 << 10, DiskBytenr: dataStart, DiskNumBytes: n, NumBytes: 16 << 10})
		file := b.file()
		_, err := file.ReadAt(t.Context(), make([]byte, 16<<10), 0)
		verdict, _, verr := file.Verify(t.Context(), VerifyOptions{}, func(BadRange) {})
		if verr != nil || (err != nil) != (verdict.Lost > 0) || (verdict.Lost > 0) != (flags != 0) {
			t.Errorf("flags %d: read says %v, verify %+v, %v", flags, err, verdict, verr)
		}
	}
}

// TestVerifyUnmapped tells of an extent that no chunk maps, as large as a crafted filesystem may have it.
func TestVerifyUnmapped(t *testing.T) {
	b := newBuilder(t)
	const n = 1 << 55
	b.size(8192+n, 0)
	b.data(dataStart, pattern(8192, 1), true)
	b.extent(0, plain(dataStart, 8192, 0, 8192))
	b.extent(8192, plain(1<<50, n, 0, n))
	var got []BadRange
	verdict, sum, err := b.file().Verify(t.Context(), VerifyOptions{}, func(b BadRange) { got = append(got, b) })
	if err != nil || len(got) != 1 || verdict.Lost != n || sum.Bytes != 8192+n || verdict.Checked != 8192+n {
		t.Fatalf("got %+v, %+v, %+v, error %v", got, verdict, sum, err)
	}
	if x := got[0]; x.Off != 8192 || x.Len != n || !x.Lost || !errors.Is(x.Err, volume.ErrUnmapped) {
		t.Errorf("got %+v", x)
	}
}

// TestSpans holds the set against a map of addresses.
func TestSpans(t *testing.T) {
	rng := fsreadtest.Seed(t)
	for range 200 {
		var s spans
		truth := map[uint64]bool{}
		for range 60 {
			from := rng.Uint64N(200)
			to := from + 1 + rng.Uint64N(20)
			fresh, ok := s.add(from, to)
			want := uint64(0)
			for x := from; x < to; x++ {
				if !truth[x] {
					want++
				}
				truth[x] = true
			}
			if fresh != want || !ok {
				t.Fatalf("add %d to %d: %d new, want %d", from, to, fresh, want)
			}
		}
		for x := uint64(0); x < 230; x++ {
			in, until := s.at(x)
			if in != truth[x] || until <= x {
				t.Fatalf("%d is in: %v until %d, want %v; %v", x, in, until, truth[x], s.list)
			}
			for y := x; y < min(until, 230); y++ {
				if truth[y] != in {
					t.Fatalf("%d: the answer for %d does not hold until %d", y, x, until)
				}
			}
		}
	}
	full := spans{limit: 2}
	var oks []bool
	for _, x := range []uint64{0, 10, 20, 1, 9} {
		_, ok := full.add(x, x+1)
		oks = append(oks, ok)
	}
	if fmt.Sprint(oks) != "[true true false true true]" {
		t.Errorf("a set of two ranges took %v", oks)
	}
}

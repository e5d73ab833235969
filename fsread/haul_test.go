package fsread

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// neighbours makes a file of n compressed extents of 128 KiB that lie one behind the other on the disk, and gives
// its bytes and where each extent starts; the last entry is where they end.
func (b *builder) neighbours(n int) (want []byte, at []ondisk.Logical) {
	b.size(uint64(n)<<17, 0)
	next := dataStart
	for i := range n {
		p := pattern(128<<10, byte(i))
		rand.NewChaCha8([32]byte{byte(i)}).Read(p[:20<<10+i<<12]) // so that it takes some sectors
		x := b.compressed(next, p, 128<<10, 0, true)
		b.extent(uint64(i)<<17, x)
		want, at = append(want, p...), append(at, next)
		next += ondisk.Logical(x.DiskNumBytes)
	}
	return want, append(at, next)
}

// recorded opens the builder's filesystem on a device whose reads can be watched.
func (b *builder) recorded(o Options, how ...faultdev.MemOption) (*File, *faultdev.Dev) {
	b.t.Helper()
	b.build()
	dev := faultdev.New(faultdev.Mem("disk", b.disk, how...))
	fs, err := Open(context.Background(), []volume.Device{dev}, o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { fs.Close() })
	s, err := fs.SubvolumeByID(b.t.Context(), ondisk.TreeFS)
	if err != nil {
		b.t.Fatal(err)
	}
	f, err := s.OpenFile(b.t.Context(), "file")
	if err != nil {
		b.t.Fatal(err)
	}
	return f, dev
}

// dataReads gives the lengths of the reads that dev was asked for for extents, since Record.
func dataReads(dev *faultdev.Dev) (lens []int) {
	for _, l := range dev.Log() {
		if l.Off >= 3<<20 {
			lens = append(lens, l.Size)
		}
	}
	return lens
}

// readBatch submits reads of n bytes at the offsets together and gives them when all are done.
func readBatch(f *File, n int, offs ...uint64) []*Read {
	done := make(signal, len(offs))
	var batch []*Read
	for _, off := range offs {
		batch = append(batch, &Read{Off: off, Len: n, Done: done})
	}
	f.Submit(batch)
	for range offs {
		<-done
	}
	return batch
}

// TestNeighboursReadTogether reads eight extents that are neighbours in a few reads, and what is lost of one of them
// takes nothing from the others.
func TestNeighboursReadTogether(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage int // the extent; -1: none
	}{{"healthy", -1}, {"the first is bad", 0}, {"one within is bad", 3}, {"the last is bad", 7}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBuilder(t)
			want, at := b.neighbours(8)
			if c.damage >= 0 {
				b.disk[at[c.damage]+5000] ^= 1
			}
			f, dev := b.recorded(Options{})
			if _, err := f.ReadAt(t.Context(), make([]byte, 1<<20), 0); (err != nil) != (c.damage >= 0) { // the tree blocks
				t.Fatal(err)
			}
			f.fs.inflater.cache.Clear()
			dev.Record()
			for i, r := range readBatch(f, 256<<10, 0, 256<<10, 512<<10, 768<<10) {
				checkPart(t, r, want, c.damage)
				if lost := c.damage/2 == i && c.damage >= 0; (r.Err != nil) != lost {
					t.Errorf("read %d: %v, lost should be %v", i, r.Err, lost)
				}
				r.Release()
			}
			size := int(at[8] - at[0])
			lens := dataReads(dev)
			if least := (size + maxHaul - 1) / maxHaul; c.damage < 0 && len(lens) > least+1 {
				t.Errorf("%d bytes in reads of %v, want at most %d reads", size, lens, least+1)
			}
		})
	}
}

// checkPart holds a read against the file's bytes; all of one extent may be lost.
func checkPart(t *testing.T, r *Read, want []byte, damaged int) {
	t.Helper()
	exp := bytes.Clone(want[r.Off : r.Off+uint64(r.Len)])
	var lost *LostError
	if errors.As(r.Err, &lost) {
		for _, l := range lost.Ranges {
			if l.Off>>17 != uint64(damaged) || l.Len != 128<<10 {
				t.Errorf("lost [%d, +%d), extent %d is damaged", l.Off, l.Len, damaged)
			}
			clear(exp[l.Off-r.Off:][:l.Len])
		}
	} else if r.Err != nil {
		t.Error(r.Err)
	}
	if !bytes.Equal(r.Payload(), exp) {
		t.Errorf("offset %d length %d: wrong bytes", r.Off, r.Len)
	}
}

// TestFlightsAllocateNothing holds for reads that inflate extents, once all that they use has been used.
func TestFlightsAllocateNothing(t *testing.T) {
	if fsreadtest.Race {
		t.Skip("sync.Pool forgets at random under the race detector")
	}
	b := newBuilder(t)
	b.neighbours(8)
	f := b.file()
	done := make(signal, 8)
	var one, all []*Read
	for i := range 8 {
		all = append(all, &Read{Off: uint64(i) << 17, Len: 128 << 10, Done: done})
	}
	one = all[:1]
	for name, batch := range map[string][]*Read{"one": one, "eight": all} {
		read := func() {
			f.fs.inflater.cache.Clear()
			f.Submit(batch)
			for range batch {
				<-done
			}
			for _, r := range batch {
				if r.Err != nil {
					t.Fatal(r.Err)
				}
				r.Release()
			}
		}
		for range 20 {
			read()
		}
		if n := testing.AllocsPerRun(200, read); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

package fsread

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
)

// history is a filesystem with two commits: /file had the pattern 6 in generation 6 and has the pattern 7 now.
type history struct {
	*builder
	old, now ondisk.Roots
}

const (
	oldData = dataStart
	newData = dataStart + 64<<10
	oldSlot = 2 // of the superblock; slot 3 repeats its own roots
)

// newHistory builds both states. flags are the inode's; without NODATASUM the data have checksums.
func newHistory(t testing.TB, flags uint64) *history {
	h := &history{builder: newBuilder(t)}
	h.disk = make([]byte, mirror+1<<20)
	write := func(generation uint64, at ondisk.Logical) ondisk.Roots {
		h.sb.Generation = generation
		h.trees[ondisk.TreeRoot], h.trees[ondisk.TreeCsum] = nil, nil
		h.size(64<<10, flags)
		x := ondisktest.FileExtent(ondisk.FileExtent{Generation: generation, Type: ondisk.ExtentRegular, DiskBytenr: at, DiskNumBytes: 64 << 10, NumBytes: 64 << 10, RAMBytes: 64 << 10})
		h.replace(ondisk.TreeFS, fileIno, ondisk.TypeExtentData, 0, x)
		h.data(at, pattern(64<<10, byte(generation)), flags&ondisk.InodeNoDataSum == 0)
		h.build()
		return h.sb.Roots()
	}
	h.old = write(6, oldData)
	h.sb.Backups[oldSlot] = backupOf(h.old)
	h.now = write(7, newData)
	h.sb.Backups[oldSlot+1] = backupOf(h.now)
	h.super()
	return h
}

func backupOf(r ondisk.Roots) ondisk.BackupRoot {
	return ondisk.BackupRoot{TreeRoot: r.Root, TreeRootGeneration: r.Generation, TreeRootLevel: r.RootLevel, ChunkRoot: r.ChunkRoot,
		ChunkRootGeneration: r.ChunkRootGeneration, ChunkRootLevel: r.ChunkRootLevel, TotalBytes: r.TotalBytes, BytesUsed: r.BytesUsed}
}

// super writes the primary superblock.
func (h *history) super() { copy(h.disk[primary:], ondisktest.Super(h.sb)) }

// ruin overwrites a tree block.
func (h *history) ruin(at ondisk.Logical) { clear(h.disk[at : at+4096]) }

// openAt opens the disk as it is, for the whole test.
func (h *history) openAt(o Options) (*FS, error) {
	dev := faultdev.Mem("disk", h.disk)
	f, err := Open(h.t.Context(), []volume.Device{dev}, o)
	if err != nil {
		dev.Close()
		return nil, err
	}
	h.t.Cleanup(func() { f.Close() })
	return f, nil
}

// TestOlderState reads every state as it was, and the log with the last one alone.
func TestOlderState(t *testing.T) {
	h := newHistory(t, 0)
	h.log(map[uint64][]ondisktest.Item{ondisk.TreeFS: {item(fileIno, ondisk.TypeInodeItem, 0, inode(modeRegular|0o644, 32<<10, 0))}})
	h.super()
	for _, c := range []struct {
		name       string
		root       RootChoice
		generation uint64
		size       int // 32 KiB: the log has cut the file
		log        LogInfo
	}{
		{"the last commit", RootChoice{}, 7, 32 << 10, LogInfo{Present: true}},
		{"the last commit by its generation", RootChoice{Generation: 7}, 7, 32 << 10, LogInfo{Present: true}},
		{"the last commit by its slot", RootChoice{Slot: oldSlot + 2}, 7, 32 << 10, LogInfo{Present: true}},
		{"an older one by its generation", RootChoice{Generation: 6}, 6, 64 << 10, LogInfo{Present: true, Ignored: true}},
		{"an older one by its slot", RootChoice{Slot: oldSlot + 1}, 6, 64 << 10, LogInfo{Present: true, Ignored: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := h.openAt(Options{Root: c.root})
			if err != nil {
				t.Fatal(err)
			}
			if i := f.Info(); i.Generation != c.generation || i.Newest != 7 {
				t.Errorf("generation %d of %d, want %d of 7", i.Generation, i.Newest, c.generation)
			}
			if l := f.Log(); l.Present != c.log.Present || l.Ignored != c.log.Ignored {
				t.Errorf("log: got %+v, want %+v", l, c.log)
			}
			got, err := readFile(t.Context(), f, ondisk.TreeFS)
			if err != nil || !bytes.Equal(got, pattern(64<<10, byte(c.generation))[:c.size]) {
				t.Errorf("%d bytes, the right ones: %v, error %v", len(got), bytes.Equal(got, pattern(64<<10, byte(c.generation))[:c.size]), err)
			}
		})
	}
}

// TestOlderStateIsNeverWrong has blocks of an older state overwritten since: what nothing vouches for is refused.
func TestOlderStateIsNeverWrong(t *testing.T) {
	t.Run("data with checksums", func(t *testing.T) {
		h := newHistory(t, 0)
		copy(h.disk[oldData+4096:], pattern(4096, 99))
		f, err := h.openAt(Options{Root: RootChoice{Generation: 6}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = readFile(t.Context(), f, ondisk.TreeFS)
		var lost *LostError
		if !errors.As(err, &lost) || len(lost.Ranges) != 1 || lost.Ranges[0].Off != 4096 || !errors.Is(err, ondisk.ErrChecksum) {
			t.Errorf("got %v, want the loss of the block at 4096", err)
		}
	})
	t.Run("data without", func(t *testing.T) {
		h := newHistory(t, ondisk.InodeNoDataSum)
		for _, c := range []struct {
			root    RootChoice
			refused bool
		}{{RootChoice{}, false}, {RootChoice{Slot: oldSlot + 2}, false}, {RootChoice{Generation: 6}, true}} {
			f, err := h.openAt(Options{Root: c.root})
			if err != nil {
				t.Fatal(err)
			}
			_, err = readFile(t.Context(), f, ondisk.TreeFS)
			if errors.Is(err, ErrUnverifiable) != c.refused || (err != nil) != c.refused {
				t.Errorf("%+v: got %v, want it refused: %v", c.root, err, c.refused)
			}
			if c.refused && !strings.Contains(err.Error(), "generation 6 is not the last, 7") {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("a tree block", func(t *testing.T) {
		h := newHistory(t, 0)
		copy(h.disk[h.old.Root:h.old.Root+4096], h.disk[h.now.Root:]) // sealed, and of another place
		_, err := h.openAt(Options{Root: RootChoice{Generation: 6}})
		if !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
	})
}

// TestRuinedRoot names the newest state that can be opened, where there is one.
func TestRuinedRoot(t *testing.T) {
	for _, c := range []struct {
		name  string
		ruin  func(h *history)
		root  RootChoice
		older uint64
	}{
		{"root tree", func(h *history) { h.ruin(h.now.Root) }, RootChoice{}, 6},
		{"chunk tree", func(h *history) { h.ruin(h.now.ChunkRoot) }, RootChoice{}, 6},
		{"both, and the older root tree", func(h *history) { h.ruin(h.now.Root); h.ruin(h.now.ChunkRoot); h.ruin(h.old.Root) }, RootChoice{}, 0},
		{"the older one that was asked for", func(h *history) { h.ruin(h.old.Root) }, RootChoice{Generation: 6}, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHistory(t, 0)
			c.ruin(h)
			_, err := h.openAt(Options{Root: c.root})
			var ruined *RuinedError
			if !errors.As(err, &ruined) || ruined.Older != c.older || len(ruined.Roots) != 3 {
				t.Fatalf("got %v (%+v), want generation %d named", err, ruined, c.older)
			}
			if !errors.Is(err, ondisk.ErrChecksum) && !errors.Is(err, ondisk.ErrCorrupt) {
				t.Errorf("the cause is gone: %v", err)
			}
			if c.older == 0 {
				return
			}
			if f, err := h.openAt(Options{Root: RootChoice{Generation: c.older}}); err != nil {
				t.Errorf("generation %d: %v", c.older, err)
			} else if _, err := readFile(t.Context(), f, ondisk.TreeFS); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestMissingIsNotRuined asks for the devices, even where an older state could do without.
func TestMissingIsNotRuined(t *testing.T) {
	img := fsreadtest.Load(t, "raid5")
	_, err := openPaths(t, Options{Degraded: true}, img.Devices[0])
	if !errors.Is(err, volume.ErrMissing) || errors.As(err, new(*RuinedError)) || !strings.Contains(err.Error(), "add -d for each") {
		t.Errorf("got %v, want the devices named and no other state", err)
	}
}

// TestOlderChunkTree goes on by the last commit's chunk tree where an older state's own is gone.
func TestOlderChunkTree(t *testing.T) {
	h := newHistory(t, 0)
	h.ruin(h.old.ChunkRoot)
	f, err := h.openAt(Options{Root: RootChoice{Generation: 6}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readFile(t.Context(), f, ondisk.TreeFS); err != nil || !bytes.Equal(got, pattern(64<<10, 6)) {
		t.Errorf("wrong bytes, error %v", err)
	}
	roots, err := f.Roots(t.Context())
	if err != nil || len(roots) != 3 || roots[2].ChunkErr == nil || roots[2].Err != nil || !roots[2].Open {
		t.Errorf("got %+v, %v, want its chunk tree alone unreadable", roots, err)
	}
}

// TestRoots lists what the superblock knows, and what a copy of it that missed writes knows beside that.
func TestRoots(t *testing.T) {
	h := newHistory(t, 0)
	stale := *h.sb
	stale.Bytenr, stale.Backups = mirror, [4]ondisk.BackupRoot{}
	copy(h.disk[mirror:], ondisktest.Super(stale.At(h.old)))
	h.sb.Backups[oldSlot].TreeRootGeneration = 99 // so that the copy alone knows
	h.super()
	f, err := h.openAt(Options{Root: RootChoice{Generation: 6}})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := f.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []RootInfo{
		{Generation: 7, Slot: -1, Root: h.now.Root, ChunkRoot: h.now.ChunkRoot},
		{Generation: 7, Slot: 3, Root: h.now.Root, ChunkRoot: h.now.ChunkRoot},
		{Generation: 6, Slot: -1, Device: "disk", SuperCopy: 1, Root: h.old.Root, ChunkRoot: h.old.ChunkRoot, Open: true},
	}
	if !slices.Equal(roots, want) {
		t.Errorf("got  %+v\nwant %+v", roots, want)
	}
	if _, err := readFile(t.Context(), f, ondisk.TreeFS); err != nil {
		t.Error(err)
	}
}

// TestNoSuchRoot says what there is.
func TestNoSuchRoot(t *testing.T) {
	h := newHistory(t, 0)
	h.sb.Backups[1] = backupOf(h.old)
	h.sb.Backups[1].ChunkRootLevel = 9
	h.super()
	for _, c := range []struct {
		root RootChoice
		want string
	}{
		{RootChoice{Generation: 5}, "filesystem test: no root of generation 5 (there are 7, 6: see btrexport info)"},
		{RootChoice{Slot: 1}, "filesystem test: backup root 0: the slot was never written (btrexport info lists those that can be opened)"},
		{RootChoice{Slot: 2}, "filesystem test: backup root 1: corrupt superblock: backup 1: levels 0 and 9, want less than 8 (btrexport info lists those that can be opened)"},
		{RootChoice{Slot: 5}, "filesystem test: backup root 4: there are slots 0 to 3 (btrexport info lists those that can be opened)"},
	} {
		_, err := h.openAt(Options{Root: c.root})
		if err == nil || err.Error() != c.want || !errors.Is(err, ErrNotExist) {
			t.Errorf("%+v: got %v, want %s", c.root, err, c.want)
		}
	}
}

// TestRootsOfGoldenImages finds the last commit of every image readable.
func TestRootsOfGoldenImages(t *testing.T) {
	for _, name := range []string{"single", "raid1-2", "raid10-4", "seed", "metadata-uuid", "log"} {
		f := mustOpen(t, newRig(t, fsreadtest.Load(t, imageName(t, name))), Options{})
		roots, err := f.Roots(t.Context())
		if err != nil || len(roots) == 0 || roots[0].Err != nil || roots[0].ChunkErr != nil || !roots[0].Open || roots[0].Generation != f.Info().Generation {
			t.Errorf("%s: got %+v, %v", name, roots, err)
		}
	}
}

// FuzzBackupRoot changes a backup slot and opens by it: whatever stands there, nothing panics or hangs, and what
// is read is one of the two states.
func FuzzBackupRoot(f *testing.F) {
	h := newHistory(f, 0)
	for at := uint16(0); at < 168; at += 8 {
		f.Add(at, uint32(1))
		f.Add(at, uint32(0xffffffff))
	}
	f.Add(uint16(152), uint32(7))
	f.Fuzz(func(t *testing.T, at uint16, value uint32) {
		b := bytes.Clone(h.disk[primary : primary+ondisk.SuperblockSize])
		where := 2859 + oldSlot*168 + int(at)%165
		binary.LittleEndian.PutUint32(b[where:], value^binary.LittleEndian.Uint32(b[where:]))
		reseal(b)
		disk := bytes.Clone(h.disk[:dataStart+128<<10])
		copy(disk[primary:], b)
		dev := faultdev.Mem("disk", disk)
		fs, err := Open(context.Background(), []volume.Device{dev}, Options{Root: RootChoice{Slot: oldSlot + 1}})
		if err != nil {
			dev.Close()
			return
		}
		defer fs.Close()
		if _, err := fs.Roots(context.Background()); err != nil {
			t.Fatal(err)
		}
		got, err := readFile(context.Background(), fs, ondisk.TreeFS)
		if err == nil && !bytes.Equal(got, pattern(64<<10, 6)) && !bytes.Equal(got, pattern(64<<10, 7)) {
			t.Fatal("bytes of neither state")
		}
	})
}

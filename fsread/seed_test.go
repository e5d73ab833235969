package fsread

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/csum"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
	"github.com/btrexport/btrexport/fsread/volume"
)

// readable reads every file of at most limit bytes and gives their paths; some must be there.
func readable(t *testing.T, f *FS, limit uint64) []string {
	t.Helper()
	var paths []string
	for path := range files(t, f, limit) {
		paths = append(paths, path)
	}
	if len(paths) == 0 {
		t.Fatal("no file at all")
	}
	return paths
}

// pick gives the devices of an image with these places in the manifest.
func pick(img *fsreadtest.Image, places ...int) []string {
	var out []string
	for _, i := range places {
		out = append(out, img.Devices[i])
	}
	return out
}

// TestSeedsInAnyOrder says of each device what it is, and opens what the devices make: without its last
// sprout, a chain of seeds is the filesystem that it was before.
func TestSeedsInAnyOrder(t *testing.T) {
	plain, nested := fsreadtest.Load(t, "seed"), fsreadtest.Load(t, "seed-nested")
	for _, c := range []struct {
		name    string
		paths   []string
		devices string
		has     string // a file that only this state has
		hasNot  string
	}{
		{"sprout of two", pick(plain, 0, 1, 2), "1 seed, 2 seed, 3", "/only-in-sprout-0", "/only-in-sprout-1"},
		{"sprout first", pick(plain, 2, 1, 0), "1 seed, 2 seed, 3", "/only-in-sprout-0", ""},
		{"sprout between", pick(plain, 1, 2, 0), "1 seed, 2 seed, 3", "/only-in-sprout-0", ""},
		{"the seed by itself", pick(plain, 1, 0), "1, 2", "/many/entry-00100", "/only-in-sprout-0"},
		{"nested", pick(nested, 0, 1, 2, 3), "1 seed, 2 seed, 3, 4", "/only-in-sprout-1", "/many/entry-00101"},
		{"nested, mixed", pick(nested, 3, 0, 2, 1), "1 seed, 2 seed, 3, 4", "/only-in-sprout-1", ""},
		{"the middle of the chain", pick(nested, 0, 1), "1 seed, 2", "/only-in-sprout-0", "/only-in-sprout-1"},
		{"the first seed", pick(nested, 0), "1", "/many/entry-00101", "/only-in-sprout-0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := openPaths(t, Options{}, c.paths...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range f.Info().Devices {
				s := fmt.Sprint(uint64(d.DevID))
				if d.Seed {
					s += " seed"
				}
				if d.Stale || d.Missing {
					s += " stale or missing"
				}
				got = append(got, s)
			}
			if got := strings.Join(got, ", "); got != c.devices {
				t.Errorf("devices: got %q, want %q", got, c.devices)
			}
			readable(t, f, 4<<20)
			top, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := top.Resolve(t.Context(), c.has); err != nil {
				t.Errorf("%s: %v", c.has, err)
			}
			if _, err := top.Resolve(t.Context(), c.hasNot); c.hasNot != "" && !errors.Is(err, ErrNotExist) {
				t.Errorf("%s: got %v, want ErrNotExist", c.hasNot, err)
			}
		})
	}
}

// TestSeedsThatAreMissing names them, and reads what has a copy left.
func TestSeedsThatAreMissing(t *testing.T) {
	plain, nested, other := fsreadtest.Load(t, "seed"), fsreadtest.Load(t, "seed-nested"), fsreadtest.Load(t, "single")
	for _, c := range []struct {
		name  string
		paths []string
		kind  error
		words []string
		all   bool // nothing is lost with Degraded
		opens bool // with Degraded: the roots are on devices that are there
	}{
		{"one of the seed's mirrors", pick(plain, 1, 2), volume.ErrMissing, []string{"devid 1 (uuid ", ", a seed device of filesystem ", "2 of 3 devices given", "raid1 can be read with 2 devices"}, true, true},
		{"both", pick(plain, 2), volume.ErrMissing, []string{"devid 1 (uuid ", "devid 2 (uuid ", "a seed device of filesystem ", "1 of 3"}, false, true},
		{"the middle of the chain", pick(nested, 0, 2, 3), volume.ErrMissing, []string{"devid 2 (uuid ", ", a seed device of filesystem ", "data is single: 11 % of the data cannot be read, metadata is single: 2/5 of the metadata"}, false, true},
		{"a sprout's own device", pick(nested, 0, 1, 2), volume.ErrMissing, []string{"devid 4 (uuid "}, false, true},
		{"a seed and another filesystem", append(pick(plain, 0, 1), other.Devices[0]), volume.ErrDevices, []string{"belong to different filesystems", other.Manifest.UUID}, false, false},
		{"a sprout and another's seed", append(pick(plain, 0, 1, 2), nested.Devices[0]), volume.ErrDevices, []string{"belong to different filesystems", plain.Manifest.UUID}, false, false},
		{"sprouts of two", append(pick(plain, 0, 1, 2), nested.Devices[3]), volume.ErrDevices, []string{"belong to different filesystems", plain.Manifest.UUID, nested.Manifest.UUID}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := openPaths(t, Options{}, c.paths...)
			if !errors.Is(err, c.kind) {
				t.Fatalf("got %v, want kind %v", err, c.kind)
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %q, want %q in it", err, w)
				}
			}
			f, err := openPaths(t, Options{Degraded: true}, c.paths...)
			if c.opens != (err == nil) || (c.kind == volume.ErrDevices && !errors.Is(err, volume.ErrDevices)) {
				t.Fatalf("degraded: got %v, want it to open: %v", err, c.opens)
			}
			if c.all {
				if got, want := len(readable(t, f, 4<<20)), len(readable(t, mustOpen(t, newRig(t, plain), Options{}), 4<<20)); got != want {
					t.Errorf("%d files, want %d", got, want)
				}
			}
		})
	}
}

// TestSeedWrittenTo changes the generation of a seed, as a write to it would: its copies serve where a
// checksum vouches for them, and nowhere else.
func TestSeedWrittenTo(t *testing.T) {
	img := fsreadtest.Load(t, "seed-nested")
	disk, err := os.ReadFile(img.Devices[0])
	if err != nil {
		t.Fatal(err)
	}
	sb := disk[primary : primary+ondisk.SuperblockSize]
	sb[72]++
	reseal(sb)
	pwrite(t, img.Devices[0], primary, sb)
	f := mustOpen(t, newRig(t, img), Options{})
	if d := f.Info().Devices[0]; !d.Stale || !d.Seed {
		t.Fatalf("got %+v, want a stale seed", d)
	}
	refused := 0
	if err := eachFile(f, func(path string, file *File) error {
		if file.size == 0 || file.size > 4<<20 {
			return nil
		}
		_, err := file.ReadAt(context.Background(), make([]byte, file.size), 0)
		if !file.Verified() && errors.Is(err, volume.ErrStale) {
			refused++
			return nil
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if refused == 0 {
		t.Error("no file without checksums lies on the seed: the test shows nothing")
	}
}

// TestForeignBlocks accepts a tree block of a seed that the chunk tree names and that was given, and of
// nothing else.
func TestForeignBlocks(t *testing.T) {
	for _, c := range []struct{ named, given bool }{{true, true}, {true, false}, {false, false}} {
		b := newBuilder(t)
		seed := ondisktest.NewSuperblock()
		seed.FSID, seed.Flags, seed.Generation = ondisk.UUID{9}, seed.Flags|ondisk.SuperSeeding, 3
		seed.Dev.FSID, seed.Dev.DevID, seed.Dev.UUID = seed.FSID, 2, ondisk.UUID{8}
		b.data(dataStart, pattern(64<<10, 1), true)
		b.extent(0, plain(dataStart, 65536, 0, 65536))
		if c.named {
			b.put(ondisk.TreeChunk, 1, ondisk.TypeDevItem, 2, ondisktest.DevItem(seed.Dev))
		}
		b.build()
		for at := int(chunkStart); at < int(b.next); at += 4096 {
			if blk := ondisk.Block(b.disk[at : at+4096]); blk.Owner() == ondisk.TreeFS {
				copy(blk[32:], seed.FSID[:])
				ondisktest.Seal(blk, csum.CRC32C)
			}
		}
		devs := []volume.Device{faultdev.Mem("disk", b.disk)}
		if c.given {
			other := make([]byte, 1<<20)
			copy(other[primary:], ondisktest.Super(seed))
			devs = append(devs, faultdev.Mem("seed", other))
		}
		f, err := Open(t.Context(), devs, Options{Degraded: true})
		if err != nil {
			t.Fatal(err)
		}
		err = eachFile(f, func(path string, file *File) error {
			got := make([]byte, 65536)
			if _, err := file.ReadAt(t.Context(), got, 0); err != nil {
				return err
			}
			if !bytes.Equal(got, pattern(64<<10, 1)) {
				return errors.New("wrong bytes")
			}
			return nil
		})
		if c.given && err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		if !c.given && (!errors.Is(err, ondisk.ErrCorrupt) || !strings.Contains(err.Error(), "fsid")) {
			t.Errorf("%+v: got %v, want the block's fsid refused", c, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestChunkTreeOnSeed opens a sprout whose system chunk lies on its seed, with a block of the chunk tree that
// is still the seed's.
func TestChunkTreeOnSeed(t *testing.T) {
	b := newBuilder(t)
	b.fan = 1 // a leaf for each item
	sprout, seed := *b.sb, *ondisktest.NewSuperblock()
	seed.FSID, seed.Flags, seed.Generation = ondisk.UUID{9}, seed.Flags|ondisk.SuperSeeding, 3
	seed.Dev.FSID = seed.FSID
	sprout.Dev.DevID, sprout.Dev.UUID = 2, ondisk.UUID{8}
	b.sb.Dev = seed.Dev // all that the builder lays out is on the seed's device
	b.sb.Dev.Generation = seed.Generation
	b.sb.NumDevices = 2
	b.put(ondisk.TreeChunk, 1, ondisk.TypeDevItem, 2, ondisktest.DevItem(sprout.Dev))
	b.build()
	kept := 0
	for at := int(chunkStart); at < int(b.next); at += 4096 {
		if blk := ondisk.Block(b.disk[at : at+4096]); blk.Owner() == ondisk.TreeChunk && blk.Level() == 0 && blk.Key(0).Type == ondisk.TypeDevItem {
			copy(blk[32:], seed.FSID[:])
			ondisktest.Seal(blk, csum.CRC32C)
			kept++
		}
	}
	dev := sprout.Dev
	sprout = *b.sb
	sprout.Dev = dev
	copy(b.disk[primary:], ondisktest.Super(&seed))
	own := make([]byte, 1<<20)
	copy(own[primary:], ondisktest.Super(&sprout))
	f, err := Open(t.Context(), []volume.Device{faultdev.Mem("seed", b.disk), faultdev.Mem("sprout", own)}, Options{})
	if err != nil || kept == 0 {
		t.Fatalf("%d blocks of the seed: %v", kept, err)
	}
	if d := f.Info().Devices; len(d) != 2 || !d[0].Seed || d[0].Stale || d[1].Seed {
		t.Errorf("devices: got %+v, want a seed and its sprout", d)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	_, err = openMem(t, own)
	if err == nil || !strings.Contains(err.Error(), "devid 1") || !strings.Contains(err.Error(), "1 of 2 devices given") {
		t.Errorf("without the seed: got %v, want devid 1 named", err)
	}
}

// TestFormats holds what makes each image special against what is said of it.
func TestFormats(t *testing.T) {
	for _, c := range []struct {
		image    string
		sector   uint32
		features []string
	}{
		{"sector16k", 16 << 10, nil}, {"sector64k", 64 << 10, nil}, {"metadata-uuid", 4096, []string{"metadata-uuid"}},
		{"simple-quota", 4096, []string{"simple-quota"}}, {"extref", 4096, []string{"extended-iref"}},
		{"mixed", 4096, []string{"mixed-groups"}}, {"block-group-tree", 4096, []string{"block-group-tree"}},
	} {
		i := mustOpen(t, newRig(t, fsreadtest.Load(t, c.image)), Options{}).Info()
		if i.SectorSize != c.sector {
			t.Errorf("%s: sectors of %d, want %d", c.image, i.SectorSize, c.sector)
		}
		for _, want := range c.features {
			if !slices.Contains(i.Features, want) {
				t.Errorf("%s: features %q, want %q among them", c.image, i.Features, want)
			}
		}
	}
}

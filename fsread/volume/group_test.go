package volume

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/ondisk/ondisktest"
)

// given is a device as a user might name it.
type given struct {
	name    string
	fsid    byte // of the superblock
	id      devio.DevID
	uuid    byte
	gen     uint64
	seeding bool
	tree    byte // the fsid that tree blocks carry, where btrfstune -m has changed the other; else 0
}

func (g given) super() *ondisk.Superblock {
	sb := ondisktest.NewSuperblock()
	sb.FSID, sb.Generation = ondisk.UUID{g.fsid}, g.gen
	sb.Dev.DevID, sb.Dev.UUID, sb.Dev.FSID = g.id, ondisk.UUID{g.uuid}, sb.FSID
	if g.seeding {
		sb.Flags |= ondisk.SuperSeeding
	}
	if g.tree != 0 {
		sb.Incompat |= ondisk.IncompatMetadataUUID
		sb.MetadataUUID, sb.Dev.FSID = ondisk.UUID{g.tree}, ondisk.UUID{g.tree}
	}
	return sb
}

// item is the DEV_ITEM that a chunk tree has for the device.
func (g given) item() ondisk.DevItem {
	d := g.super().Dev
	if g.seeding {
		d.Generation = g.gen
	}
	return d
}

// scan gives what Scan makes of the devices.
func scan(t testing.TB, change func(*ondisk.Superblock), list ...given) (*Set, error) {
	t.Helper()
	pool := devio.NewPool(1 << 20)
	var devs []Device
	for _, g := range list {
		sb := g.super()
		if change != nil {
			change(sb)
		}
		disk := make([]byte, 1<<20)
		copy(disk[64<<10:], ondisktest.Super(sb))
		devs = append(devs, faultdev.Mem(g.name, disk))
	}
	t.Cleanup(func() {
		for _, d := range devs {
			d.Close()
		}
		if n := pool.Lent(); n != 0 {
			t.Errorf("%d buffers still lent", n)
		}
		pool.Close()
	})
	return Scan(t.Context(), pool, devs, false)
}

var (
	seedA   = given{name: "a1", fsid: 0xa, id: 1, uuid: 1, gen: 8, seeding: true}
	seedA2  = given{name: "a2", fsid: 0xa, id: 2, uuid: 2, gen: 8, seeding: true}
	seedB   = given{name: "b", fsid: 0xb, id: 3, uuid: 3, gen: 21, seeding: true}
	sproutC = given{name: "c", fsid: 0xc, id: 4, uuid: 4, gen: 33}
)

// permutations calls f with every order of list.
func permutations[T any](list []T, f func([]T)) {
	var step func(n int)
	step = func(n int) {
		if n == len(list) {
			f(list)
			return
		}
		for i := n; i < len(list); i++ {
			list[n], list[i] = list[i], list[n]
			step(n + 1)
			list[n], list[i] = list[i], list[n]
		}
	}
	step(0)
}

// TestScanPicksTheSprout takes, in whatever order devices come, the filesystem that the others can be
// seeds of.
func TestScanPicksTheSprout(t *testing.T) {
	old := func(g given, by uint64) given { g.gen -= by; return g }
	notYet := old(seedA2, 2) // it missed even that the filesystem was made a seed
	notYet.seeding = false
	renamed := sproutC
	renamed.fsid, renamed.tree = 0xd, sproutC.fsid
	for _, c := range []struct {
		name  string
		list  []given
		super byte
		seeds string // names of those that are marked
		stale string
	}{
		{"a filesystem alone", []given{sproutC}, 0xc, "", ""},
		{"a seed alone", []given{seedA, seedA2}, 0xa, "", ""},
		{"a sprout without its seeds", []given{sproutC, {name: "c2", fsid: 0xc, id: 5, uuid: 5, gen: 32}}, 0xc, "", "c2"},
		{"seed and sprout", []given{seedA, seedA2, sproutC}, 0xc, "a1 a2", ""},
		{"nested seeds and sprout", []given{seedA, seedA2, seedB, sproutC}, 0xc, "a1 a2 b", ""},
		{"nested seeds without the last sprout", []given{seedA, seedA2, seedB}, 0xb, "a1 a2", ""},
		{"a seed's device missed writes", []given{seedA, old(seedA2, 1), seedB, sproutC}, 0xc, "a1 a2 b", "a2"},
		{"it missed that it became a seed", []given{seedA, notYet, sproutC}, 0xc, "a1 a2", "a2"},
		{"the sprout got another fsid", []given{seedB, renamed}, 0xd, "b", ""},
	} {
		permutations(c.list, func(list []given) {
			set, err := scan(t, nil, list...)
			if err != nil {
				t.Fatalf("%s, %v: %v", c.name, list, err)
			}
			var seeds, stale []string
			for _, f := range set.Devices {
				if f.Seed {
					seeds = append(seeds, f.Dev.Name())
				}
				if f.Stale {
					stale = append(stale, f.Dev.Name())
				}
			}
			slices.Sort(seeds)
			slices.Sort(stale)
			if got, want := fmt.Sprint(set.Super.FSID[0], seeds, stale), fmt.Sprint(c.super, strings.Fields(c.seeds), strings.Fields(c.stale)); got != want {
				t.Errorf("%s, %v: got %s, want %s", c.name, list, got, want)
			}
		})
	}
}

// TestScanRefusesSets names what is wrong with devices that make no filesystem in any order.
func TestScanRefusesSets(t *testing.T) {
	clone := seedA
	clone.name = "clone"
	renamed := clone
	renamed.fsid, renamed.tree = 0xd, seedA.fsid
	for _, c := range []struct {
		name string
		list []given
		word string
	}{
		{"two filesystems", []given{sproutC, {name: "d", fsid: 0xd, id: 1, uuid: 9, gen: 5}}, "belong to different filesystems"},
		{"two sprouts of one seed", []given{seedA, sproutC, {name: "d", fsid: 0xd, id: 4, uuid: 9, gen: 9}}, "(c and d|d and c) belong to different filesystems"},
		{"a seed twice", []given{seedA, clone, sproutC}, "the same device"},
		{"a seed and its copy of another fsid", []given{seedA, renamed, sproutC}, "the same device"},
	} {
		permutations(c.list, func(list []given) {
			_, err := scan(t, nil, list...)
			if !errors.Is(err, ErrDevices) || !regexp.MustCompile(c.word).MatchString(err.Error()) {
				t.Errorf("%s, %v: got %v, want %q", c.name, list, err, c.word)
			}
		})
	}
}

// TestScanGatesSeeds refuses by name what a seed's superblock says of itself.
func TestScanGatesSeeds(t *testing.T) {
	set, err := scan(t, func(sb *ondisk.Superblock) {
		if sb.FSID == (ondisk.UUID{seedA.fsid}) {
			sb.Flags |= ondisk.SuperMetadumpV2
		}
	}, sproutC, seedA)
	if !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), "seed device a1: ") || set == nil {
		t.Errorf("got %v, want the dump refused by the name of its device", err)
	}
}

// TestWithChunksOfSeeds holds the devices that were given against those of the chunk tree.
func TestWithChunksOfSeeds(t *testing.T) {
	clone := seedA // btrfstune -u: another fsid, all else as it was
	clone.name, clone.fsid = "clone", 0xd
	touched := seedA
	touched.gen++
	items := []ondisk.DevItem{seedA.item(), seedB.item(), sproutC.item()}
	for _, c := range []struct {
		name     string
		list     []given
		degraded bool
		err      error
		word     string
		want     string // of each device: its id and what it is
	}{
		{"all are given", []given{sproutC, seedB, seedA}, false, nil, "", "1 seed, 3 seed, 4"},
		{"a seed is missing", []given{sproutC, seedB}, false, ErrMissing, fmt.Sprintf("devid 1 (uuid %s, a seed device of filesystem %s) is missing, 2 of 3", seedA.item().UUID, seedA.item().FSID), ""},
		{"a seed is missing, and may be", []given{sproutC, seedB}, true, nil, "", "1 seed missing, 3 seed, 4"},
		{"a seed of something else", []given{sproutC, seedB, seedA, {name: "x", fsid: 0xe, id: 7, uuid: 7, gen: 3, seeding: true}}, false, ErrDevices, "c and x belong to different filesystems", ""},
		{"a copy of the seed that became another filesystem", []given{sproutC, clone, seedB}, false, ErrDevices, "c and clone belong to different filesystems", ""},
		{"the same beside the seed", []given{clone, seedA, sproutC, seedB}, false, ErrDevices, "c and clone belong to different filesystems", ""},
		{"a seed was written to after", []given{sproutC, touched, seedB}, false, nil, "", "1 seed stale, 3 seed, 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, err := scan(t, nil, c.list...)
			if err != nil {
				t.Fatal(err)
			}
			boot, err := set.Bootstrap(nil, Options{Degraded: c.degraded})
			if err != nil {
				t.Fatal(err)
			}
			v, err := boot.WithChunks(items, nil)
			if !errors.Is(err, c.err) || (err != nil && !strings.Contains(err.Error(), c.word)) {
				t.Fatalf("got %v, want kind %v and %q", err, c.err, c.word)
			}
			if err != nil {
				return
			}
			var got []string
			for _, d := range v.Devices() {
				s := fmt.Sprint(uint64(d.DevID))
				if d.Seed {
					s += " seed"
				}
				if d.Stale {
					s += " stale"
				}
				if d.Missing {
					s += " missing"
				}
				got = append(got, s)
			}
			if got := strings.Join(got, ", "); got != c.want {
				t.Errorf("devices: got %q, want %q", got, c.want)
			}
			var want []ondisk.UUID // in the order of the chunk tree
			for _, g := range []given{seedA, seedB} {
				if slices.ContainsFunc(c.list, func(l given) bool { return l.fsid == g.fsid }) {
					want = append(want, ondisk.UUID{g.fsid})
				}
			}
			if got := v.SeedFSIDs(); !slices.Equal(got, want) {
				t.Errorf("ids of seeds: got %v, want those of the seeds that were given, %v", got, want)
			}
		})
	}
}

// TestMissingErrorIsShort however many devices a crafted chunk tree names.
func TestMissingErrorIsShort(t *testing.T) {
	e := &MissingError{Missing: make([]MissingDevice, 100000)}
	if s := e.Error(); len(s) > 4096 || !strings.Contains(s, fmt.Sprintf(" and %d more are missing", 100000-maxNamed)) {
		t.Errorf("got %d bytes: %.200s", len(s), s)
	}
}

// TestMissingErrorSaysWhatIsLost in words and small fractions, and what to do.
func TestMissingErrorSaysWhatIsLost(t *testing.T) {
	one, two := []MissingDevice{{}}, []MissingDevice{{}, {}}
	for _, c := range []struct {
		e    MissingError
		want string
	}{
		{MissingError{one, 1, 2, nil, ondisk.RAID1}, ") is missing, 1 of 2 devices given (add -d for it, or --degraded: raid1 can be read with one device)"},
		{MissingError{two, 2, 4, nil, ondisk.RAID6}, ") are missing, 2 of 4 devices given (add -d for each, or --degraded: raid6 can be read with 2 devices)"},
		{MissingError{one, 2, 3, []LostKind{{"data", ondisk.RAID0, 100, 300}}, ondisk.RAID1},
			", 2 of 3 devices given, and data is raid0: 1/3 of the data cannot be read (add -d for it, or --degraded: reads of those parts fail)"},
		{MissingError{one, 1, 2, []LostKind{{"data", ondisk.Single, 5, 5}, {"metadata", ondisk.Single, 2, 1001}}, ondisk.Single},
			"and data is single: all of the data cannot be read, metadata is single: less than 1 % of the metadata cannot be read ("},
		{MissingError{one, 1, 2, []LostKind{{"data+metadata", ondisk.RAID0, 9, 23}}, ondisk.Single}, "data+metadata is raid0: 39 % of the data+metadata cannot be read"},
	} {
		if got := c.e.Error(); !strings.Contains(got, c.want) {
			t.Errorf("got %s\nwant %s", got, c.want)
		}
	}
}

// TestScanWithoutAnswer has a device that hangs, one that fails and one without a superblock: each is an error that
// names it, and with degraded each is left out.
func TestScanWithoutAnswer(t *testing.T) {
	for _, c := range []struct {
		name string
		ruin func(*faultdev.Dev)
		kind error
	}{
		{"hangs", func(d *faultdev.Dev) { d.Hang(faultdev.All()) }, ErrNoAnswer},
		{"fails", func(d *faultdev.Dev) { d.Fail(faultdev.All(), syscall.EIO) }, syscall.EIO},
		{"delivers nothing", func(d *faultdev.Dev) { d.Lose(nil) }, io.ErrUnexpectedEOF},
		{"is empty", func(d *faultdev.Dev) { d.Corrupt(faultdev.All()) }, ErrNoFilesystem},
	} {
		t.Run(c.name, func(t *testing.T) {
			pool := devio.NewPool(1 << 20)
			var devs []Device
			for _, g := range []given{{name: "a", fsid: 0xa, id: 1, uuid: 1, gen: 8}, {name: "b", fsid: 0xa, id: 2, uuid: 2, gen: 8}} {
				disk := make([]byte, 1<<20)
				copy(disk[64<<10:], ondisktest.Super(g.super()))
				devs = append(devs, faultdev.New(faultdev.Mem(g.name, disk)))
			}
			c.ruin(devs[1].(*faultdev.Dev))
			const wait = 500 * time.Millisecond // enough for the device that is well, on a busy machine
			_, err := scanFor(t.Context(), pool, devs, false, wait)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), "open b: ") {
				t.Errorf("got %v, want %v of b", err, c.kind)
			}
			s, err := scanFor(t.Context(), pool, devs, true, wait)
			if err != nil || len(s.Devices) != 1 || s.Devices[0].Dev != devs[0] || len(s.Ignored) != 1 || !strings.Contains(s.Ignored[0], "open b: ") {
				t.Errorf("degraded: %+v, %v, want a alone and b ignored", s, err)
			}
			if _, err := scanFor(t.Context(), pool, devs[1:], true, wait); !errors.Is(err, c.kind) {
				t.Errorf("nothing but b: %v, want %v", err, c.kind)
			}
			for _, d := range devs {
				d.Close()
			}
			for range 500 { // buffers of reads that nobody waits for
				if pool.Lent() == 0 {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if n := pool.Lent(); n != 0 {
				t.Errorf("%d buffers still lent", n)
			}
			pool.Close()
		})
	}
}

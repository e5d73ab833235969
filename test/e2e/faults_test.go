//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/test/e2e/faultfs"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// faulty is a filesystem, no longer mounted, whose devices fail as they are told.
type faulty struct {
	disks []*faultfs.File // in the order of devid
	files []served
}

// needFaults skips a test where files can't be shown through FUSE, with CI=true too: many containers
// have no /dev/fuse.
func needFaults(t *testing.T, tools ...string) {
	t.Helper()
	need(t, tools...)
	if err := faultfs.Usable(); err != nil {
		t.Skip(err)
	}
}

// makeFaulty makes a filesystem with long files and short ones on devices without a fault.
func makeFaulty(ctx context.Context, t *testing.T, rng *rand.Rand, o kernelfs.Options) *faulty {
	t.Helper()
	o.DeviceSize = 512 << 20
	k := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) {
		tree.Plain("big", 24<<20+1000)
		tree.Fragment("fragments", 400, rng.Uint64())
		tree.Random(rng.Uint64(), kernelfs.RandomOptions{Ops: 60, MaxFile: 1 << 20})
	})
	d := &faulty{}
	for _, name := range []string{"big", "fragments"} {
		for _, e := range k.regular() {
			if string(e.Path) == name {
				d.files = append(d.files, served{name: name, path: "/" + name, want: k.read(t, e.Path)})
			}
		}
	}
	k.unmount(t)
	images := make(map[string]string)
	for i, image := range k.fs.Images() {
		images[fmt.Sprintf("disk%d", i)] = image
	}
	fs := faultfs.Mount(t, images)
	for _, name := range slices.Sorted(maps.Keys(images)) {
		d.disks = append(d.disks, fs.File(name))
	}
	return d
}

// paths lists the devices of the filesystem: the files, or block devices over them.
func (d *faulty) paths(t *testing.T, block bool) []string {
	t.Helper()
	var list []string
	for _, f := range d.disks {
		if block {
			list = append(list, f.Loop(t))
		} else {
			list = append(list, f.Path())
		}
	}
	return list
}

// heal takes back all faults. Where reads hang it is also to run before what reads has to end.
func (d *faulty) heal() {
	for _, f := range d.disks {
		f.Heal()
	}
}

// beside calls set for all of a device but its superblocks, which a program reads to know it at all.
func beside(set func(off, n int64)) {
	const end = 1 << 40
	at := int64(0)
	for _, super := range []int64{64 << 10, 64 << 20} {
		set(at, super-at)
		at = super + sector
	}
	set(at, end-at)
}

// failRanges lets a third of a device's 64 KiB fail, none that holds a superblock.
func failRanges(f *faultfs.File, rng *rand.Rand) {
	const n = 64 << 10
	for off := int64(1 << 20); off < 512<<20; off += n {
		if off != 64<<20 && rng.IntN(3) == 0 {
			f.Fail(off, n, syscall.EIO)
		}
	}
}

// copyAll copies every file with nbdcopy and compares.
func (d *faulty) copyAll(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	for _, f := range d.files {
		must(ctx, t, "nbdcopy", "--no-extents", s.uri(f.name), out)
		sameFile(t, "nbdcopy of "+f.path, out, f.want)
	}
}

// readAll reads ranges of every file on a connection of its own and compares.
func (d *faulty) readAll(ctx context.Context, t *testing.T, rng *rand.Rand, s *server) {
	t.Helper()
	for _, f := range d.files {
		c := s.dial(ctx, t, f.name)
		if err := readRandom(c, f.want, rng.Uint64(), 200, 8, 256<<10); err != nil {
			t.Errorf("%s: %v", f.path, err)
		}
		_ = c.Close()
	}
}

// cpAll copies every file with cp and compares.
func (d *faulty) cpAll(ctx context.Context, t *testing.T, devices []string, more ...string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	for _, f := range d.files {
		must(ctx, t, program(t, plainBinary), slices.Concat([]string{"cp", "-f"}, more, devices, []string{f.path, out})...)
		sameFile(t, "cp of "+f.path, out, f.want)
	}
}

// diskFaults are what one device of a mirror does.
var diskFaults = []struct {
	name    string
	early   bool // from before the program starts: its superblocks can be read
	set     func(f *faultfs.File, rng *rand.Rand)
	retries bool // the other copy is asked
	image   bool // no block device does it
}{
	{"EIO on ranges", true, failRanges, true, false},
	{"EIO everywhere", true, func(f *faultfs.File, _ *rand.Rand) {
		beside(func(off, n int64) { f.Fail(off, n, syscall.EIO) })
	}, true, false},
	{"EIO on all that is read later", false, func(f *faultfs.File, _ *rand.Rand) { f.FailAll(syscall.EIO) }, true, false},
	{"no bytes", false, func(f *faultfs.File, _ *rand.Rand) { f.Short() }, true, false},
	{"less than a block", false, func(f *faultfs.File, rng *rand.Rand) { f.Cut(1 + rng.IntN(sector-1)) }, true, true},
	{"less than asked for", true, func(f *faultfs.File, rng *rand.Rand) { f.Cut(sector + rng.IntN(8*sector)) }, false, true},
	{"late", true, func(f *faultfs.File, _ *rand.Rand) { f.Delay(20 * time.Millisecond) }, false, false},
	{"vanishes", false, func(f *faultfs.File, rng *rand.Rand) { f.After(1+rng.Int64N(10), f.Lose) }, true, false},
	{"is pulled", false, func(f *faultfs.File, rng *rand.Rand) { f.After(1+rng.Int64N(10), f.Short) }, true, false},
}

// One disk of a mirror fails in the kernel, as an image file and as a block device: every byte is
// right, each block that it owed is repaired from the other disk and counted, and nothing is lost.
func TestFailingDisk(t *testing.T) {
	needFaults(t, "nbdcopy", "gcc") // gcc: for the race detector's binary
	ctx, rng := bounded(t), chance(t)
	d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1", Nodesize: 4096})
	for _, block := range []bool{false, true} {
		paths := d.paths(t, block)
		for _, c := range diskFaults {
			if block && c.image {
				continue
			}
			t.Run(fmt.Sprintf("%s, block device %v", c.name, block), func(t *testing.T) {
				ctx, rng := bounded(t), chance(t)
				d.heal()
				f := d.disks[rng.IntN(len(d.disks))]
				devices := shuffled(rng, paths)
				if c.early {
					c.set(f, rng)
					d.cpAll(ctx, t, devices)
				}
				s := launch{command: []string{program(t, raceBinary)}}.serve(t, slices.Concat(devices, exports(d.files), []string{"--slow-read", "30s", "--io-engine", anyEngine(t, rng)})...)
				if !c.early {
					c.set(f, rng)
				}
				before := f.Reads()
				d.copyAll(ctx, t, s)
				d.readAll(ctx, t, rng, s)
				if f.Reads() == before {
					t.Fatal("the device was never asked: the test proves nothing")
				}
				checkIORepairs(t, s.scrape(ctx, t), c.retries)
			})
		}
	}
}

// checkIORepairs wants every block that a device owed, some if retries, repaired from the other one.
func checkIORepairs(t *testing.T, m series, retries bool) {
	t.Helper()
	owed := m.sum("btrexport_read_retries_total", `reason="io"`)
	repaired := m.sum("btrexport_reads_repaired_total", `source="mirror"`)
	failures := m.sum("btrexport_device_read_errors_total")
	t.Logf("device errors %v, retries %v, repaired %v", failures, owed, repaired)
	if owed > 0 != retries || failures > 0 != retries {
		t.Errorf("got %v retries for I/O errors and %v device errors, want some: %v", owed, failures, retries)
	}
	if repaired != owed {
		t.Errorf("repaired: got %v of %v retries, want all", repaired, owed)
	}
	checkNoneLost(t, m)
}

// checkNoneLost wants no byte that could not be served, and no copy that was wrong rather than missing.
func checkNoneLost(t *testing.T, m series) {
	t.Helper()
	for _, none := range []string{"btrexport_reads_lost_total", "btrexport_checksum_failures_total"} {
		if got := m.sum(none); got != 0 {
			t.Errorf("%s: got %v, want 0", none, got)
		}
	}
	if got := m.sum("btrexport_nbd_requests_total", `result="error"`); got != 0 {
		t.Errorf("requests that failed: got %v, want 0", got)
	}
}

// Both disks fail: reads are EIO and nothing else, the connection stays; and as soon as the disks
// answer again so does the server, which has remembered no failure.
func TestBothDisksFail(t *testing.T) {
	needFaults(t, "gcc")
	ctx, rng := bounded(t), chance(t)
	d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1", Nodesize: 4096})
	s := launch{command: []string{program(t, raceBinary)}}.serve(t, append(shuffled(rng, d.paths(t, false)), exports(d.files)...)...)
	for _, c := range []struct {
		name string
		set  func(f *faultfs.File)
	}{
		{"EIO", func(f *faultfs.File) { f.FailAll(syscall.EIO) }},
		{"no bytes", (*faultfs.File).Short},
		{"lost", (*faultfs.File).Lose},
	} {
		f := d.files[0]
		client := s.dial(ctx, t, f.name)
		for _, disk := range d.disks {
			c.set(disk)
		}
		buf := make([]byte, 64<<10)
		for range 20 {
			off, n := randomRange(rng, len(f.want), len(buf))
			var refused *nbdclient.ReadError
			if got, err := client.ReadAt(buf[:n], int64(off)); !errors.As(err, &refused) || !errors.Is(err, syscall.EIO) {
				t.Fatalf("%s: read offset %d length %d: got %d bytes, error %v; want EIO", c.name, off, n, got, err)
			}
		}
		d.heal()
		if err := readRandom(client, f.want, rng.Uint64(), 100, 4, len(buf)); err != nil {
			t.Errorf("%s, after it: %v", c.name, err)
		}
	}
	if got := s.scrape(ctx, t).sum("btrexport_reads_lost_total"); got == 0 {
		t.Error("reads_lost: got 0, want more")
	}
}

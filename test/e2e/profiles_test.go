//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// minDevices is the fewest devices of each profile that this release reads.
var minDevices = map[string]int{"single": 1, "dup": 1, "raid0": 2, "raid1": 2, "raid1c3": 3, "raid1c4": 4, "raid10": 4}

// randomOptions draws what mkfs leaves open: metadata's profile, nodesize, NO_HOLES, mixed groups.
func randomOptions(rng *rand.Rand, data string, devices int) kernelfs.Options {
	o := kernelfs.Options{Devices: devices, DeviceSize: 512 << 20, Data: data}
	if rng.IntN(2) == 0 {
		o.Features = []string{"^no-holes"}
	}
	if minDevices[data] < 3 && rng.IntN(4) == 0 {
		o.Mixed, o.Metadata, o.Nodesize = true, data, 4096
		return o
	}
	o.Nodesize = []int{4096, 16384, 65536}[rng.IntN(3)]
	for o.Metadata == "" || o.Metadata == data {
		all := []string{"single", "dup", "raid0", "raid1", "raid1c3", "raid1c4", "raid10"}
		if m := all[rng.IntN(len(all))]; minDevices[m] <= devices {
			o.Metadata = m
		}
	}
	return o
}

// Filesystems of every profile with random content: whatever the server, ls, subvolumes and cp say
// is what the kernel says, from block devices with O_DIRECT and from image files with and without.
func TestRandomFilesystems(t *testing.T) {
	need(t, append(foreignTools, "mkfs.btrfs")...)
	for _, c := range []struct {
		data    string
		devices int
	}{
		{"single", 1}, {"single", 3}, {"dup", 1}, {"raid0", 2}, {"raid0", 3}, {"raid1", 2}, {"raid1", 3},
		{"raid1c3", 3}, {"raid1c4", 4}, {"raid10", 4}, {"raid10", 6},
	} {
		for round := range rounds() {
			t.Run(fmt.Sprintf("%s-%d-%d", c.data, c.devices, round), func(t *testing.T) {
				rng := chance(t)
				o := randomOptions(rng, c.data, c.devices)
				t.Logf("mkfs.btrfs %s", strings.Join(o.Args(), " "))
				ctx := bounded(t)
				k := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) { fillRandom(tree, rng) })
				k.checkServed(ctx, t, rng)
			})
		}
	}
}

// fillRandom makes a random tree, the files of every kind, and one that crosses many stripes.
func fillRandom(tree *kernelfs.Tree, rng *rand.Rand) {
	if rng.IntN(2) == 0 {
		tree.Dirty(8 << 20)
	}
	tree.Random(rng.Uint64(), kernelfs.RandomOptions{Ops: 120, MaxFile: 3 << 20, Subvols: 5})
	tree.Zoo("zoo")
	if rng.IntN(2) == 0 {
		tree.Fallocate("gap", 0, 64<<20, false) // what follows mostly lies in another chunk
		tree.Sync()
	}
	tree.Plain("big", 12<<20+rng.Int64N(2048)*512)
	tree.Punch("big", rng.Int64N(8<<20), 1+rng.Int64N(1<<20))
	for range 4 {
		tree.WriteAt("big", rng.Int64N(11<<20), 1+rng.Int64N(200000))
		tree.Sync()
	}
	tree.Remove("gap")
	tree.Sync()
}

// checkServed compares everything that leaves the program with the kernel's read-only mount.
func (k *truth) checkServed(ctx context.Context, t *testing.T, rng *rand.Rand) {
	loops, images := k.fs.Loops(), k.fs.Images()
	k.checkListing(ctx, t, shuffled(rng, images))
	k.checkSubvolumes(ctx, t, shuffled(rng, loops))
	k.checkCp(ctx, t, rng, shuffled(rng, [][]string{loops, images}[rng.IntN(2)]))
	files := k.choose(t, rng, 3, 5)
	var padded []served
	for _, f := range files {
		padded = append(padded, f.roundUp())
	}
	for _, source := range []struct {
		name  string
		args  []string
		files []served
		ways  int // how many of them foreign clients read
	}{
		{"loop devices", append(shuffled(rng, loops), exports(files)...), files, 2},
		{"image files", append(shuffled(rng, images), exports(files)...), files, 0},
		{"image files through the page cache", []string{"-c", config(t, rng, images, padded)}, padded, 5},
	} {
		s := serve(t, source.args...)
		s.checkList(ctx, t, source.files)
		for i, f := range source.files {
			if i < source.ways {
				s.checkForeign(ctx, t, rng, f)
			}
			reads := 200
			if i < 2 {
				reads = 2000
			}
			s.checkRandomReads(ctx, t, rng, f, reads*rounds())
		}
		if m := s.scrape(ctx, t); m.sum("btrexport_reads_lost_total")+m.sum("btrexport_checksum_failures_total")+m.sum("btrexport_read_retries_total") != 0 {
			t.Errorf("%s: a whole filesystem has failures: %v", source.name, m)
		}
		s.end(t)
		if t.Failed() {
			t.Fatalf("from %s", source.name)
		}
	}
}

// config writes a configuration that serves files from devices in random order, without O_DIRECT and
// padded to sectors.
func config(t *testing.T, rng *rand.Rand, devices []string, files []served) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("filesystems:\n  - name: random\n    direct_io: false\n    devices:\n")
	for _, i := range rng.Perm(len(devices)) {
		fmt.Fprintf(&b, "      - %q\n", devices[i])
	}
	b.WriteString("exports:\n")
	for _, f := range files {
		fmt.Fprintf(&b, "  - name: %q\n    path: %q\n    round_up: 512\n", f.name, f.path)
	}
	path := filepath.Join(t.TempDir(), "btrexport.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

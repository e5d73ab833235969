//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// mapped is what "map --json" prints of an extent.
type mapped struct {
	Kind   string `json:"kind"`
	Copies []struct {
		Offset   int64  `json:"offset"`
		Length   int64  `json:"length"`
		DevID    int    `json:"devid"`
		Physical int64  `json:"physical"`
		Parity   string `json:"parity"`
	} `json:"copies"`
}

// verifyLine is any line of "verify --json".
type verifyLine struct {
	MessageType string `json:"message_type"`
	Path        string `json:"path"`
	Disk        int64  `json:"disk_length"`
	Lost        bool   `json:"lost"`
	Copies      []struct {
		DevID    int    `json:"devid"`
		Physical int64  `json:"physical"`
		State    string `json:"state"`
		Parity   string `json:"parity"`
	} `json:"copies"`
	Result   string `json:"result"`
	BadFiles int    `json:"bad_files"`
	Devices  []struct {
		DevID  int   `json:"devid"`
		Blocks int64 `json:"blocks"`
		Good   int64 `json:"good"`
		Bad    int64 `json:"bad"`
	} `json:"devices"`
}

// verify runs "verify --json" over everything and gives its findings and its summary.
func (k *truth) verify(ctx context.Context, t *testing.T, rng *rand.Rand, status int) (found []verifyLine, sum verifyLine) {
	t.Helper()
	o := run(ctx, t, program(t, plainBinary), append(append([]string{"verify", "--json"}, shuffled(rng, k.fs.Loops())...), "/")...)
	if o.status != status || o.errOut != "" {
		t.Fatalf("verify: exit status %d, want %d\n%.2000s%.2000s", o.status, status, o.out, o.errOut)
	}
	for _, l := range decodeLines[verifyLine](t, o.out) {
		switch l.MessageType {
		case "bad_range":
			found = append(found, l)
		case "summary":
			sum = l
		}
	}
	return found, sum
}

// stripes lists, of a file's blocks, those that one ruined block may be among: the copies of a block, or the blocks
// of a row at one height, parity among them.
func (k *truth) stripes(ctx context.Context, t *testing.T, path string) map[place][]place {
	t.Helper()
	args := append(append([]string{"map", "--json"}, flags("-d", k.fs.Loops())...), path)
	sets := make(map[place][]place)
	for line := range strings.Lines(must(ctx, t, program(t, plainBinary), args...)) {
		var m mapped
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(m.Copies); {
			end := i
			for end < len(m.Copies) && m.Copies[end].Offset == m.Copies[i].Offset {
				end++
			}
			for in := int64(0); in < m.Copies[i].Length; in += sector {
				var all []place
				for _, c := range m.Copies[i:end] {
					all = append(all, place{c.DevID - 1, c.Physical + in})
				}
				last := all[len(all)-1] // of RAID5 and RAID6 parity, which all blocks of the set have in common
				if m.Copies[end-1].Parity == "" {
					last = all[0]
				}
				sets[last] = append(sets[last], all...)
			}
			i = end
		}
	}
	return sets
}

// What is ruined on the disks, copies of data and parity, is named: each block by its device and address, for every
// file that it belongs to, and not one block more. The kernel's scrub then finds all of it, too, and after that
// nothing is bad any more.
func TestVerifyNamesRuined(t *testing.T) {
	need(t)
	for _, c := range []struct {
		profile, metadata string
		devices           int
	}{
		{"dup", "dup", 1}, {"raid1", "raid1", 2}, {"raid1c3", "raid1", 3}, {"raid10", "raid1", 4}, {"raid5", "raid1", 3}, {"raid5", "raid1", 2}, {"raid6", "raid1", 4}, {"raid6", "raid1", 5},
	} {
		t.Run(fmt.Sprintf("%s-%d", c.profile, c.devices), func(t *testing.T) {
			ctx, rng := bounded(t), chance(t)
			o := kernelfs.Options{Devices: c.devices, DeviceSize: 512 << 20, Data: c.profile, Metadata: c.metadata, Nodesize: 4096}
			k := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) {
				tree.Subvolume("sub")
				tree.Plain("sub/plain", 5<<20+rng.Int64N(1<<20))
				tree.Fragment("fragments", 300, rng.Uint64())
				tree.Sync()
				tree.WriteAt("sub/plain", rng.Int64N(4<<20), 1+rng.Int64N(300000))
				tree.Sync()
				tree.Snapshot("sub", "snap", true)
				tree.Clone("sub/plain", "sub/clone")
				tree.WriteAt("sub/clone", rng.Int64N(4<<20), 1+rng.Int64N(300000))
				tree.Link("sub/clone", "sub/link")
				tree.Sync()
			})
			k.unmount(t)
			if found, sum := k.verify(ctx, t, rng, 0); len(found) > 0 || sum.Result != "good" {
				t.Fatalf("a whole filesystem is %s: %+v", sum.Result, found)
			}
			bad := k.ruinSets(ctx, t, rng, []string{"/sub/plain", "/sub/clone", "/snap/plain", "/fragments"})
			found, sum := k.verify(ctx, t, rng, 1)
			k.checkNamed(t, found, sum, bad)
			mnt, err := k.fs.Mount("subvolid=5")
			if err != nil {
				t.Fatal(err)
			}
			run(ctx, t, "btrfs", "scrub", "start", "-B", mnt)
			k.unmount(t)
			if found, sum := k.verify(ctx, t, rng, 0); len(found) > 0 || sum.Result != "good" {
				t.Errorf("after the kernel's scrub it is %s: %+v", sum.Result, found)
			}
		})
	}
}

// ruinSets ruins one block in a fifth of the sets that files lie in, and gives them by file.
func (k *truth) ruinSets(ctx context.Context, t *testing.T, rng *rand.Rand, paths []string) map[string]map[place]bool {
	t.Helper()
	disks := &copies{images: k.fs.Images()}
	ruined := make(map[place]bool)
	decided := make(map[place]bool) // by what a set goes by
	of := make(map[string]map[place]bool)
	var keys []place
	sets := make(map[string]map[place][]place)
	for _, path := range paths {
		sets[path] = k.stripes(ctx, t, path)
		for key := range sets[path] {
			keys = append(keys, key)
		}
	}
	keys = byPlace(keys)
	for _, path := range paths {
		for _, key := range keys {
			set := sets[path][key]
			if len(set) == 0 || decided[key] {
				continue
			}
			decided[key] = true
			if rng.IntN(5) > 0 {
				continue
			}
			p := set[rng.IntN(len(set))]
			if err := disks.ruin(p, sector, rng); err != nil {
				t.Fatal(err)
			}
			ruined[p] = true
		}
	}
	for _, path := range paths {
		of[path] = make(map[place]bool)
		for _, set := range sets[path] {
			for _, p := range set {
				if ruined[p] {
					of[path][p] = true
				}
			}
		}
	}
	t.Logf("%d blocks are ruined", len(ruined))
	if len(ruined) < 50 {
		t.Fatal("too few: the test proves nothing")
	}
	return of
}

// checkNamed compares what was named, and counted, with what was ruined.
func (k *truth) checkNamed(t *testing.T, found []verifyLine, sum verifyLine, bad map[string]map[place]bool) {
	t.Helper()
	named := make(map[string]map[place]bool)
	for path := range bad {
		named[path] = make(map[place]bool)
	}
	all := make(map[int]map[place]bool)
	for _, l := range found {
		if named[l.Path] == nil {
			t.Fatalf("a file that was not there: %+v", l)
		}
		if l.Lost {
			t.Errorf("lost: %+v", l)
		}
		for _, c := range l.Copies {
			for in := int64(0); in < l.Disk && c.State != "good"; in += sector {
				if c.State != "bad" {
					t.Errorf("%s devid %d @%d is %s", l.Path, c.DevID, c.Physical, c.State)
				}
				named[l.Path][place{c.DevID - 1, c.Physical + in}] = true
			}
		}
	}
	for path, places := range bad {
		var missed, more []place
		for p := range places {
			if !named[path][p] {
				missed = append(missed, p)
			}
			if all[p.device+1] == nil {
				all[p.device+1] = make(map[place]bool)
			}
			all[p.device+1][p] = true
		}
		for p := range named[path] {
			if !places[p] {
				more = append(more, p)
			}
		}
		if len(missed)+len(more) > 0 {
			t.Errorf("%s: ruined and not named: %v; named and not ruined: %v", path, missed, more)
		}
	}
	want, got := make(map[int]int64), make(map[int]int64)
	for _, d := range sum.Devices {
		want[d.DevID], got[d.DevID] = int64(len(all[d.DevID])), d.Bad
		if d.Good+d.Bad != d.Blocks {
			t.Errorf("devid %d: %+v", d.DevID, d)
		}
	}
	if d := cmp.Diff(want, got); d != "" || sum.Result != "bad" {
		t.Errorf("the summary says %s (-ruined +counted):\n%s", sum.Result, d)
	}
}

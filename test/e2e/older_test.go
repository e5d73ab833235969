//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// openAt opens a state of the filesystem in image files, for the whole test.
func openAt(ctx context.Context, t *testing.T, images []string, o fsread.Options) (*fsread.FS, error) {
	t.Helper()
	var devs []volume.Device
	for _, image := range images {
		q, err := devio.Open(image, devio.Options{})
		if err != nil {
			t.Fatal(err)
		}
		devs = append(devs, q)
	}
	f, err := fsread.Open(ctx, devs, o)
	if err != nil {
		for _, d := range devs {
			_ = d.Close()
		}
		return nil, err
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, nil
}

// The kernel commits again and again over files that change. Each of the states that the superblock still knows of
// has the content that the files had at that commit, or an error, and never anything else; so has the newest of
// them that opens after the last commit's root is ruined.
func TestOlderStates(t *testing.T) {
	need(t, "mkfs.btrfs")
	for round, o := range []kernelfs.Options{{Data: "single"}, {Devices: 2, Data: "raid1", Metadata: "raid1"}, {Nodesize: 4096, Data: "single", Metadata: "single"}} {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			rng, ctx := chance(t), bounded(t)
			k, err := kernelfs.Make(ctx, t.TempDir(), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = k.Close() })
			truth := writeHistory(ctx, t, k, rng)
			for slot := range ondisk.BackupSlots {
				f, err := openAt(ctx, t, k.Images(), fsread.Options{Root: fsread.RootChoice{Slot: slot + 1}})
				if err != nil {
					t.Logf("slot %d: %v", slot, err)
					continue
				}
				holdState(ctx, t, f, truth)
			}
			ruinRoot(ctx, t, k.Images())
			_, err = openAt(ctx, t, k.Images(), fsread.Options{})
			var ruined *fsread.RuinedError
			if !errors.As(err, &ruined) {
				t.Fatalf("the root is ruined: got %v", err)
			}
			if ruined.Older == 0 {
				return
			}
			f, err := openAt(ctx, t, k.Images(), fsread.Options{Root: fsread.RootChoice{Generation: ruined.Older}})
			if err != nil {
				t.Fatal(err)
			}
			holdState(ctx, t, f, truth)
		})
	}
}

// writeHistory changes files and commits, again and again. It gives the content of all files by the generation from
// which on they had it, and leaves the filesystem unmounted.
func writeHistory(ctx context.Context, t *testing.T, k *kernelfs.FS, rng *rand.Rand) map[uint64]map[string][]byte {
	t.Helper()
	mnt, err := k.Mount("subvolid=5")
	if err != nil {
		t.Fatal(err)
	}
	tree := kernelfs.NewTree(ctx, mnt, kernelfs.Content{Seed: rng.Uint64(), Noise: true})
	const files = 40
	tree.NoCOW("nocow")
	tree.WriteAt("nocow", 0, 100000)
	for i := range files {
		tree.Plain(fmt.Sprint(i), 1000+rng.Int64N(60000))
	}
	truth := map[uint64]map[string][]byte{}
	for range 12 {
		for range 6 {
			tree.WriteAt(fmt.Sprint(rng.IntN(files)), rng.Int64N(30000), 1+rng.Int64N(30000))
		}
		tree.WriteAt("nocow", rng.Int64N(90000), 5000)
		if n := fmt.Sprint(rng.IntN(files)); rng.IntN(2) == 0 {
			tree.Remove(n)
			tree.Plain(n, 1000+rng.Int64N(60000))
		}
		tree.Sync()
		if err := tree.Err(); err != nil {
			t.Fatal(err)
		}
		f, err := openAt(ctx, t, k.Images(), fsread.Options{Changing: true})
		if err != nil {
			t.Fatal(err)
		}
		truth[f.Info().Generation] = contents(t, mnt)
	}
	if err := k.Unmount(); err != nil {
		t.Fatal(err)
	}
	return truth
}

// ruinRoot overwrites the begin of every copy of the last commit's topmost block.
func ruinRoot(ctx context.Context, t *testing.T, images []string) {
	t.Helper()
	f, err := openAt(ctx, t, images, fsread.Options{})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := f.Roots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	copies, err := f.Copies(roots[0].Root)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range copies {
		image, err := os.OpenFile(c.Name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = image.WriteAt(make([]byte, 4096), int64(c.Physical))
		if err := errors.Join(err, image.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func contents(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, n := range names {
		if out[n.Name()], err = os.ReadFile(filepath.Join(dir, n.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// holdState reads every file of a state. What has no checksum must be refused unless the state is the last.
func holdState(ctx context.Context, t *testing.T, f *fsread.FS, truth map[uint64]map[string][]byte) {
	t.Helper()
	i := f.Info()
	var since uint64 // the commit that the content is of: others come from the kernel by itself
	for _, g := range slices.Sorted(maps.Keys(truth)) {
		if g <= i.Generation {
			since = g
		}
	}
	top, err := f.SubvolumeByID(ctx, ondisk.TreeFS)
	if err != nil {
		t.Logf("generation %d: %v", i.Generation, err)
		return
	}
	good, failed := 0, 0
	for name, want := range truth[since] {
		got, err := readAll(ctx, top, name)
		switch {
		case errors.Is(err, fsread.ErrNotExist):
			t.Errorf("generation %d: %v", i.Generation, err)
		case err == nil && !bytes.Equal(got, want):
			t.Errorf("generation %d: %s: wrong bytes", i.Generation, name)
		case err == nil && name == "nocow" && i.Generation != i.Newest:
			t.Errorf("generation %d: bytes without a checksum were served", i.Generation)
		case err == nil:
			good++
		default:
			failed++
		}
	}
	t.Logf("generation %d of %d: %d files are as they were, %d can't be read", i.Generation, i.Newest, good, failed)
}

func readAll(ctx context.Context, sv *fsread.Subvolume, name string) ([]byte, error) {
	file, err := sv.OpenFile(ctx, "/"+name)
	if err != nil {
		return nil, err
	}
	b := make([]byte, file.Size())
	_, err = file.ReadAt(ctx, b, 0)
	return b, err
}

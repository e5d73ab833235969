//go:build linux

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// truth is a filesystem on loop devices and what the kernel shows of it.
type truth struct {
	fs   *kernelfs.FS
	view *kernelfs.View
	mnt  string // the read-only mount; empty once it is gone
}

// makeTruth lets the kernel make and fill a filesystem, and mounts it again, read-only, for the truth.
func makeTruth(ctx context.Context, t *testing.T, o kernelfs.Options, fill func(*kernelfs.Tree)) *truth {
	t.Helper()
	fs, err := kernelfs.Make(ctx, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	k := &truth{fs: fs}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	mnt, err := fs.Mount("subvolid=5")
	if err != nil {
		t.Fatal(err)
	}
	tree := kernelfs.NewTree(ctx, mnt, kernelfs.Content{Seed: 1, Noise: true})
	fill(tree)
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	k.unmount(t)
	if k.mnt, err = fs.Mount("ro", "subvolid=5"); err != nil {
		t.Fatal(err)
	}
	if k.view, err = kernelfs.Manifest(ctx, k.mnt); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *truth) unmount(t *testing.T) {
	t.Helper()
	if err := k.fs.Unmount(); err != nil {
		t.Fatal(err)
	}
	k.mnt = ""
}

// read is the kernel's content of a file. The filesystem is still mounted.
func (k *truth) read(t *testing.T, name fsreadtest.Name) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.mnt, string(name)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// regular lists the regular files.
func (k *truth) regular() []fsreadtest.Entry {
	return slices.DeleteFunc(slices.Clone(k.view.Entries), func(e fsreadtest.Entry) bool { return e.Type != "file" })
}

// served is one export and the bytes that it must have.
type served struct {
	name, path string
	want       []byte
}

// choose picks the largest files that can be named on a command line, and some at random.
func (k *truth) choose(t *testing.T, rng *rand.Rand, large, random int) []served {
	t.Helper()
	files := slices.DeleteFunc(k.regular(), func(e fsreadtest.Entry) bool {
		return !utf8.ValidString(string(e.Path)) || strings.ContainsAny(string(e.Path), "\n\t\x01\x7f")
	})
	rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	slices.SortStableFunc(files[min(random, len(files)):], func(a, b fsreadtest.Entry) int { return int(b.Size - a.Size) })
	var list []served
	for i, e := range files[:min(len(files), random+large)] {
		list = append(list, served{name: fmt.Sprintf("file %d", i), path: "/" + string(e.Path), want: k.read(t, e.Path)})
	}
	slices.Reverse(list) // the large ones first
	return list
}

// roundUp is the export with zeroes up to a multiple of 512 bytes.
func (f served) roundUp() served {
	f.want = append(f.want[:len(f.want):len(f.want)], make([]byte, -len(f.want)&511)...)
	return f
}

// shuffled is a list of devices in random order, each behind -d.
func shuffled(rng *rand.Rand, devices []string) []string {
	list := slices.Clone(devices)
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return flags("-d", list)
}

// flags puts flag before every value.
func flags(flag string, values []string) []string {
	var args []string
	for _, v := range values {
		args = append(args, flag, v)
	}
	return args
}

// exports are the flags that serve the files.
func exports(files []served) []string {
	var args []string
	for _, f := range files {
		args = append(args, "-e", f.name+"="+f.path)
	}
	return args
}

// diff says where two contents differ; empty: nowhere.
func diff(got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	if len(got) != len(want) {
		return fmt.Sprintf("got %d bytes, want %d", len(got), len(want))
	}
	i := 0
	for got[i] == want[i] {
		i++
	}
	end := min(i+16, len(got))
	return fmt.Sprintf("from byte %d of %d on: got % x, want % x", i, len(got), got[i:end], want[i:end])
}

// sameFile compares a file on the disk with what it must hold.
func sameFile(t *testing.T, what, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if d := diff(got, want); d != "" {
		t.Errorf("%s: %s", what, d)
	}
}

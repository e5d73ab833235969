//go:build linux

package kernelfs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// needKernel skips a test that makes real filesystems unless it was asked for and can be done.
func needKernel(t *testing.T) {
	t.Helper()
	if os.Getenv("BTREXPORT_E2E") != "1" {
		t.Skip("makes filesystems on loop devices as root: set BTREXPORT_E2E=1")
	}
	if err := Usable(); err != nil {
		t.Skip(err)
	}
}

func TestOptionsArgs(t *testing.T) {
	for _, c := range []struct {
		name string
		opts Options
		want string
	}{
		{"zero", Options{}, "-q -s 4096"},
		{"profiles", Options{Data: "raid0", Metadata: "raid1c3", Nodesize: 65536}, "-q -d raid0 -m raid1c3 -s 4096 -n 65536"},
		{"features", Options{Features: []string{"^no-holes", "extref"}, Label: "l"}, "-q -L l -s 4096 -O ^no-holes,extref"},
		{"mixed", Options{Mixed: true, Csum: "xxhash", Sectorsize: 8192}, "-q -s 8192 --csum xxhash --mixed"},
	} {
		if got := strings.Join(c.opts.Args(), " "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// make1 makes a filesystem, lets fill work in it, and returns the manifest after a remount.
func make1(t *testing.T, o Options, fill func(fs *FS, tree *Tree)) *View {
	t.Helper()
	ctx := t.Context()
	fs, err := Make(ctx, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	}()
	mnt, err := fs.Mount("subvolid=5")
	if err != nil {
		t.Fatal(err)
	}
	tree := NewTree(ctx, mnt, Content{Seed: 7, Noise: true})
	fill(fs, tree)
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	if err := fs.Unmount(); err != nil {
		t.Fatal(err)
	}
	if mnt, err = fs.Mount("ro", "subvolid=5"); err != nil {
		t.Fatal(err)
	}
	view, err := Manifest(ctx, mnt)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

func TestZooManifest(t *testing.T) {
	needKernel(t)
	view := make1(t, Options{Devices: 2, Data: "raid0", Metadata: "raid1"}, func(_ *FS, tree *Tree) { tree.Zoo("zoo") })
	got := make(map[fsreadtest.Name]fsreadtest.Entry)
	for _, e := range view.Entries {
		got[e.Path] = e
	}
	for _, c := range []struct {
		path  fsreadtest.Name
		want  string
		value string
	}{
		{".", "dir", got["."].Type},
		{"zoo/size-4097", "file", got["zoo/size-4097"].Type},
		{"zoo/mode", "4751", got["zoo/mode"].Mode},
		{"zoo/symlinks/odd", "no\xff\xfeutf8", string(got["zoo/symlinks/odd"].Target)},
		{"zoo/null", "1:3", got["zoo/null"].Rdev},
		{"zoo/shared-whole", got["zoo/shared-source"].SHA256, got["zoo/shared-whole"].SHA256},
		{"zoo/linked", got["zoo/link-3"].SHA256, got["zoo/linked"].SHA256},
	} {
		if c.value != c.want || c.want == "" {
			t.Errorf("%s: got %q, want %q", c.path, c.value, c.want)
		}
	}
	if e := got["zoo/nocow"]; !e.NoCOW || e.Size != 100000 {
		t.Errorf("zoo/nocow: got %+v, want 100000 bytes without checksums", e)
	}
	if e := got["zoo/mode"]; e.MtimeSec != -86400 || e.MtimeNsec != 123456789 || e.UID != 1000 || e.GID != 1001 {
		t.Errorf("zoo/mode: got %+v", e)
	}
	if a, b := got["zoo/shared-source"].SHA256, got["zoo/shared-changed"].SHA256; a == b {
		t.Errorf("zoo/shared-changed has the content of its source")
	}
	if !slices.IsSortedFunc(view.Entries, func(a, b fsreadtest.Entry) int { return comparePath(a.Path, b.Path) }) {
		t.Error("entries are not in the order of their paths")
	}
}

func TestNamespacesManifest(t *testing.T) {
	needKernel(t)
	view := make1(t, Options{}, func(_ *FS, tree *Tree) { tree.Namespaces() })
	got := make(map[string]bool)
	for _, s := range view.Subvolumes {
		got[string(s.Path)] = s.ReadOnly
	}
	want := map[string]bool{
		"root/@": false, "@home": false, "root/@/nested": false, "root/@/nested/deep": false, "with space": false,
		"snaps/ro": true, "snaps/rw": false, "snaps/rw/of-itself": true, "root/@/nested/deep/snap": false,
		"root/@/renamed/moved-too": false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("subvolumes and whether they are read-only (-want +got):\n%s", diff)
	}
	i := slices.IndexFunc(view.Entries, func(e fsreadtest.Entry) bool { return e.Path == "snaps/ro/nested" })
	if i < 0 || view.Entries[i].Ino != emptySubvolume || view.Entries[i].MtimeSec != 0 {
		t.Errorf("snaps/ro/nested: entry %d, want an empty directory of inode 2 without a time", i)
	}
}

// One seed must give one tree, on any profile; another seed another.
func TestRandomIsDeterministic(t *testing.T) {
	needKernel(t)
	opts := RandomOptions{Ops: 150, MaxFile: 1 << 20, Subvols: 5}
	tree := func(seed uint64, o Options) []string {
		var list []string
		view := make1(t, o, func(_ *FS, tree *Tree) { tree.Random(seed, opts) })
		for _, e := range view.Entries {
			list = append(list, strings.Join([]string{string(e.Path), e.Type, e.SHA256, string(e.Target)}, " "))
		}
		return list
	}
	one := tree(1, Options{Data: "single", Metadata: "single"})
	again := tree(1, Options{Devices: 2, Data: "raid0", Metadata: "raid1", Nodesize: 4096})
	if diff := cmp.Diff(one, again); diff != "" {
		t.Errorf("seed 1 twice (-first +second):\n%s", diff)
	}
	if cmp.Equal(one, tree(2, Options{})) {
		t.Error("seeds 1 and 2 gave the same tree")
	}
	if len(one) < 50 {
		t.Errorf("got %d entries, want more", len(one))
	}
}

// A device that is removed leaves no loop device and no image behind, and the next gets a new
// number.
func TestReplaceDevice(t *testing.T) {
	needKernel(t)
	view := make1(t, Options{Devices: 3, Data: "raid1", Metadata: "raid1", DeviceSize: 2 * MinDevice}, func(fs *FS, tree *Tree) {
		tree.Plain("file", 1<<20)
		tree.Sync()
		gone := fs.Images()[1]
		if err := fs.RemoveDevice(t.Context(), tree.Root(), 1); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(gone); !os.IsNotExist(err) {
			t.Errorf("%s after removal: got %v, want that it does not exist", gone, err)
		}
		if err := fs.AddDevice(t.Context(), tree.Root(), 2*MinDevice); err != nil {
			t.Fatal(err)
		}
		if n := len(fs.Loops()); n != 3 {
			t.Errorf("got %d devices, want 3", n)
		}
	})
	if len(view.Entries) != 2 || view.Entries[1].Size != 1<<20 {
		t.Errorf("got %+v, want the root and one file of 1 MiB", view.Entries)
	}
}

// A failure half way must release what was made before it.
func TestMakeCleansUpAfterFailure(t *testing.T) {
	needKernel(t)
	dir := t.TempDir()
	if _, err := Make(t.Context(), dir, Options{Devices: 2, Data: "no-such-profile"}); err == nil {
		t.Fatal("mkfs took an unknown profile")
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range backing {
		if b, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(b), dir) {
			t.Errorf("%s: still %s", path, b)
		}
	}
}

func TestTreeKeepsFirstError(t *testing.T) {
	tree := NewTree(t.Context(), t.TempDir(), Content{})
	tree.Plain("no/such/dir", 1)
	first := tree.Err()
	if first == nil {
		t.Fatal("writing into a missing directory gave no error")
	}
	tree.Plain("file", 1)
	if tree.Err() != first {
		t.Errorf("got %v, want the first error %v", tree.Err(), first)
	}
	if _, err := os.Stat(tree.path("file")); !os.IsNotExist(err) {
		t.Errorf("an operation ran after an error: %v", err)
	}
}

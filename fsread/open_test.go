package fsread

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/btrexport/btrexport/devio/faultdev"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// openPaths opens a filesystem from image files and closes the devices when that fails.
func openPaths(t testing.TB, o Options, paths ...string) (*FS, error) {
	t.Helper()
	r := newRig(t, &fsreadtest.Image{Devices: paths})
	f, err := r.open(o)
	t.Cleanup(func() { r.close(t, f) })
	return f, err
}

// TestOpenRefuses names the thing and the remedy for every set of devices that makes no filesystem.
func TestOpenRefuses(t *testing.T) {
	raid1 := fsreadtest.Load(t, imageName(t, "raid1-2"))
	raid0 := fsreadtest.Load(t, imageName(t, "raid0-2"))
	mixed := fsreadtest.Load(t, imageName(t, "raid0-raid1c3"))
	c3 := fsreadtest.Load(t, imageName(t, "raid1c3"))
	single := fsreadtest.Load(t, "single")
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	zeroes, short := write("zeroes", make([]byte, 1<<20)), write("short", make([]byte, 100))
	second, err := os.ReadFile(raid1.Devices[0])
	if err != nil {
		t.Fatal(err)
	}
	clone := write("clone", second)
	for _, c := range []struct {
		name  string
		paths []string
		kind  error
		words []string
	}{
		{"no device", nil, volume.ErrDevices, []string{"-d DEVICE"}},
		{"no filesystem", []string{zeroes}, volume.ErrNoFilesystem, []string{zeroes, "no btrfs superblock at 64 KiB"}},
		{"too short", []string{short}, volume.ErrNoFilesystem, []string{short, "100 bytes"}},
		{"two filesystems", []string{raid1.Devices[0], single.Devices[0]}, volume.ErrDevices,
			[]string{"different filesystems", raid1.Manifest.UUID, single.Manifest.UUID, raid1.Devices[0], single.Devices[0]}},
		{"one device twice", []string{raid1.Devices[0], raid1.Devices[0]}, volume.ErrDevices, []string{"the same device", "devid 1"}},
		{"a clone", []string{raid1.Devices[0], clone, raid1.Devices[1]}, volume.ErrDevices, []string{"the same device or copies of it", clone}},
		{"raid1 without a device", raid1.Devices[:1], volume.ErrMissing, []string{"devid 2 (uuid ", "1 of 2 devices given", "add -d", "--degraded: raid1 can be read with one device"}},
		{"raid0 without a device", raid0.Devices[1:], volume.ErrMissing, []string{"devid 1 (uuid ", "1 of 2 devices given", "chunk tree", "add -d"}},
		{"raid0 data without a device", mixed.Devices[1:], volume.ErrMissing, []string{"devid 1 (uuid ", "and data is raid0: 1/3 of the data cannot be read ("}},
		{"raid1c3 without two", c3.Devices[:len(c3.Devices)-2], volume.ErrMissing, []string{"are missing", "devid 3", "devid 4"}},
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
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line", err)
			}
		})
	}
}

// TestDegraded reads all that has a copy without a device, and says of the rest which device it misses.
func TestDegraded(t *testing.T) {
	for _, c := range []struct {
		name string
		all  bool // nothing is lost whichever device is missing
	}{{"raid1-2", true}, {"raid1-3", true}, {"raid1c3", true}, {"raid10-4", true}, {"raid0-raid1c3", false}} {
		t.Run(c.name, func(t *testing.T) {
			img := fsreadtest.Load(t, imageName(t, c.name))
			truth := files(t, mustOpen(t, newRig(t, img), Options{}), 4<<20)
			for gone := range img.Devices {
				var paths []string
				for i, p := range img.Devices {
					if i != gone {
						paths = append(paths, p)
					}
				}
				f, err := openPaths(t, Options{Degraded: true}, paths...)
				if err != nil {
					t.Fatalf("without devid %d: %v", gone+1, err)
				}
				lost := 0
				if err := eachFile(f, func(path string, file *File) error {
					want, ok := truth[path]
					if !ok {
						return nil
					}
					got := make([]byte, len(want))
					_, err := file.ReadAt(context.Background(), got, 0)
					if bad := mustEqual(path, got, want, 0, err); bad != nil {
						return bad
					}
					if err != nil && (c.all || !errors.Is(err, volume.ErrMissing)) {
						return err
					}
					if err != nil {
						lost++
					}
					return nil
				}); err != nil {
					t.Errorf("without devid %d: %v", gone+1, err)
				}
				if !c.all && lost == 0 {
					t.Errorf("without devid %d: no file lost anything", gone+1)
				}
			}
		})
	}
}

const (
	primary = 64 << 10
	mirror  = 64 << 20
)

// TestSuperblockCopies takes a good mirror where the primary is ruined, and the newer of two generations.
func TestSuperblockCopies(t *testing.T) {
	for _, c := range []struct {
		name   string
		ruin   func(t *testing.T, path string)
		copied int
		fails  bool
	}{
		{"healthy", func(*testing.T, string) {}, 0, false},
		{"primary is zero", func(t *testing.T, p string) { pwrite(t, p, primary, make([]byte, 4096)) }, 1, false},
		{"primary has a bad checksum", func(t *testing.T, p string) { pwrite(t, p, primary+200, []byte{0xff, 0xfe}) }, 1, false},
		{"mirror is ruined", func(t *testing.T, p string) { pwrite(t, p, mirror+100, []byte("x")) }, 0, false},
		{"both are ruined", func(t *testing.T, p string) {
			pwrite(t, p, primary+200, []byte{0xff, 0xfe})
			pwrite(t, p, mirror+200, []byte{0xff, 0xfe})
		}, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := fsreadtest.Load(t, "single")
			c.ruin(t, img.Devices[0])
			f, err := openPaths(t, Options{}, img.Devices...)
			if (err != nil) != c.fails {
				t.Fatalf("got %v, want failure %v", err, c.fails)
			}
			if err == nil && f.copied != c.copied {
				t.Errorf("took copy %d, want %d", f.copied, c.copied)
			}
			if err != nil && !errors.Is(err, ondisk.ErrChecksum) {
				t.Errorf("got %v, want ErrChecksum", err)
			}
		})
	}
}

// TestStaleDevice makes one mirror miss the last writes: everything is read as of the newer one, and what no
// checksum covers never from the stale one.
func TestStaleDevice(t *testing.T) {
	img := fsreadtest.Load(t, imageName(t, "raid1-2"))
	truth := files(t, mustOpen(t, newRig(t, img), Options{}), 4<<20)
	old, err := os.ReadFile(img.Devices[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []uint64{primary, mirror} {
		sb := old[at : at+ondisk.SuperblockSize]
		gen := sb[72:80]
		gen[0]-- // the generation, little-endian; golden images have a low one
		reseal(sb)
		pwrite(t, img.Devices[0], int64(at), sb)
	}
	r := newRig(t, img)
	f := mustOpen(t, r, Options{})
	devs := f.vol.Devices()
	if !devs[0].Stale || devs[1].Stale {
		t.Fatalf("stale: %v %v, want devid 1 alone", devs[0].Stale, devs[1].Stale)
	}
	// Whatever the stale device holds, it is not asked while its peer answers.
	pwrite(t, img.Devices[0], 1<<20, bytes.Repeat([]byte{0xa5}, 16<<20))
	if err := eachFile(f, func(path string, file *File) error {
		want, ok := truth[path]
		if !ok {
			return nil
		}
		got := make([]byte, len(want))
		if _, err := file.ReadAt(context.Background(), got, 0); err != nil {
			return err
		}
		return mustEqual(path, got, want, 0, nil)
	}); err != nil {
		t.Error(err)
	}
}

// TestChangingRefusesUnverified refuses bytes without a checksum on a filesystem that is mounted read-write.
func TestChangingRefusesUnverified(t *testing.T) {
	f := mustOpen(t, newRig(t, fsreadtest.Load(t, "single")), Options{Changing: true})
	unverified := 0
	if err := eachFile(f, func(path string, file *File) error {
		if file.size == 0 || file.size > 64<<20 {
			return nil
		}
		_, err := file.ReadAt(context.Background(), make([]byte, file.size), 0)
		if !file.Verified() && errors.Is(err, ErrUnverifiable) {
			unverified++
			return nil
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if unverified == 0 {
		t.Error("no file without checksums on the image: the test shows nothing")
	}
}

// TestChangingOpensAgain takes a tree block that can't be read for a commit that came between: on a mounted
// filesystem the next attempt sees the newer one.
func TestChangingOpensAgain(t *testing.T) {
	img := fsreadtest.Load(t, "single")
	const supers = 2 // reads before the first tree block
	for _, changing := range []bool{true, false} {
		r := newRig(t, img)
		r.devs[0].Fail(faultdev.Nth(supers), syscall.EIO)
		r.devs[0].Fail(faultdev.Nth(supers+1), syscall.EIO) // by itself
		f, err := r.open(Options{Changing: changing})
		if (err == nil) != changing {
			t.Errorf("changing %v: got %v", changing, err)
		}
		r.close(t, f)
	}
}

// TestResolve covers paths that need no golden image's manifest: what is missing, what loops, what leaves.
func TestResolve(t *testing.T) {
	f := mustOpen(t, newRig(t, fsreadtest.Load(t, "namespaces")), Options{})
	top, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	links := map[error]string{}
	var plain string
	if err := eachEntry(t.Context(), top, func(path string, n *Node, target string) {
		if n.Mode().IsRegular() {
			plain = path
		}
		if target == "" {
			return
		}
		_, err := top.Resolve(t.Context(), path)
		for _, kind := range []error{ErrLinkLoop, ErrLinkLeaves, ErrNotExist, nil} {
			if errors.Is(err, kind) {
				links[kind] = path
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []error{ErrLinkLoop, ErrLinkLeaves, ErrNotExist, nil} {
		if links[kind] == "" {
			t.Errorf("no symbolic link on the image resolves to %v", kind)
		}
	}
	misspelt := plain[:len(plain)-1] + "~"
	for _, c := range []struct {
		path string
		want error
	}{
		{"/", nil}, {"", nil}, {"//.//", nil}, {"/..", nil}, {"/../..", nil}, {plain, nil}, {plain + "/", ErrNotDir}, {plain + "/x", ErrNotDir},
		{plain + "/..", ErrNotDir}, {misspelt, ErrNotExist}, {"/no/such", ErrNotExist}, {"/" + strings.Repeat("x", 5000), ErrNotExist}, {"/a\x00b", ErrNotExist},
	} {
		_, err := top.Resolve(t.Context(), c.path)
		if !errors.Is(err, c.want) || (c.want == nil && err != nil) {
			t.Errorf("%q: got %v, want %v", c.path, err, c.want)
		}
	}
	var pe *PathError
	if _, err := top.Resolve(t.Context(), misspelt); !errors.As(err, &pe) || pe.Near == "" {
		t.Errorf("%q: got %v, want a suggestion", misspelt, err)
	}
	if _, err := top.OpenFile(t.Context(), "/"); !errors.Is(err, ErrIsDir) {
		t.Errorf("/: got %v, want ErrIsDir", err)
	}
	for _, id := range []uint64{0, 1, 6, 255, 1 << 40, ondisk.TreeLog} {
		if _, err := f.SubvolumeByID(t.Context(), id); !errors.Is(err, ErrNotExist) {
			t.Errorf("subvolume %d: got %v, want ErrNotExist", id, err)
		}
	}
}

// eachEntry calls fn for everything below the subvolume, with the target of symbolic links.
func eachEntry(ctx context.Context, s *Subvolume, fn func(path string, n *Node, target string)) error {
	var walk func(path string, n *Node) error
	walk = func(path string, n *Node) error {
		return n.ReadDir(ctx, func(e Entry) error {
			c, err := e.Node(ctx)
			if err != nil {
				return err
			}
			target := ""
			if c.item.Mode&modeType == modeSymlink {
				if target, err = c.Readlink(ctx); err != nil {
					return err
				}
			}
			fn(path+"/"+e.Name, c, target)
			if c.IsDir() {
				return walk(path+"/"+e.Name, c)
			}
			return nil
		})
	}
	root, err := s.Root(ctx)
	if err != nil {
		return err
	}
	return walk("", root)
}

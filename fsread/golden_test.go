package fsread_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// openDevices opens every path, in random order.
func openDevices(t testing.TB, paths []string) []volume.Device {
	t.Helper()
	var devs []volume.Device
	for _, i := range rand.Perm(len(paths)) {
		q, err := devio.Open(paths[i], devio.Options{Engine: fsreadtest.Engine(t)})
		if err != nil {
			t.Fatal(err)
		}
		devs = append(devs, q)
	}
	return devs
}

// open opens a filesystem that the test closes at its end.
func open(t testing.TB, devs []volume.Device, o fsread.Options) *fsread.FS {
	t.Helper()
	f, err := fsread.Open(t.Context(), devs, o)
	if err != nil {
		for _, d := range devs {
			d.Close()
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// TestGolden holds every golden image against the manifest of what the kernel showed.
func TestGolden(t *testing.T) {
	for _, name := range fsreadtest.Names(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := fsreadtest.Load(t, name)
			m := img.Manifest
			f := open(t, openDevices(t, img.Devices), fsread.Options{})
			checkSubvolumes(t, f, m)
			top, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
			if err != nil {
				t.Fatal(err)
			}
			checkEntries(t, top, m.Entries)
			def, err := f.DefaultSubvolume(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if def.ID() != m.DefaultSubvolume {
				t.Errorf("default subvolume is %d, want %d", def.ID(), m.DefaultSubvolume)
			}
			if len(m.DefaultEntries) > 0 {
				checkEntries(t, def, m.DefaultEntries)
			}
		})
	}
}

func checkSubvolumes(t *testing.T, f *fsread.FS, m *fsreadtest.Manifest) {
	t.Helper()
	got, err := f.Subvolumes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var have, want []string
	for _, s := range got {
		if s.ID == ondisk.TreeFS {
			continue
		}
		have = append(have, fmt.Sprintf("%d %q in %d ro %v uuid %s of %s", s.ID, s.Path, s.Parent, s.ReadOnly, uuidText(s.UUID), uuidText(s.ParentUUID)))
	}
	for _, s := range m.Subvolumes {
		want = append(want, fmt.Sprintf("%d %q in %d ro %v uuid %s of %s", s.ID, string(s.Path), s.Parent, s.ReadOnly, s.UUID, s.ParentUUID))
	}
	if !slices.Equal(have, want) {
		t.Errorf("subvolumes:\n got %s\nwant %s", strings.Join(have, "\n     "), strings.Join(want, "\n     "))
	}
}

// uuidText is nothing for the zero UUID, as the manifests have it: btrfs-convert makes subvolumes without.
func uuidText(u ondisk.UUID) string {
	if u.IsZero() {
		return ""
	}
	return u.String()
}

// checkEntries walks the whole tree below a subvolume and compares every line.
func checkEntries(t *testing.T, s *fsread.Subvolume, entries []fsreadtest.Entry) {
	t.Helper()
	want := make(map[string]fsreadtest.Entry)
	for _, e := range entries {
		want[string(e.Path)] = e
	}
	root, err := s.Root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var walk func(path string, n *fsread.Node)
	walk = func(path string, n *fsread.Node) {
		e, ok := want[path]
		if !ok {
			t.Errorf("%q: not in the manifest", path)
			return
		}
		delete(want, path)
		if err := compare(t.Context(), n, e); err != nil {
			t.Errorf("%q: %v", path, err)
		}
		if !n.IsDir() {
			return
		}
		if err := n.ReadDir(t.Context(), func(d fsread.Entry) error {
			child, err := d.Node(t.Context())
			if err != nil {
				return err
			}
			if got := child.Mode().Type(); got != d.Type {
				t.Errorf("%q: entry says %v, inode %v", d.Name, d.Type, got)
			}
			walk(strings.TrimPrefix(path+"/"+d.Name, "./"), child)
			return nil
		}); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	walk(".", root)
	for p := range want {
		t.Errorf("%q: in the manifest, not found", p)
	}
}

func compare(ctx context.Context, n *fsread.Node, e fsreadtest.Entry) error {
	item := n.Item()
	if got, want := typeName(n.Mode()), e.Type; got != want {
		return fmt.Errorf("type %s, want %s", got, want)
	}
	if n.Inode() == 2 {
		return nil // the kernel's empty directory: only what it is matters
	}
	got := fmt.Sprintf("mode %04o uid %d gid %d nlink %d ino %d subvol %d mtime %d.%09d", item.Mode&0o7777, item.UID, item.GID, item.NLink, n.Inode(), n.Subvolume().ID(), item.MTime.Sec, item.MTime.Nsec)
	want := fmt.Sprintf("mode %s uid %d gid %d nlink %d ino %d subvol %d mtime %d.%09d", e.Mode, e.UID, e.GID, e.Nlink, e.Ino, e.Subvol, e.MtimeSec, e.MtimeNsec)
	if got != want {
		return fmt.Errorf("got %s\nwant %s", got, want)
	}
	switch e.Type {
	case "symlink":
		target, err := n.Readlink(ctx)
		if err == nil && target != string(e.Target) {
			err = fmt.Errorf("target %q, want %q", target, e.Target)
		}
		return err
	case "file":
		return compareFile(ctx, n, e)
	case "char", "block":
		major, minor := item.Device()
		if got := fmt.Sprintf("%d:%d", major, minor); got != e.Rdev {
			return fmt.Errorf("device %s, want %s", got, e.Rdev)
		}
	}
	return nil
}

func compareFile(ctx context.Context, n *fsread.Node, e fsreadtest.Entry) error {
	f, err := n.File()
	if err != nil {
		return err
	}
	if int64(f.Size()) != e.Size {
		return fmt.Errorf("size %d, want %d", f.Size(), e.Size)
	}
	if len(e.Pieces) > 0 {
		return comparePieces(ctx, f, e)
	}
	if e.Size == 0 {
		return nil
	}
	got, err := digest(ctx, f, 0, f.Size())
	if err == nil && got != e.SHA256 {
		err = fmt.Errorf("sha256 %s, want %s", got, e.SHA256)
	}
	return err
}

// comparePieces checks a file too large to be read whole: its data, and zeroes around and between them.
func comparePieces(ctx context.Context, f *fsread.File, e fsreadtest.Entry) error {
	end := int64(0)
	for _, p := range e.Pieces {
		got, err := digest(ctx, f, uint64(p.Off), uint64(p.Len))
		if err != nil {
			return err
		}
		if got != p.SHA256 {
			return fmt.Errorf("offset %d length %d: sha256 %s, want %s", p.Off, p.Len, got, p.SHA256)
		}
		if gap := min(p.Off-end, 1<<20); gap > 0 {
			b := make([]byte, gap)
			if _, err := f.ReadAt(ctx, b, uint64(p.Off-gap)); err != nil {
				return err
			}
			if len(bytes.Trim(b, "\x00")) > 0 {
				return fmt.Errorf("offset %d length %d: not zero", p.Off-gap, gap)
			}
		}
		end = p.Off + p.Len
	}
	return nil
}

// digest is the SHA-256 of n bytes at off, read in odd pieces.
func digest(ctx context.Context, f *fsread.File, off, n uint64) (string, error) {
	sum := sha256.New()
	buf := make([]byte, 3<<20-517)
	for n > 0 {
		got, err := f.ReadAt(ctx, buf[:min(uint64(len(buf)), n)], off)
		sum.Write(buf[:got])
		if off, n = off+uint64(got), n-uint64(got); err != nil && (err != io.EOF || n > 0) {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "dir"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeCharDevice != 0:
		return "char"
	case m&fs.ModeDevice != 0:
		return "block"
	}
	return "file"
}

package fsread_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"

	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/fsreadtest"
	"github.com/btrexport/btrexport/fsread/ondisk"
	"github.com/btrexport/btrexport/fsread/volume"
)

// view opens an image of dir ("" for the golden ones) and gives its top level.
func view(t *testing.T, ctx context.Context, dir, name string) (*fsread.View, *fsreadtest.Image) {
	t.Helper()
	img := &fsreadtest.Image{}
	if dir == "" {
		img = fsreadtest.Load(t, name)
	} else {
		img = fsreadtest.LoadFrom(t, dir, name)
	}
	var devs []volume.Device
	for _, p := range img.Devices {
		d, err := devio.Open(p, devio.Options{Buffered: true}) // they are read byte by byte
		if err != nil {
			t.Fatal(err)
		}
		devs = append(devs, d)
	}
	f := open(t, devs, fsread.Options{})
	sv, err := f.SubvolumeByID(t.Context(), ondisk.TreeFS)
	if err != nil {
		t.Fatal(err)
	}
	return sv.View(ctx), img
}

// TestViewByTheBook runs testing/fstest on every directory that io/fs can follow wholly: with no link that leads nowhere, no
// device node, no name that is no UTF-8. It reads files byte by byte, so large ones are left to TestViewShowsAll.
func TestViewByTheBook(t *testing.T) {
	tested := 0
	for _, image := range []string{"sample", "single", "namespaces"} {
		dir := ""
		if image == "sample" {
			dir = "../cmd/btrexport/sample"
		}
		v, img := view(t, t.Context(), dir, image)
		for _, d := range img.Manifest.Entries {
			below, ok := byTheBook(v, img.Manifest.Entries, d)
			if !ok {
				continue
			}
			sub, err := fs.Sub(v, string(d.Path))
			if err == nil {
				err = fstest.TestFS(sub, below...)
			}
			if err != nil {
				t.Errorf("%s %s: %v", image, d.Path, err)
			}
			tested += len(below)
		}
	}
	t.Logf("%d entries", tested)
	if tested < 20 {
		t.Errorf("%d entries were tested: too few", tested)
	}
}

// byTheBook lists what is below a directory, unless io/fs can't follow some of it or a file is large.
func byTheBook(v *fsread.View, all []fsreadtest.Entry, dir fsreadtest.Entry) (below []string, ok bool) {
	if dir.Type != "dir" || !fs.ValidPath(string(dir.Path)) {
		return nil, false
	}
	for _, e := range all {
		rest, inside := strings.CutPrefix(string(e.Path), string(dir.Path)+"/")
		if dir.Path == "." && e.Path != "." {
			rest, inside = string(e.Path), true
		}
		if !inside {
			continue
		}
		if _, err := v.Stat(string(e.Path)); err != nil || e.Size > 20_000 || strings.Contains(rest, `\`) ||
			e.Type != "file" && e.Type != "dir" && e.Type != "symlink" {
			return nil, false
		}
		below = append(below, rest)
	}
	return below, true
}

// TestViewShowsAll walks images with every kind of entry and holds what it sees against what the kernel showed. Only names
// that are no UTF-8 are not given, and that is told.
func TestViewShowsAll(t *testing.T) {
	for _, image := range []string{"single", "dup64", "namespaces", "zstd"} {
		t.Run(image, func(t *testing.T) {
			t.Parallel()
			v, img := view(t, t.Context(), "", image)
			want, hidden := map[string]fsreadtest.Entry{}, map[string]bool{}
			for _, e := range img.Manifest.Entries {
				if utf8.ValidString(string(e.Path)) {
					want[string(e.Path)] = e
				} else {
					hidden[path.Dir(string(e.Path))] = true
				}
			}
			err := fs.WalkDir(v, ".", func(p string, d fs.DirEntry, err error) error {
				if err != nil {
					if pe := (*fs.PathError)(nil); !errors.Is(err, fsread.ErrNotUTF8) || !errors.As(err, &pe) || !hidden[p] {
						t.Errorf("%s: %v", p, err)
					}
					delete(hidden, p)
					return nil
				}
				e, ok := want[p]
				if !ok {
					t.Errorf("%s is not on the disk", p)
					return nil
				}
				delete(want, p)
				sameEntry(t, v, d, e)
				return nil
			})
			if err != nil || len(want) > 0 || len(hidden) > 0 {
				t.Errorf("%v; not seen: %v; not told: %v", err, want, hidden)
			}
		})
	}
}

func sameEntry(t *testing.T, v *fsread.View, d fs.DirEntry, e fsreadtest.Entry) {
	t.Helper()
	p := string(e.Path)
	kinds := map[fs.FileMode]string{0: "file", fs.ModeDir: "dir", fs.ModeSymlink: "symlink", fs.ModeNamedPipe: "fifo",
		fs.ModeSocket: "socket", fs.ModeDevice: "block", fs.ModeDevice | fs.ModeCharDevice: "char"}
	info, err := d.Info()
	if err != nil || kinds[d.Type()] != e.Type || kinds[info.Mode().Type()] != e.Type {
		t.Errorf("%s: %v, %v, want a %s", p, d, err, e.Type)
		return
	}
	if e.Ino != 2 && (info.Size() != e.Size || info.ModTime().Unix() != e.MtimeSec || info.Sys().(*fsread.Node).Inode() != e.Ino) {
		t.Errorf("%s: %v, want %+v", p, info, e)
	}
	switch e.Type {
	case "file":
		b, err := v.ReadFile(p)
		if sum := sha256.Sum256(b); err != nil || int64(len(b)) != e.Size || e.SHA256 != "" && hex.EncodeToString(sum[:]) != e.SHA256 {
			t.Errorf("%s: %d bytes, sha256 %x, %v", p, len(b), sum, err)
		}
	case "symlink":
		if target, err := v.ReadLink(p); err != nil || target != string(e.Target) {
			t.Errorf("%s: %q, %v, want %q", p, target, err, e.Target)
		}
	case "dir":
		_, err := v.ReadLink(p)
		isPathError(t, err, "readlink", p, fs.ErrInvalid)
	default:
		_, err := v.Open(p)
		isPathError(t, err, "open", p, fsread.ErrNotRegular)
	}
}

// isPathError holds an error against what io/fs promises of it.
func isPathError(t *testing.T, err error, op, name string, kind error) {
	t.Helper()
	if e, ok := err.(*fs.PathError); !ok || e.Op != op || e.Path != name || !errors.Is(err, kind) || strings.Count(err.Error(), name) > 1 && len(name) > 3 {
		t.Errorf("%T %v, want %s %s: %v", err, err, op, name, kind)
	}
}

func TestViewRefuses(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	v, img := view(t, ctx, "", "single")
	for _, name := range []string{"", "/", "/zoo", "zoo/", "../zoo", "zoo/./symlinks", "zoo\xff", "zoo\x00"} {
		_, err := v.Open(name)
		isPathError(t, err, "open", name, fs.ErrInvalid)
		_, err = v.ReadDir(name)
		isPathError(t, err, "readdir", name, fs.ErrInvalid)
	}
	for name, kind := range map[string]error{
		"zoo/none": fs.ErrNotExist, "zoo/none/none": fsread.ErrNotExist, "zoo/symlinks/above-root": fsread.ErrLinkLeaves,
		"zoo/symlinks/absolute": fsread.ErrLinkLeaves,
	} {
		_, err := v.Stat(name)
		isPathError(t, err, "stat", name, kind)
		_, err = v.ReadFile(name)
		isPathError(t, err, "readfile", name, kind)
	}
	if _, err := v.Lstat("zoo/symlinks/absolute"); err != nil {
		t.Error(err)
	}
	_, err := v.ReadFile("zoo")
	isPathError(t, err, "readfile", "zoo", fsread.ErrIsDir)
	dir, err := v.Open("zoo")
	if err != nil {
		t.Fatal(err)
	}
	_, err = dir.Read(make([]byte, 1))
	isPathError(t, err, "read", "zoo", fsread.ErrIsDir)

	i := slices.IndexFunc(img.Manifest.Entries, func(e fsreadtest.Entry) bool { return e.Type == "file" && e.Size > 8192 && e.SHA256 != "" })
	name := string(img.Manifest.Entries[i].Path)
	f, err := v.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.(io.ReaderAt).ReadAt(make([]byte, 1), -1)
	isPathError(t, err, "read", name, fs.ErrInvalid)
	for _, s := range []struct {
		off    int64
		whence int
	}{{-1, io.SeekStart}, {-1, io.SeekCurrent}, {1 << 62, 3}, {-1 << 62, io.SeekEnd}} {
		_, err = f.(io.Seeker).Seek(s.off, s.whence)
		isPathError(t, err, "seek", name, fs.ErrInvalid)
	}
	if to, err := f.(io.Seeker).Seek(1<<62, io.SeekEnd); err != nil || to < 1<<62 {
		t.Errorf("%d, %v", to, err)
	}
	if n, err := f.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	gone := errors.New("gone")
	cancel(gone)
	_, err = f.(io.ReaderAt).ReadAt(make([]byte, 4096), 0)
	if err != nil { // what is cached is there all the same
		isPathError(t, err, "read", name, gone)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	_, err = f.Read(make([]byte, 1))
	isPathError(t, err, "read", name, fs.ErrClosed)
	isPathError(t, f.Close(), "close", name, fs.ErrClosed)
	_, err = f.Stat()
	isPathError(t, err, "stat", name, fs.ErrClosed)
	if err := dir.Close(); err != nil {
		t.Error(err)
	}
	_, err = dir.(fs.ReadDirFile).ReadDir(-1)
	isPathError(t, err, "readdir", "zoo", fs.ErrClosed)
}

// TestViewOfHugeFile holds that a file isn't read into memory for the size that the disk says.
func TestViewOfHugeFile(t *testing.T) {
	v, img := view(t, t.Context(), "", "huge")
	for _, e := range img.Manifest.Entries {
		if e.Size > fsread.MaxReadFile {
			_, err := v.ReadFile(string(e.Path))
			isPathError(t, err, "readfile", string(e.Path), fsread.ErrTooLarge)
			return
		}
	}
	t.Error("no file is large enough")
}

// TestViewOfLostParts holds that a read of a view stops at what is lost, says what, and goes on behind it.
func TestViewOfLostParts(t *testing.T) {
	v, f, lost := damagedSample(t)
	name := "@images/vm1.raw"
	whole, err := v.ReadFile(name)
	l := (*fsread.LostError)(nil)
	isPathError(t, err, "readfile", name, err)
	if !errors.As(err, &l) || len(l.Ranges) != 1 || l.Ranges[0].Off != lost || l.Ranges[0].Len != 4096 || uint64(len(whole)) != lost {
		t.Fatalf("%d bytes, %v, want 4096 lost at %d", len(whole), err, lost)
	}
	r, err := v.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if !errors.As(err, &l) || !bytes.Equal(got, whole) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := r.(io.Seeker).Seek(int64(lost)+4096, io.SeekStart); err != nil {
		t.Error(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil || uint64(len(rest)) != f.Size()-lost-4096 {
		t.Errorf("%d bytes behind it, %v", len(rest), err)
	}
}

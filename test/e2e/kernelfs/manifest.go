//go:build linux

package kernelfs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/fsread/fsreadtest"
)

// View is what one mount of a filesystem shows.
type View struct {
	// Subvolumes lists those that the mount reaches, without its root, by id. Their paths are
	// relative to the mount.
	Subvolumes []fsreadtest.Subvolume
	// Entries lists every path in the order of its bytes, the root "." first.
	Entries []fsreadtest.Entry
}

// Manifest walks the mount at root and reads every file, as the kernel shows it. Mount afresh
// before: what the page cache holds after writing is not what stands on the disk.
func Manifest(ctx context.Context, root string) (*View, error) {
	w := &walker{ctx: ctx, root: root, view: new(View)}
	if err := w.walk(".", 0); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", root, err)
	}
	slices.SortFunc(w.view.Subvolumes, func(a, b fsreadtest.Subvolume) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(w.view.Entries, func(a, b fsreadtest.Entry) int { return comparePath(a.Path, b.Path) })
	return w.view, nil
}

// TreeLevel returns the height of a tree of the filesystem mounted at root, 0 for a single leaf.
func TreeLevel(root string, tree uint64) (int, error) {
	d, err := os.Open(root)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	return treeLevel(int(d.Fd()), tree)
}

// Directory is Manifest for a directory of any filesystem, as a single subvolume: what mkfs.btrfs is to
// copy.
func Directory(ctx context.Context, root string) ([]fsreadtest.Entry, error) {
	w := &walker{ctx: ctx, root: root, view: new(View), foreign: true}
	if err := w.walk(".", topSubvolume); err != nil {
		return nil, fmt.Errorf("entries of %s: %w", root, err)
	}
	slices.SortFunc(w.view.Entries, func(a, b fsreadtest.Entry) int { return comparePath(a.Path, b.Path) })
	return w.view.Entries, nil
}

// comparePath puts "." before everything else.
func comparePath(a, b fsreadtest.Name) int {
	if (a == ".") != (b == ".") {
		if a == "." {
			return -1
		}
		return 1
	}
	return strings.Compare(string(a), string(b))
}

type walker struct {
	ctx  context.Context
	root string
	view *View

	foreign bool // no btrfs: there are no subvolumes to ask for
}

// topSubvolume is the id of the subvolume that every filesystem has (BTRFS_FS_TREE_OBJECTID).
const topSubvolume = 5

// walk lists the directory name and what is below it; parent is the subvolume of the directory
// above.
func (w *walker) walk(name string, parent uint64) error {
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	dir, err := os.Open(filepath.Join(w.root, name))
	if err != nil {
		return err
	}
	defer dir.Close()
	self, err := w.entry(name, parent)
	if err != nil {
		return err
	}
	switch {
	case w.foreign:
	case self.Ino == emptySubvolume:
		self.MtimeSec, self.MtimeNsec = 0, 0 // the kernel shows the time of the lookup
	default:
		if self.Subvol, err = subvolumeID(int(dir.Fd())); err != nil {
			return fmt.Errorf("subvolume of %q: %w", name, err)
		}
	}
	w.view.Entries = append(w.view.Entries, self)
	if self.Ino == subvolumeRoot && name != "." && !w.foreign {
		info, err := subvolumeInfo(int(dir.Fd()))
		if err != nil {
			return fmt.Errorf("subvolume %q: %w", name, err)
		}
		info.Path = fsreadtest.Name(name)
		w.view.Subvolumes = append(w.view.Subvolumes, info)
	}
	list, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range list {
		child := filepath.Join(name, e.Name())
		if e.IsDir() {
			err = w.walk(child, self.Subvol)
		} else {
			err = w.leaf(child, self.Subvol)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) leaf(name string, subvol uint64) error {
	e, err := w.entry(name, subvol)
	if err != nil {
		return err
	}
	path := filepath.Join(w.root, name)
	switch e.Type {
	case "symlink":
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		e.Target = fsreadtest.Name(target)
	case "file":
		if err := content(path, &e, !w.foreign); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	w.view.Entries = append(w.view.Entries, e)
	return nil
}

func (w *walker) entry(name string, subvol uint64) (fsreadtest.Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(w.root, name), &st); err != nil {
		return fsreadtest.Entry{}, fmt.Errorf("lstat %q: %w", name, err)
	}
	e := fsreadtest.Entry{
		Path: fsreadtest.Name(name), Type: typeName(st.Mode), Size: st.Size, Mode: fmt.Sprintf("%04o", st.Mode&0o7777),
		UID: st.Uid, GID: st.Gid, MtimeSec: int64(st.Mtim.Sec), MtimeNsec: int64(st.Mtim.Nsec),
		Nlink: uint64(st.Nlink), Ino: st.Ino, Subvol: subvol,
	}
	if e.Type == "char" || e.Type == "block" {
		e.Rdev = fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
	}
	return e, nil
}

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "dir"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR:
		return "char"
	case unix.S_IFBLK:
		return "block"
	}
	return fmt.Sprintf("mode %#o", mode)
}

// content takes the digests of a regular file and, of a btrfs, its NOCOW flag.
func content(path string, e *fsreadtest.Entry, btrfs bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if btrfs {
		flags, err := inodeFlags(f)
		if err != nil {
			return err
		}
		e.NoCOW = flags&fsNoCOW != 0
	}
	if e.Size > maxWhole {
		e.Pieces, err = pieces(f, e.Size)
		return err
	}
	if e.Size > 0 {
		e.SHA256, err = digest(f, 0, e.Size)
	}
	return err
}

// maxWhole is the largest file, in bytes, whose holes are read too.
const maxWhole = 64 << 20

// pieces returns the digests of the ranges of f that the kernel calls data.
func pieces(f *os.File, size int64) ([]fsreadtest.Piece, error) {
	var list []fsreadtest.Piece
	for off := int64(0); off < size; {
		from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO { // a hole up to the end
			break
		}
		if err != nil {
			return nil, err
		}
		if off, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		sum, err := digest(f, from, off-from)
		if err != nil {
			return nil, err
		}
		list = append(list, fsreadtest.Piece{Off: from, Len: off - from, SHA256: sum})
	}
	return list, nil
}

// digest hashes exactly n bytes of f from off on.
func digest(f *os.File, off, n int64) (string, error) {
	h := sha256.New()
	got, err := io.Copy(h, io.NewSectionReader(f, off, n))
	if err != nil {
		return "", err
	}
	if got != n {
		return "", fmt.Errorf("%d bytes at offset %d, want %d", got, off, n)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

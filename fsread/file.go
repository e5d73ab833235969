package fsread

import (
	"context"
	"fmt"
	"math"

	"github.com/btrexport/btrexport/fsread/ondisk"
)

// File is a regular file at the generation that the filesystem was opened at. It may be used
// concurrently, until the FS is closed.
type File struct {
	fs   *FS
	sv   *Subvolume
	ino  uint64
	size uint64
	// noSums: the inode has NODATASUM, so its data have no checksums to hold them against.
	noSums bool
	ahead  ahead
}

// File opens a regular file for reading. Errors: ErrIsDir, ErrNotRegular, ondisk.ErrCorrupt for a size
// that no file has.
func (n *Node) File() (*File, error) {
	switch n.item.Mode & modeType {
	case modeRegular:
	case modeDir:
		return nil, ErrIsDir
	default:
		return nil, fmt.Errorf("%w: %s", ErrNotRegular, n.Mode().Type())
	}
	if n.item.Size > math.MaxInt64-(64<<10) {
		return nil, &ondisk.Error{Item: "INODE_ITEM", Detail: fmt.Sprintf("inode %d has a size of %d bytes", n.ino, n.item.Size)}
	}
	return &File{fs: n.sv.fs, sv: n.sv, ino: n.ino, size: n.item.Size, noSums: n.item.Flags&ondisk.InodeNoDataSum != 0}, nil
}

// OpenFile resolves a path and opens the regular file that it leads to.
func (s *Subvolume) OpenFile(ctx context.Context, path string) (*File, error) {
	n, err := s.Resolve(ctx, path)
	if err != nil {
		return nil, err
	}
	f, err := n.File()
	if err != nil {
		return nil, &PathError{Path: path, Err: err}
	}
	return f, nil
}

// Size is the file's size in bytes.
func (f *File) Size() uint64 { return f.size }

// Rotational is FS.Rotational of the file's filesystem.
func (f *File) Rotational() bool { return f.fs.Rotational() }

// Inode is the file's inode number in its subvolume.
func (f *File) Inode() uint64 { return f.ino }

// Verified says whether the file's data have checksums.
func (f *File) Verified() bool { return !f.noSums }

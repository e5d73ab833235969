//go:build linux

package kernelfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Tree performs operations below a mount point; every name is relative to it. The first error
// sticks: later operations do nothing, and Err returns it. Each write takes a content id of its
// own, so that old and new bytes of one place can be told apart.
type Tree struct {
	ctx     context.Context // of the constructor: a recipe is one job with one end
	root    string
	content Content
	id      uint64
	err     error
}

// NewTree makes a Tree that writes content c below root.
func NewTree(ctx context.Context, root string, c Content) *Tree {
	return &Tree{ctx: ctx, root: root, content: c}
}

// Err returns the first error of all operations so far.
func (t *Tree) Err() error { return t.err }

// Root returns the mount point.
func (t *Tree) Root() string { return t.root }

// Move goes on at another mount point.
func (t *Tree) Move(root string) { t.root = root }

// do runs op unless an operation before it failed, and keeps its error.
func (t *Tree) do(what string, op func() error) {
	if t.err != nil {
		return
	}
	if err := t.ctx.Err(); err != nil {
		t.err = context.Cause(t.ctx)
		return
	}
	if err := op(); err != nil {
		t.err = fmt.Errorf("%s: %w", what, err)
	}
}

func (t *Tree) path(name string) string { return filepath.Join(t.root, name) }

// with opens name, creating it if it is not there, for op.
func (t *Tree) with(what, name string, op func(f *os.File) error) {
	t.do(fmt.Sprintf("%s %q", what, name), func() error {
		f, err := os.OpenFile(t.path(name), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return err
		}
		if err := op(f); err != nil {
			_ = f.Close()
			return err
		}
		return f.Close()
	})
}

// Dir makes a directory and its parents.
func (t *Tree) Dir(name string) {
	t.do("mkdir", func() error { return os.MkdirAll(t.path(name), 0o755) })
}

// Plain makes a file of size bytes, written from start to end.
func (t *Tree) Plain(name string, size int64) { t.WriteAt(name, 0, size) }

// WriteAt writes size bytes at off through the page cache.
func (t *Tree) WriteAt(name string, off, size int64) {
	t.id++
	t.with("write", name, func(f *os.File) error {
		p := make([]byte, min(size, 1<<20))
		for end := off + size; off < end; {
			n := min(int64(len(p)), end-off)
			t.content.Fill(t.id, off, p[:n])
			if _, err := f.WriteAt(p[:n], off); err != nil {
				return err
			}
			off += n
		}
		return nil
	})
}

// WriteBlocks writes the given blocks of BlockSize with O_DIRECT, one write each, in the order
// given: every one becomes an extent of its own. The file must exist.
func (t *Tree) WriteBlocks(name string, blocks []int) {
	t.id++
	t.do(fmt.Sprintf("write blocks of %q", name), func() error {
		fd, err := unix.Open(t.path(name), unix.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		p, err := unix.Mmap(-1, 0, BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		defer unix.Munmap(p)
		for _, b := range blocks {
			t.content.Block(t.id, uint64(b), p)
			if _, err := unix.Pwrite(fd, p, int64(b)*BlockSize); err != nil {
				return err
			}
		}
		return nil
	})
}

// WriteString makes a file with the given text.
func (t *Tree) WriteString(name, text string) {
	t.do("write", func() error { return os.WriteFile(t.path(name), []byte(text), 0o644) })
}

// Truncate sets the size of a file, and makes the file if it is not there.
func (t *Tree) Truncate(name string, size int64) {
	t.with("truncate", name, func(f *os.File) error { return f.Truncate(size) })
}

// Fallocate preallocates a range; keepSize leaves i_size as it is.
func (t *Tree) Fallocate(name string, off, size int64, keepSize bool) {
	var mode uint32
	if keepSize {
		mode = unix.FALLOC_FL_KEEP_SIZE
	}
	t.with("fallocate", name, func(f *os.File) error { return unix.Fallocate(int(f.Fd()), mode, off, size) })
}

// Punch makes a hole in a file.
func (t *Tree) Punch(name string, off, size int64) {
	t.with("punch", name, func(f *os.File) error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, size)
	})
}

// Clone makes dst a reflink copy of src (FICLONE).
func (t *Tree) Clone(src, dst string) {
	t.with("clone to", dst, func(to *os.File) error {
		from, err := os.Open(t.path(src))
		if err != nil {
			return err
		}
		defer from.Close()
		return unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
	})
}

// Range is a run of bytes that CloneRanges shares: Len bytes at Src appear at Dst. All three are
// multiples of the sectorsize.
type Range struct{ Src, Dst, Len int64 }

// CloneRanges shares ranges of src with dst (FICLONERANGE), in the order given.
func (t *Tree) CloneRanges(src, dst string, ranges []Range) {
	t.with("clone ranges to", dst, func(to *os.File) error {
		from, err := os.Open(t.path(src))
		if err != nil {
			return err
		}
		defer from.Close()
		for _, r := range ranges {
			arg := unix.FileCloneRange{
				Src_fd: int64(from.Fd()), Src_offset: uint64(r.Src), Src_length: uint64(r.Len), Dest_offset: uint64(r.Dst),
			}
			if err := unix.IoctlFileCloneRange(int(to.Fd()), &arg); err != nil {
				return fmt.Errorf("%+v: %w", r, err)
			}
		}
		return nil
	})
}

// Fsync writes a file through the log tree.
func (t *Tree) Fsync(name string) { t.with("fsync", name, (*os.File).Sync) }

// Sync commits the transaction.
func (t *Tree) Sync() {
	t.do("sync", func() error {
		d, err := os.Open(t.root)
		if err != nil {
			return err
		}
		defer d.Close()
		return unix.Syncfs(int(d.Fd()))
	})
}

// Symlink makes a symbolic link; target is taken as it is.
func (t *Tree) Symlink(target, name string) {
	t.do("symlink", func() error { return os.Symlink(target, t.path(name)) })
}

// Link makes a hard link.
func (t *Tree) Link(old, name string) {
	t.do("link", func() error { return os.Link(t.path(old), t.path(name)) })
}

// Rename renames within the tree.
func (t *Tree) Rename(old, name string) {
	t.do("rename", func() error { return os.Rename(t.path(old), t.path(name)) })
}

// Remove removes a file or a directory with all that it holds.
func (t *Tree) Remove(name string) {
	t.do("remove", func() error { return os.RemoveAll(t.path(name)) })
}

// Node makes a fifo, socket or device node; mode holds the type and the permissions.
func (t *Tree) Node(name string, mode uint32, rdev uint64) {
	t.do("mknod", func() error { return unix.Mknod(t.path(name), mode, int(rdev)) })
}

// Chmod sets permissions in the kernel's numbers (setuid is 0o4000).
func (t *Tree) Chmod(name string, mode uint32) {
	t.do("chmod", func() error { return unix.Chmod(t.path(name), mode) })
}

// Chown sets owner and group.
func (t *Tree) Chown(name string, uid, gid int) {
	t.do("chown", func() error { return os.Lchown(t.path(name), uid, gid) })
}

// Mtime sets access and modification time.
func (t *Tree) Mtime(name string, at time.Time) {
	t.do("utimes", func() error { return os.Chtimes(t.path(name), at, at) })
}

// Xattr sets an extended attribute.
func (t *Tree) Xattr(name, key string, value []byte) {
	t.do("setxattr", func() error { return unix.Lsetxattr(t.path(name), key, value, 0) })
}

const fsNoCOW = 0x00800000 // FS_NOCOW_FL of linux/fs.h

// NoCOW makes an empty file without copy on write and so without checksums (chattr +C).
func (t *Tree) NoCOW(name string) {
	t.with("chattr +C", name, func(f *os.File) error {
		flags := int32(fsNoCOW)
		return ioctlPtr(int(f.Fd()), unix.FS_IOC_SETFLAGS, unsafe.Pointer(&flags))
	})
}

// stat returns whether a file has no checksums, and its size in bytes.
func (t *Tree) stat(name string) (nocow bool, size int64, err error) {
	f, err := os.Open(t.path(name))
	if err != nil {
		return false, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, 0, err
	}
	flags, err := inodeFlags(f)
	return flags&fsNoCOW != 0, info.Size(), err
}

// inodeFlags returns what lsattr shows.
func inodeFlags(f *os.File) (int32, error) {
	var flags int32
	err := ioctlPtr(int(f.Fd()), unix.FS_IOC_GETFLAGS, unsafe.Pointer(&flags))
	return flags, err
}

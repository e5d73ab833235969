package fsread

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

var (
	// ErrNotUTF8: a directory holds names that are no UTF-8, which io/fs has no path for. Node.ReadDir gives them, and
	// Subvolume.Resolve finds what they name.
	ErrNotUTF8 = errors.New("some names are no UTF-8")
	// ErrTooLarge: a file above MaxReadFile is not read into memory whole.
	ErrTooLarge = errors.New("file is too large to be read whole")
)

// MaxReadFile is the largest file that View.ReadFile reads, in bytes: a file's size is what the disk says.
const MaxReadFile = 1 << 30

// View is a subvolume as io/fs has filesystems. Symbolic links are followed, inside the filesystem only, by all but Lstat and
// ReadLink. Every error is a *fs.PathError; those of fsread, *LostError among them, are found in it by errors.As, and
// fs.ErrNotExist, fs.ErrInvalid and fs.ErrClosed by errors.Is. It may be used concurrently, until the FS is closed.
//
// Regular files are io.ReaderAt and io.Seeker, too; device nodes, sockets and fifos can't be opened. fs.FileInfo's Sys is the
// *Node. Where a directory holds names that are no UTF-8, or that no path could hold, ReadDir gives all the others and an
// error (ErrNotUTF8, ondisk.ErrCorrupt): nothing is left out in silence.
type View struct {
	sv  *Subvolume
	ctx context.Context // of every call: the methods of io/fs take none
}

var (
	_ fs.ReadDirFS  = (*View)(nil)
	_ fs.StatFS     = (*View)(nil)
	_ fs.ReadFileFS = (*View)(nil)
	_ fs.ReadLinkFS = (*View)(nil)
)

// View gives the subvolume as an io/fs.FS. When ctx ends, so does the waiting of all that goes on in it.
func (s *Subvolume) View(ctx context.Context) *View { return &View{sv: s, ctx: ctx} }

// Open opens a directory (fs.ReadDirFile) or a regular file.
func (v *View) Open(name string) (fs.File, error) {
	n, err := v.node("open", name, true)
	if err != nil {
		return nil, err
	}
	if n.IsDir() {
		return &openDir{opened: opened{v: v, n: n, name: name}}, nil
	}
	f, err := n.File()
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &openFile{opened: opened{v: v, n: n, name: name}, f: f}, nil
}

// Stat describes what name leads to.
func (v *View) Stat(name string) (fs.FileInfo, error) { return v.stat("stat", name, true) }

// Lstat describes what name is, a symbolic link too.
func (v *View) Lstat(name string) (fs.FileInfo, error) { return v.stat("lstat", name, false) }

func (v *View) stat(op, name string, follow bool) (fs.FileInfo, error) {
	n, err := v.node(op, name, follow)
	if err != nil {
		return nil, err
	}
	return nodeInfo{n: n, name: path.Base(name)}, nil
}

// ReadLink gives a symbolic link's target as it is stored: any bytes.
func (v *View) ReadLink(name string) (string, error) {
	n, err := v.node("readlink", name, false)
	if err != nil {
		return "", err
	}
	if n.Mode().Type() != fs.ModeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	target, err := n.Readlink(v.ctx)
	if err != nil {
		return "", pathError("readlink", name, err)
	}
	return target, nil
}

// ReadDir lists a directory, by name.
func (v *View) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := v.node("readdir", name, true)
	if err != nil {
		return nil, err
	}
	list, err := v.entries(n)
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	if err != nil {
		return list, pathError("readdir", name, err)
	}
	return list, nil
}

// ReadFile reads a regular file of at most MaxReadFile bytes.
func (v *View) ReadFile(name string) ([]byte, error) {
	n, err := v.node("readfile", name, true)
	if err != nil {
		return nil, err
	}
	f, err := n.File()
	if err == nil && f.size > MaxReadFile {
		err = ErrTooLarge
	}
	if err != nil {
		return nil, pathError("readfile", name, err)
	}
	b := make([]byte, f.size)
	if got, err := f.ReadAt(v.ctx, b, 0); err != nil && (err != io.EOF || got < len(b)) {
		return b[:got], pathError("readfile", name, err)
	}
	return b, nil
}

// node finds what a path of io/fs leads to.
func (v *View) node(op, name string, follow bool) (*Node, error) {
	if !fs.ValidPath(name) || strings.IndexByte(name, 0) >= 0 {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	n, err := v.sv.resolve(v.ctx, "/"+name, follow)
	if err != nil {
		return nil, pathError(op, name, err)
	}
	return n, nil
}

// entries lists a directory in the order of the disk. On an error the list is what could be read.
func (v *View) entries(n *Node) ([]fs.DirEntry, error) {
	var list []fs.DirEntry
	var odd error
	err := n.ReadDir(v.ctx, func(e Entry) error {
		if !utf8.ValidString(e.Name) {
			odd = ErrNotUTF8
			return nil
		}
		e.e.Name = bytes.Clone(e.e.Name) // it is of a cached block, which the list must not keep
		list = append(list, &viewEntry{v: v, e: e})
		return nil
	})
	return list, cmp.Or(err, odd)
}

// pathError is err in the words of io/fs.
func pathError(op, name string, err error) error {
	e := &viewError{err: err}
	switch {
	case errors.Is(err, ErrNotExist):
		e.kind = fs.ErrNotExist
	case errors.Is(err, ErrClosed):
		e.kind = fs.ErrClosed
	}
	return &fs.PathError{Op: op, Path: name, Err: e}
}

// viewError is an error of ours in a fs.PathError, which counts as one of io/fs as well.
type viewError struct{ err, kind error }

func (e *viewError) Error() string {
	if p := (*PathError)(nil); errors.As(e.err, &p) { // fs.PathError tells the path
		return strings.TrimPrefix(p.Error(), p.Path+": ")
	}
	return e.err.Error()
}

func (e *viewError) Unwrap() error        { return e.err }
func (e *viewError) Is(target error) bool { return e.kind != nil && target == e.kind }

// nodeInfo is an inode as io/fs describes it.
type nodeInfo struct {
	n    *Node
	name string
}

func (i nodeInfo) Name() string       { return i.name }
func (i nodeInfo) Size() int64        { return int64(min(i.n.item.Size, math.MaxInt64)) }
func (i nodeInfo) Mode() fs.FileMode  { return i.n.Mode() }
func (i nodeInfo) ModTime() time.Time { return i.n.item.MTime.Time() }
func (i nodeInfo) IsDir() bool        { return i.n.IsDir() }
func (i nodeInfo) Sys() any           { return i.n }
func (i nodeInfo) String() string     { return fs.FormatFileInfo(i) }

// viewEntry is a directory entry whose inode is read when it is asked for.
type viewEntry struct {
	v *View
	e Entry
}

func (e *viewEntry) Name() string      { return e.e.Name }
func (e *viewEntry) IsDir() bool       { return e.e.Type == fs.ModeDir }
func (e *viewEntry) Type() fs.FileMode { return e.e.Type }
func (e *viewEntry) String() string    { return fs.FormatDirEntry(e) }

func (e *viewEntry) Info() (fs.FileInfo, error) {
	n, err := e.e.Node(e.v.ctx)
	if err != nil {
		return nil, pathError("lstat", e.e.Name, err)
	}
	return nodeInfo{n: n, name: e.e.Name}, nil
}

// opened is what an open file and an open directory have in common.
type opened struct {
	v      *View
	n      *Node
	name   string
	closed atomic.Bool
}

func (o *opened) Stat() (fs.FileInfo, error) {
	if err := o.usable("stat"); err != nil {
		return nil, err
	}
	return nodeInfo{n: o.n, name: path.Base(o.name)}, nil
}

func (o *opened) Close() error {
	if o.closed.Swap(true) {
		return &fs.PathError{Op: "close", Path: o.name, Err: fs.ErrClosed}
	}
	return nil
}

func (o *opened) usable(op string) error {
	if o.closed.Load() {
		return &fs.PathError{Op: op, Path: o.name, Err: fs.ErrClosed}
	}
	return nil
}

// openDir is one caller's at a time.
type openDir struct {
	opened
	listed bool
	rest   []fs.DirEntry
	err    error // behind rest
}

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: ErrIsDir}
}

// ReadDir implements fs.ReadDirFile. What could not be listed is told once, behind what could.
func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if err := d.usable("readdir"); err != nil {
		return nil, err
	}
	if !d.listed {
		d.listed = true
		if d.rest, d.err = d.v.entries(d.n); d.err != nil {
			d.err = pathError("readdir", d.name, d.err)
		}
	}
	if n > 0 && len(d.rest) > 0 {
		list := d.rest[:min(n, len(d.rest))]
		d.rest = d.rest[len(list):]
		return list, nil
	}
	list, err := d.rest, d.err
	d.rest, d.err = nil, nil
	if n > 0 && err == nil {
		err = io.EOF
	}
	return list, err
}

// openFile is one caller's at a time, but for ReadAt.
type openFile struct {
	opened
	f   *File
	off int64
}

var (
	_ io.ReaderAt = (*openFile)(nil)
	_ io.Seeker   = (*openFile)(nil)
)

// ReadAt implements io.ReaderAt. Where parts are lost, n is what is good in front of them, the error has a *LostError, and what
// follows the lost parts is in p as well.
func (o *openFile) ReadAt(p []byte, off int64) (int, error) {
	if err := o.usable("read"); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: o.name, Err: fs.ErrInvalid}
	}
	n, err := o.f.ReadAt(o.v.ctx, p, uint64(off))
	if err != nil && err != io.EOF {
		err = pathError("read", o.name, err)
	}
	return n, err
}

// Read implements io.Reader. It reads from the disk what p has room for, at least a block: small reads want a bufio.Reader. Behind
// the good bytes in front of a lost part it ends; Seek goes on behind that.
func (o *openFile) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, o.usable("read")
	}
	n, err := o.ReadAt(p, o.off)
	o.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Seek implements io.Seeker.
func (o *openFile) Seek(offset int64, whence int) (int64, error) {
	if err := o.usable("seek"); err != nil {
		return 0, err
	}
	var base int64
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		base = o.off
	case io.SeekEnd:
		base = int64(o.f.size)
	default:
		base = -1
	}
	if to := base + offset; base >= 0 && to >= 0 { // a sum above the largest is negative
		o.off = to
		return to, nil
	}
	return 0, &fs.PathError{Op: "seek", Path: o.name, Err: fs.ErrInvalid}
}

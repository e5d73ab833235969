//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// job changes a mounted filesystem at random: few names in few directories, so that operations meet.
type job struct {
	rng     *rand.Rand
	root    string
	subvols []string // directories, "." the top level
	content kernelfs.Content
	id      uint64
	log     strings.Builder
	open    []*os.File // kept open, some of them without a name
	touched []string   // what the last operations named
	fatal   error      // what no operation may answer
}

// newJob makes the subvolumes and some content, and commits.
func newJob(ctx context.Context, rng *rand.Rand, root string) (*job, error) {
	j := &job{rng: rng, root: root, subvols: []string{"."}, touched: []string{"."}, content: kernelfs.Content{Seed: rng.Uint64(), Noise: true}}
	tree := kernelfs.NewTree(ctx, root, j.content)
	for i := range rng.IntN(3) {
		name := fmt.Sprintf("s%d", i)
		tree.Subvolume(name)
		j.subvols = append(j.subvols, name)
	}
	if rng.IntN(4) == 0 && len(j.subvols) > 1 {
		tree.Snapshot(j.subvols[1], "snap", false) // shares blocks with its origin
		j.subvols = append(j.subvols, "snap")
	}
	if err := tree.Err(); err != nil {
		return nil, err
	}
	for _, s := range j.subvols {
		for _, d := range []string{"d0", "d1", "d0/e", "d1/e"} {
			if err := os.MkdirAll(filepath.Join(root, s, d), 0o755); err != nil {
				return nil, err
			}
		}
	}
	for range 20 + rng.IntN(100) {
		j.step()
	}
	j.sync()
	return j, j.fatal
}

func (j *job) close() {
	for _, f := range j.open {
		_ = f.Close()
	}
}

// note keeps what was done and, when it is no ordinary refusal, what went wrong.
func (j *job) note(err error, format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	fmt.Fprintf(&j.log, "%s: %v\n", what, err)
	for _, bad := range []error{unix.EIO, unix.EROFS, unix.EUCLEAN, unix.EFAULT} {
		if errors.Is(err, bad) && j.fatal == nil {
			j.fatal = fmt.Errorf("%s: %w", what, err)
		}
	}
}

// subvol is one of the subvolumes; links and renames stay within one.
func (j *job) subvol() string { return j.subvols[j.rng.IntN(len(j.subvols))] }

// dir is a directory of a subvolume, which may be gone.
func (j *job) dir(subvol string) string {
	d := filepath.Join(subvol, []string{".", ".", "d0", "d1", "d0/e", "d1/e"}[j.rng.IntN(6)])
	j.touch(d)
	return d
}

// name is a path in a subvolume: most often one that exists, of whatever type.
func (j *job) name(subvol string) string {
	dir := j.dir(subvol)
	n := []string{"a", "b", "c", "d", "e", "f", "g", "h", "d0", "d1", "e"}[j.rng.IntN(11)]
	if list, err := os.ReadDir(j.path(dir)); err == nil && len(list) > 0 && j.rng.IntN(3) > 0 {
		n = list[j.rng.IntN(len(list))].Name()
	} else if j.rng.IntN(12) == 0 {
		n = strings.Repeat(n, 200/len(n))
	}
	for _, s := range j.subvols {
		if filepath.Join(dir, n) == s { // subvolumes stay where they are
			n += "x"
		}
	}
	j.touch(filepath.Join(dir, n))
	return filepath.Join(dir, n)
}

// touch remembers a name, for fsync.
func (j *job) touch(name string) {
	if j.touched = append(j.touched, name); len(j.touched) > 12 {
		j.touched = j.touched[1:]
	}
}

func (j *job) path(name string) string { return filepath.Join(j.root, name) }

// step does one operation; most of what can't be done is simply refused.
func (j *job) step() {
	ops := []struct {
		weight int
		do     func()
	}{
		{20, j.write}, {6, j.truncate}, {5, j.punch}, {5, j.fallocate}, {5, j.clone}, {8, j.rename}, {4, j.exchange},
		{6, j.link}, {7, j.unlink}, {5, j.mkdir}, {3, j.rmdir}, {3, j.symlink}, {3, j.chmod}, {2, j.nocow}, {2, j.manyLinks},
		{2, j.tmpfile}, {2, j.keepOpen}, {1, j.removeAll}, {1, j.xattr}, {1, j.manyFiles}, {15, j.fsync}, {4, j.fsyncOpen}, {1, j.mkfifo},
	}
	total := 0
	for _, o := range ops {
		total += o.weight
	}
	n := j.rng.IntN(total)
	i := slices.IndexFunc(ops, func(o struct {
		weight int
		do     func()
	}) bool {
		n -= o.weight
		return n < 0
	})
	ops[i].do()
}

// with opens a file for an operation.
func (j *job) with(name string, flags int, op func(f *os.File) error) error {
	f, err := os.OpenFile(j.path(name), flags|unix.O_NONBLOCK, 0o644) // a fifo must not block
	if err != nil {
		return err
	}
	return errors.Join(op(f), f.Close())
}

// span is a range within 300 KiB, most often of whole blocks.
func (j *job) span() (off, n int64) {
	off, n = j.rng.Int64N(200<<10), 1+j.rng.Int64N(100<<10)
	switch j.rng.IntN(4) {
	case 0:
		return off, n
	case 1:
		return 0, 1 + j.rng.Int64N(3000)
	}
	return off &^ 4095, (n + 4095) &^ 4095
}

func (j *job) write() {
	name := j.name(j.subvol())
	off, n := j.span()
	flags := os.O_CREATE | os.O_RDWR
	switch j.rng.IntN(5) {
	case 0:
		flags |= os.O_TRUNC
	case 1:
		flags |= os.O_SYNC
	}
	j.note(j.with(name, flags, func(f *os.File) error {
		if j.rng.IntN(4) == 0 {
			off, _ = f.Seek(0, 2)
		}
		return j.fill(f, off, min(n, 400<<10-off))
	}), "write %s at %d length %d flags %#x", name, off, n, flags)
}

// fill writes bytes that stand nowhere else.
func (j *job) fill(f *os.File, off, n int64) error {
	if n <= 0 {
		return nil
	}
	j.id++
	b := make([]byte, n)
	j.content.Fill(j.id, off, b)
	if j.rng.IntN(4) == 0 {
		clear(b[n/3:]) // lets it be compressed
	}
	_, err := f.WriteAt(b, off)
	return err
}

func (j *job) truncate() {
	name := j.name(j.subvol())
	size, _ := j.span()
	if j.rng.IntN(3) == 0 {
		size = j.rng.Int64N(5000)
	}
	j.note(os.Truncate(j.path(name), size), "truncate %s to %d", name, size)
}

func (j *job) punch() {
	name := j.name(j.subvol())
	off, n := j.span()
	j.note(j.with(name, os.O_RDWR, func(f *os.File) error {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}), "punch %s at %d length %d", name, off, n)
}

func (j *job) fallocate() {
	name := j.name(j.subvol())
	off, n := j.span()
	mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}[j.rng.IntN(3)]
	j.note(j.with(name, os.O_RDWR|os.O_CREATE, func(f *os.File) error { return unix.Fallocate(int(f.Fd()), mode, off, n) }),
		"fallocate %s at %d length %d mode %#x", name, off, n, mode)
}

// clone shares extents between files of any subvolumes.
func (j *job) clone() {
	src, dst := j.name(j.subvol()), j.name(j.subvol())
	r := unix.FileCloneRange{}
	if j.rng.IntN(2) == 0 {
		r = unix.FileCloneRange{Src_offset: j.rng.Uint64N(20) << 12, Src_length: (1 + j.rng.Uint64N(10)) << 12, Dest_offset: j.rng.Uint64N(40) << 12}
	}
	j.note(j.with(src, os.O_RDONLY, func(from *os.File) error {
		return j.with(dst, os.O_RDWR|os.O_CREATE, func(to *os.File) error {
			r.Src_fd = int64(from.Fd())
			return unix.IoctlFileCloneRange(int(to.Fd()), &r)
		})
	}), "clone %s to %s, %+v", src, dst, r)
}

func (j *job) rename() {
	s := j.subvol()
	from, to := j.name(s), j.name(s)
	j.note(os.Rename(j.path(from), j.path(to)), "rename %s to %s", from, to)
}

func (j *job) exchange() {
	s := j.subvol()
	a, b := j.name(s), j.name(s)
	j.note(unix.Renameat2(unix.AT_FDCWD, j.path(a), unix.AT_FDCWD, j.path(b), unix.RENAME_EXCHANGE), "exchange %s and %s", a, b)
}

func (j *job) link() {
	s := j.subvol()
	from, to := j.name(s), j.name(s)
	j.note(os.Link(j.path(from), j.path(to)), "link %s as %s", from, to)
}

// manyLinks gives a file more names than one INODE_REF holds with small nodes, or takes some away.
func (j *job) manyLinks() {
	s := j.subvol()
	file, dir := j.name(s), j.dir(s)
	var errs error
	first, n := j.rng.IntN(20), 1+j.rng.IntN(30)
	for i := range n {
		link := j.path(fmt.Sprintf("%s/%s%d", dir, strings.Repeat("l", 180), first+i))
		if j.rng.IntN(4) == 0 {
			errs = errors.Join(errs, os.Remove(link))
		} else {
			errs = errors.Join(errs, os.Link(j.path(file), link))
		}
	}
	j.note(errors.Unwrap(errs), "%d links of %s in %s", n, file, dir)
	fmt.Fprintln(&j.log, errs)
}

// manyFiles makes and removes enough of them in one directory that the log has leaves of names.
func (j *job) manyFiles() {
	dir := j.dir(j.subvol())
	first, n := j.rng.IntN(100), 1+j.rng.IntN(100)
	removed := 0
	for i := range n {
		name := j.path(fmt.Sprintf("%s/many%d", dir, first+i))
		if j.rng.IntN(4) > 0 {
			_ = unix.Mknod(name, unix.S_IFREG|0o644, 0)
		} else if os.Remove(name) == nil {
			removed++
		}
	}
	j.note(nil, "%d files from many%d on in %s, %d of them removed", n, first, dir, removed)
}

func (j *job) unlink() {
	name := j.name(j.subvol())
	j.note(unix.Unlink(j.path(name)), "unlink %s", name)
}

func (j *job) mkdir() {
	name := j.dir(j.subvol())
	if j.rng.IntN(2) == 0 {
		name = j.name(j.subvol())
	}
	j.note(os.Mkdir(j.path(name), 0o755), "mkdir %s", name)
}

func (j *job) rmdir() {
	name := j.name(j.subvol())
	j.note(unix.Rmdir(j.path(name)), "rmdir %s", name)
}

// removeAll removes a directory and all that it finds below it.
func (j *job) removeAll() {
	name := j.subvol() + "/" + []string{"d0", "d1", "d0/e"}[j.rng.IntN(3)]
	var found []string
	_ = filepath.WalkDir(j.path(name), func(path string, _ os.DirEntry, _ error) error {
		found = append(found, path)
		return nil
	})
	var err error
	for _, path := range slices.Backward(found) {
		err = os.Remove(path)
	}
	j.note(err, "remove all of %s", name)
}

func (j *job) symlink() {
	name := j.name(j.subvol())
	target := strings.Repeat("x", 1+j.rng.IntN(300))
	j.note(os.Symlink(target, j.path(name)), "symlink %s of %d bytes", name, len(target))
}

func (j *job) mkfifo() {
	name := j.name(j.subvol())
	j.note(unix.Mkfifo(j.path(name), 0o600), "mkfifo %s", name)
}

func (j *job) chmod() {
	name := j.name(j.subvol())
	mode := os.FileMode(0o600 | j.rng.IntN(0o100))
	j.note(os.Chmod(j.path(name), mode), "chmod %s %o", name, mode)
}

func (j *job) xattr() {
	name := j.name(j.subvol())
	j.note(unix.Lsetxattr(j.path(name), "trusted.x", make([]byte, j.rng.IntN(100)), 0), "setxattr %s", name)
}

// nocow makes a file without checksums.
func (j *job) nocow() {
	name := j.name(j.subvol())
	off, n := j.span()
	j.note(j.with(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, func(f *os.File) error {
		const noCOW = 0x00800000 // FS_NOCOW_FL
		return errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, noCOW), j.fill(f, off, n))
	}), "nocow %s at %d length %d", name, off, n)
}

// tmpfile makes a file without a name, syncs it, and most often names it.
func (j *job) tmpfile() {
	s := j.subvol()
	dir, name := j.dir(s), j.name(s)
	j.note(j.with(dir, unix.O_TMPFILE|os.O_RDWR, func(f *os.File) error {
		err := errors.Join(j.fill(f, 0, 5000), f.Sync())
		if j.rng.IntN(4) > 0 {
			err = errors.Join(err, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, j.path(name), unix.AT_SYMLINK_FOLLOW))
		}
		return err
	}), "tmpfile in %s as %s", dir, name)
}

// keepOpen holds a file open, so that it outlives its names.
func (j *job) keepOpen() {
	name := j.name(j.subvol())
	f, err := os.OpenFile(j.path(name), os.O_RDWR|unix.O_NONBLOCK, 0)
	if err == nil {
		j.open = append(j.open, f)
	}
	j.note(err, "keep %s open", name)
}

// fsyncOpen syncs a file that is kept open.
func (j *job) fsyncOpen() {
	if len(j.open) == 0 {
		return
	}
	f := j.open[j.rng.IntN(len(j.open))]
	j.note(f.Sync(), "fsync of open %s", f.Name())
}

// fsync syncs a file or a directory by its name: most often one that was named of late.
func (j *job) fsync() {
	name := j.touched[j.rng.IntN(len(j.touched))]
	if j.rng.IntN(3) == 0 {
		name = j.name(j.subvol())
	}
	data := j.rng.IntN(4) == 0
	j.note(j.with(name, os.O_RDONLY|unix.O_NOFOLLOW, func(f *os.File) error {
		if data {
			return unix.Fdatasync(int(f.Fd()))
		}
		return f.Sync()
	}), "fsync %s, data alone %v", name, data)
}

// sync commits.
func (j *job) sync() {
	j.note(j.with(".", os.O_RDONLY, func(f *os.File) error { return unix.Syncfs(int(f.Fd())) }), "sync")
}

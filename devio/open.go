package devio

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

const (
	kindDirectory kindError = "directory"
	kindCharacter kindError = "character device"
	kindFIFO      kindError = "named pipe"
	kindSocket    kindError = "socket"
	kindUnknown   kindError = "file of an unknown type"
)

// Open opens a block device or a regular file for reading and starts its queue. With Options.Offset all that lies
// before that byte does not exist for the queue. The error is an *OpenError. Nothing is read yet: whether O_DIRECT works is known for certain after the first read.
func Open(path string, o Options) (*Queue, error) {
	name := o.name(path)
	if err := o.check(); err != nil {
		return nil, openError(name, err)
	}
	f, err := openFile(path, o)
	if err != nil {
		return nil, openError(name, err)
	}
	if o.Engine == Pread {
		return newPreadQueue(f, o.workers(defaultWorkers), nil), nil
	}
	q, err := newUringQueue(f, o.workers(defaultDepth))
	switch {
	case err == nil:
		return q, nil
	case o.Engine == IOUring:
		_ = f.close()
		return nil, openError(name, &engineError{err})
	}
	return newPreadQueue(f, o.workers(defaultWorkers), err), nil
}

// openFile opens path and learns what it is, its size and its alignment.
func openFile(path string, o Options) (*file, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	f := &file{name: o.name(path), path: path, base: o.Offset, align: 1, log: o.log(), preadv: preadv, noWait: preadvNoWait}
	refused, err := f.open(!o.Buffered)
	if err != nil {
		return nil, err
	}
	if err := f.identify(); err != nil {
		unix.Close(f.fd)
		return nil, err
	}
	if refused != nil {
		f.warn(refused)
	}
	return f, nil
}

// checkPath refuses what must not even be opened: opening some character devices has effects (a
// watchdog starts, a tape rewinds).
func checkPath(path string) error {
	var st unix.Stat_t
	if err := retryEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return err
	}
	return checkKind(&st)
}

// checkKind returns a kindError for everything but block devices and regular files.
func checkKind(st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK, unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return kindDirectory
	case unix.S_IFCHR:
		return kindCharacter
	case unix.S_IFIFO:
		return kindFIFO
	case unix.S_IFSOCK:
		return kindSocket
	}
	return kindUnknown
}

// open sets fd and direct. When O_DIRECT alone is refused it opens without it and says why.
// O_NONBLOCK is for a path that became a pipe since checkPath: opening it must not wait.
func (f *file) open(direct bool) (refused, err error) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK
	open := func(more int) error {
		return retryEINTR(func() (err error) {
			f.fd, err = unix.Open(f.path, flags|more, 0)
			return err
		})
	}
	if !direct {
		return nil, open(0)
	}
	err = open(unix.O_DIRECT)
	if refusesDirect(err) {
		return err, open(0)
	}
	f.direct.Store(err == nil)
	return nil, err
}

// identify checks what has been opened and sets size and, for O_DIRECT, align.
func (f *file) identify() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	if err := checkKind(&st); err != nil {
		return err
	}
	if err := f.clearFlags(unix.O_NONBLOCK); err != nil {
		return err
	}
	f.id = identityOf(&st)
	f.rotational = rotational(sysBlock, f.id.dev)
	block := f.id.block
	if block {
		f.model = model(sysBlock, f.id.dev)
	}
	f.size = uint64(max(st.Size, 0))
	if block {
		size, err := unix.IoctlGetInt(f.fd, unix.BLKGETSIZE64)
		if err != nil {
			return err
		}
		f.size = uint64(size)
	}
	if f.base > min(f.size, math.MaxInt64) {
		return &offsetError{f.base, f.size}
	}
	f.size -= f.base
	if !f.direct.Load() {
		return nil
	}
	align, err := directAlign(f.fd, block)
	if err == nil && f.base&(uint64(align)-1) != 0 {
		err = fmt.Errorf("the offset %d is not a multiple of %d", f.base, align)
	}
	if err != nil {
		return f.dropDirect(err)
	}
	f.align = align
	return nil
}

// clearFlags takes status flags off the open file.
func (f *file) clearFlags(flags int) error {
	have, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(f.fd), unix.F_SETFL, have&^flags)
	return err
}

// retryEINTR repeats call while a signal interrupts it, as network and FUSE filesystems allow.
func retryEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

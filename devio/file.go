package devio

import (
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxIovecs is the kernel's UIO_MAXIOV: more buffers than that take another system call.
const maxIovecs = 1024

// file is an open device or image: one descriptor, and how it must be read.
type file struct {
	name  string       // immutable; as the user wrote it
	path  string       // immutable; what was opened: name without its offset
	base  uint64       // immutable; where Physical 0 lies in the file, in bytes
	fd    int          // immutable
	id    identity     // immutable
	size  uint64       // immutable; bytes from base on, at open
	align int          // immutable: kept when O_DIRECT is dropped later, as callers have asked for it
	log   *slog.Logger // immutable

	rotational bool   // immutable
	model      string // immutable; of a block device, "" where the kernel has no name for it

	direct   atomic.Bool // O_DIRECT is on
	dropping sync.Mutex  // held while O_DIRECT is turned off

	// preadv reads from fd at off into iov: the system call, a loneRing's, or what tests put in their place.
	preadv func(fd int, iov []unix.Iovec, off int64) (int, error)
	// noWait is preadv for what is in the page cache; nil: there is no such thing.
	noWait func(fd int, iov []unix.Iovec, off int64) (int, error)
}

// identity tells devices and files apart, whatever they are called: a block device by its number, as several
// nodes may stand for one, a file by its inode.
type identity struct {
	block    bool
	dev, ino uint64
}

func identityOf(st *unix.Stat_t) identity {
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return identity{block: true, dev: st.Rdev}
	}
	return identity{dev: st.Dev, ino: st.Ino}
}

// iovecs is the scratch space of one reader, reused from read to read.
type iovecs []unix.Iovec

// read carries out r and returns the number of bytes that it got from the start of the run, fewer
// than asked for only at the end of the file or together with an error.
func (f *file) read(r *Read, scratch *iovecs) (int, error) {
	if todo, err := f.begin(r); !todo {
		return 0, err
	}
	total := r.Size()
	n := 0
	for n < total {
		got, err := f.readFrom(r, n, scratch)
		if err != nil || got <= n {
			return n, err
		}
		n = got
	}
	return n, nil
}

// begin reports whether there is anything of r to ask the kernel for. If not the read is over, with err.
func (f *file) begin(r *Read) (todo bool, err error) {
	if err := r.Check(f.align); err != nil {
		return false, err
	}
	total := r.Size()
	// Beyond any file there is nothing; the kernel would call it EINVAL.
	return total > 0 && uint64(r.Off) <= math.MaxInt64-f.base-uint64(total), nil
}

// at is where in the file the byte lies that comes n bytes behind off. Precondition: begin let the read pass.
func (f *file) at(off Physical, n int) int64 { return int64(f.base+uint64(off)) + int64(n) }

// resume gives where a read goes on of which n bytes are there, and whether it does so with O_DIRECT. That cannot go
// on inside a block, so there the block that n lies in is read again.
func (f *file) resume(n int) (at int, direct bool) {
	if f.direct.Load() {
		return n &^ (f.align - 1), true
	}
	return n, false
}

// readFrom does one system call, which goes on where n bytes have been read, and returns how many
// have been read after it: no more than n at the end of the file.
func (f *file) readFrom(r *Read, n int, scratch *iovecs) (int, error) {
	for {
		at, direct := f.resume(n)
		scratch.set(r.Bufs, at)
		got, err := f.preadv(f.fd, *scratch, f.at(r.Off, at))
		clear(*scratch) // buffers are not ours after the read
		switch {
		case err == nil:
			return at + got, nil
		case err == unix.EINTR:
		case direct && refusesDirect(err):
			// Known only now, or changed under us (a loop device can change its sector size).
			if err := f.dropDirect(err); err != nil {
				return n, err
			}
		default:
			return n, err
		}
	}
}

// set fills v with what is left of bufs after skip bytes, as far as one system call takes it.
func (v *iovecs) set(bufs [][]byte, skip int) {
	*v = (*v)[:0]
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		v.add(b[skip:])
		skip = 0
		if len(*v) == maxIovecs {
			return
		}
	}
}

func (v *iovecs) add(b []byte) {
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	*v = append(*v, iov)
}

// preadv is the system call. unix.Preadv is not used because it allocates for more than 8 buffers.
// The high half of the offset is ignored where a register holds all of it.
func preadv(fd int, iov []unix.Iovec, off int64) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_PREADV, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)), uintptr(off), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func (f *file) close() error {
	return unix.Close(f.fd)
}

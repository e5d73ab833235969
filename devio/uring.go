package devio

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What of the kernel's io_uring interface is used (io_uring.h); it is the same on every architecture.
const (
	opNOP   = 0
	opReadv = 1
	opRead  = 22

	sqeAsync = 1 << 4 // IOSQE_ASYNC: straight to a kernel worker, which may block

	enterGetEvents = 1 << 0

	offRings = 0          // mmap offset of both rings
	offSQEs  = 0x10000000 // mmap offset of the submission queue's entries

	featSingleMmap    = 1 << 0
	featNoDrop        = 1 << 1
	featSubmitStable  = 1 << 2 // iovecs are not looked at after the submission
	featNativeWorkers = 1 << 9 // Linux 5.12; rings do not count against RLIMIT_MEMLOCK from there on
	featsNeeded       = featSingleMmap | featNoDrop | featSubmitStable | featNativeWorkers
)

var errOldKernel = errors.New("the kernel's io_uring is older than Linux 5.12")

// uringParams is struct io_uring_params, 120 bytes.
type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32

	sq struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		_                                                           uint64
	}
	cq struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		_                                                           uint64
	}
}

// uringSQE is struct io_uring_sqe, 64 bytes.
type uringSQE struct {
	op, flags uint8
	ioprio    uint16
	fd        int32
	off, addr uint64
	len       uint32
	rwFlags   uint32
	userData  uint64
	_         [3]uint64
}

// uringCQE is struct io_uring_cqe, 16 bytes.
type uringCQE struct {
	userData uint64
	res      int32
	flags    uint32
}

// uring is one io_uring. Requests are put in and submitted by one goroutine at a time, results taken out by one at
// a time. No more than entries requests may be between push and next: then neither queue can overflow.
type uring struct {
	fd    int    // immutable
	rings []byte // immutable; the mapping of both rings
	sqMem []byte // immutable; the mapping of sqes

	sqHead, cqTail *uint32 // immutable; written by the kernel
	sqTail, cqHead *uint32 // immutable; written here
	sqMask, cqMask uint32  // immutable
	sqes           []uringSQE
	cqes           []uringCQE
}

// newUring sets up a ring for that many requests and proves with an empty one that it works.
func newUring(entries int) (*uring, error) {
	p := uringParams{}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(nextPower(entries)), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	u := &uring{fd: int(fd)}
	err := u.mmap(&p)
	if err == nil {
		err = u.try()
	}
	if err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

// nextPower is the smallest power of two that is not below n, which is positive.
func nextPower(n int) uint32 { return 1 << bits.Len(uint(n-1)) }

func (u *uring) mmap(p *uringParams) (err error) {
	if p.features&featsNeeded != featsNeeded {
		return errOldKernel
	}
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	size := max(p.sq.array+p.sqEntries*4, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(uringCQE{})))
	if u.rings, err = unix.Mmap(u.fd, offRings, int(size), prot, flags); err != nil {
		return fmt.Errorf("io_uring rings: mmap: %w", err)
	}
	if u.sqMem, err = unix.Mmap(u.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(uringSQE{})), prot, flags); err != nil {
		return fmt.Errorf("io_uring entries: mmap: %w", err)
	}
	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&u.rings[off])) }
	u.sqHead, u.sqTail, u.sqMask = word(p.sq.head), word(p.sq.tail), *word(p.sq.ringMask)
	u.cqHead, u.cqTail, u.cqMask = word(p.cq.head), word(p.cq.tail), *word(p.cq.ringMask)
	u.sqes = unsafe.Slice((*uringSQE)(unsafe.Pointer(&u.sqMem[0])), p.sqEntries)
	u.cqes = unsafe.Slice((*uringCQE)(unsafe.Pointer(&u.rings[p.cq.cqes])), p.cqEntries)
	for i, array := uint32(0), unsafe.Slice(word(p.sq.array), p.sqEntries); i < p.sqEntries; i++ {
		array[i] = i // slot and entry are the same, always
	}
	return nil
}

// try runs a request that does nothing: a filter of system calls may allow io_uring_setup alone.
func (u *uring) try() error {
	u.push(uringSQE{op: opNOP})
	for range 1000 {
		if _, err := u.enter(1); err != nil && err != unix.EINTR && err != unix.EAGAIN {
			return fmt.Errorf("io_uring_enter: %w", err)
		}
		if _, _, ok := u.next(); ok {
			return nil
		}
	}
	return errors.New("io_uring_enter: no completion")
}

// push puts a request into the submission queue.
func (u *uring) push(e uringSQE) {
	tail := *u.sqTail
	u.sqes[tail&u.sqMask] = e
	atomic.StoreUint32(u.sqTail, tail+1)
}

// pushRead puts a read of fd at off into iov in, which must stay as it is until the read is done.
func (u *uring) pushRead(tag uint64, fd int, iov []unix.Iovec, off int64, async bool) {
	e := uringSQE{op: opReadv, fd: int32(fd), off: uint64(off), userData: tag,
		addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(iov)))), len: uint32(len(iov))}
	if len(iov) == 1 && iov[0].Len <= 1<<30 {
		e.op, e.addr, e.len = opRead, uint64(uintptr(unsafe.Pointer(iov[0].Base))), uint32(iov[0].Len)
	}
	if async {
		e.flags = sqeAsync
	}
	u.push(e)
}

// waiting is the number of requests that the kernel has not taken.
func (u *uring) waiting() int { return int(*u.sqTail - atomic.LoadUint32(u.sqHead)) }

// takeBack takes the newest request back that the kernel has not taken.
func (u *uring) takeBack() (tag uint64) {
	tail := *u.sqTail - 1
	atomic.StoreUint32(u.sqTail, tail)
	return u.sqes[tail&u.sqMask].userData
}

// enter hands the waiting requests to the kernel and waits for so many results. It returns how many the kernel took.
func (u *uring) enter(results int) (int, error) {
	flags := 0
	if results > 0 {
		flags = enterGetEvents
	}
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), uintptr(u.waiting()), uintptr(results), uintptr(flags), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// ready says whether there is a result to take out.
func (u *uring) ready() bool { return atomic.LoadUint32(u.cqTail) != *u.cqHead }

// next takes the oldest result out: what the system call of that request would have returned, errors below 0.
func (u *uring) next() (tag uint64, res int, ok bool) {
	if !u.ready() {
		return 0, 0, false
	}
	head := *u.cqHead
	c := &u.cqes[head&u.cqMask]
	tag, res = c.userData, int(c.res)
	atomic.StoreUint32(u.cqHead, head+1)
	return tag, res, true
}

// close ends the ring. Nothing may be under way.
func (u *uring) close() {
	_ = unix.Close(u.fd)
	u.unmap()
}

func (u *uring) unmap() {
	if u.sqMem != nil {
		_ = unix.Munmap(u.sqMem)
	}
	if u.rings != nil {
		_ = unix.Munmap(u.rings)
	}
}

// polledRing is a uring whose results are waited for in Go's poller: no thread blocks for it.
type polledRing struct {
	*uring
	file *os.File           // immutable; owns the descriptor
	conn syscall.RawConn    // immutable, of file
	some func(uintptr) bool // immutable; ready, made once so that waiting does not allocate
}

func newPolledRing(entries int) (*polledRing, error) {
	u, err := newUring(entries)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(u.fd, true); err != nil {
		u.close()
		return nil, err
	}
	p := &polledRing{uring: u, file: os.NewFile(uintptr(u.fd), "io_uring")}
	p.some = func(uintptr) bool { return u.ready() }
	if p.conn, err = p.file.SyscallConn(); err == nil {
		err = p.file.SetReadDeadline(time.Time{}) // an error where the poller does not take it
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("io_uring: poll: %w", err)
	}
	return p, nil
}

// wait returns when there are results, or after wake.
func (p *polledRing) wait() {
	err := p.conn.Read(p.some)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		_ = p.file.SetReadDeadline(time.Time{})
	case err != nil:
		time.Sleep(uringPause) // the poller failed: look now and then, as reads are out
	}
}

// wake makes the current or next wait return after a while.
func (p *polledRing) wake(after time.Duration) { _ = p.file.SetReadDeadline(time.Now().Add(after)) }

func (p *polledRing) close() {
	_ = p.file.Close()
	p.unmap()
}

// loneRing reads as preadv does, one read at a time, by a ring of its own.
//
// The end of a read by io_uring is brought by the thread that submitted it, which interrupts what it waits for
// unless that sleeps as preadv does, without interruption. A disk that hangs under a preadv would so hold up reads of
// other devices, which that thread had submitted before. A thread that waits for a ring does such work meanwhile.
type loneRing struct{ *uring }

// preadv is used by one goroutine at a time.
func (l loneRing) preadv(fd int, iov []unix.Iovec, off int64) (int, error) {
	l.pushRead(0, fd, iov, off, false)
	for {
		_, err := l.enter(1)
		if _, res, ok := l.next(); ok {
			runtime.KeepAlive(iov)
			switch errno := unix.Errno(-res); {
			case res >= 0:
				return res, nil
			case errno == unix.EAGAIN, errno == unix.ECANCELED: // the device was not asked
				return preadv(fd, iov, off)
			default:
				return 0, errno
			}
		}
		switch {
		case err == nil, err == unix.EINTR:
		case l.waiting() > 0:
			l.takeBack()
			return preadv(fd, iov, off)
		default:
			time.Sleep(uringPause) // the kernel has the buffer: nothing but waiting helps
		}
	}
}

package export

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// line is the socket of a client in transmission. Its reader waits in Go's poller as a rule, so that many connections need few
// threads. While it is hushed the reader waits in a system call of its own, and the poller knows no descriptor of the socket: for
// a client that asks one thing at a time, a fifth of the time of a request goes into how the scheduler wakes a goroutine.
//
// Read, hush and hear are the reader's alone, writev belongs to one goroutine at a time; the others may be called by anybody.
type line struct {
	blocked
	heard   atomic.Pointer[polled] // nil: hushed
	woken   atomic.Bool            // Read is to return os.ErrDeadlineExceeded
	attempt func(fd uintptr) bool  // try, made once: a method value made per write would allocate
	either  [2]unix.PollFd         // the reader's

	// arguments and results of try
	iov  []unix.Iovec
	wait bool
	n    int
	err  error

	// mu is read-locked by who uses fd and bell, so that they are what they were until the call is over.
	mu     sync.RWMutex
	fd     int  // guarded by mu; -1 until the line is hushed for the first time, and when it is closed
	bell   int  // guarded by mu; there with fd: an eventfd that wakes a hushed reader
	closed bool // guarded by mu
}

// polled is a descriptor of the socket that is in the poller.
type polled struct {
	conn inbound
	raw  syscall.RawConn
}

// inbound is what a transmission's reader and who ends its waiting want of a connection.
type inbound interface {
	io.ReadCloser
	SetReadDeadline(time.Time) error
}

// newLine gives nil for a connection that has no descriptor.
func newLine(conn inbound) *line {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	l := &line{fd: -1, bell: -1}
	l.attempt = l.try
	l.heard.Store(&polled{conn, raw})
	return l
}

// Read takes what the client has sent, waiting for it.
func (l *line) Read(b []byte) (int, error) {
	if p := l.heard.Load(); p != nil {
		return p.conn.Read(b)
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	for {
		if l.woken.Load() {
			return 0, os.ErrDeadlineExceeded
		}
		if l.closed {
			return 0, net.ErrClosed
		}
		l.either = [2]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}, {Fd: int32(l.bell), Events: unix.POLLIN}}
		if _, err := unix.Ppoll(l.either[:], nil, nil); err != nil && err != unix.EINTR {
			return 0, os.NewSyscallError("ppoll", err)
		}
		if l.either[1].Revents != 0 {
			var count [8]byte
			_, _ = unix.Read(l.bell, count[:])
		}
		if l.either[0].Revents == 0 {
			continue
		}
		switch n, err := unix.Read(l.fd, b); {
		case err == unix.EINTR, err == unix.EAGAIN:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// hushed says whether the reader waits by itself.
func (l *line) hushed() bool { return l.heard.Load() == nil }

// hush takes the socket out of the poller, when nobody is writing. It reports whether it did.
func (l *line) hush() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.fd < 0 && !l.open() {
		return false
	}
	p := l.heard.Swap(nil)
	_ = p.conn.Close()
	return true
}

// open makes the descriptors of a hushed line. mu is held.
func (l *line) open() bool {
	err := l.heard.Load().raw.Control(func(fd uintptr) { l.fd = duplicate(int(fd)) })
	if err != nil || l.fd < 0 {
		return false
	}
	if l.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		_ = unix.Close(l.fd)
		l.fd, l.bell = -1, -1
		return false
	}
	return true
}

// duplicate gives another descriptor of the same socket, -1 if there can't be one.
func duplicate(fd int) int {
	other, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	return other
}

// hear gives a hushed line back to the poller.
func (l *line) hear() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return net.ErrClosed
	}
	fd := duplicate(l.fd)
	if fd < 0 {
		return unix.EMFILE
	}
	file := os.NewFile(uintptr(fd), "socket") // it is not blocking, and so in the poller
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetReadDeadline(time.Time{}) // an error where the poller did not take it
	}
	if err != nil {
		_ = file.Close()
		return err
	}
	l.heard.Store(&polled{file, raw})
	if l.woken.Load() { // by somebody who saw the line hushed
		_ = file.SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}

// SetReadDeadline wakes the reader with a time that is over, also from a wait that is to begin, until it is set to zero. Other
// times have a meaning only for a line that is not hushed.
func (l *line) SetReadDeadline(at time.Time) error {
	l.woken.Store(!at.IsZero() && !at.After(time.Now()))
	if p := l.heard.Load(); p != nil {
		return p.conn.SetReadDeadline(at)
	}
	if l.woken.Load() {
		l.mu.RLock()
		defer l.mu.RUnlock()
		if l.bell >= 0 {
			_, _ = unix.Write(l.bell, []byte{7: 1}) // a number that is not 0, in either order of bytes
		}
	}
	return nil
}

// CloseWrite tells the client that nothing follows. The line is not hushed.
func (l *line) CloseWrite() error {
	p := l.heard.Load()
	if p == nil {
		return net.ErrClosed
	}
	var err error
	if e := p.raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), unix.SHUT_WR) }); e != nil {
		return e
	}
	return err
}

// Close ends the connection, and with it every wait.
func (l *line) Close() error {
	l.interrupt()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
		_ = unix.Close(l.bell)
		l.fd, l.bell = -1, -1
	}
	if p := l.heard.Load(); p != nil {
		return p.conn.Close()
	}
	return nil
}

// interrupt ends the system calls that wait for a line that is, or was, hushed: they hold mu.
func (l *line) interrupt() {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.fd >= 0 {
		_ = unix.Shutdown(l.fd, unix.SHUT_RDWR)
	}
}

func (l *line) writev(iov []unix.Iovec, wait bool) (int, error) {
	l.iov, l.wait, l.n, l.err = iov, wait, 0, nil
	var err error
	if p := l.heard.Load(); p != nil {
		err = p.raw.Write(l.attempt)
	} else {
		err = l.write()
	}
	l.iov = nil
	if l.err != nil {
		err = l.err
	}
	return l.n, err
}

// write does for a hushed line what the poller does for others.
func (l *line) write() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		return net.ErrClosed
	}
	for !l.try(uintptr(l.fd)) {
		room := [1]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLOUT}}
		if _, err := unix.Ppoll(room[:], nil, nil); err != nil && err != unix.EINTR {
			return os.NewSyscallError("ppoll", err)
		}
	}
	return nil
}

// try makes one system call. It returns false to be called again once the socket takes bytes.
func (l *line) try(fd uintptr) bool {
	for {
		// The iovecs point into memory that l.iov and its owner keep alive.
		n, _, e := unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&l.iov[0])), uintptr(len(l.iov)))
		switch e {
		case 0:
			l.n = int(n)
			l.end()
			return true
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			l.begin()
			return !l.wait
		default:
			l.err = e
			return true
		}
	}
}

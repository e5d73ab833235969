package kernelnbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxDatagram is the largest answer that is taken, in bytes.
const maxDatagram = 64 << 10

// maxAnswers bounds the messages that may come before the acknowledgement of a request.
const maxAnswers = 64

// conn is a generic netlink socket. Its methods may be called concurrently; requests wait for each other.
type conn struct {
	f      *os.File                  // non-blocking
	raw    syscall.RawConn           // of f
	family family                    // immutable
	member func(fd, group int) error // adds a socket to a group

	mu  sync.Mutex
	seq uint32 // guarded by mu; of the last request
	buf []byte // guarded by mu
}

// dialNetlink opens a socket and finds the family. A kernel without it gives ErrNoDriver.
func dialNetlink(ctx context.Context) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("netlink bind", err)
	}
	return newConn(ctx, fd, func(fd, group int) error {
		return os.NewSyscallError("netlink membership", unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
	})
}

// newConn takes a non-blocking socket, which it owns from then on, and finds the family.
func newConn(ctx context.Context, fd int, member func(fd, group int) error) (*conn, error) {
	c := &conn{f: os.NewFile(uintptr(fd), "netlink"), member: member, buf: make([]byte, maxDatagram)}
	var err error
	if c.raw, err = c.f.SyscallConn(); err == nil {
		err = c.request(ctx, unix.GENL_ID_CTRL, familyRequest(), func(_ uint8, attrs []byte) (err error) {
			c.family, err = decodeFamily(attrs)
			return err
		})
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		err = ErrNoDriver
	case err == nil && c.family.id == 0:
		err = fmt.Errorf("%w: no family in the answer", errWire)
	}
	if err != nil {
		return nil, errors.Join(err, c.f.Close())
	}
	return c, nil
}

func (c *conn) close() error { return c.f.Close() }

// ask does one request of the family "nbd" and hands the answers before its acknowledgement to take.
func (c *conn) ask(ctx context.Context, body []byte, take func(cmd uint8, attrs []byte) error) error {
	return c.request(ctx, c.family.id, body, take)
}

// request sends a body to typ and waits for the acknowledgement, or for the error, which is an Errno.
func (c *conn) request(ctx context.Context, typ uint16, body []byte, take func(cmd uint8, attrs []byte) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.until(ctx)()
	c.seq++
	m := message{typ: typ, flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK, seq: c.seq, body: body}
	if err := c.send(appendMessage(nil, m)); err != nil {
		return orCause(ctx, err)
	}
	for range maxAnswers {
		b, err := c.receive(c.buf)
		if err != nil {
			return orCause(ctx, err)
		}
		if done, err := c.answers(b, take); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d answers to one request", errWire, maxAnswers)
}

// answers takes the messages of one datagram; done tells that the acknowledgement was among them. What
// belongs to another request, one that was given up, is skipped.
func (c *conn) answers(b []byte, take func(cmd uint8, attrs []byte) error) (done bool, err error) {
	for len(b) > 0 {
		var m message
		if m, b, err = cutMessage(b); err != nil {
			return false, err
		}
		switch {
		case m.seq != c.seq || m.typ == unix.NLMSG_NOOP:
		case m.typ == unix.NLMSG_ERROR:
			return true, m.failure()
		case m.typ < unix.NLMSG_MIN_TYPE:
			return false, fmt.Errorf("%w: type %d", errWire, m.typ)
		default:
			cmd, attrs, err := m.generic()
			if err != nil {
				return false, err
			}
			if err := take(cmd, attrs); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// join subscribes to the family's multicast group.
func (c *conn) join() error {
	if c.family.group == 0 {
		return fmt.Errorf("%w: no multicast group", errWire)
	}
	var err error
	if e := c.raw.Control(func(fd uintptr) { err = c.member(int(fd), int(c.family.group)) }); e != nil {
		return e
	}
	return err
}

// linkDead waits for the news that a connection of a device has died. Lost news are news about any device:
// index is -1 then.
func (c *conn) linkDead(ctx context.Context) (index int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.until(ctx)()
	for {
		b, err := c.receive(c.buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			return -1, nil
		case err != nil:
			return 0, orCause(ctx, err)
		}
		if index, found := c.deadIn(b); found {
			return index, nil
		}
	}
}

// deadIn looks for LINK_DEAD in a datagram. Everything else, malformed or not, is not for us.
func (c *conn) deadIn(b []byte) (index int, found bool) {
	for len(b) > 0 {
		m, rest, err := cutMessage(b)
		if err != nil {
			return 0, false
		}
		b = rest
		if m.typ != c.family.id {
			continue
		}
		cmd, attrs, err := m.generic()
		if err != nil || cmd != cmdLinkDead {
			continue
		}
		if index, err := decodeIndex(attrs); err == nil {
			return index, true
		}
	}
	return 0, false
}

// until makes ctx's end the end of waiting; what it returns ends that.
func (c *conn) until(ctx context.Context) (stop func()) {
	_ = c.f.SetDeadline(time.Time{})
	ended := make(chan struct{})
	watch := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = c.f.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !watch() {
			<-ended // else it would end the next request
		}
	}
}

func orCause(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

func (c *conn) send(b []byte) error {
	var err error
	if e := c.raw.Write(func(fd uintptr) bool {
		_, err = unix.Write(int(fd), b)
		return !errors.Is(err, unix.EAGAIN)
	}); e != nil {
		return e
	}
	return os.NewSyscallError("netlink send", err)
}

// receive returns the next datagram of the kernel, which lies in buf. Those of other senders are dropped.
func (c *conn) receive(buf []byte) ([]byte, error) {
	for {
		n, flags, from, err := 0, 0, unix.Sockaddr(nil), error(nil)
		if e := c.raw.Read(func(fd uintptr) bool {
			n, _, flags, from, err = unix.Recvmsg(int(fd), buf, nil, 0)
			return !errors.Is(err, unix.EAGAIN)
		}); e != nil {
			return nil, e
		}
		sender, netlink := from.(*unix.SockaddrNetlink)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, os.NewSyscallError("netlink receive", err)
		case netlink && sender.Pid != 0: // 0 is the kernel
		case flags&unix.MSG_TRUNC != 0:
			return nil, fmt.Errorf("%w: more than %d bytes", errWire, len(buf))
		case n == 0:
			return nil, fmt.Errorf("netlink receive: %w", fs.ErrClosed)
		default:
			return buf[:n], nil
		}
	}
}

package export

import (
	"net"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// transport is the sending half of a connection. One goroutine uses it at a time, but for
// blockedFor. The iovecs are the caller's and stay as they are.
type transport interface {
	// writev sends a beginning of what the iovecs hold and returns its length in bytes. With
	// wait it sends at least one byte or fails; without, 0 and nil mean that the socket takes
	// nothing now.
	writev(iov []unix.Iovec, wait bool) (int, error)
	// blockedFor returns how long the client has taken no byte of what waits for it.
	blockedFor(now time.Time) time.Duration
}

// newTransport is for connections that are no sockets by themselves: a line is its own transport.
func newTransport(conn net.Conn) transport {
	if tc, ok := conn.(*secureConn); ok {
		return &secure{conn: tc}
	}
	return &plain{conn: conn}
}

// blocked remembers since when a client takes nothing. Safe for concurrent use.
type blocked struct {
	since atomic.Int64 // in UnixNano; 0: it takes bytes, or there are none for it
}

func (b *blocked) begin() { b.since.CompareAndSwap(0, time.Now().UnixNano()) }
func (b *blocked) end() {
	if b.since.Load() != 0 {
		b.since.Store(0)
	}
}

func (b *blocked) blockedFor(now time.Time) time.Duration {
	since := b.since.Load()
	if since == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, since))
}

// plain is a transport over any net.Conn: pipes, and what wraps a socket. It cannot send
// without waiting, so all its replies go through the writer goroutine.
type plain struct {
	blocked
	conn net.Conn
}

func (p *plain) writev(iov []unix.Iovec, wait bool) (int, error) {
	p.begin()
	if !wait {
		return 0, nil
	}
	defer p.end()
	return p.conn.Write(unsafe.Slice(iov[0].Base, int(iov[0].Len)))
}

const (
	// secureBytes bounds one writev under TLS, so that what a client takes is seen in time.
	secureBytes = 256 << 10
	// recordBytes is the longest record of TLS; less is gathered by copying.
	recordBytes = 16 << 10
)

// secure is a transport over TLS. Encrypting takes its time and cannot stop in the middle of a
// record, so all replies go through the writer goroutine.
type secure struct {
	blocked
	conn *secureConn
	buf  []byte // of recordBytes at most; kept for the next write
}

func (s *secure) writev(iov []unix.Iovec, wait bool) (int, error) {
	s.begin()
	if !wait {
		return 0, nil
	}
	defer s.end()
	s.conn.cork.hold()
	n, err := s.encrypt(iov)
	if e := s.conn.cork.release(); err == nil {
		err = e
	}
	return n, err
}

// encrypt hands about secureBytes of iov to TLS, in as few records as it takes.
func (s *secure) encrypt(iov []unix.Iovec) (int, error) {
	total := 0
	for _, v := range iov {
		if total >= secureBytes {
			break
		}
		b := unsafe.Slice(v.Base, int(v.Len))
		for len(b) > 0 && total < secureBytes {
			if len(s.buf) == 0 && len(b) >= recordBytes {
				whole := min(len(b), secureBytes) / recordBytes * recordBytes
				if _, err := s.conn.Write(b[:whole]); err != nil {
					return 0, err
				}
				total, b = total+whole, b[whole:]
				continue
			}
			n := min(len(b), recordBytes-len(s.buf))
			s.buf, b, total = append(s.buf, b[:n]...), b[n:], total+n
			if len(s.buf) == recordBytes {
				if err := s.flush(); err != nil {
					return 0, err
				}
			}
		}
	}
	return total, s.flush()
}

func (s *secure) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	_, err := s.conn.Write(s.buf)
	s.buf = s.buf[:0]
	return err
}

package export

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// client is one accepted connection.
type client struct {
	conn  net.Conn      // immutable
	peer  peer          // immutable, but that TLS adds names in the handshake
	name  string        // immutable; for the log
	stats ListenerStats // immutable; may be nil
	heard atomic.Bool   // it has sent something
	ended chan struct{} // closed when nothing of the connection is left

	export *served // set by the handshake, with secure
	secure bool    // under TLS
	idle   idleWatch

	// guarded by Server.mu
	evicted bool // closed to make room
	placed  bool // has a place among the established
}

// Read notes that the client is not silent.
func (c *client) Read(b []byte) (int, error) {
	n, err := c.conn.Read(b)
	if n > 0 {
		c.heard.Store(true)
	}
	return n, err
}

// refused counts a client that a limit kept from an export.
func (c *client) refused(reason string) {
	if c.stats != nil {
		c.stats.Refused(reason)
	}
}

// enter gives a new connection a place among the handshakes and returns nil, having closed
// it, if the server is full or stopping. Handshakes have places of their own, more than
// exports have, and the oldest that has said nothing gives way: clients that connect and keep
// silent cannot shut others out (CVE-2024-7409).
func (s *Server) enter(conn net.Conn, stats ListenerStats) *client {
	c := &client{conn: conn, peer: peerOf(conn), stats: stats, ended: make(chan struct{})}
	c.name = c.peer.logName(conn)
	prepare(conn)
	s.mu.Lock()
	defer s.mu.Unlock()
	limits := &s.terms.Load().limits
	if s.draining.Load() || s.established >= limits.Connections {
		_ = conn.Close()
		if !s.draining.Load() {
			c.refused("connections")
			s.full.print(slog.LevelWarn, "client closed: connection limit reached",
				slog.String("client", c.name), slog.Int("limit", limits.Connections))
		}
		return nil
	}
	if n := s.addresses[c.peer.network()]; limits.PerAddress > 0 && c.peer.addr.IsValid() && n >= limits.PerAddress {
		_ = conn.Close()
		c.refused("address")
		s.full.print(slog.LevelWarn, "client closed: connection limit of its address reached",
			slog.String("client", c.name), slog.Int("limit", limits.PerAddress))
		return nil
	}
	for len(s.handshakes) >= limits.Handshakes {
		s.evictHandshake()
	}
	s.handshakes = append(s.handshakes, c)
	s.addresses[c.peer.network()]++
	s.conns.Add(1)
	_ = conn.SetDeadline(time.Now().Add(limits.Handshake))
	return c
}

// evictHandshake closes the oldest silent handshake, the oldest of all if none is silent.
// s.mu must be held.
func (s *Server) evictHandshake() {
	i := max(0, slices.IndexFunc(s.handshakes, func(c *client) bool { return !c.heard.Load() }))
	c := s.handshakes[i]
	s.handshakes = slices.Delete(s.handshakes, i, i+1)
	c.evicted = true
	_ = c.conn.Close()
	c.refused("handshakes")
	s.full.print(slog.LevelWarn, "client closed: too many handshakes under way",
		slog.String("client", c.name), slog.Int("limit", s.terms.Load().limits.Handshakes))
}

// place moves a client from the handshakes to the established; false if there is no place.
func (s *Server) place(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.evicted {
		return false
	}
	if s.established >= s.terms.Load().limits.Connections {
		c.refused("connections")
		return false
	}
	s.handshakes = slices.DeleteFunc(s.handshakes, func(o *client) bool { return o == c })
	s.established++
	c.placed = true
	return true
}

// leave gives a client's place back.
func (s *Server) leave(c *client) {
	s.mu.Lock()
	if c.placed {
		s.established--
	} else {
		s.handshakes = slices.DeleteFunc(s.handshakes, func(o *client) bool { return o == c })
	}
	if network := c.peer.network(); s.addresses[network] > 1 {
		s.addresses[network]--
	} else {
		delete(s.addresses, network)
	}
	s.mu.Unlock()
	close(c.ended)
	s.conns.Done()
}

// serve is the goroutine of one connection.
func (s *Server) serve(c *client) {
	defer s.leave(c)
	defer func() {
		if v := recover(); v != nil {
			s.stats.Panicked()
			s.log.LogAttrs(context.Background(), slog.LevelError, "internal error", slog.String("client", c.name),
				slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			_ = c.conn.Close()
		}
	}()
	t := s.terms.Load()
	n := &negotiation{
		conn:   c.conn,
		in:     bufio.NewReaderSize(c, handshakeBuffer),
		terms:  t,
		policy: t.policy,
		peer:   &c.peer,
		server: s,
		client: c.name,
		log:    s.log.With("client", c.name),
		admit:  func() bool { return s.place(c) },
	}
	e, err := n.negotiate()
	s.stats.HandshakeDone(s.ending(c, err))
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && !s.draining.Load() {
			c.refused("timeout")
		}
		n.end(err)
		return
	}
	c.export, c.secure = e, n.secure
	count := &tally{next: e.Stats}
	counted := *e
	counted.Stats = count
	s.transmit(c, newTransmission(s, n.conn, &counted, n.agreed, c.name, n.early()), count)
}

// ending names how a handshake ended, for ServerStats.
func (s *Server) ending(c *client, err error) string {
	s.mu.Lock()
	evicted := c.evicted
	s.mu.Unlock()
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, errAborted):
		return "aborted"
	case evicted, errors.Is(err, errFull):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case gone(err):
		return "lost"
	}
	return "error"
}

// gone says that the client ended the connection, or its network did.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// end closes a handshake that chose no export.
func (n *negotiation) end(err error) {
	switch {
	case errors.Is(err, errAborted):
		closeGently(n.conn)
		return
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		n.log.Debug("handshake ended", "err", err)
	default:
		n.server.full.print(slog.LevelWarn, "client closed in the handshake",
			slog.String("client", n.client), slog.Any("err", err))
	}
	_ = n.conn.Close()
}

// transmit serves the requests of a client that has a place.
func (s *Server) transmit(c *client, t *transmission, count *tally) {
	begin := time.Now()
	s.transmitting.Add(1)
	defer s.transmitting.Add(-1)
	_ = c.conn.SetDeadline(time.Time{})
	s.enlist(c, t)
	if c.stats != nil {
		c.stats.Connections(1)
		defer c.stats.Connections(-1)
	}
	defer func() {
		s.mu.Lock()
		delete(s.serving, t)
		c.idle.set(t, 0)
		s.mu.Unlock()
	}()
	t.log.Debug("client connected", "tls", c.secure)
	t.run()
	t.log.Info("client gone", "reads", count.reads.Load(), "bytes", count.bytes.Load(), "errors", count.errors.Load(),
		"in", time.Since(begin).Round(time.Millisecond))
}

// enlist makes a connection one that Update and Shutdown know. Its terms may have changed meanwhile.
func (s *Server) enlist(c *client, t *transmission) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving[t] = c
	terms := s.terms.Load()
	if why := terms.refuses(c); why != nil {
		t.dismiss(why)
	} else if s.draining.Load() {
		t.drain()
	}
	c.idle.set(t, terms.limits.Idle)
}

// sendBuffer is asked for on every socket. With the default of 208 KiB the two sides take
// turns; 1 MiB and more gave a fifth more throughput.
const sendBuffer = 2 << 20

// prepare sets what makes a socket fast and finds dead peers. All of it is optional.
func prepare(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true)
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{
			Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6,
		})
	}
	control(conn, func(fd int) {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		}
	})
}

// control calls f with conn's descriptor, if it has one.
func control(conn net.Conn, f func(fd int)) {
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { f(int(fd)) })
		}
	}
}

// logName names the peer in the log: its address, or its process where it has none.
func (p *peer) logName(conn net.Conn) string {
	if p.local {
		return fmt.Sprintf("unix pid %d uid %d", p.pid, p.uid)
	}
	if a := conn.RemoteAddr(); p.addr.IsValid() {
		return a.String()
	}
	return "unknown"
}

package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves exports on any number of listeners.
type Server struct {
	limits Limits       // immutable; Memory, Floor and Stall are used, the others are those of terms
	log    *slog.Logger // immutable
	stats  ServerStats  // immutable
	terms  atomic.Pointer[terms]
	full   *limitedLog // of what admission refuses
	budget *budget
	cores  int // immutable; that goroutines run on

	aheadBytes atomic.Int64 // that connections have read ahead
	pieces     sync.Pool    // of *piece

	transmitting atomic.Int32  // clients in transmission
	draining     atomic.Bool   // set once by Shutdown
	stopped      chan struct{} // closed with it
	conns        sync.WaitGroup

	mu          sync.Mutex
	listeners   map[net.Listener]*acceptor // guarded by mu
	handshakes  []*client                  // guarded by mu; oldest first
	established int                        // guarded by mu; places taken, limits.Connections at most
	addresses   map[netip.Prefix]int       // guarded by mu; connections by their client's address, handshakes included
	serving     map[*transmission]*client  // guarded by mu
}

// ErrServerClosed is what Serve returns when it is called after Shutdown.
var ErrServerClosed = errors.New("server is shut down")

// drainHandshake is what a client that has not chosen an export is given at Shutdown to ask
// once more and be told ERR_SHUTDOWN.
const drainHandshake = time.Second

// forceTime bounds the wait for connections whose sockets were closed by force.
const forceTime = time.Second

// NewServer checks the options. The error names the export at fault.
func NewServer(o Options) (*Server, error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	terms, err := newTerms(o, log)
	if err != nil {
		return nil, err
	}
	limits := terms.limits
	s := &Server{
		limits:    limits,
		log:       log,
		stats:     o.Stats,
		full:      newLimitedLog(log),
		budget:    newBudget(limits.Memory, limits.Floor, limits.Stall),
		cores:     runtime.GOMAXPROCS(0),
		stopped:   make(chan struct{}),
		listeners: make(map[net.Listener]*acceptor),
		addresses: make(map[netip.Prefix]int),
		serving:   make(map[*transmission]*client),
	}
	if s.stats == nil {
		s.stats = noStats{}
	}
	s.pieces.New = func() any { return &piece{} }
	s.terms.Store(terms)
	return s, nil
}

// Serve accepts connections from l, which it closes in the end, until ctx ends or Shutdown is
// called; then it returns nil. Connections outlive it, until their clients leave or Shutdown.
// stats may be nil.
func (s *Server) Serve(ctx context.Context, l net.Listener, stats ListenerStats) error {
	a := s.track(l)
	if a == nil {
		_ = l.Close()
		return ErrServerClosed
	}
	defer s.untrack(a)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var pause time.Duration
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.admit(conn, stats)
		case ctx.Err() != nil || s.draining.Load():
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		case errors.Is(err, os.ErrDeadlineExceeded):
			a.answer()
		default:
			// Out of descriptors, or a client that left before it was accepted: neither is a
			// reason to stop.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.full.print(slog.LevelWarn, "accept", slog.String("addr", l.Addr().String()), slog.Any("err", err))
			s.sleep(ctx, pause, a.wake)
		}
	}
}

func (s *Server) sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	case <-s.stopped:
	}
}

// track makes l one of the server's; nil: it is shut down.
func (s *Server) track(l net.Listener) *acceptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining.Load() {
		return nil
	}
	a := newAcceptor(l)
	s.listeners[l] = a
	return a
}

func (s *Server) untrack(a *acceptor) {
	close(a.ended)
	s.mu.Lock()
	delete(s.listeners, a.Listener)
	s.mu.Unlock()
	_ = a.Close()
}

// ServeConn serves one connection that somebody else accepted, and returns when it has ended.
// A conn without a file descriptor is served too, at some cost. stats may be nil.
func (s *Server) ServeConn(conn net.Conn, stats ListenerStats) error {
	c := s.enter(conn, stats)
	if c == nil {
		return errFull
	}
	s.serve(c)
	return nil
}

// admit starts the handshake of a new connection, or closes it.
func (s *Server) admit(conn net.Conn, stats ListenerStats) {
	if c := s.enter(conn, stats); c != nil {
		go s.serve(c)
	}
}

// Shutdown drains: it stops accepting, lets every read in flight finish, answers what is
// asked meanwhile with ESHUTDOWN, and closes each connection once it is owed nothing. When
// ctx ends first it closes them all and returns ctx's cause. Reads that a File still holds
// then may complete later; nobody waits for them.
func (s *Server) Shutdown(ctx context.Context) error {
	s.beginDrain()
	ended := make(chan struct{})
	go func() {
		s.conns.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	n := s.closeAll()
	select {
	case <-ended:
	case <-time.After(forceTime):
	}
	return fmt.Errorf("drain: %d connections closed by force: %w", n, context.Cause(ctx))
}

// Clients returns how many clients have chosen an export and how many have yet to.
func (s *Server) Clients() (established, handshakes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.established, len(s.handshakes)
}

// InFlight tells of every export that a client has how many requests it waits for, but for those that are answered at
// once.
func (s *Server) InFlight() map[string]int {
	n := make(map[string]int)
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.serving {
		n[t.export.Name] += t.inFlight()
	}
	return n
}

func (s *Server) beginDrain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining.Swap(true) {
		close(s.stopped)
	}
	for l := range s.listeners {
		_ = l.Close()
	}
	for _, c := range s.handshakes {
		_ = c.conn.SetDeadline(time.Now().Add(drainHandshake))
	}
	for t := range s.serving {
		t.drain()
	}
}

// closeAll closes every connection and returns their number.
func (s *Server) closeAll() int {
	s.mu.Lock()
	handshakes := append([]*client(nil), s.handshakes...)
	var serving []*transmission
	for t := range s.serving {
		serving = append(serving, t)
	}
	s.mu.Unlock()
	for _, c := range handshakes {
		_ = c.conn.Close()
	}
	for _, t := range serving {
		t.lose()
		t.sender.fail(errAbandoned)
	}
	return len(handshakes) + len(serving)
}

// evictStalled closes the connections other than waiter that hold bytes of the pool and whose
// clients have taken nothing for the stall time.
func (s *Server) evictStalled(waiter *transmission) {
	now := time.Now()
	var stalled []*transmission
	s.mu.Lock()
	for t := range s.serving {
		if t != waiter && t.sender.out.blockedFor(now) >= s.limits.Stall && t.share.inPool() > 0 {
			stalled = append(stalled, t)
		}
	}
	s.mu.Unlock()
	for _, t := range stalled {
		t.log.Warn("client closed: it takes no replies and others wait for the memory they hold",
			"stalled", s.limits.Stall, "bytes", t.share.inPool())
		t.sender.fail(errStalled)
	}
}

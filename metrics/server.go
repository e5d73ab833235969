package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	maxHeader      = 16 << 10 // bytes
	maxConnections = 64       // more wait to be accepted
)

// Server serves a Handler on one address.
type Server struct {
	srv      *http.Server
	listener net.Listener
}

// NewServer makes a Server on a socket that is bound already, and that it owns from then on. It does not accept
// yet. log gets the errors of single connections, at debug; nil drops them.
func NewServer(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		listener: limit(l, maxConnections),
		srv: &http.Server{
			Handler:           h,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      scrapeTimeout + 20*time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
	}
}

// URL is where the metrics are, with the port that was really bound: http://127.0.0.1:9810/metrics. For a
// unix socket it is unix:///path.
func (s *Server) URL() string {
	a := s.listener.Addr()
	if a.Network() == "unix" {
		return "unix://" + a.String()
	}
	return "http://" + a.String() + "/metrics"
}

// Serve accepts until Shutdown and then returns nil. Another error means that the listener is broken.
func (s *Server) Serve() error {
	if err := s.srv.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", s.URL(), err)
	}
	return nil
}

// Shutdown stops accepting and waits for the answers under way. When ctx ends first, it drops them and returns
// the context's error. The listener is closed in any case, also if Serve was never called.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.listener.Close()
	if err := s.srv.Shutdown(ctx); err != nil {
		s.srv.Close()
		return fmt.Errorf("stop metrics on %s: %w", s.URL(), err)
	}
	return nil
}

// limit accepts at most n connections at a time, so that who holds metrics connections open cannot use up
// the descriptors that NBD clients need.
func limit(l net.Listener, n int) net.Listener {
	return &limitListener{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limitListener struct {
	net.Listener
	slots  chan struct{} // one token per open connection
	closed chan struct{} // closed by Close
	once   sync.Once
}

// Accept waits for a free slot first.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close also ends an Accept that waits for a slot. Closing twice is no error.
func (l *limitListener) Close() error {
	var err error
	l.once.Do(func() {
		close(l.closed)
		err = l.Listener.Close()
	})
	return err
}

// limitConn gives its slot back when it is closed.
type limitConn struct {
	net.Conn
	free func()
}

// Close frees the slot once, however often it is called.
func (c *limitConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

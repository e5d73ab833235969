package export

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// scriptedListener is a listener whose Accept does as it is told.
type scriptedListener struct {
	net.Listener
	accept func() (net.Conn, error)
}

func (l *scriptedListener) Accept() (net.Conn, error) { return l.accept() }
func (l *scriptedListener) SetDeadline(t time.Time) error {
	return l.Listener.(*net.TCPListener).SetDeadline(t)
}

// serveScripted serves a listener of its own on fx, and returns it.
func serveScripted(fx *fixture, accept func(l net.Listener) (net.Conn, error)) net.Listener {
	fx.t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fx.t.Fatal(err)
	}
	l := &scriptedListener{Listener: inner, accept: func() (net.Conn, error) { return accept(inner) }}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { served <- fx.server.Serve(ctx, l, nil) }()
	fx.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			fx.t.Errorf("Serve: %v", err)
		}
	})
	waitFor(fx.t, "the listener", func() bool {
		fx.server.mu.Lock()
		defer fx.server.mu.Unlock()
		return fx.server.listeners[l] != nil
	})
	return inner
}

func alive(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Alive(ctx); err != nil {
		t.Errorf("Alive: %v", err)
	}
}

// TestAlive: a server that is asked again and again serves as ever, though its disk hangs and its places are taken.
func TestAlive(t *testing.T) {
	data := pattern()[:1<<20]
	f, hangs := &fakeFile{data: data, async: true}, &fakeFile{data: data, async: true, hold: make(chan struct{})}
	fx := start(t, Options{Exports: []Export{{Name: "disk", File: f}, {Name: "hangs", File: hangs}}, Limits: Limits{Connections: 6}})
	addr := fx.startTCP(nil)
	t.Cleanup(func() { close(hangs.hold) })
	waiting := fx.ready("hangs")
	waiting.put(readRequest(1, 0, 1000))
	waitFor(t, "the read to start", func() bool { return hangs.reads.Load() == 1 })
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 3 {
		c := fx.ready("disk")
		clients.Go(func() { c.readUntil(stop, data) })
	}
	clients.Go(func() { // who comes while the loops are asked gets in
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, network := range []string{"tcp", "unix"} {
				c, err := net.Dial(network, map[string]string{"tcp": addr, "unix": fx.path}[network])
				if err != nil {
					t.Error(err)
					return
				}
				_ = c.SetDeadline(time.Now().Add(patience))
				if _, err := readFull(c, make([]byte, 8)); err != nil {
					t.Errorf("%s: %v", network, err)
				}
				_ = c.Close()
			}
		}
	})
	var askers sync.WaitGroup
	for range 4 {
		askers.Go(func() {
			for range 200 {
				alive(t, fx.server)
			}
		})
	}
	askers.Wait()
	close(stop)
	clients.Wait()
	full := []*rawConn{fx.ready("disk"), fx.ready("disk")}
	alive(t, fx.server)
	full[0].alive(data)
}

// TestAliveWithoutDescriptors: a loop that pauses, because nothing can be accepted, is asked in its pause.
func TestAliveWithoutDescriptors(t *testing.T) {
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: make([]byte, 9)})})
	serveScripted(fx, func(l net.Listener) (net.Conn, error) {
		c, err := l.Accept()
		if err == nil {
			_ = c.Close()
			err = syscall.EMFILE
		}
		return nil, err
	})
	for range 3 {
		alive(t, fx.server)
	}
}

// TestNotAlive: one accept loop that stands still is named; so long as the server's lock is not to be had, nobody
// is told that all is well; and a listener that is closed is no reason to complain.
func TestNotAlive(t *testing.T) {
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: make([]byte, 9)})})
	stuck := make(chan struct{})
	l := serveScripted(fx, func(l net.Listener) (net.Conn, error) {
		<-stuck
		return l.Accept()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if err := fx.server.Alive(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("Alive: %v, want that %s stands still", err, l.Addr())
	}
	close(stuck)
	alive(t, fx.server)

	for _, lock := range []sync.Locker{&fx.server.mu, &fx.server.budget.mu} {
		lock.Lock()
		told := make(chan error, 1)
		go func() { told <- fx.server.Alive(context.Background()) }()
		select {
		case err := <-told:
			t.Errorf("Alive with a lock that is held: %v", err)
		case <-time.After(30 * time.Millisecond):
		}
		lock.Unlock()
		if err := <-told; err != nil {
			t.Error(err)
		}
	}
	if err := fx.server.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	alive(t, fx.server)
}

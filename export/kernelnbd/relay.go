package kernelnbd

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export/nbdclient"
)

const (
	// relayBuffer is what a relay holds of each direction of a connection, in bytes. It is all its memory
	// beside that of TLS.
	relayBuffer = 64 << 10
	// lingerTime bounds how long one direction of a connection goes on without a byte when the other has ended.
	lingerTime = 5 * time.Second
)

// A Dialer makes connections to an export for the kernel.
type Dialer interface {
	// Dial returns n sockets at the start of transmission, of an export of which all said the same.
	Dial(ctx context.Context, t nbdclient.Target, n int) (nbdclient.Info, []*os.File, error)
}

// direct hands over the sockets themselves.
type direct struct{}

func (direct) Dial(ctx context.Context, t nbdclient.Target, n int) (nbdclient.Info, []*os.File, error) {
	return dialEach(ctx, t, n, nbdclient.HandOff)
}

// Relays hold connections under TLS, which the kernel does not speak: it gets one end of a pair of sockets for
// each, and goroutines here copy between the other end and the server. They end with the server's connection or
// when the kernel has closed its end; then the device has lost that connection. The zero value is ready.
type Relays struct {
	// Stall is how long the server may take no byte that the kernel has sent; 0: any time.
	Stall time.Duration

	linger time.Duration // in tests; 0: lingerTime
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool                // guarded by mu
	live   map[*relay]struct{} // guarded by mu
}

// Dial implements Dialer.
func (r *Relays) Dial(ctx context.Context, t nbdclient.Target, n int) (nbdclient.Info, []*os.File, error) {
	return dialEach(ctx, t, n, func(ctx context.Context, t nbdclient.Target) (nbdclient.Info, *os.File, error) {
		info, conn, err := nbdclient.Negotiate(ctx, t)
		if err != nil {
			return info, nil, err
		}
		f, err := r.start(conn)
		return info, f, err
	})
}

// Wait returns when every relay has ended.
func (r *Relays) Wait() { r.wg.Wait() }

// Close ends every relay, and those that are still to start at once.
func (r *Relays) Close() {
	r.mu.Lock()
	r.closed = true
	for l := range r.live {
		l.close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// start relays to server, which it owns from then on, and returns the kernel's end.
func (r *Relays) start(server net.Conn) (*os.File, error) {
	far, near, err := pair()
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	l := &relay{kernel: near, server: server, stall: r.Stall, linger: r.linger}
	if l.linger == 0 {
		l.linger = lingerTime
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live == nil {
		r.live = make(map[*relay]struct{})
	}
	r.live[l] = struct{}{}
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		l.run()
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.live, l)
	}()
	if r.closed {
		l.close()
	}
	return far, nil
}

// pair returns two connected sockets: one for the kernel, one for us.
func pair() (far *os.File, near net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	far = os.NewFile(uintptr(fds[0]), "relay")
	f := os.NewFile(uintptr(fds[1]), "relay")
	defer f.Close() // FileConn has a descriptor of its own
	if near, err = net.FileConn(f); err != nil {
		return nil, nil, errors.Join(err, far.Close())
	}
	return far, near, nil
}

// relay is one connection.
type relay struct {
	kernel, server net.Conn      // immutable
	stall, linger  time.Duration // immutable
	ending         atomic.Bool   // one direction has ended
}

func (l *relay) close() { _, _ = l.kernel.Close(), l.server.Close() }

// run copies in both directions until both have ended.
func (l *relay) run() {
	defer l.close()
	requests := make(chan struct{})
	go func() {
		defer close(requests)
		l.copy(l.server, l.kernel)
	}()
	l.copy(l.kernel, l.server)
	<-requests
}

// copy copies until src ends or dst takes no more, and then tells dst that nothing follows. What had been read
// by then has been written; the other direction goes on for as long as bytes come.
func (l *relay) copy(dst, src net.Conn) {
	b := make([]byte, relayBuffer)
	for {
		n, err := src.Read(b)
		if n > 0 {
			l.limit(dst)
			if _, e := dst.Write(b[:n]); e != nil {
				err = e
			}
			_ = dst.SetWriteDeadline(time.Time{}) // reading may make TLS write, at any time
		}
		if err != nil {
			break
		}
		l.lingerOn(src)
	}
	if half, ok := dst.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		_ = dst.Close()
	}
	l.ending.Store(true)
	l.lingerOn(dst) // from where the other direction reads
}

// limit bounds the next write to dst.
func (l *relay) limit(dst net.Conn) {
	switch {
	case l.ending.Load():
		_ = dst.SetWriteDeadline(time.Now().Add(l.linger))
	case l.stall > 0:
		_ = dst.SetWriteDeadline(time.Now().Add(l.stall))
	}
}

// lingerOn bounds the next read from src if the other direction has ended.
func (l *relay) lingerOn(src net.Conn) {
	if l.ending.Load() {
		_ = src.SetReadDeadline(time.Now().Add(l.linger))
	}
}

package export

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrInUse is an address that somebody else listens on.
var ErrInUse = errors.New("address in use")

// Listen opens a listener on a. A unix socket that nobody answers on is replaced; one that
// somebody does is an error that names him. The socket's file is removed when the listener is
// closed, unless another one has taken its place.
func Listen(ctx context.Context, a Address) (net.Listener, error) {
	l, err := listen(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", a, err)
	}
	return l, nil
}

func listen(ctx context.Context, a Address) (net.Listener, error) {
	if a.network == "unix" {
		return listenUnix(ctx, a.addr)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, a.network, a.addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w (stop the server that uses it, or use another -l)", ErrInUse)
	}
	return l, cause(err)
}

// cause strips what package net repeats of the address.
func cause(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	if sys := (*os.SyscallError)(nil); errors.As(op.Err, &sys) {
		return sys.Err
	}
	return op.Err
}

func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(ctx, path); err != nil {
			return nil, err
		}
		l, err = config.Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, cause(err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false) // it would remove whatever stands there by then
	id, err := os.Lstat(path)
	if err != nil {
		_ = ul.Close()
		return nil, err
	}
	return &unixListener{UnixListener: ul, path: path, id: id}, nil
}

// removeStale removes a socket that no one listens on. Only a refused connection says so.
func removeStale(ctx context.Context, path string) error {
	id, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if id.Mode().Type() != fs.ModeSocket {
		return errors.New("file exists and is not a socket (remove it, or use another -l)")
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		defer func() { _ = conn.Close() }()
		return inUse(conn)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: connect: %w", ErrInUse, cause(err))
	}
	return removeSame(path, id)
}

// inUse names the process that listens at the other end of conn.
func inUse(conn net.Conn) error {
	who := ""
	control(conn, func(fd int) {
		if cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			who = fmt.Sprintf(" (pid %d)", cred.Pid)
		}
	})
	return fmt.Errorf("%w by a running server%s (stop it, or use another -l)", ErrInUse, who)
}

// removeSame removes path if it is still the file that id describes.
func removeSame(path string, id fs.FileInfo) error {
	now, err := os.Lstat(path)
	if err != nil || !os.SameFile(now, id) {
		return nil
	}
	return os.Remove(path)
}

// unixListener removes its socket's file when it is closed.
type unixListener struct {
	*net.UnixListener
	path  string
	id    fs.FileInfo
	close sync.Once
}

// Close implements net.Listener. The file goes first: nobody finds a socket that answers no more.
func (l *unixListener) Close() error {
	var err error
	l.close.Do(func() { err = removeSame(l.path, l.id) })
	return errors.Join(err, l.UnixListener.Close())
}

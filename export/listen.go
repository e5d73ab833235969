package export

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse is an address that somebody else listens on.
var ErrInUse = errors.New("address in use")

// SocketFile is who may connect to a unix socket: whoever may write to its file. What is zero stays as the
// umask and the process have it. Users and groups are names or numbers.
type SocketFile struct {
	Mode        fs.FileMode // permissions
	User, Group string
}

// ErrUnknownOwner is a user or a group of a SocketFile that this machine does not have.
var ErrUnknownOwner = errors.New("is unknown here")

// Listen opens a listener on a. A unix socket that nobody answers on is replaced; one that
// somebody does is an error that names him. The socket's file is removed when the listener is
// closed, unless another one has taken its place.
func Listen(ctx context.Context, a Address) (net.Listener, error) {
	return ListenAs(ctx, a, SocketFile{})
}

// ListenAs is Listen. If a is a unix socket, its file is as f says before anybody can connect.
func ListenAs(ctx context.Context, a Address, f SocketFile) (net.Listener, error) {
	l, err := listen(ctx, a, f)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", a, err)
	}
	return l, nil
}

func listen(ctx context.Context, a Address, f SocketFile) (net.Listener, error) {
	if a.network == "unix" {
		return listenUnix(ctx, a.addr, f)
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, a.network, a.addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w by another program", ErrInUse)
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

func listenUnix(ctx context.Context, path string, f SocketFile) (net.Listener, error) {
	defer lockDir(ctx, filepath.Dir(path))()
	file, err := bindUnix(path, f)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(ctx, path); err != nil {
			return nil, err
		}
		file, err = bindUnix(path, f)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // FileListener has a descriptor of its own
	l, err := net.FileListener(file)
	if err != nil {
		_ = os.Remove(path)
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

// lockWait bounds the wait for another server that starts.
const lockWait = 5 * time.Second

// lockDir keeps other servers from binding and replacing sockets in a directory at the same time: between bind
// and listen a socket looks like one that a dead server left. A directory that can't be locked is no reason not
// to serve. The function that it returns unlocks.
func lockDir(ctx context.Context, dir string) (unlock func()) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
	return func() { _ = unix.Close(fd) }
}

// backlog is what Linux cuts to net.core.somaxconn.
const backlog = 4096

// bindUnix makes a listening socket. Between bind and listen nobody can connect: then its file gets the
// permissions and the owner.
func bindUnix(path string, f SocketFile) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), path)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		_ = file.Close()
		return nil, err
	}
	if err = f.Apply(path); err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		_ = os.Remove(path)
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// Check tells whether this machine has the user and the group; if not, the error is an ErrUnknownOwner.
func (f SocketFile) Check() error {
	_, uerr := f.id(f.User, "user")
	_, gerr := f.id(f.Group, "group")
	return errors.Join(uerr, gerr)
}

// Apply gives the file at path its owner and permissions.
func (f SocketFile) Apply(path string) error {
	uid, err := f.id(f.User, "user")
	if err != nil {
		return err
	}
	gid, err := f.id(f.Group, "group")
	if err != nil {
		return err
	}
	if uid >= 0 || gid >= 0 {
		err = os.Lchown(path, uid, gid)
	}
	if err == nil && f.Mode != 0 {
		err = os.Chmod(path, f.Mode.Perm())
	}
	return pathless(err)
}

// id is the number of a user or a group, -1 for none.
func (f SocketFile) id(name, what string) (int, error) {
	if name == "" {
		return -1, nil
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	var id string
	if what == "user" {
		if u, err := user.Lookup(name); err == nil {
			id = u.Uid
		}
	} else if g, err := user.LookupGroup(name); err == nil {
		id = g.Gid
	}
	n, err := strconv.ParseUint(id, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("the socket's %s %q %w (create it, or write another)", what, name, ErrUnknownOwner)
	}
	return int(n), nil
}

// pathless strips the operation and the path, which Listen names.
func pathless(err error) error {
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		return fmt.Errorf("%s the socket: %w", pe.Op, pe.Err)
	}
	return err
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
		return errors.New("file exists and is not a socket (remove it, or use another address)")
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
	return fmt.Errorf("%w by a running server%s", ErrInUse, who)
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

package main

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stdioConn makes one connection of two files: a socket that both are, or two pipes.
func stdioConn(in, out *os.File) (net.Conn, error) {
	if _, err := unix.IoctlGetTermios(int(in.Fd()), unix.TCGETS); err == nil {
		return nil, usagef("--stdio: standard input is a terminal (let a program start this command that talks through pipes or a socket, for example: socat UNIX-LISTEN:nbd.sock EXEC:'btrexport serve --stdio ...')")
	}
	var i, o unix.Stat_t
	if err := errors.Join(unix.Fstat(int(in.Fd()), &i), unix.Fstat(int(out.Fd()), &o)); err != nil {
		return nil, err
	}
	if i.Mode&unix.S_IFMT == unix.S_IFSOCK && i.Ino == o.Ino && i.Dev == o.Dev {
		return net.FileConn(in)
	}
	return &pipes{in: pollable(in), out: pollable(out)}, nil
}

// pollable is f with deadlines, if it is something that one can wait for.
func pollable(f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return f
	}
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), f.Name())
}

// pipes is a connection of two files.
type pipes struct{ in, out *os.File }

// Read implements net.Conn, as do the methods below.
func (p *pipes) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *pipes) Write(b []byte) (int, error) { return p.out.Write(b) }

// SyscallConn is that of the half that is written to: replies leave by writev.
func (p *pipes) SyscallConn() (syscall.RawConn, error) { return p.out.SyscallConn() }

// CloseWrite tells the client that nothing follows.
func (p *pipes) CloseWrite() error                  { return p.out.Close() }
func (p *pipes) Close() error                       { return errors.Join(p.in.Close(), ignoreClosed(p.out.Close())) }
func (p *pipes) LocalAddr() net.Addr                { return stdioAddr{} }
func (p *pipes) RemoteAddr() net.Addr               { return stdioAddr{} }
func (p *pipes) SetReadDeadline(t time.Time) error  { return p.in.SetReadDeadline(t) }
func (p *pipes) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }
func (p *pipes) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// stdioAddr names both ends of pipes.
type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "stdio" }

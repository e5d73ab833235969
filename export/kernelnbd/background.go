package kernelnbd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export/nbdclient"
)

const (
	// reportBytes bounds what a relay's process says of itself.
	reportBytes = 64 << 10
	// controlFD is the descriptor of that process by which it does.
	controlFD = 3
	// startTime is how long it may take to start, beside its handshakes.
	startTime = 10 * time.Second
)

// Background is a Dialer whose relays run in a process of their own, which goes on when this one has ended. It
// ends by itself with its last connection, and with those sockets that the kernel did not get.
type Background struct {
	// Command starts the process, for so many connections: it must call ServeBackground, and nothing else with
	// its descriptor 3.
	Command func(t nbdclient.Target, n int) *exec.Cmd

	pid atomic.Int64
}

// PID is that of the process which Dial has started last; 0: none.
func (b *Background) PID() int { return int(b.pid.Load()) }

// report is what the process tells: the sockets come with it, or an error.
type report struct {
	Info  nbdclient.Info
	Kind  string `json:",omitempty"`
	Error string `json:",omitempty"`
}

// kinds of errors that keep their kind from process to process.
var kinds = map[string]error{"multi-conn": ErrMultiConn, "changed": ErrChanged, "certificates": nbdclient.ErrCertificates}

// Dial implements Dialer.
func (b *Background) Dial(ctx context.Context, t nbdclient.Target, n int) (nbdclient.Info, []*os.File, error) {
	ours, theirs, err := controlPair()
	if err != nil {
		return nbdclient.Info{}, nil, err
	}
	defer ours.Close() // which is the end of a process that has not reported by then
	cmd := b.Command(t, n)
	cmd.Dir, cmd.ExtraFiles, cmd.SysProcAttr = "/", []*os.File{theirs}, &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return nbdclient.Info{}, nil, fmt.Errorf("start the relay: %w", err)
	}
	b.pid.Store(int64(cmd.Process.Pid))
	info, files, err := receiveReport(ctx, ours)
	if err == nil && len(files) != n {
		closeAll(files)
		err = fmt.Errorf("the relay gives %d connections, not %d", len(files), n)
	}
	if err != nil {
		b.pid.Store(0)
		_ = ours.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		return nbdclient.Info{}, nil, err
	}
	return info, files, cmd.Process.Release()
}

func controlPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "control")
	ours, err = unixConn(fds[0])
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// unixConn takes over a descriptor.
func unixConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("the control descriptor is no unix socket"), c.Close())
	}
	return u, nil
}

// receiveReport waits for the report, and takes the sockets that come with it.
func receiveReport(ctx context.Context, c *net.UnixConn) (nbdclient.Info, []*os.File, error) {
	none := nbdclient.Info{}
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTime+startTime, errors.New("the relay does not report"))
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })()
	b, oob := make([]byte, reportBytes), make([]byte, unix.CmsgSpace(4*MaxConnections))
	n, m, _, _, err := c.ReadMsgUnix(b, oob)
	switch {
	case ctx.Err() != nil:
		return none, nil, context.Cause(ctx)
	case errors.Is(err, io.EOF):
		err = errors.New("it has ended")
	}
	files, e := takeFiles(oob[:m])
	err = errors.Join(err, e)
	var r report
	if err == nil {
		err = json.Unmarshal(b[:n], &r)
	}
	if err != nil {
		closeAll(files)
		return none, nil, fmt.Errorf("the relay's report: %w", err)
	}
	if r.Error == "" {
		return r.Info, files, nil
	}
	closeAll(files)
	if kind := kinds[r.Kind]; kind != nil {
		return none, nil, &remoteError{kind, r.Error}
	}
	return none, nil, &ConnectError{errors.New(r.Error)}
}

// remoteError is an error of another process.
type remoteError struct {
	kind error
	text string
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

// takeFiles takes the descriptors of control messages.
func takeFiles(oob []byte) (files []*os.File, err error) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, os.NewSyscallError("control messages", err)
	}
	for _, m := range all {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // of another kind
		}
		for _, fd := range fds { // which package net has made close on exec
			files = append(files, os.NewFile(uintptr(fd), "relay"))
		}
	}
	return files, nil
}

// ServeBackground is the process that a Background starts: it makes the connections, gives the kernel's ends of
// them away by descriptor 3, and relays until the last one has ended, or ctx has. stall is that of Relays. An
// error that it has told of itself is nil here.
func ServeBackground(ctx context.Context, t nbdclient.Target, n int, stall time.Duration) error {
	// It may be somebody else's, or the Go runtime's own, if nobody has passed one.
	if _, err := unix.GetsockoptInt(controlFD, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return os.NewSyscallError("descriptor 3", err)
	}
	c, err := unixConn(controlFD)
	if err != nil {
		return err
	}
	return serveBackground(ctx, c, t, n, stall)
}

// serveBackground owns c.
func serveBackground(ctx context.Context, c *net.UnixConn, t nbdclient.Target, n int, stall time.Duration) error {
	r := &Relays{Stall: stall}
	defer r.Wait()
	defer context.AfterFunc(ctx, r.Close)()
	dial, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	asked := make(chan struct{})
	go func() { // nobody waits for the report any more when the other end is closed
		defer close(asked)
		_, _ = c.Read(make([]byte, 1))
		cancel(errors.New("who started the relay has ended"))
	}()
	info, files, failed := r.Dial(dial, t, n)
	if cause := context.Cause(dial); failed != nil && cause != nil {
		failed = cause // a dial that is given up calls it "operation was canceled"
	}
	err := sendReport(c, info, files, failed)
	if err != nil {
		err = errors.Join(err, failed)
	}
	_ = c.Close()
	<-asked
	closeAll(files)
	return err
}

func sendReport(c *net.UnixConn, info nbdclient.Info, files []*os.File, failed error) error {
	p := report{Info: info}
	p.Info.Contexts = nil // only GO was negotiated
	if failed != nil {
		p.Error = failed.Error()
		for kind, err := range kinds {
			if errors.Is(failed, err) {
				p.Kind = kind
			}
		}
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	_, _, err = c.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/configs"
)

// activated tells whether somebody has bound the sockets for us (sd_listen_fds(3)).
func activated() bool {
	return os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") != ""
}

// passed are the sockets that were passed to us. They stay until the process ends, through every reload.
type passed struct {
	nbd       []configs.Listen
	metrics   *configs.Listen
	listeners map[string]net.Listener // by the address's text
}

// metricsName is the name, in LISTEN_FDNAMES, of a socket for the metrics. Any other name is for NBD.
const metricsName = "metrics"

// passedSockets takes over what LISTEN_FDS passes. nil: nothing.
func passedSockets(mode serveMode) (*passed, error) {
	if !activated() {
		return nil, nil
	}
	switch {
	case mode.stdio:
		return nil, usagef("--stdio: a socket is passed by LISTEN_FDS, as nbdinfo and nbdcopy do with [ ] (leave out --stdio)")
	case mode.command != "":
		return nil, usagef("--run serves on a private socket of its own, and sockets are passed by LISTEN_FDS (start without socket activation)")
	}
	p := &passed{listeners: make(map[string]net.Listener)}
	for i, f := range activation.Files(true) {
		name := f.Name()
		l, err := listeningSocket(f)
		_ = f.Close() // the listener has a descriptor of its own
		if err != nil {
			p.close()
			return nil, usagef("LISTEN_FDS: socket %d (%q): %w", i+1, name, err)
		}
		a := configs.Listen{Network: l.Addr().Network(), Address: l.Addr().String(), Pos: configs.Pos{Flag: "LISTEN_FDS"}}
		p.listeners[a.String()] = l
		if name == metricsName {
			p.metrics = &a
		} else {
			p.nbd = append(p.nbd, a)
		}
	}
	return p, nil
}

func listeningSocket(f *os.File) (net.Listener, error) {
	accepting, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, fmt.Errorf("is no socket: %w (pass a listening stream socket)", err)
	}
	if accepting == 0 {
		return nil, fmt.Errorf("does not listen (set Accept=no, or use --stdio for one connection)")
	}
	if kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
		return nil, fmt.Errorf("is no stream socket (write ListenStream=)")
	}
	return net.FileListener(f)
}

// replace puts the passed sockets in the place of c's addresses.
func (p *passed) replace(c *configs.Config) {
	if p == nil {
		return
	}
	if len(p.nbd) > 0 {
		c.Listen = p.nbd
	}
	if p.metrics != nil {
		c.Metrics = p.metrics
	}
}

// listener gives the passed socket of an address, nil if it was not passed.
func (p *passed) listener(c configs.Listen) (net.Listener, error) {
	if p == nil || c.Pos.Flag != "LISTEN_FDS" {
		return nil, nil
	}
	l := p.listeners[c.String()]
	if l == nil {
		return nil, fmt.Errorf("%s is not among the passed sockets", c.String())
	}
	return l, nil
}

func (p *passed) close() {
	if p == nil {
		return
	}
	for _, l := range p.listeners {
		_ = l.Close()
	}
}

func (s *server) notify(state string) { notify(s.log, state) }

// notify tells the service manager, if there is one. It is nobody's job to live without.
func notify(log *slog.Logger, state string) {
	if err := sdNotify(os.Getenv("NOTIFY_SOCKET"), state); err != nil {
		log.Debug("the service manager was not told", "state", state, "err", err)
	}
}

// notifyWait bounds the wait for a service manager that does not read.
const notifyWait = time.Second

// sdNotify is sd_notify(3): one datagram to a unix socket, which an @ makes an abstract one. Empty: there is none.
func sdNotify(socket, state string) error {
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(notifyWait))
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}

func (s *server) notifyReady() {
	s.notify(fmt.Sprintf("READY=1\nSTATUS=%d exports of %d filesystems", len(s.site.exports), len(s.site.filesystems)))
}

// notifyReloading has the time that systemd tells reloads apart by (Type=notify-reload).
func (s *server) notifyReloading() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	s.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// keepAlive answers the service manager's watchdog, if there is one, twice in its time, each time that the
// server has shown that it is alive. The function that it returns ends that.
func (s *server) keepAlive() (stop func()) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(max(interval/2, time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.answerWatchdog(ctx, interval)
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// answerWatchdog tells the service manager that the server is alive, or the log that it is not.
func (s *server) answerWatchdog(ctx context.Context, patience time.Duration) {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := s.alive(bounded)
	switch {
	case err == nil:
		s.notify("WATCHDOG=1")
	case ctx.Err() == nil:
		s.log.Error("the watchdog is not answered", "err", err)
	}
}

// errLoopStuck is a main loop that does not come back to its signals.
var errLoopStuck = errors.New("the main loop does not answer")

// alive proves that clients are accepted and get their turn, and that signals are taken. Neither asks a disk: one
// that hangs must not end the service of the others. The main loop is not asked while a reload or the drain is under way,
// which wait for disks and clients within limits of their own.
func (s *server) alive(ctx context.Context) error {
	if err := s.nbd.Alive(ctx); err != nil {
		return err
	}
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !s.busy.Load() {
		select {
		case s.pulse <- struct{}{}:
			return nil
		case <-look.C: // it may have become busy
		case <-ctx.Done():
			return errLoopStuck
		}
	}
	return nil
}

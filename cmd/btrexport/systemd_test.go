package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export"
)

// TestListeningSocket: what a service manager may pass by mistake is told, not served.
func TestListeningSocket(t *testing.T) {
	dir := t.TempDir()
	socket := func(name string, kind int, listens bool) *os.File {
		fd, err := unix.Socket(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, name)})
		}
		if err == nil && listens {
			err = unix.Listen(fd, 1)
		}
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), name)
	}
	plain, err := os.Create(filepath.Join(dir, "plain"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		file *os.File
		err  string // empty: it is served
	}{
		{"a listening stream socket", socket("a", unix.SOCK_STREAM, true), ""},
		{"a listening socket of packets", socket("b", unix.SOCK_SEQPACKET, true), "no stream socket"},
		{"a socket that does not listen", socket("c", unix.SOCK_STREAM, false), "does not listen"},
		{"datagrams", socket("d", unix.SOCK_DGRAM, false), "does not listen"},
		{"a file", plain, "is no socket"},
	} {
		l, err := listeningSocket(tc.file)
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.err)
		}
		if l != nil {
			_ = l.Close()
		}
		_ = tc.file.Close()
	}
}

// TestWatchdog: it is answered while the main loop takes signals or is at a reload, and not once it stands still.
func TestWatchdog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "20000")
	heard := func(within time.Duration) bool {
		if err := manager.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := manager.Read(b)
		if err == nil && string(b[:n]) != "WATCHDOG=1" {
			t.Errorf("told %q", b[:n])
		}
		return err == nil
	}
	nbd, err := export.NewServer(export.Options{Exports: []export.Export{{Name: "x", File: emptyFile{}}}})
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	s := &server{nbd: nbd, log: slog.New(slog.NewTextHandler(&log, nil)), pulse: make(chan struct{})}
	stop := s.keepAlive()
	defer stop()
	standStill := make(chan struct{})
	looped := make(chan struct{})
	go func() { // the main loop
		defer close(looped)
		for {
			select {
			case <-s.pulse:
			case <-standStill:
				return
			}
		}
	}()
	for range 5 {
		if !heard(patience) {
			t.Fatal("the watchdog was not answered")
		}
	}
	close(standStill)
	<-looped
	waitFor(t, func() bool { return strings.Contains(log.String(), "the main loop does not answer") })
	for heard(time.Millisecond) { // of before
	}
	if heard(100 * time.Millisecond) {
		t.Error("the watchdog was answered for a main loop that stands still")
	}
	s.busy.Store(true)
	if !heard(patience) {
		t.Error("the watchdog was not answered during a reload")
	}
}

// TestNotifyIsBounded: a service manager that reads nothing holds nobody up for ever.
func TestNotifyIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	for range 100_000 { // as many as fit into its queue, and one more
		if err = sdNotify(path, "READY=1"); err != nil {
			break
		}
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want that the deadline ends it", err)
	}
	if err := sdNotify("", "READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

// syncBuffer is a log that two goroutines use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *syncBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *syncBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// emptyFile is nothing to read.
type emptyFile struct{}

func (emptyFile) Size() uint64          { return 0 }
func (emptyFile) Submit([]*export.Read) {}
func (emptyFile) Extents(context.Context, uint64, uint64, bool, []export.Extent) (int, error) {
	return 0, nil
}

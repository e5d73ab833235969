package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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

package export

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseAddress(t *testing.T) {
	cases := []struct{ in, want, err string }{
		{in: "unix:///run/nbd.sock", want: "unix:///run/nbd.sock"},
		{in: "unix://demo/nbd.sock", want: "unix://demo/nbd.sock"},
		{in: "tcp://127.0.0.1:1234", want: "tcp://127.0.0.1:1234"},
		{in: "tcp://127.0.0.1", want: "tcp://127.0.0.1:10809"},
		{in: "tcp://host.example", want: "tcp://host.example:10809"},
		{in: "tcp://:0", want: "tcp://:0"},
		{in: "tcp://", want: "tcp://:10809"},
		{in: "tcp://[::1]", want: "tcp://[::1]:10809"},
		{in: "tcp://[fe80::1%eth0]:99", want: "tcp://[fe80::1%eth0]:99"},
		{in: "tcp://::1", err: "brackets"},
		{in: "tcp://a:b:1", err: "brackets"},
		{in: "tcp://[::1", err: "brackets"},
		{in: "tcp://h:65536", err: "not a number from 0 to 65535"},
		{in: "tcp://h:nbd", err: "not a number"},
		{in: "tcp://h:1/x", err: "behind the port"},
		{in: "unix://", err: "no path"},
		{in: "unix://" + strings.Repeat("x", 108), err: "108 bytes"},
		{in: "unix:///a\x00b", err: "NUL"},
		{in: "/run/nbd.sock", err: "neither"},
		{in: "", err: "neither"},
	}
	for _, tc := range cases {
		a, err := ParseAddress(tc.in)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.HasPrefix(err.Error(), "listen "+tc.in) {
				t.Errorf("%q: %v, want an error with %q", tc.in, err, tc.err)
			}
			continue
		}
		if err != nil || a.String() != tc.want {
			t.Errorf("%q: %q %v, want %q", tc.in, a, err, tc.want)
		}
	}
}

func TestURI(t *testing.T) {
	cases := []struct{ address, name, want string }{
		{"tcp://h:1", "vm1", "nbd://h:1/vm1"},
		{"tcp://h", "", "nbd://h:10809/"},
		{"tcp://[::1]:5", "a b/ä?#%+&", "nbd://[::1]:5/a%20b%2F%C3%A4%3F%23%25%2B%26"},
		{"tcp://[fe80::1%eth0]:5", "a", "nbd://[fe80::1%25eth0]:5/a"},
		{"tcp://:7", "a", "nbd://localhost:7/a"},
		{"tcp://0.0.0.0:7", "a", "nbd://localhost:7/a"},
		{"tcp://[::]:7", "a", "nbd://localhost:7/a"},
		{"unix:///run/a b+c&d=e.sock", "vm/1", "nbd+unix:///vm%2F1?socket=/run/a%20b%2Bc%26d%3De.sock"},
	}
	for _, tc := range cases {
		a, err := ParseAddress(tc.address)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.URI(tc.name); got != tc.want {
			t.Errorf("%s %q: %s, want %s", tc.address, tc.name, got, tc.want)
		}
	}
}

func listenAt(t *testing.T, path string) (net.Listener, error) {
	t.Helper()
	a, err := ParseAddress("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	return Listen(context.Background(), a)
}

func TestUnixSocketFile(t *testing.T) {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "s")
	first, err := listenAt(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if got := AddressOf(first).String(); got != "unix://"+path {
		t.Errorf("address %s", got)
	}

	_, err = listenAt(t, path)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "listen unix://"+path+": address in use by a running server (pid ") {
		t.Errorf("second listener: %v", err)
	}

	// Somebody else has taken the place: it is not ours to remove.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	second, err := listenAt(t, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if conn, err := net.Dial("unix", path); err != nil {
		t.Errorf("the second listener's socket is gone: %v", err)
	} else {
		_ = conn.Close()
	}
	if err := second.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's file is still there: %v", err)
	}

	// A stale socket is replaced.
	if err := os.Rename(path+".old", path); err != nil {
		t.Fatal(err)
	}
	third, err := listenAt(t, path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	_ = third.Close()

	// Anything else is not.
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenAt(t, path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file holds %q", b)
	}
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path + ".dgram", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = datagrams.Close() }()
	if _, err := listenAt(t, path+".dgram"); !errors.Is(err, ErrInUse) {
		t.Errorf("over a living socket of another kind: %v, want ErrInUse", err)
	}
	if _, err := os.Lstat(path + ".dgram"); err != nil {
		t.Errorf("it was removed: %v", err)
	}
}

func TestTCPAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, err := ParseAddress("tcp://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(context.Background(), a); !errors.Is(err, ErrInUse) || strings.Count(err.Error(), "127.0.0.1") != 1 {
		t.Errorf("got %v", err)
	}
}

// TestSocketFile: the file is as wanted before anybody can connect, and a wish that can't be had leaves none.
func TestSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	a, err := ParseAddress("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []SocketFile{{Mode: 0o600}, {Mode: 0o660, Group: strconv.Itoa(os.Getgid())}, {Mode: 0o777, User: strconv.Itoa(os.Getuid())}} {
		l, err := ListenAs(context.Background(), a, f)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Perm() != f.Mode {
			t.Errorf("%+v: %v, %v", f, info.Mode(), err)
		}
		if err := (SocketFile{Mode: 0o640}).Apply(path); err != nil {
			t.Error(err)
		}
		if info, _ = os.Lstat(path); info.Mode().Perm() != 0o640 {
			t.Errorf("after Apply: %v", info.Mode())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err = ListenAs(context.Background(), a, SocketFile{Group: "no such group"})
	if want := "listen unix://" + path + `: the socket's group "no such group" is unknown here (create it, or write another)`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a socket was left: %v", err)
	}
}

// TestUnixSocketRace: of servers that start at the same moment one gets the socket and is found there, be it
// new or one that a dead server left.
func TestUnixSocketRace(t *testing.T) {
	const servers = 8
	path := filepath.Join(t.TempDir(), "s")
	a, err := ParseAddress("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 200 {
		if round%2 == 1 { // nobody has listened there since
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			_ = unix.Close(fd)
		}
		var all sync.WaitGroup
		listeners, errs := make([]net.Listener, servers), make([]error, servers)
		for i := range servers {
			all.Go(func() {
				listeners[i], errs[i] = ListenAs(context.Background(), a, SocketFile{Mode: 0o600, Group: strconv.Itoa(os.Getgid())})
			})
		}
		all.Wait()
		won := slices.DeleteFunc(listeners, func(l net.Listener) bool { return l == nil })
		for _, err := range errs {
			if err != nil && !errors.Is(err, ErrInUse) {
				t.Errorf("round %d: %v, want ErrInUse", round, err)
			}
		}
		if len(won) != 1 {
			t.Errorf("round %d: %d servers listen, want 1", round, len(won))
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		for _, l := range won {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			return
		}
	}
}

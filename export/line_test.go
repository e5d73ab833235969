package export

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lines gives both ends of a connection, over a unix socket or over TCP.
func lines(t *testing.T, network string) (*line, net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close(); _ = conn.Close() })
	_ = client.SetDeadline(time.Now().Add(patience))
	return newLine(conn), client
}

// openSockets counts the process's sockets and eventfds.
func openSockets(t *testing.T) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		name, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && (name == "anon_inode:[eventfd]" || len(name) > 7 && name[:7] == "socket:") {
			n++
		}
	}
	return n
}

// turn hushes a line or has it heard.
func turn(t *testing.T, l *line, hushed bool) {
	t.Helper()
	if l.hushed() == hushed {
		return
	}
	if hushed {
		if !l.hush() {
			t.Fatal("not hushed")
		}
	} else if err := l.hear(); err != nil {
		t.Fatal(err)
	}
}

// TestLine: bytes pass in order in both directions, however often the line is hushed and heard meanwhile, and nothing is left of it.
func TestLine(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			before := openSockets(t)
			l, client := lines(t, network)
			rng := rand.New(rand.NewPCG(1, 2))
			data := pattern()[:1<<20]
			go func() { // says all, and hears it back
				for rest := data; len(rest) > 0; {
					n := min(len(rest), 1+rand.IntN(20000))
					_, _ = client.Write(rest[:n])
					rest = rest[n:]
				}
			}()
			back := make(chan []byte, 1)
			go func() {
				b, _ := io.ReadAll(client)
				back <- b
			}()
			buf := make([]byte, 1<<16)
			var got []byte
			for len(got) < len(data) {
				turn(t, l, rng.IntN(2) == 0)
				n, err := l.Read(buf[:1+rng.IntN(len(buf))])
				if err != nil {
					t.Fatalf("after %d bytes: %v", len(got), err)
				}
				got = append(got, buf[:n]...)
				for part := buf[:n]; len(part) > 0; {
					iov := []unix.Iovec{{Base: &part[0]}}
					iov[0].SetLen(len(part))
					n, err := l.writev(iov, true)
					if err != nil {
						t.Fatal(err)
					}
					part = part[n:]
				}
			}
			if !bytes.Equal(got, data) {
				t.Error("other bytes came")
			}
			turn(t, l, false)
			if err := l.CloseWrite(); err != nil {
				t.Error(err)
			}
			if b := <-back; !bytes.Equal(b, data) {
				t.Errorf("other bytes went: %d of %d", len(b), len(data))
			}
			_ = client.Close()
			turn(t, l, true)
			if _, err := l.Read(buf); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("end: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("closed twice: %v", err)
			}
			if _, err := l.Read(buf); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read of a closed line: %v", err)
			}
			if n := openSockets(t); n != before {
				t.Errorf("%d descriptors, %d before", n, before)
			}
		})
	}
}

// TestLineWakes: a reader is woken from its wait, and from one that is to begin, whatever becomes of the line meanwhile.
func TestLineWakes(t *testing.T) {
	l, client := lines(t, "unix")
	buf := make([]byte, 10)
	for round := range 2000 {
		turn(t, l, round%2 == 0)
		var wg sync.WaitGroup
		wg.Go(func() {
			if round%3 == 0 {
				time.Sleep(time.Duration(rand.IntN(200)) * time.Microsecond)
			}
			_ = l.SetReadDeadline(time.Unix(1, 0))
		})
		if round%5 == 0 {
			turn(t, l, round%2 != 0)
		}
		if _, err := l.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("round %d: %v", round, err)
		}
		wg.Wait()
		if _, err := l.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("round %d: woken once: %v", round, err)
		}
		_ = l.SetReadDeadline(time.Time{})
		if _, err := client.Write([]byte{byte(round)}); err != nil {
			t.Fatal(err)
		}
		if n, err := l.Read(buf); n != 1 || err != nil || buf[0] != byte(round) {
			t.Fatalf("round %d: then %d bytes, %v", round, n, err)
		}
		if l.hushed() {
			if _, err := unix.Read(l.bell, make([]byte, 8)); err != unix.EAGAIN {
				t.Fatalf("round %d: the bell goes on ringing: %v", round, err)
			}
		}
	}
	_ = l.Close()
}

// TestLineCloses: Close ends the waiting of a hushed line's reader and of who writes to a client that takes nothing.
func TestLineCloses(t *testing.T) {
	before := openSockets(t)
	for round := range 50 {
		l, client := lines(t, []string{"unix", "tcp"}[round%2])
		turn(t, l, true)
		ended := make(chan error, 2)
		go func() {
			_, err := l.Read(make([]byte, 1))
			ended <- err
		}()
		go func() {
			b := make([]byte, 1<<20)
			for {
				iov := []unix.Iovec{{Base: &b[0]}}
				iov[0].SetLen(len(b))
				if _, err := l.writev(iov, true); err != nil {
					ended <- err
					return
				}
			}
		}()
		if round%5 == 0 {
			waitFor(t, "a full socket", func() bool { return l.blockedFor(time.Now()) > 0 })
		}
		go func() { _ = l.Close() }()
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		for range 2 {
			if err := <-ended; err == nil {
				t.Error("no error of a closed line")
			}
		}
		_ = client.Close()
	}
	waitFor(t, "the descriptors to go", func() bool { return openSockets(t) == before })
}

// hushing is a file whose reads wait for a disk inside Submit.
func hushing(data []byte) *fakeFile {
	return &fakeFile{data: data, start: func([]*Read) { time.Sleep(hushWait + 100*time.Microsecond) }}
}

// hushed counts the connections whose lines are.
func (fx *fixture) hushed() (n int) {
	fx.server.mu.Lock()
	defer fx.server.mu.Unlock()
	for tr := range fx.server.serving {
		if tr.line != nil && tr.line.hushed() {
			n++
		}
	}
	return n
}

// lone asks for so many blocks, one after the other.
func (c *rawConn) lone(n int, data []byte) {
	c.t.Helper()
	for i := range uint64(n) {
		at := i * 7919 % uint64(len(data)-4096)
		c.put(readRequest(i, at, 4096))
		c.wantAnswer(i, 0, data[at:at+4096])
	}
}

// TestHushed: the line of a client that is alone and waits for a disk with each request is hushed, and that of no other.
func TestHushed(t *testing.T) {
	data := pattern()[:1<<20]
	waits := hushing(data)
	fx := start(t, Options{Exports: []Export{{Name: "waits", File: waits}, {Name: "quick", File: &fakeFile{data: data}}}})
	fx.server.cores = 2 // of a machine with one this is not for
	want := func(n int, when string) {
		t.Helper()
		waitFor(t, when, func() bool { return fx.hushed() == n }) // the reader does it behind the answer
	}
	c := fx.ready("waits")
	c.lone(hushAt-1, data)
	want(0, "too few requests")
	c.lone(1, data)
	want(1, "enough of them")
	c.lone(100, data)
	want(1, "to stay so")

	c.put(append(readRequest(1, 0, 10), readRequest(2, 10, 10)...)) // at once
	c.get(2 * (16 + 10))
	want(0, "two requests at once")
	c.lone(hushAt, data)
	want(1, "lone ones again")

	quick := fx.ready("quick")
	quick.lone(2*hushAt, data)
	c.lone(1, data)
	want(0, "a second client")
	c.lone(hushAt, data)
	want(0, "two clients")
	quick.put(requestBytes(cmdDisc, 0, 9, 0, 0))
	quick.wantClosed()
	waitFor(t, "the second to be gone", func() bool { n, _ := fx.server.Clients(); return n == 1 })
	c.lone(1, data)
	want(1, "alone again")

	c.put(requestBytes(cmdDisc, 0, 9, 0, 0))
	c.wantClosed()
	quick = fx.ready("quick")
	quick.lone(2*hushAt, data)
	want(0, "one that needs no disk")
}

// TestHushedEnds: whatever ends a connection ends it while its reader waits by itself, too.
func TestHushedEnds(t *testing.T) {
	data := pattern()[:1<<20]
	for how, end := range map[string]func(t *testing.T, fx *fixture, c *rawConn, o Options){
		"disconnect": func(t *testing.T, fx *fixture, c *rawConn, o Options) {
			b := append(readRequest(1, 0, 1<<20), requestBytes(cmdDisc, 0, 9, 0, 0)...)
			c.put(append(b, make([]byte, 2*readBuffer)...)) // what the server does not read must not cost the client the answer
			time.Sleep(20 * time.Millisecond)
			c.wantAnswer(1, 0, data)
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("end: %v", err)
			}
		},
		"gone":  func(t *testing.T, fx *fixture, c *rawConn, o Options) { _ = c.Close() },
		"reset": func(t *testing.T, fx *fixture, c *rawConn, o Options) { reset(c.Conn) },
		"drain": func(t *testing.T, fx *fixture, c *rawConn, o Options) {
			if err := fx.server.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			c.wantClosed()
		},
		"force": func(t *testing.T, fx *fixture, c *rawConn, o Options) {
			fx.server.closeAll()
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("not closed")
			}
		},
		"update": func(t *testing.T, fx *fixture, c *rawConn, o Options) {
			fx.update(Options{Exports: []Export{{Name: "other", File: hushing(data)}}})
			c.wantClosed()
		},
		"idle": func(t *testing.T, fx *fixture, c *rawConn, o Options) {
			o.Limits.Idle = 10 * time.Millisecond
			fx.update(o)
			c.wantClosed()
		},
		"garbage": func(t *testing.T, fx *fixture, c *rawConn, o Options) {
			c.put(bytes.Repeat([]byte{0xaa}, 100))
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("not closed")
			}
		},
	} {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(how+" "+network, func(t *testing.T) { hushedEnds(t, network, end) })
		}
	}
}

func hushedEnds(t *testing.T, network string, end func(*testing.T, *fixture, *rawConn, Options)) {
	data := pattern()[:1<<20]
	o := Options{Exports: []Export{{Name: "waits", File: hushing(data)}}}
	fx := start(t, o)
	fx.server.cores = 2
	c := fx.dial()
	if network == "tcp" {
		conn, err := net.Dial(network, fx.startTCP(nil))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(patience))
		_ = c.Conn.Close()
		c.Conn = conn
	}
	c.hello(3)
	c.choose("waits")
	c.lone(hushAt, data)
	waitFor(t, "the line to be hushed", func() bool { return fx.hushed() == 1 })
	end(t, fx, c, o)
	waitFor(t, "the connection to end", func() bool { n, m := fx.server.Clients(); return n+m == 0 })
}

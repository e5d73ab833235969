package export

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// socketPair returns both ends of a unix socket.
func socketPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return ends[0], ends[1]
}

// FuzzConn plays whole sessions: what the server sends always parses, nothing is lent at the
// end, and there is an end.
func FuzzConn(f *testing.F) {
	hello := nbdwire.AppendClientFlags(nil, 3)
	chosen := nbdwire.AppendOption(bytes.Clone(hello), optGo, infoRequest("d", 1, 2, 3))
	f.Add(hello)
	f.Add(nbdwire.AppendOption(nbdwire.AppendClientFlags(nil, 1), 1, []byte("d")))
	f.Add(append(nbdwire.AppendOption(bytes.Clone(hello), 1, nil), readRequest(1, 0, 4)...))
	f.Add(append(bytes.Clone(chosen), readRequest(1, 0, 4)...))
	f.Add(append(bytes.Clone(chosen), bytes.Repeat(readRequest(1, 9, 5000), 70)...))
	f.Add(append(bytes.Clone(chosen), requestBytes(cmdDisc, 0, 1, 0, 0)...))
	f.Add(append(append(bytes.Clone(chosen), requestBytes(cmdWrite, 0, 1, 0, 8)...), "12345678"...))
	f.Add(nbdwire.AppendOption(nbdwire.AppendOption(bytes.Clone(hello), optList, nil), optAbort, nil))
	f.Add(nbdwire.AppendOption(nbdwire.AppendOption(bytes.Clone(hello), 11, nil), 10, []byte("\x00\x00\x00\x01d\x00\x00\x00\x00")))
	data := pattern()[:20000]
	file := &fakeFile{data: data, async: true}
	server, err := NewServer(Options{Exports: []Export{{Name: "d", Description: "x", File: file, RoundUp: 4096}}, Limits: Limits{Handshake: patience}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := socketPair(t)
		defer func() { _ = near.Close() }()
		_ = near.SetDeadline(time.Now().Add(patience))
		ended := make(chan struct{})
		go func() { defer close(ended); _ = server.ServeConn(far, nil) }()
		go func() { _, _ = near.Write(b); _ = near.(*net.UnixConn).CloseWrite() }()
		out, err := io.ReadAll(near)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the session does not end")
		}
		<-ended
		// A server that closes with bytes unread resets, which may cut its last words.
		checkStream(t, b, out, err == nil)
		if n := file.lent.Load(); n != 0 {
			t.Fatalf("%d payloads still lent", n)
		}
		if free := server.budget.free; free != server.budget.total {
			t.Fatalf("%d bytes of the budget free, of %d", free, server.budget.total)
		}
	})
}

// checkStream parses what a server sent in answer to in.
func checkStream(t *testing.T, in, out []byte, whole bool) {
	t.Helper()
	take := func(n int) []byte {
		if n > len(out) {
			if whole {
				t.Fatalf("stream ends %d bytes early", n-len(out))
			}
			n = len(out)
		}
		b := out[:n]
		out = out[n:]
		return b
	}
	if b := take(nbdwire.GreetingLen); len(b) == nbdwire.GreetingLen {
		if _, err := nbdwire.DecodeGreeting(b); err != nil {
			t.Fatal(err)
		}
	}
	for len(out) >= 8 && binary.BigEndian.Uint64(out) == protocol.NEGOTIATION_MAGIC_REPLY {
		h, err := nbdwire.DecodeOptionReply(take(nbdwire.OptionReplyLen))
		if err != nil && whole {
			t.Fatal(err)
		}
		take(int(h.Length))
	}
	if len(out) >= 10 && binary.BigEndian.Uint32(out) == 0 { // reply to EXPORT_NAME: a size below 2^32
		take(10)
		if in[3]&nbdwire.FlagNoZeroes == 0 {
			take(nbdwire.ZeroesLen)
		}
	}
	lengths := readLengths(in)
	for len(out) > 0 {
		h, err := nbdwire.DecodeSimpleReply(take(nbdwire.SimpleReplyLen))
		if err != nil {
			if whole {
				t.Fatal(err)
			}
			return
		}
		if h.Error != 0 {
			continue
		}
		n, ok := lengths[h.Handle]
		if !ok {
			return // cookies that repeat with other lengths: not to be told apart here
		}
		take(n)
	}
}

// readLengths finds what looks like a request anywhere in a session and returns what each
// cookie would get; cookies with several answers are left out.
func readLengths(in []byte) map[uint64]int {
	lengths, twice := make(map[uint64]int), make(map[uint64]bool)
	for i := 0; i+nbdwire.RequestLen <= len(in); i++ {
		h, err := nbdwire.DecodeRequest(in[i:])
		if err != nil {
			continue
		}
		n := int(h.Length)
		if h.Type != cmdRead {
			n = 0
		}
		if old, ok := lengths[h.Handle]; ok && old != n {
			twice[h.Handle] = true
		}
		lengths[h.Handle] = n
	}
	for cookie := range twice {
		delete(lengths, cookie)
	}
	return lengths
}

package nbdclient_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"go.uber.org/goleak"

	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/export/nbdwire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParseURI(t *testing.T) {
	cases := []struct {
		in   string
		want nbdclient.Target
		err  string
	}{
		{in: "nbd://h", want: nbdclient.Target{Network: "tcp", Address: "h:10809"}},
		{in: "nbd://h/", want: nbdclient.Target{Network: "tcp", Address: "h:10809"}},
		{in: "nbd://h:5/vm1", want: nbdclient.Target{Network: "tcp", Address: "h:5", Export: "vm1"}},
		{in: "nbd://h//vm1", want: nbdclient.Target{Network: "tcp", Address: "h:10809", Export: "/vm1"}},
		{in: "nbd://[::1]/a%20b%2Fc?x=1", want: nbdclient.Target{Network: "tcp", Address: "[::1]:10809", Export: "a b/c"}},
		{in: "nbd+unix:///vm1?socket=/run/a+b%20c", want: nbdclient.Target{Network: "unix", Address: "/run/a+b c", Export: "vm1"}},
		{in: "nbd+unix://?x=y&socket=demo/s", want: nbdclient.Target{Network: "unix", Address: "demo/s"}},
		{in: "nbds://h/vm1", want: nbdclient.Target{Network: "tcp", Address: "h:10809", Export: "vm1", TLS: nbdclient.TLS{On: true}}},
		{in: "nbds+unix:///vm1?tls-verify-peer=0&socket=/s&tls-certificates=/p+k%20i&tls-type=x509&tls-hostname=vm%2d1&x-y=1",
			want: nbdclient.Target{Network: "unix", Address: "/s", Export: "vm1", TLS: nbdclient.TLS{On: true, Certificates: "/p+k i", Hostname: "vm-1", NoVerify: true}}},
		{in: "nbds://alice@h/?tls-verify-peer=1", want: nbdclient.Target{Network: "tcp", Address: "h:10809", TLS: nbdclient.TLS{On: true}}},
		{in: "nbds://h/?tls-verify-peer=maybe", err: "neither 0 nor 1"},
		{in: "nbds://h/?tls-type=psk", err: "tls-type=psk is not supported"},
		{in: "nbds://h/?tls-psk-file=f", err: "tls-psk-file is not supported"},
		{in: "nbds://h/?tls-hostname=%zz", err: "%zz"},
		{in: "nbd://h/?tls-certificates=/p", err: "tls-certificates in a URI without TLS"},
		{in: "nbdss://h/", err: "scheme"},
		{in: "nbd:///vm1", err: "no host"},
		{in: "nbd+unix:///vm1", err: "no socket"},
		{in: "nbd+unix://h/vm1?socket=/s", err: "three slashes"},
		{in: "http://h", err: "scheme"},
		{in: "nbd://h:x/", err: "invalid port"},
		{in: "nbd+unix:///a?socket=%zz", err: "%zz"},
		{in: "", err: "scheme"},
	}
	for _, tc := range cases {
		got, err := nbdclient.ParseURI(tc.in)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: %v, want an error with %q", tc.in, err, tc.err)
			}
			continue
		}
		if err != nil || got != tc.want {
			t.Errorf("%s: %+v %v, want %+v", tc.in, got, err, tc.want)
		}
	}
}

type memory struct{ data []byte }

func (m memory) Size() uint64 { return uint64(len(m.data)) }
func (m memory) Extents(_ context.Context, off, end uint64, _ bool, list []export.Extent) (int, error) {
	list[0] = export.Extent{Length: end - off}
	return 1, nil
}
func (m memory) Submit(batch []*export.Read) {
	for _, r := range batch {
		if r.Offset == 13 {
			r.Err = errors.New("lost")
		} else {
			r.Payload = m.data[r.Offset : r.Offset+uint64(r.Length)]
		}
		r.Done.ReadDone(r)
	}
}

// serve runs an export server with two exports and returns a URI of the one called name.
func serve(t *testing.T, data []byte, name string) nbdclient.Target {
	t.Helper()
	s, err := export.NewServer(export.Options{Exports: []export.Export{
		{Name: "a+b/ä", Description: "first", File: memory{data}}, {Name: "two", File: memory{data[:5]}}}})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "nbd +&")
	if err != nil {
		t.Fatal(err)
	}
	a, err := export.ParseAddress("unix://" + filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := export.Listen(context.Background(), a)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l, nil) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Shutdown(context.Background()), <-served, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	target, err := nbdclient.ParseURI(a.URI(name))
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestList(t *testing.T) {
	got, err := nbdclient.List(context.Background(), serve(t, make([]byte, 9), "two"))
	want := []nbdclient.Listed{{Name: "a+b/ä", Description: "first"}, {Name: "two"}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
}

func TestReadAt(t *testing.T) {
	data := make([]byte, 36<<20)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
	c, err := nbdclient.Dial(context.Background(), serve(t, data, "a+b/ä"))
	if err != nil {
		t.Fatal(err)
	}
	if i := c.Info(); i.Name != "a+b/ä" || i.Description != "first" || i.Size != uint64(len(data)) || !i.ReadOnly() || !i.MultiConn() || i.Blocks.Maximum != export.MaxRead || !i.Structured || len(i.Contexts) != 3 {
		t.Errorf("info %+v", i)
	}
	whole := make([]byte, len(data))
	if n, err := c.ReadAt(whole, 0); n != len(data) || err != nil || !bytes.Equal(whole, data) {
		t.Errorf("whole file: %d bytes, %v", n, err)
	}
	if n, err := c.ReadAt(make([]byte, 10), int64(len(data))-4); n != 4 || err != io.EOF {
		t.Errorf("over the end: %d bytes, %v; want 4 and EOF", n, err)
	}
	if n, err := c.ReadAt(make([]byte, 10), int64(len(data))+4); n != 0 || err != io.EOF {
		t.Errorf("behind the end: %d bytes, %v; want 0 and EOF", n, err)
	}
	var lost *nbdclient.ReadError
	if _, err := c.ReadAt(make([]byte, 10), 13); !errors.Is(err, syscall.EIO) || !errors.As(err, &lost) || lost.Offset != 13 {
		t.Errorf("lost range: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			p := make([]byte, 20000)
			for range 30 {
				off := 14 + rng.Int64N(int64(len(data)-len(p)-14))
				if _, err := c.ReadAt(p, off); err != nil || !bytes.Equal(p, data[off:off+int64(len(p))]) {
					t.Errorf("offset %d: %v or wrong bytes", off, err)
				}
			}
		}()
	}
	wg.Wait()
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, nbdclient.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

func TestUnknownExport(t *testing.T) {
	target := serve(t, make([]byte, 9), "nope")
	var refused *nbdclient.OptionError
	if _, err := nbdclient.Dial(context.Background(), target); !errors.As(err, &refused) ||
		refused.Type != protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN || !strings.Contains(err.Error(), "two") {
		t.Errorf("got %v", err)
	}
}

// scripted answers one client with fixed bytes, whatever it says, and its first request with reply.
func scripted(t *testing.T, script []byte, reply ...byte) nbdclient.Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = conn.Write(script)
		if len(reply) > 0 && untilRequest(conn) {
			_, _ = conn.Write(reply)
		}
		_, _ = io.Copy(io.Discard, conn)
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return nbdclient.Target{Network: "tcp", Address: l.Addr().String()}
}

// untilRequest takes what a client says up to its first request. What answers that before may come too early for the client.
func untilRequest(conn net.Conn) bool {
	magic := nbdwire.AppendRequest(nil, protocol.TransmissionRequestHeader{})[:4]
	var said []byte
	for b := make([]byte, 4096); !bytes.Contains(said, magic); {
		n, err := conn.Read(b)
		if said = append(said, b[:n]...); err != nil {
			return false
		}
	}
	return true
}

// TestHostileServers: nothing that a server sends is believed.
func TestHostileServers(t *testing.T) {
	// These do not know structured replies.
	hello := nbdwire.AppendOptionReply(nbdwire.AppendGreeting(nil, 3), nbdwire.OptStructuredReply, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, nil)
	reply := func(typ uint32, data string) []byte {
		return nbdwire.AppendOptionReply(bytes.Clone(hello), protocol.NEGOTIATION_ID_OPTION_GO, typ, []byte(data))
	}
	ack := nbdwire.AppendOptionReply(nil, protocol.NEGOTIATION_ID_OPTION_GO, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	size := func(n uint64, flags uint16) []byte {
		return append(nbdwire.AppendInfoExport(bytes.Clone(hello), protocol.NEGOTIATION_ID_OPTION_GO, n, flags), ack...)
	}
	cases := []struct {
		name   string
		script []byte
	}{
		{"no NBD", []byte("HTTP/1.1 400 Bad Request\r\n")},
		{"not fixed newstyle", nbdwire.AppendGreeting(nil, 0)},
		{"ACK without a size", append(bytes.Clone(hello), ack...)},
		{"size 2^63", size(1<<63, 3)},
		{"no HAS_FLAGS", size(512, 0)},
		{"reply to another option", nbdwire.AppendOptionReply(bytes.Clone(hello), 6, 1, nil)},
		{"reply of 4 GiB", append(reply(3, "")[:len(hello)+16], 0xff, 0xff, 0xff, 0xff)},
		{"short information", reply(3, "\x00")},
		{"list entry for GO", reply(2, "\x00\x00\x00\x00")},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c, err := nbdclient.Dial(context.Background(), scripted(t, tc.script))
			if !errors.Is(err, nbdclient.ErrProtocol) {
				t.Errorf("got %v, want ErrProtocol", err)
			}
			if err == nil {
				_ = c.Close()
			}
		})
	}
	transmission := []struct {
		name  string
		reply []byte
	}{
		{"unknown cookie", []byte("\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x63")},
		{"structured reply", []byte("\x66\x8e\x33\xef\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00")},
	}
	for _, tc := range transmission {
		t.Run(tc.name, func(t *testing.T) {
			c, err := nbdclient.Dial(context.Background(), scripted(t, size(512, 3), tc.reply...))
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := c.ReadAt(make([]byte, 16), 0); !errors.Is(err, nbdclient.ErrProtocol) {
					t.Errorf("got %v, want ErrProtocol", err)
				}
			}
			_ = c.Close()
		})
	}
}

// TestHostileChunks: nor what it sends after structured replies were agreed on.
func TestHostileChunks(t *testing.T) {
	hello := nbdwire.AppendGreeting(nil, 3)
	hello = nbdwire.AppendOptionReply(hello, nbdwire.OptStructuredReply, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	hello = nbdwire.AppendMetaContext(hello, nbdwire.OptListMetaContext, 0, "a:b")
	hello = nbdwire.AppendOptionReply(hello, nbdwire.OptListMetaContext, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	hello = nbdwire.AppendInfoExport(hello, protocol.NEGOTIATION_ID_OPTION_GO, 1<<20, 3)
	hello = nbdwire.AppendOptionReply(hello, protocol.NEGOTIATION_ID_OPTION_GO, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	chunk := func(flags, typ uint16, payload string) string {
		return string(nbdwire.AppendChunk(nil, nbdwire.Chunk{Flags: flags, Type: typ, Cookie: 1, Length: uint64(len(payload))})) + payload
	}
	at := func(off uint64) string { return string(binary.BigEndian.AppendUint64(nil, off)) }
	hole := func(off uint64, n uint32) string { return string(binary.BigEndian.AppendUint32([]byte(at(off)), n)) }
	fault := func(off uint64) string {
		return string(nbdwire.AppendErrorChunk(nil, nbdwire.ReplyErrorOffset, nbdwire.ErrorChunk{Errno: 5, Text: "gone", Offset: off}))
	}
	for _, tc := range []struct{ name, reply string }{
		{"simple reply to a read", "\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"},
		{"another cookie", strings.Replace(chunk(1, 1, at(100)+"0123456789abcdef"), "\x01\x00\x00\x00", "\x02\x00\x00\x00", 1)},
		{"data in front", chunk(1, 1, at(99)+"0123456789abcdef")},
		{"data behind", chunk(1, 1, at(101)+"0123456789abcdef")},
		{"data at 2^64 - 1", chunk(1, 1, at(math.MaxUint64)+"0123456789abcdef")},
		{"no data", chunk(1, 1, at(100))},
		{"data of 4 GiB", chunk(1, 1, "")[:16] + "\xff\xff\xff\xff" + at(100)},
		{"hole behind", chunk(1, 2, hole(100, 17))},
		{"hole of 0 bytes", chunk(1, 2, hole(100, 0))},
		{"hole of 4 GiB", chunk(1, 2, hole(100, math.MaxUint32))},
		{"overlap", chunk(0, 1, at(104)+"0123") + chunk(1, 2, hole(100, 16))},
		{"the same twice", chunk(0, 2, hole(100, 8)) + chunk(1, 2, hole(100, 8))},
		{"a part only", chunk(1, 2, hole(100, 15))},
		{"a gap", chunk(0, 2, hole(100, 4)) + chunk(1, 2, hole(108, 8))},
		{"nothing", chunk(1, 0, "")},
		{"NONE without DONE", chunk(0, 0, "")},
		{"unknown type", chunk(1, 3, "")},
		{"block status", chunk(1, 5, "\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01")},
		{"error in front", chunk(1, nbdwire.ReplyErrorOffset, fault(99))},
		{"error behind", chunk(1, nbdwire.ReplyErrorOffset, fault(116))},
		{"error of 1 GiB", chunk(1, nbdwire.ReplyError, "")[:16] + "\x40\x00\x00\x00"},
		{"error without an errno", chunk(1, nbdwire.ReplyError, "\x00\x00\x00\x00\x00\x00")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := nbdclient.Dial(context.Background(), scripted(t, hello, []byte(tc.reply)...))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ReadAt(make([]byte, 16), 100); !errors.Is(err, nbdclient.ErrProtocol) {
				t.Errorf("got %v, want ErrProtocol", err)
			}
			_ = c.Close()
		})
	}
	good := []struct{ name, reply, want string }{
		{"in order", chunk(0, 1, at(100)+"0123") + chunk(1, 2, hole(104, 12)), "0123"},
		{"out of order, NONE last", chunk(0, 2, hole(112, 4)) + chunk(0, 1, at(104)+"01234567") + chunk(0, 1, at(100)+"abcd") + chunk(1, 0, ""), "abcd01234567"},
		{"unknown flags", chunk(0xff, 1, at(100)+"0123456789abcdef"), "0123456789abcdef"},
	}
	for _, tc := range good {
		t.Run(tc.name, func(t *testing.T) {
			c, err := nbdclient.Dial(context.Background(), scripted(t, hello, []byte(tc.reply)...))
			if err != nil {
				t.Fatal(err)
			}
			if i := c.Info(); !i.Structured || len(i.Contexts) != 1 || i.Contexts[0] != "a:b" {
				t.Errorf("%+v", i)
			}
			p := bytes.Repeat([]byte("x"), 16)
			want := append([]byte(tc.want), make([]byte, 16-len(tc.want))...)
			if _, err := c.ReadAt(p, 100); err != nil || !bytes.Equal(p, want) {
				t.Errorf("%q %v, want %q", p, err, want)
			}
			_ = c.Close()
		})
	}
	c, err := nbdclient.Dial(context.Background(), scripted(t, hello,
		[]byte(chunk(0, 1, at(100)+"0123")+chunk(0, nbdwire.ReplyErrorOffset, fault(104))+chunk(1, 2, hole(108, 8)))...))
	if err != nil {
		t.Fatal(err)
	}
	var lost *nbdclient.ReadError
	if _, err := c.ReadAt(make([]byte, 16), 100); !errors.As(err, &lost) || lost.Lost != 104 || lost.Text != "gone" || !errors.Is(err, syscall.EIO) {
		t.Errorf("lost part: %v", err)
	}
	_ = c.Close()
}

// TestSimpleServer reads from a server that has simple replies only.
func TestSimpleServer(t *testing.T) {
	script := nbdwire.AppendOptionReply(nbdwire.AppendGreeting(nil, 3), nbdwire.OptStructuredReply, nbdwire.RepErrPolicy, []byte("no"))
	script = nbdwire.AppendInfoExport(script, protocol.NEGOTIATION_ID_OPTION_GO, 1<<20, 3)
	script = nbdwire.AppendOptionReply(script, protocol.NEGOTIATION_ID_OPTION_GO, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	reply := []byte("\x67\x44\x66\x98\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x010123456789abcdef")
	c, err := nbdclient.Dial(context.Background(), scripted(t, script, reply...))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 16)
	if _, err := c.ReadAt(p, 100); err != nil || string(p) != "0123456789abcdef" || c.Info().Structured {
		t.Errorf("%q %v %+v", p, err, c.Info())
	}
	_ = c.Close()
}

// TestContextEndsHandshake: a silent server holds Dial and List no longer than their context.
func TestContextEndsHandshake(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := nbdclient.Dial(ctx, scripted(t, nil)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := nbdclient.List(ctx, scripted(t, nbdwire.AppendGreeting(nil, 3))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("List: %v", err)
	}
}

package export

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/btrexport/btrexport/export/nbdwire"
	"github.com/btrexport/btrexport/export/tlstest"
)

// tap keeps what is read from a connection.
type tap struct {
	net.Conn
	seen []byte
}

func (w *tap) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	w.seen = append(w.seen, b[:n]...)
	return n, err
}

// lastRecord takes the records of TLS apart that follow the reply to STARTTLS, and returns type and length of
// the last one.
func (w *tap) lastRecord() (typ byte, length int, err error) {
	b := w.seen[nbdwire.OptionReplyLen:]
	for len(b) >= 5 {
		typ, length = b[0], int(b[3])<<8|int(b[4])
		if len(b) < 5+length {
			return 0, 0, fmt.Errorf("the last record is cut: %d of %d bytes", len(b)-5, length)
		}
		b = b[5+length:]
	}
	if len(b) > 0 {
		err = fmt.Errorf("%d bytes behind the last record", len(b))
	}
	return typ, length, err
}

const (
	recordAlert       = 21
	recordApplication = 23
	// An alert of TLS 1.3 looks like data: 2 bytes, the true type, and the tag of 16.
	sealedAlert = 2 + 1 + 16
)

// TestTLSCloseNotify: nbd.md 30. However a connection under TLS ends, the last record on the wire is the alert that
// says so. (crypto/tls tells the end of the stream alike without it.)
func TestTLSCloseNotify(t *testing.T) {
	data := pattern()[:1<<20]
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, tc := range []struct {
			name   string
			limits Limits
			end    func(fx *fixture, c *rawConn)
		}{
			{"DISC", Limits{}, func(_ *fixture, c *rawConn) {
				c.choose("disk")
				c.put(append(readRequest(1, 0, 100000), requestBytes(cmdDisc, 0, 2, 0, 0)...))
				c.wantAnswer(1, 0, data[:100000])
			}},
			{"ABORT", Limits{}, func(_ *fixture, c *rawConn) { c.option(optAbort, nil); c.reply(optAbort, repAck) }},
			{"ABORT, nobody reads the answer", Limits{}, func(_ *fixture, c *rawConn) { c.option(optAbort, []byte("bye")) }},
			{"wrong option magic", Limits{}, func(_ *fixture, c *rawConn) { c.put(make([]byte, nbdwire.OptionLen)) }},
			{"option of 4 GiB", Limits{}, func(_ *fixture, c *rawConn) {
				c.put(append(nbdwire.AppendOption(nil, 99, nil)[:12], be32(math.MaxUint32)...))
			}},
			{"EXPORT_NAME of none", Limits{}, func(_ *fixture, c *rawConn) { c.option(1, []byte("nosuch")) }},
			{"EXPORT_NAME after extended headers", Limits{}, func(_ *fixture, c *rawConn) {
				c.option(optEH, nil)
				c.reply(optEH, repAck)
				c.option(1, []byte("disk"))
			}},
			{"options without end", Limits{}, func(_ *fixture, c *rawConn) {
				for range maxOptions + maxOptionsPerExport - 1 { // STARTTLS was one
					c.option(99, nil)
					c.reply(99, repUnsup)
				}
			}},
			{"handshake that takes too long", Limits{Handshake: 200 * time.Millisecond}, func(*fixture, *rawConn) {}},
			{"wrong request magic", Limits{}, func(_ *fixture, c *rawConn) { c.choose("disk"); c.put(make([]byte, nbdwire.RequestLen)) }},
			{"payload that is too long", Limits{}, func(_ *fixture, c *rawConn) {
				c.choose("disk")
				c.put(requestBytes(cmdWrite, 0, 1, 0, math.MaxUint32))
			}},
			{"idle", Limits{Idle: 20 * time.Millisecond}, func(_ *fixture, c *rawConn) { c.choose("disk") }},
			{"the export goes", Limits{}, func(fx *fixture, c *rawConn) {
				c.choose("disk")
				c.alive(data)
				fx.update(Options{Exports: []Export{{Name: "other", File: &fakeFile{data: data}}}})
			}},
			{"shutdown", Limits{}, func(fx *fixture, c *rawConn) {
				c.choose("disk")
				c.alive(data)
				go func() { _ = fx.server.Shutdown(context.Background()) }()
			}},
			{"the client ends its half", Limits{}, func(_ *fixture, c *rawConn) {
				c.choose("disk")
				c.put(readRequest(1, 0, 4096))
				_ = c.Conn.(*tls.Conn).CloseWrite()
				c.wantAnswer(1, 0, data[:4096])
			}},
		} {
			t.Run(fmt.Sprintf("%#x/%s", version, tc.name), func(t *testing.T) {
				a := newAuthority(t)
				fx := start(t, Options{Exports: oneExport(&fakeFile{data: data, async: true}), Limits: tc.limits,
					TLS: TLS{Mode: TLSRequire, Config: a.server(false)}})
				c := fx.greeted()
				w := &tap{Conn: c.Conn}
				c.Conn = w
				config := a.client(nil)
				config.MinVersion, config.MaxVersion = version, version
				c.startTLS(config)
				tc.end(fx, c)
				if _, err := io.Copy(io.Discard, c); err != nil {
					t.Errorf("end: %v", err)
				}
				typ, length, err := w.lastRecord()
				alert := typ == recordAlert || version == tls.VersionTLS13 && typ == recordApplication && length == sealedAlert
				if err != nil || !alert {
					t.Errorf("the last record has type %d and %d bytes (%v), want an alert", typ, length, err)
				}
				_ = c.Close()
			})
		}
	}
}

// cut lets so many bytes of a client's through and then drops the connection.
type cut struct {
	net.Conn
	sends, takes int // bytes left; negative: any number
	reset        bool
}

var errCut = errors.New("cut")

func (c *cut) drop() error {
	if c.reset {
		reset(c.Conn)
	}
	return errors.Join(errCut, c.Conn.Close())
}

func (c *cut) Write(b []byte) (int, error) {
	if c.sends < 0 || len(b) < c.sends {
		c.sends -= min(len(b), max(c.sends, 0))
		return c.Conn.Write(b)
	}
	_, _ = c.Conn.Write(b[:c.sends])
	return 0, c.drop()
}

func (c *cut) Read(b []byte) (int, error) {
	if c.takes < 0 {
		return c.Conn.Read(b)
	}
	n, err := c.Conn.Read(b[:min(len(b), c.takes)])
	if c.takes -= n; c.takes == 0 {
		return 0, c.drop()
	}
	return n, err
}

// chance is BTREXPORT_SEED, or another number, which it prints.
func chance(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if text := os.Getenv("BTREXPORT_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		s = n
	}
	t.Logf("BTREXPORT_SEED=%d", s)
	return s
}

// tlsSession plays a session with STARTTLS over conn to its end, or until something fails.
func tlsSession(conn net.Conn, config *tls.Config, session []byte) error {
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(conn, make([]byte, nbdwire.GreetingLen)); err != nil {
		return err
	}
	if _, err := conn.Write(session[:nbdwire.ClientFlagsLen]); err != nil {
		return err
	}
	if _, err := conn.Write(nbdwire.AppendOption(nil, optStartTLS, nil)); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, make([]byte, nbdwire.OptionReplyLen)); err != nil {
		return err
	}
	secure := tls.Client(conn, config)
	if _, err := secure.Write(session[nbdwire.ClientFlagsLen:]); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, secure)
	return err
}

// meter counts bytes.
type meter struct {
	net.Conn
	sent, taken int
}

func (m *meter) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.sent += n
	return n, err
}

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.taken += n
	return n, err
}

// TestTLSByteCut closes, and resets, after every byte that a client sends in a session under TLS, in the clear, in
// TLS's handshake with a certificate and behind it, and at some hundred places of what it is sent. The server lives,
// and no goroutine, nothing lent and no budget is left.
func TestTLSByteCut(t *testing.T) {
	f := sparse(newRand(8), 20000, 0.4, 0.2)
	f.waits = true
	a := newAuthority(t)
	fx := start(t, Options{Exports: []Export{{Name: "d", File: f, RoundUp: 4096}}, TLS: TLS{Mode: TLSRequire, Config: a.server(true)}})
	config := a.client(&x509.Certificate{Subject: pkix.Name{CommonName: "vm-host-1"}})
	config.CurvePreferences = []tls.CurveID{tls.X25519} // the post-quantum ones send ten times as many bytes
	addr := fx.startTCP(nil)
	dial := func(reset bool) net.Conn {
		network, address := "unix", fx.path
		if reset {
			network, address = "tcp", addr // an RST is of TCP's
		}
		conn, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	session := extensionSeeds()[0]
	whole := &meter{Conn: dial(false)}
	if err := tlsSession(whole, config, session); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes sent, %d taken", whole.sent, whole.taken)
	const signatures = 8 // bytes by which their lengths may differ from one session to the next
	for n := range whole.sent {
		for _, rst := range []bool{false, true} {
			if err := tlsSession(&cut{Conn: dial(rst), sends: n, takes: -1, reset: rst}, config, session); err == nil && n < whole.sent-signatures {
				t.Fatalf("cut at %d: the session went on", n)
			}
		}
	}
	rng := newRand(chance(t))
	for i := range 200 {
		n := 1 + rng.IntN(whole.taken)
		_ = tlsSession(&cut{Conn: dial(i%2 == 0), sends: -1, takes: n, reset: i%2 == 0}, config, session)
	}
	if err := tlsSession(dial(false), config, session); err != nil {
		t.Errorf("after it all: %v", err)
	}
}

// FuzzTLS plays sessions under TLS: what FuzzConn demands holds there too; or raw bytes where TLS's handshake is to be.
func FuzzTLS(f *testing.F) {
	for _, seed := range slices.Concat(extensionSeeds(), [][]byte{
		nbdwire.AppendOption(nbdwire.AppendClientFlags(nil, 3), optStartTLS, nil),
		nbdwire.AppendClientFlags(nil, 3),
		append(nbdwire.AppendOption(nbdwire.AppendClientFlags(nil, 1), 1, []byte("d")), readRequest(1, 0, 4)...),
	}) {
		f.Add(seed, false)
	}
	f.Add([]byte("\x00\x00\x00\x03\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"), true)
	pki := tlstest.PKI(f)
	config, err := NewTLSConfig(pki+"/server-cert.pem", pki+"/server-key.pem", "")
	if err != nil {
		f.Fatal(err)
	}
	file := sparse(newRand(7), 20000, 0.4, 0.2)
	file.waits = true
	server, err := NewServer(Options{Exports: []Export{{Name: "d", Description: "x", File: file, RoundUp: 4096}},
		Limits: Limits{Handshake: patience}, TLS: TLS{Mode: TLSRequire, Config: config}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, raw bool) {
		if len(b) < nbdwire.ClientFlagsLen {
			return
		}
		near, far := socketPair(t)
		defer func() { _ = near.Close() }()
		_ = near.SetDeadline(time.Now().Add(patience))
		ended := make(chan struct{})
		go func() { defer close(ended); _ = server.ServeConn(far, nil) }()
		out, err := playTLS(near, b, raw)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the session does not end")
		}
		_ = near.Close()
		<-ended
		checkStream(t, b, out, err == nil)
		if n := file.lent.Load(); n != 0 {
			t.Fatalf("%d payloads still lent", n)
		}
		if free := server.budget.free; free != server.budget.total {
			t.Fatalf("%d bytes of the budget free, of %d", free, server.budget.total)
		}
	})
}

// playTLS sends b, from its flags on under TLS, in pieces of odd lengths, and returns what comes but for the reply
// to STARTTLS. An error means that it may be cut.
func playTLS(conn net.Conn, b []byte, raw bool) ([]byte, error) {
	out := make([]byte, nbdwire.GreetingLen)
	if _, err := io.ReadFull(conn, out); err != nil {
		return nil, err
	}
	flags, rest := b[:nbdwire.ClientFlagsLen], b[nbdwire.ClientFlagsLen:]
	if _, err := conn.Write(nbdwire.AppendOption(bytes.Clone(flags), optStartTLS, nil)); err != nil {
		return out, err
	}
	if _, err := io.ReadFull(conn, make([]byte, nbdwire.OptionReplyLen)); err != nil {
		return out, err
	}
	var half interface {
		net.Conn
		CloseWrite() error
	} = conn.(*net.UnixConn)
	if !raw {
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		if err := secure.Handshake(); err != nil {
			return out, err
		}
		half = secure
	}
	go func() {
		for piece := 1 + len(rest)%97; len(rest) > 0; rest = rest[min(piece, len(rest)):] {
			if _, err := half.Write(rest[:min(piece, len(rest))]); err != nil {
				return
			}
		}
		_ = half.CloseWrite()
	}()
	b, err := io.ReadAll(half)
	if raw {
		return out, errors.Join(err, errCut) // alerts, if anything
	}
	return append(out, b...), err
}

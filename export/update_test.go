package export

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// update must work.
func (fx *fixture) update(o Options) *Departure {
	fx.t.Helper()
	d, err := fx.server.Update(o)
	if err != nil {
		fx.t.Fatal(err)
	}
	return d
}

// readUntil reads at random until stop is closed and returns the number of reads, all of them right.
func (c *rawConn) readUntil(stop chan struct{}, data []byte) int {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return n
		default:
		}
		length := 1 + rand.IntN(200<<10)
		off := rand.IntN(len(data) - length)
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(readRequest(uint64(n), uint64(off), uint32(length))); err != nil {
			c.t.Errorf("read %d: %v", n, err)
			return n
		}
		reply := make([]byte, nbdwire.SimpleReplyLen+length)
		if _, err := readFull(c, reply); err != nil {
			c.t.Errorf("read %d: %v", n, err)
			return n
		}
		h, err := nbdwire.DecodeSimpleReply(reply)
		if err != nil || h.Error != 0 || h.Handle != uint64(n) || !bytes.Equal(reply[nbdwire.SimpleReplyLen:], data[off:off+length]) {
			c.t.Errorf("read %d: %+v, %v or wrong bytes", n, h, err)
			return n
		}
	}
}

func readFull(c net.Conn, b []byte) (int, error) {
	for n := 0; ; {
		m, err := c.Read(b[n:])
		if n += m; n == len(b) || err != nil {
			return n, err
		}
	}
}

// TestUpdateKeeps: a hundred updates under load lose no read of an export that stays, whatever else changes.
func TestUpdateKeeps(t *testing.T) {
	data := pattern()[:4<<20]
	stays, other := &fakeFile{data: data, async: true}, &fakeFile{data: data[:4096]}
	a := newAuthority(t)
	uid := uint32(os.Getuid())
	variants := []Options{
		{Exports: []Export{{Name: "stays", File: stays}}},
		{Exports: []Export{{Name: "new", File: other}, {Name: "stays", File: stays, Description: "changed"}}, Limits: Limits{Connections: 1, Idle: time.Hour}},
		{Exports: []Export{{Name: "stays", File: stays, Allow: Access{UIDs: []uint32{uid}}}}, TLS: TLS{Mode: TLSAllow, Config: a.server(false)}},
		{Exports: []Export{{Name: "stays", File: stays}, {Name: "third", File: other, TLS: TLSRequire}}, TLS: TLS{Mode: TLSAllow, Config: a.server(true)}},
	}
	fx := start(t, variants[0])
	stop := make(chan struct{})
	var clients sync.WaitGroup
	counts := make([]int, 6)
	for i := range counts {
		c := fx.ready("stays")
		clients.Go(func() { counts[i] = c.readUntil(stop, data) })
	}
	for i := range 100 {
		if d := fx.update(variants[i%len(variants)]); d.Len() != 0 {
			t.Fatalf("update %d: %d connections are to leave", i, d.Len())
		}
		fx.dial() // perhaps refused: one variant has a place less
		time.Sleep(time.Millisecond)
	}
	close(stop)
	clients.Wait()
	for _, n := range counts {
		if n == 0 {
			t.Error("a client read nothing")
		}
	}
}

// TestUpdateEnds: what ends a connection, and what does not.
func TestUpdateEnds(t *testing.T) {
	data := pattern()[:4096]
	f := &fakeFile{data: data}
	a := newAuthority(t)
	strangers := Access{UIDs: []uint32{uint32(os.Getuid()) + 1}}
	for _, tc := range []struct {
		name string
		next Export
		tls  TLSMode
		live bool
	}{
		{"nothing", Export{Name: "disk", File: f}, TLSOff, true},
		{"description", Export{Name: "disk", File: f, Description: "x"}, TLSOff, true},
		{"TLS allowed", Export{Name: "disk", File: f}, TLSAllow, true},
		{"TLS required", Export{Name: "disk", File: f}, TLSRequire, false},
		{"TLS required by the export", Export{Name: "disk", File: f, TLS: TLSRequire}, TLSAllow, false},
		{"list without the client", Export{Name: "disk", File: f, Allow: strangers}, TLSOff, false},
		{"name", Export{Name: "kiste", File: f}, TLSOff, false},
		{"file", Export{Name: "disk", File: &fakeFile{data: data}}, TLSOff, false},
		{"size", Export{Name: "disk", File: f, RoundUp: 512}, TLSOff, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fx := start(t, Options{Exports: oneExport(f)})
			c := fx.ready("disk")
			c.alive(data)
			choosing := fx.greeted() // its handshake began under the old terms
			choosing.infos(optInfo, "disk")
			d := fx.update(Options{Exports: []Export{tc.next}, TLS: TLS{Mode: tc.tls, Config: a.server(false)}})
			if live := d.Len() == 0; live != tc.live {
				t.Fatalf("lives on: %v, want %v", live, tc.live)
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if tc.live {
				c.alive(data)
				choosing.choose("disk")
				choosing.alive(data)
			} else {
				c.wantClosed()
				_ = c.Close()
				choosing.choose("disk") // as it was told
				choosing.wantClosed()
			}
			if err := d.Wait(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUpdateTLS: a client under TLS lives on as long as a handshake of now would let it in, and others are not asked.
func TestUpdateTLS(t *testing.T) {
	data := pattern()[:4096]
	f := &fakeFile{data: data}
	a, other := newAuthority(t), newAuthority(t)
	bundle := func() *tls.Config {
		b, err := os.ReadFile(other.path("ca-cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		mine, err := os.ReadFile(a.path("ca-cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		a.server(false)
		a.write("bundle.pem", append(b, mine...))
		c, err := NewTLSConfig(a.path("server-cert.pem"), a.path("server-key.pem"), a.path("bundle.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	names := func(list ...string) Access { return Access{Names: list} }
	uid := Access{Names: []string{"nobody"}, UIDs: []uint32{uint32(os.Getuid())}}
	for _, tc := range []struct {
		name   string
		before *tls.Config
		next   *tls.Config
		mode   TLSMode
		allow  Access
		why    string // "": it lives on
	}{
		{"the same files, read again", a.server(true), a.server(true), TLSRequire, names("vm-host-1"), ""},
		{"another CA", a.server(true), other.server(true), TLSRequire, Access{}, "its certificate: x509: certificate signed by unknown authority"},
		{"another CA besides", a.server(true), bundle(), TLSRequire, names("vm-host-1"), ""},
		{"no CA", a.server(true), a.server(false), TLSRequire, Access{}, ""},
		{"no CA, and a name that nobody vouches for", a.server(true), a.server(false), TLSRequire, names("vm-host-1"), "no rule"},
		{"a CA, and it has shown nothing", a.server(false), a.server(true), TLSAllow, Access{}, "no certificate"},
		{"names without it", a.server(true), a.server(true), TLSRequire, names("vm-host-10", "vm-host"), "no rule"},
		{"names without it, and its user", a.server(true), a.server(true), TLSRequire, uid, ""},
		{"TLS off", a.server(true), nil, TLSOff, Access{}, ""},
		{"TLS off, and a name", a.server(true), nil, TLSOff, names("vm-host-1"), "no rule"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fx := start(t, Options{Exports: oneExport(f), TLS: TLS{Mode: TLSAllow, Config: tc.before}})
			var cert *x509.Certificate
			if tc.before.ClientCAs != nil {
				cert = &x509.Certificate{Subject: pkix.Name{CommonName: "vm-host-1"}}
			}
			config := a.client(cert)
			c, choosing := fx.greeted(), fx.greeted()
			for _, c := range []*rawConn{c, choosing} {
				c.startTLS(config)
			}
			c.choose("disk")
			c.alive(data)
			clear := fx.ready("disk")
			clear.alive(data)
			e := Export{Name: "disk", File: f, Allow: tc.allow, TLS: TLSAllow}
			leaving := 0
			if tc.why != "" {
				leaving++
			}
			if !tc.allow.open() && len(tc.allow.UIDs) == 0 {
				leaving++ // who is in the clear has no name
			}
			if d := fx.update(Options{Exports: []Export{e}, TLS: TLS{Mode: tc.mode, Config: tc.next}}); d.Len() != leaving {
				t.Fatalf("%d clients leave, want %d: %s", d.Len(), leaving, fx.log)
			}
			choosing.choose("disk") // its handshake began under the old terms
			if tc.why == "" {
				c.alive(data)
				choosing.alive(data)
			} else {
				c.wantClosed()
				choosing.wantClosed()
				if n := strings.Count(fx.log.String(), tc.why); n < 2 {
					t.Errorf("the log has %q %d times, want it for both:\n%s", tc.why, n, fx.log)
				}
			}
			if tc.allow.open() {
				clear.alive(data)
			}
		})
	}
	// A certificate that has expired is refused at the next reload.
	cert, _ := a.sign("late", &x509.Certificate{Subject: pkix.Name{CommonName: "late"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	l := TLS{Config: a.server(true)}
	if names, err := l.verify([]*x509.Certificate{cert}, time.Now()); err != nil || names[0] != "late" {
		t.Errorf("now: %v %v", names, err)
	}
	if _, err := l.verify([]*x509.Certificate{cert}, time.Now().Add(2*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("in two hours: %v, want that it has expired", err)
	}
	server, _ := a.sign("wrong", &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if _, err := l.verify([]*x509.Certificate{server}, time.Now()); err == nil {
		t.Error("a server's certificate is taken for a client's")
	}
}

// TestUpdateDrains: reads in flight are answered, new ones refused, and Wait tells when it is over.
func TestUpdateDrains(t *testing.T) {
	data := pattern()[:1<<20]
	f := &fakeFile{data: data, async: true, hold: make(chan struct{})}
	fx := start(t, Options{Exports: oneExport(f)})
	if fx.server.InUse(f) {
		t.Error("a file is in use before anybody has come")
	}
	c := fx.ready("disk")
	c.put(readRequest(1, 0, 4096))
	waitFor(t, "the read to start", func() bool { return f.reads.Load() == 1 })
	d := fx.update(Options{Exports: []Export{{Name: "other", File: &fakeFile{data: data}}}})
	if !fx.server.InUse(f) {
		t.Error("a file that a client drains from is not in use")
	}
	c.put(readRequest(2, 0, 4096))
	c.wantAnswer(2, nbdwire.ESHUTDOWN, nil)
	waited := make(chan error, 1)
	go func() { waited <- d.Wait(context.Background()) }()
	fx.ready("other").alive(data)
	select {
	case <-waited:
		t.Fatal("Wait returned with a read in flight")
	default:
	}
	close(f.hold)
	c.wantAnswer(1, 0, data[:4096])
	c.wantClosed()
	_ = c.Close()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if fx.server.InUse(f) {
		t.Error("a file is in use after the last client has left")
	}
}

// TestUpdateForces: a File that does not answer does not keep an update from ending.
func TestUpdateForces(t *testing.T) {
	data := pattern()[:1<<20]
	f := &fakeFile{data: data, async: true, hold: make(chan struct{})}
	fx := start(t, Options{Exports: oneExport(f)})
	t.Cleanup(func() { close(f.hold) })
	c, idle := fx.ready("disk"), fx.ready("disk")
	c.put(readRequest(1, 0, 4096))
	waitFor(t, "the read to start", func() bool { return f.reads.Load() == 1 })
	d := fx.update(Options{Exports: []Export{{Name: "other", File: &fakeFile{data: data}}}})
	idle.wantClosed()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := d.Wait(ctx); err == nil || !strings.Contains(err.Error(), "1 connections closed by force") && !strings.Contains(err.Error(), "2 connections") {
		t.Errorf("Wait: %v, want that connections were closed by force", err)
	}
	c.wantClosed()
}

// TestUpdateRefused changes nothing.
func TestUpdateRefused(t *testing.T) {
	data := pattern()[:4096]
	f := &fakeFile{data: data}
	fx := start(t, Options{Exports: oneExport(f)})
	c := fx.ready("disk")
	for name, o := range map[string]Options{
		"nothing": {}, "doubled": {Exports: []Export{{Name: "a", File: f}, {Name: "a", File: f}}},
		"TLS": {Exports: []Export{{Name: "a", File: f, TLS: TLSRequire}}},
	} {
		if _, err := fx.server.Update(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c.alive(data)
	fx.ready("disk").alive(data)
}

// valueFile is a File that == can't compare.
type valueFile struct {
	*fakeFile
	_ []string
}

// TestUpdateOfValues: such a File is another one after an update, and no panic.
func TestUpdateOfValues(t *testing.T) {
	data := pattern()[:4096]
	f := valueFile{fakeFile: &fakeFile{data: data}}
	fx := start(t, Options{Exports: oneExport(f)})
	c := fx.ready("disk")
	c.alive(data)
	if d := fx.update(Options{Exports: oneExport(f)}); d.Len() != 1 {
		t.Errorf("%d connections leave, want 1", d.Len())
	}
	c.wantClosed()
	fx.ready("disk").alive(data)
}

// TestIdle: who asks nothing goes, also when the limit comes later; who waits for an answer stays.
func TestIdle(t *testing.T) {
	data := pattern()[:1<<20]
	f := &fakeFile{data: data, async: true, hold: make(chan struct{})}
	o := Options{Exports: oneExport(f)}
	fx := start(t, o)
	idle, waits := fx.ready("disk"), fx.ready("disk")
	waits.put(readRequest(1, 0, 4096))
	o.Limits.Idle = 20 * time.Millisecond
	fx.update(o)
	idle.wantClosed()
	fx.ready("disk").wantClosed()
	waitFor(t, "the log", func() bool { return strings.Count(fx.log.String(), "it asked nothing") >= 2 })
	close(f.hold)
	waits.wantAnswer(1, 0, data[:4096])
	waits.wantClosed()
}

// TestPerAddress: one address can't take all places.
func TestPerAddress(t *testing.T) {
	data := pattern()[:4096]
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data}), Limits: Limits{PerAddress: 2}})
	addr := fx.startTCP(nil)
	dial := func() *rawConn {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return &rawConn{Conn: conn, t: t}
	}
	first, second := dial(), dial()
	peer := peerOf(first.Conn)
	first.hello(3)
	first.choose("disk")
	second.hello(3)
	dial().wantClosed()
	for range 5 {
		fx.ready("disk").alive(data) // unix sockets have no address
	}
	first.alive(data)
	_ = second.Close()
	waitFor(t, "the place", func() bool {
		fx.server.mu.Lock()
		defer fx.server.mu.Unlock()
		return fx.server.addresses[peer.network()] == 1
	})
	third := dial()
	third.hello(3)
	third.choose("disk")
	third.alive(data)
	for name, want := range map[string]string{"203.0.113.7": "203.0.113.7/32", "::ffff:203.0.113.7": "203.0.113.7/32", "2001:db8::1:2:3:4": "2001:db8::/64"} {
		p := peerOf(fakeAddr{addr: &net.TCPAddr{IP: net.ParseIP(name)}})
		if got := p.network().String(); got != want {
			t.Errorf("%s counts as %s, want %s", name, got, want)
		}
	}
}

// TestConnectionLine: one line at a connection's end, with what it did.
func TestConnectionLine(t *testing.T) {
	data := pattern()[:8192]
	var log logBuffer
	s, err := NewServer(Options{Exports: oneExport(&fakeFile{data: data}),
		Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.ServeConn(theirs, nil) }()
	c := &rawConn{Conn: ours, t: t}
	_ = c.SetDeadline(time.Now().Add(patience))
	c.hello(3)
	c.choose("disk")
	for i := range uint64(3) {
		c.put(readRequest(i, 0, 1000))
		c.wantAnswer(i, 0, data[:1000])
	}
	c.put(readRequest(9, 0, 1<<20))
	c.wantAnswer(9, 22, nil)
	c.put(requestBytes(cmdDisc, 0, 0, 0, 0))
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if want := `level=INFO msg="client gone" export=disk client=unknown reads=3 bytes=3000 errors=1 in=`; strings.Count(log.String(), want) != 1 {
		t.Errorf("the log has not one line %q:\n%s", want, log.String())
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(fmt.Errorf("shutdown: %w", err))
	}
}

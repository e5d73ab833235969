package export

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
	"github.com/btrexport/btrexport/export/tlstest"
)

const (
	optStartTLS = nbdwire.OptStartTLS
	repTLSReqd  = nbdwire.RepErrTLSReqd
	repServer   = protocol.NEGOTIATION_TYPE_REPLY_SERVER
)

// authority signs certificates in a directory of its own.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir(), next: 1}
	a.cert, a.key = a.sign("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		Subject: pkix.Name{CommonName: "test CA"}})
	return a
}

// sign makes NAME-cert.pem and NAME-key.pem.
func (a *authority) sign(name string, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(a.next), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	a.next++
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		a.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+"-cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	a.write(name+"-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return c, key
}

func (a *authority) write(name string, b []byte) {
	a.t.Helper()
	if err := os.WriteFile(a.path(name), b, 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

// server makes the server's configuration; with clients, clients must have certificates.
func (a *authority) server(clients bool) *tls.Config {
	a.t.Helper()
	a.sign("server", &x509.Certificate{DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	ca := ""
	if clients {
		ca = a.path("ca-cert.pem")
	}
	c, err := NewTLSConfig(a.path("server-cert.pem"), a.path("server-key.pem"), ca)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// client trusts the authority and shows cert's certificate, if any.
func (a *authority) client(cert *x509.Certificate) *tls.Config {
	a.t.Helper()
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost"}
	c.RootCAs.AddCert(a.cert)
	if cert == nil {
		return c
	}
	cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	a.sign("client", cert)
	pair, err := tls.LoadX509KeyPair(a.path("client-cert.pem"), a.path("client-key.pem"))
	if err != nil {
		a.t.Fatal(err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c
}

// startTLS turns TLS on.
func (c *rawConn) startTLS(config *tls.Config) {
	c.t.Helper()
	c.option(optStartTLS, nil)
	c.reply(optStartTLS, repAck)
	conn := tls.Client(c.Conn, config)
	if err := conn.Handshake(); err != nil {
		c.t.Fatalf("TLS handshake: %v", err)
	}
	c.Conn = conn
}

// names lists the exports.
func (c *rawConn) names() string {
	c.t.Helper()
	c.option(optList, nil)
	var all []string
	for {
		h, err := nbdwire.DecodeOptionReply(c.get(nbdwire.OptionReplyLen))
		if err != nil {
			c.t.Fatal(err)
		}
		data := c.get(int(h.Length))
		switch h.Type {
		case repAck:
			return strings.Join(all, " ")
		case repServer:
			name, _, err := nbdwire.DecodeListEntry(data)
			if err != nil {
				c.t.Fatal(err)
			}
			all = append(all, name)
		default:
			c.t.Fatalf("LIST: reply %#x %q", h.Type, data)
		}
	}
}

// exportName sends EXPORT_NAME and tells whether the server took it.
func (c *rawConn) exportName(name string) bool {
	c.t.Helper()
	c.option(nbdwire.OptExportName, []byte(name))
	b := make([]byte, nbdwire.ExportNameLen)
	_, err := io.ReadFull(c, b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("no answer to EXPORT_NAME, and not closed")
	}
	return err == nil
}

func startRequired(t *testing.T, f File) (*fixture, *authority) {
	a := newAuthority(t)
	return start(t, Options{Exports: oneExport(f), TLS: TLS{Mode: TLSRequire, Config: a.server(false)}}), a
}

// TestForcedTLS: nbd.md 24 to 26 and nbdkit 282c3b03: what is refused has its data consumed.
func TestForcedTLS(t *testing.T) {
	data := pattern()[:1<<20]
	fx, a := startRequired(t, &fakeFile{data: data})
	c := fx.greeted()
	for _, id := range []uint32{optInfo, optGo, optList, 8, 9, 10, 11, 99} {
		c.option(id, infoRequest("disk", 1, 3))
		c.reply(id, repTLSReqd)
		c.option(id, nil)
		c.reply(id, repTLSReqd)
		c.option(id, make([]byte, maxOptionData))
		c.reply(id, repTLSReqd)
	}
	c.option(optStartTLS, []byte("x"))
	c.reply(optStartTLS, nbdwire.RepErrInvalid)
	c.startTLS(a.client(nil))
	c.option(optStartTLS, nil)
	c.reply(optStartTLS, nbdwire.RepErrInvalid)
	if got := c.names(); got != "disk" {
		t.Errorf("LIST under TLS: %q", got)
	}
	c.option(optGo, infoRequest("nosuch"))
	c.reply(optGo, repUnknown)
	c.choose("disk")
	c.alive(data)
	if fx.greeted().exportName("disk") {
		t.Error("EXPORT_NAME without TLS was served")
	}
	old := fx.dial()
	old.get(nbdwire.GreetingLen)
	old.put(nbdwire.AppendClientFlags(nil, 0))
	old.wantClosed() // it knows no error replies
	under := fx.greeted()
	under.startTLS(a.client(nil))
	if !under.exportName("disk") {
		t.Error("EXPORT_NAME under TLS was refused")
	}
	under.alive(data)
	aborting := fx.greeted()
	aborting.option(optAbort, nil)
	aborting.reply(optAbort, repAck)
}

// TestSelectiveTLS: nbd.md 21 and 28. What needs TLS is hidden before it, and so is what does not exist.
func TestSelectiveTLS(t *testing.T) {
	data := pattern()[:1<<20]
	f := &fakeFile{data: data}
	a := newAuthority(t)
	for _, tc := range []struct {
		name    string
		mode    TLSMode
		exports []Export
	}{
		{"allowed, required by one", TLSAllow, []Export{{Name: "open", File: f}, {Name: "secret", File: f, TLS: TLSRequire}}},
		{"required, allowed by one", TLSRequire, []Export{{Name: "open", File: f, TLS: TLSAllow}, {Name: "secret", File: f}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fx := start(t, Options{Exports: tc.exports, TLS: TLS{Mode: tc.mode, Config: a.server(false)}})
			c := fx.greeted()
			if got := c.names(); got != "open" {
				t.Errorf("LIST without TLS: %q, want open", got)
			}
			var texts []string
			for _, name := range []string{"secret", "nosuch", ""} {
				for _, id := range []uint32{optInfo, optGo} {
					c.option(id, infoRequest(name, 3))
					texts = append(texts, string(c.reply(id, repTLSReqd)))
				}
				if fx.greeted().exportName(name) {
					t.Errorf("EXPORT_NAME of %q was served without TLS", name)
				}
			}
			for _, text := range texts[1:] {
				if text != texts[0] {
					t.Errorf("texts tell names apart: %q and %q", text, texts[0])
				}
			}
			c.infos(optInfo, "open")
			c.startTLS(a.client(nil))
			if got := c.names(); got != "open secret" {
				t.Errorf("LIST under TLS: %q, want open secret", got)
			}
			c.option(optInfo, infoRequest("nosuch"))
			c.reply(optInfo, repUnknown)
			c.choose("secret")
			c.alive(data)
			fx.ready("open").alive(data)
			// Without FIXED_NEWSTYLE there is no TLS and no hint of it.
			old := fx.dial()
			old.hello(0)
			old.option(optStartTLS, nil)
			old.reply(optStartTLS, nbdwire.RepErrPolicy)
			old.option(optInfo, infoRequest("secret"))
			if text := string(old.reply(optInfo, repUnknown)); text != `no export "secret"; there are: "open"` {
				t.Errorf("text %q", text)
			}
			old.choose("open")
			old.alive(data)
		})
	}
}

// TestTLSInjection: plaintext behind STARTTLS is never answered, neither before nor under TLS.
func TestTLSInjection(t *testing.T) {
	fx, a := startRequired(t, &fakeFile{data: make([]byte, 4096)})
	for _, tail := range [][]byte{nbdwire.AppendOption(nil, optList, nil), {0}, make([]byte, 70000)} {
		c := fx.greeted()
		_, _ = c.Write(append(nbdwire.AppendOption(nil, optStartTLS, nil), tail...))
		c.wantClosed()
	}
	fx.greeted().startTLS(a.client(nil))
}

// TestTLSHandshakeFails: whatever goes wrong closes that connection, and that alone.
func TestTLSHandshakeFails(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: pattern()[:4096]}), Limits: Limits{Handshake: 300 * time.Millisecond},
		TLS: TLS{Mode: TLSRequire, Config: a.server(true)}})
	good := a.client(&x509.Certificate{Subject: pkix.Name{CommonName: "good"}})
	stranger := other.client(&x509.Certificate{Subject: pkix.Name{CommonName: "good"}})
	stranger.RootCAs = good.RootCAs
	old := good.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	for name, config := range map[string]*tls.Config{"no certificate": a.client(nil), "foreign CA": stranger, "TLS 1.1": old} {
		c := fx.greeted()
		c.option(optStartTLS, nil)
		c.reply(optStartTLS, repAck)
		conn := tls.Client(c.Conn, config)
		err := conn.Handshake()
		if err == nil { // TLS 1.3 tells the client with its first read
			_, err = conn.Read(make([]byte, 1))
		}
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
	for name, send := range map[string][]byte{"silence": nil, "no TLS": []byte("GET / HTTP/1.1\r\n\r\n"), "half a record": {22, 3, 1, 2, 0, 1}} {
		c := fx.greeted()
		c.option(optStartTLS, nil)
		c.reply(optStartTLS, repAck)
		c.put(send)
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: not closed", name)
		}
	}
	c := fx.greeted()
	c.startTLS(good)
	c.choose("disk")
	c.alive(pattern()[:4096])
}

// TestTLSReads: many sizes in flight at once, every byte, both versions of TLS.
func TestTLSReads(t *testing.T) {
	data := pattern()
	fx, a := startRequired(t, &fakeFile{data: data, async: true})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := a.client(nil)
		config.MinVersion, config.MaxVersion = version, version
		c := fx.greeted()
		c.startTLS(config)
		c.choose("disk")
		type span struct{ off, n int }
		asked := map[uint64]span{}
		var all []byte
		for i, n := range []int{1, 15, 16368, 16384, 16385, 262144, 262143, 1 << 20, 5<<20 + 3, MaxRead, 512} {
			s := span{mrand.IntN(len(data) - n), n}
			asked[uint64(i)] = s
			all = append(all, readRequest(uint64(i), uint64(s.off), uint32(n))...)
		}
		all = append(all, requestBytes(cmdDisc, 0, 0, 0, 0)...)
		c.put(all)
		for range len(asked) {
			cookie, errno := c.answer()
			s := asked[cookie]
			if errno != 0 || !bytes.Equal(c.get(s.n), data[s.off:s.off+s.n]) {
				t.Fatalf("%#x: read %+v: errno %d or wrong bytes", version, s, errno)
			}
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%#x: end: %v", version, err)
		}
	}
}

// TestTLSEarly: what a client sends in one record with GO is served.
func TestTLSEarly(t *testing.T) {
	data := pattern()[:1<<20]
	fx, a := startRequired(t, &fakeFile{data: data})
	c := fx.greeted()
	c.startTLS(a.client(nil))
	b := nbdwire.AppendOption(nil, optGo, infoRequest("disk"))
	c.put(append(b, readRequest(7, 5, 100)...))
	c.reply(optGo, protocol.NEGOTIATION_TYPE_REPLY_INFO)
	c.reply(optGo, repAck)
	c.wantAnswer(7, 0, data[5:105])
}

// TestTLSDrain: a drain wakes readers under TLS, even within a record, and they go on.
func TestTLSDrain(t *testing.T) {
	data := pattern()[:1<<20]
	f := &fakeFile{data: data, async: true, hold: make(chan struct{})}
	fx, a := startRequired(t, f)
	c := fx.greeted()
	c.startTLS(a.client(nil))
	c.choose("disk")
	c.put(readRequest(1, 0, 4096))
	waitFor(t, "the read to start", func() bool { return f.reads.Load() == 1 })
	ended := make(chan error, 1)
	go func() { ended <- fx.server.Shutdown(context.Background()) }()
	fx.waitForDrain()
	c.put(readRequest(2, 0, 4096))
	c.wantAnswer(2, nbdwire.ESHUTDOWN, nil)
	close(f.hold)
	c.wantAnswer(1, 0, data[:4096])
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("end: %v, want an orderly one", err)
	}
	_ = c.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestTLSStalled: who takes no replies can't keep the server from ending.
func TestTLSStalled(t *testing.T) {
	fx, a := startRequired(t, &fakeFile{data: pattern()})
	c := fx.greeted()
	c.startTLS(a.client(nil))
	c.choose("disk")
	for i := range 4 {
		c.put(readRequest(uint64(i), 0, MaxRead/2))
	}
	c.get(1)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := fx.server.Shutdown(ctx); err == nil {
		t.Error("the drain ended although a client took nothing")
	}
}

// TestNewTLSConfig names the file that is wrong.
func TestNewTLSConfig(t *testing.T) {
	a := newAuthority(t)
	a.server(false)
	a.sign("other", &x509.Certificate{})
	a.write("empty.pem", nil)
	a.write("broken.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
	cert, key, ca := "server-cert.pem", "server-key.pem", "ca-cert.pem"
	for _, tc := range []struct{ cert, key, ca, at, text string }{
		{"nosuch", key, ca, "nosuch", "no such file or directory"},
		{cert, "nosuch", ca, "nosuch", "no such file or directory"},
		{cert, key, "nosuch", "nosuch", "no such file or directory"},
		{".", key, ca, ".", "is a directory"},
		{"empty.pem", key, ca, "empty.pem", "no PEM block"},
		{key, key, ca, key, "BEGIN CERTIFICATE"},
		{cert, cert, ca, cert, "BEGIN PRIVATE KEY"},
		{cert, "other-key.pem", ca, "other-key.pem", "does not fit"},
		{"broken.pem", key, ca, "broken.pem", "unusable certificate"},
		{cert, key, "broken.pem", "broken.pem", "unusable certificate"},
		{cert, key, key, key, "BEGIN CERTIFICATE"},
	} {
		_, err := NewTLSConfig(a.path(tc.cert), a.path(tc.key), a.path(tc.ca))
		var fe *TLSFileError
		if !errors.As(err, &fe) || fe.Path != a.path(tc.at) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s %s %s: %v; want %q of %s", tc.cert, tc.key, tc.ca, err, tc.text, tc.at)
		}
	}
}

func TestTLSOptions(t *testing.T) {
	f := &fakeFile{data: make([]byte, 1)}
	for _, tc := range []struct {
		o    Options
		want string
	}{
		{Options{Exports: oneExport(f), TLS: TLS{Mode: TLSAllow}}, "no certificate"},
		{Options{Exports: oneExport(f), TLS: TLS{Mode: "maybe"}}, "unknown"},
		{Options{Exports: []Export{{Name: "a", File: f, TLS: TLSRequire}}}, `"a"`},
	} {
		if _, err := NewServer(tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v; want %s", err, tc.want)
		}
	}
}

// TestCork: what is held leaves in the order in which it was written, whoever wrote it.
func TestCork(t *testing.T) {
	server, client := net.Pipe()
	defer func() { _ = client.Close() }()
	k := &cork{Conn: server}
	var want bytes.Buffer
	go func() {
		for i := range 3000 {
			b := fmt.Appendf(nil, "%d,", i)
			if i%7 == 0 {
				k.hold()
			}
			_, _ = k.Write(b)
			if i%7 == 5 {
				_ = k.release()
			}
		}
		_ = k.release()
		_ = server.Close()
	}()
	for i := range 3000 {
		fmt.Fprintf(&want, "%d,", i)
	}
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes, %v; want %d in order", len(got), err, want.Len())
	}
}

// TestTLSForgets is CVE-2021-3716: what was agreed on in the clear does not count under TLS.
func TestTLSForgets(t *testing.T) {
	data := pattern()[:1<<20]
	a := newAuthority(t)
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data}), TLS: TLS{Mode: TLSAllow, Config: a.server(false)}})
	c := fx.greeted()
	c.option(nbdwire.OptStructuredReply, nil)
	c.reply(nbdwire.OptStructuredReply, repAck)
	if got := c.meta(optSetMeta, "disk", base); len(got) != 1 {
		t.Fatalf("contexts %v", got)
	}
	c.startTLS(a.client(nil))
	c.option(optSetMeta, nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: "disk", Queries: []string{base}}))
	c.reply(optSetMeta, nbdwire.RepErrInvalid) // structured replies are off again
	for _, info := range c.infos(optGo, "disk") {
		if info.Flags&(1<<7) != 0 {
			t.Error("SEND_DF without structured replies")
		}
	}
	c.alive(data) // by a simple reply
	c.put(requestBytes(7, 0, 1, 0, 4096))
	c.wantAnswer(1, 22, nil)
}

// TestTLSForgetsHeaders: nor do extended headers count, or what was chosen with them.
func TestTLSForgetsHeaders(t *testing.T) {
	data := pattern()[:1<<20]
	a := newAuthority(t)
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data}), TLS: TLS{Mode: TLSAllow, Config: a.server(false)}})
	c := fx.greeted()
	c.option(optEH, nil)
	c.reply(optEH, repAck)
	c.startTLS(a.client(nil))
	c.option(optSR, nil)
	c.reply(optSR, repAck) // after EH it would be refused
	if got := c.meta(optSetMeta, "disk", base); len(got) != 1 {
		t.Errorf("contexts %v", got)
	}
	c.choose("disk")
	c.put(readRequest(7, 512, 64)) // of 28 bytes, answered in chunks
	if list := c.parts(7); len(list) != 1 || !bytes.Equal(list[0].data, data[512:576]) {
		t.Errorf("reply %+v", list)
	}
}

// TestHiddenMeta: metadata contexts tell no more of an export than GO does.
func TestHiddenMeta(t *testing.T) {
	f := &fakeFile{data: pattern()[:4096]}
	fx := start(t, Options{Exports: []Export{{Name: "all", File: f}, {Name: "hidden", File: f, Allow: Access{Networks: networks("192.0.2.0/24")}}}})
	c := fx.greeted()
	c.option(nbdwire.OptStructuredReply, nil)
	c.reply(nbdwire.OptStructuredReply, repAck)
	for _, id := range []uint32{optListMeta, optSetMeta} {
		c.option(id, nbdwire.AppendMetaQuery(nil, nbdwire.MetaQuery{Name: "hidden", Queries: []string{base}}))
		c.reply(id, repUnknown)
	}
}

// secureSession is a connection under TLS past its handshake.
func secureSession(tb testing.TB, f File) (io.ReadWriter, func()) {
	tb.Helper()
	pki := tlstest.PKI(tb)
	config, err := NewTLSConfig(pki+"/server-cert.pem", pki+"/server-key.pem", "")
	if err != nil {
		tb.Fatal(err)
	}
	server, err := NewServer(Options{Exports: []Export{{Name: "d", File: f}}, TLS: TLS{Mode: TLSRequire, Config: config}})
	if err != nil {
		tb.Fatal(err)
	}
	near, far := socketPair(tb)
	go func() { _ = server.ServeConn(far, nil) }()
	if _, err := near.Write(nbdwire.AppendOption(nbdwire.AppendClientFlags(nil, 3), optStartTLS, nil)); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(near, make([]byte, nbdwire.GreetingLen+nbdwire.OptionReplyLen)); err != nil {
		tb.Fatal(err)
	}
	conn := tls.Client(near, &tls.Config{InsecureSkipVerify: true})
	if _, err := conn.Write(nbdwire.AppendOption(nil, 1, []byte("d"))); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 10)); err != nil {
		tb.Fatal(err)
	}
	return conn, func() { _ = near.Close(); _ = server.Shutdown(context.Background()) }
}

// benchmarkTLS is benchmark under TLS; both ends of it take their part of the time.
func benchmarkTLS(b *testing.B, depth, length int) {
	conn, end := secureSession(b, &memory{data: pattern()})
	defer end()
	requests := bytes.Repeat(readRequest(1, 4096, uint32(length)), depth)
	replies := make([]byte, depth*(nbdwire.SimpleReplyLen+length))
	b.SetBytes(int64(depth * length))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(requests); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, replies); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTLSRead4KQD1(b *testing.B)    { benchmarkTLS(b, 1, 4096) }
func BenchmarkTLSRead4KQD32(b *testing.B)   { benchmarkTLS(b, 32, 4096) }
func BenchmarkTLSRead256KQD16(b *testing.B) { benchmarkTLS(b, 16, 256<<10) }

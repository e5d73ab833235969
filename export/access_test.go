package export

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"
	"unicode"

	"github.com/btrexport/btrexport/export/nbdwire"
)

func networks(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// fakeAddr is a connection of which only the peer's address is asked.
type fakeAddr struct {
	net.Conn
	addr net.Addr
}

func (f fakeAddr) RemoteAddr() net.Addr { return f.addr }

// TestAccess: nbd.md section 5, the history of access lists.
func TestAccess(t *testing.T) {
	tcp := func(ip, zone string) peer {
		return peerOf(fakeAddr{addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: 1, Zone: zone}})
	}
	local := func(uid uint32, gids ...uint32) peer { return peer{local: true, uid: uid, gids: gids} }
	for _, tc := range []struct {
		name string
		list Access
		peer peer
		want bool
	}{
		{"no list", Access{}, peer{}, true},
		{"no list, unix", Access{}, local(5), true},
		{"host", Access{Networks: networks("10.0.0.1/32")}, tcp("10.0.0.1", ""), true},
		{"no prefix of text", Access{Networks: networks("10.0.0.1/32")}, tcp("10.0.0.10", ""), false},
		{"inside", Access{Networks: networks("10.0.0.0/24")}, tcp("10.0.0.255", ""), true},
		{"outside", Access{Networks: networks("10.0.0.0/24")}, tcp("10.0.1.0", ""), false},
		{"everybody of IPv4", Access{Networks: networks("0.0.0.0/0")}, tcp("203.0.113.9", ""), true},
		{"mapped into IPv6", Access{Networks: networks("10.0.0.0/8")}, tcp("::ffff:10.1.2.3", ""), true},
		{"mapped, outside", Access{Networks: networks("10.0.0.0/8")}, tcp("::ffff:11.1.2.3", ""), false},
		{"mapped is no IPv6", Access{Networks: networks("::/0")}, tcp("::ffff:10.1.2.3", ""), false},
		{"IPv6", Access{Networks: networks("2001:db8::/32")}, tcp("2001:db8::7", ""), true},
		{"IPv6, outside", Access{Networks: networks("2001:db8::/32")}, tcp("2001:db9::7", ""), false},
		{"zone", Access{Networks: networks("fe80::/10")}, tcp("fe80::1", "eth0"), true},
		{"IPv6 list, IPv4 client", Access{Networks: networks("fe80::/10")}, tcp("10.0.0.1", ""), false},
		{"second rule", Access{Networks: networks("10.0.0.0/8", "192.0.2.0/24")}, tcp("192.0.2.1", ""), true},
		{"a kind that no rule fits", Access{Networks: networks("0.0.0.0/0", "::/0")}, local(0, 0), false},
		{"a kind that nothing is known of", Access{Networks: networks("0.0.0.0/0", "::/0"), UIDs: []uint32{0}, GIDs: []uint32{0}}, peer{}, false},
		{"uid", Access{UIDs: []uint32{1000}}, local(1000, 7), true},
		{"other uid", Access{UIDs: []uint32{1000}}, local(100, 1000), false},
		{"root is nobody special", Access{UIDs: []uint32{1000}}, local(0, 0), false},
		{"uid over TCP", Access{UIDs: []uint32{0}}, tcp("127.0.0.1", ""), false},
		{"gid", Access{GIDs: []uint32{6}}, local(5, 6), true},
		{"supplementary", Access{GIDs: []uint32{6}}, local(5, 5, 9, 6), true},
		{"other gid", Access{GIDs: []uint32{6}}, local(6, 5, 9), false},
		{"name", Access{Names: []string{"vm-host-1"}}, peer{names: []string{"x", "vm-host-1"}}, true},
		{"longer name", Access{Names: []string{"vm-host-1"}}, peer{names: []string{"vm-host-10"}}, false},
		{"empty common name", Access{Names: []string{"vm"}}, peer{names: []string{""}}, false},
		{"name or network", Access{Names: []string{"vm"}, Networks: networks("10.0.0.0/8")}, tcp("10.0.0.1", ""), true},
	} {
		if got := tc.list.admits(&tc.peer); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

// wantHidden checks that an export which is there is treated as one that is not.
func wantHidden(t *testing.T, dial func() *rawConn, name, visible string) {
	t.Helper()
	c := dial()
	if got := c.names(); got != visible {
		t.Errorf("LIST: %q, want %q", got, visible)
	}
	for _, id := range []uint32{optInfo, optGo} {
		c.option(id, infoRequest(name, 1, 3))
		got := string(c.reply(id, repUnknown))
		c.option(id, infoRequest("nosuch", 1, 3))
		if want := strings.Replace(string(c.reply(id, repUnknown)), "nosuch", name, 1); got != want {
			t.Errorf("option %d tells names apart: %q, want %q", id, got, want)
		}
	}
	if dial().exportName(name) {
		t.Error("EXPORT_NAME of a hidden export was served")
	}
}

// TestAccessUnix: the list goes by who connected.
func TestAccessUnix(t *testing.T) {
	data := pattern()[:4096]
	f := &fakeFile{data: data}
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	fx := start(t, Options{Exports: []Export{
		{Name: "all", File: f},
		{Name: "mine", File: f, Allow: Access{UIDs: []uint32{uid}}},
		{Name: "group", File: f, Allow: Access{GIDs: []uint32{gid + 1, gid}}},
		{Name: "other", File: f, Allow: Access{UIDs: []uint32{uid + 1}, GIDs: []uint32{gid + 1}, Networks: networks("0.0.0.0/0", "::/0")}},
	}})
	wantHidden(t, fx.greeted, "other", "all mine group")
	fx.ready("mine").alive(data)
	fx.ready("group").alive(data)
	// The only export of a server is its default for those alone who may use it.
	one := start(t, Options{Exports: []Export{{Name: "other", File: f, Allow: Access{UIDs: []uint32{uid + 1}}}}})
	c := one.greeted()
	c.option(optGo, infoRequest(""))
	if text := string(c.reply(optGo, repUnknown)); strings.Contains(text, "other") {
		t.Errorf("text %q names what is hidden", text)
	}
}

// TestAccessDualStack: an IPv4 client of a socket for both kinds falls under the rules for IPv4.
func TestAccessDualStack(t *testing.T) {
	data := pattern()[:4096]
	f := &fakeFile{data: data}
	fx := start(t, Options{Exports: []Export{
		{Name: "all", File: f},
		{Name: "v4", File: f, Allow: Access{Networks: networks("127.0.0.0/8")}},
		{Name: "v6", File: f, Allow: Access{Networks: networks("::/0")}},
	}})
	a, err := ParseAddress("tcp://:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(context.Background(), a)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- fx.server.Serve(ctx, l, nil) }()
	defer func() { cancel(); <-served }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	dial := func() *rawConn {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		c := &rawConn{Conn: conn, t: t}
		c.hello(3)
		return c
	}
	wantHidden(t, dial, "v6", "all v4")
	c := dial()
	c.choose("v4")
	c.alive(data)
}

// TestAccessNames: a verified certificate with the wrong name is refused; before TLS nobody is told.
func TestAccessNames(t *testing.T) {
	data := pattern()[:4096]
	f := &fakeFile{data: data}
	a := newAuthority(t)
	uri, _ := url.Parse("urn:vm:1")
	fx := start(t, Options{TLS: TLS{Mode: TLSAllow, Config: a.server(true)}, Exports: []Export{
		{Name: "all", File: f},
		{Name: "named", File: f, Allow: Access{Names: []string{"vm-host-1", "vm2.example", "192.0.2.9", "urn:vm:1", "a@example"}}},
		{Name: "mine", File: f, Allow: Access{Names: []string{"nobody"}, UIDs: []uint32{uint32(os.Getuid())}}},
	}})
	for name, cert := range map[string]*x509.Certificate{
		"common name": {Subject: pkix.Name{CommonName: "vm-host-1"}},
		"DNS":         {Subject: pkix.Name{CommonName: "x"}, DNSNames: []string{"y", "vm2.example"}},
		"IP":          {IPAddresses: []net.IP{net.ParseIP("192.0.2.9")}},
		"URI":         {URIs: []*url.URL{uri}},
		"mail":        {EmailAddresses: []string{"a@example"}},
	} {
		c := fx.greeted()
		if got := c.names(); got != "all mine" {
			t.Errorf("%s: LIST without TLS: %q", name, got)
		}
		c.option(optGo, infoRequest("named"))
		c.reply(optGo, repTLSReqd)
		c.option(optGo, infoRequest("nosuch"))
		c.reply(optGo, repTLSReqd)
		c.startTLS(a.client(cert))
		if got := c.names(); got != "all named mine" {
			t.Errorf("%s: LIST under TLS: %q", name, got)
		}
		c.choose("named")
		c.alive(data)
	}
	wrong := a.client(&x509.Certificate{Subject: pkix.Name{CommonName: "vm-host-10"}, DNSNames: []string{"vm-host-1.example"}})
	wantHidden(t, func() *rawConn {
		c := fx.greeted()
		c.startTLS(wrong)
		return c
	}, "named", "all mine")
	fx.ready("mine").alive(data)
}

// TestLoggedNames: what a client calls an export can't write lines of its own to the log, nor fill it.
func TestLoggedNames(t *testing.T) {
	for _, name := range []string{"a\nlevel=ERROR msg=forged", "\x1b[2J\x07", "a\x00b", "\xff\xfe", "\u202ereversed", strings.Repeat("x", nbdwire.MaxString), strings.Repeat("\x01", nbdwire.MaxString)} {
		fx := start(t, Options{Exports: oneExport(&fakeFile{data: make([]byte, 512)})})
		c := fx.greeted()
		c.option(nbdwire.OptExportName, []byte(name))
		c.wantClosed()
		waitFor(t, "the log", func() bool { return strings.HasSuffix(fx.log.String(), "\n") })
		got := fx.log.String()
		line, rest, _ := strings.Cut(got, "\n")
		if rest != "" || len(line) > 1024 || !strings.Contains(line, `msg="client closed in the handshake"`) ||
			strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%.40q: the log is %q", name, got)
		}
	}
}

package nbdclient_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/export/nbdwire"
	"github.com/btrexport/btrexport/export/tlstest"
)

// serveTLS runs a server that requires TLS, and of clients certificates if clients is set, and returns its export
// at a unix socket and by TCP.
func serveTLS(t *testing.T, pki string, data []byte, clients bool) (local, remote nbdclient.Target) {
	t.Helper()
	ca := ""
	if clients {
		ca = pki + "/ca-cert.pem"
	}
	config, err := export.NewTLSConfig(pki+"/server-cert.pem", pki+"/server-key.pem", ca)
	if err != nil {
		t.Fatal(err)
	}
	s, err := export.NewServer(export.Options{Exports: []export.Export{{Name: "vm1", File: memory{data}}},
		TLS: export.TLS{Mode: export.TLSRequire, Config: config}})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tcp := listening(t, s, "tcp://127.0.0.1:0")
	_ = listening(t, s, "unix://"+dir+"/s")
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	secure := nbdclient.TLS{On: true, Certificates: pki}
	local = nbdclient.Target{Network: "unix", Address: dir + "/s", Export: "vm1", TLS: secure}
	return local, nbdclient.Target{Network: "tcp", Address: strings.Replace(tcp.String(), "127.0.0.1", "localhost", 1), Export: "vm1", TLS: secure}
}

func listening(t *testing.T, s *export.Server, address string) net.Addr {
	t.Helper()
	a, err := export.ParseAddress(address)
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
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr()
}

// TestTLSReads reads every byte over TLS, by both kinds of sockets, and lists.
func TestTLSReads(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 100000)
	local, remote := serveTLS(t, tlstest.PKI(t), data, true)
	for _, target := range []nbdclient.Target{local, remote} {
		c, err := nbdclient.Dial(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(data))
		if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %v or wrong bytes", target.URI(), err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if list, err := nbdclient.List(t.Context(), target); err != nil || len(list) != 1 || list[0].Name != "vm1" {
			t.Errorf("%s: list %v %v", target.URI(), list, err)
		}
		if _, f, err := nbdclient.HandOff(t.Context(), target); !errors.Is(err, nbdclient.ErrTLSSocket) || f != nil {
			t.Errorf("HandOff: %v %v, want ErrTLSSocket", f, err)
		}
		info, conn, err := nbdclient.Negotiate(t.Context(), target)
		if err != nil || info.Size != uint64(len(data)) {
			t.Fatalf("Negotiate: %+v %v", info, err)
		}
		_ = conn.Close()
	}
}

// TestTLSVerifies: a server is believed by its certificate and the name in it, unless the user says otherwise.
func TestTLSVerifies(t *testing.T) {
	pki, other := tlstest.PKI(t), tlstest.PKI(t)
	local, remote := serveTLS(t, pki, make([]byte, 512), false)
	onlyCA := t.TempDir()
	for from, to := range map[string]string{"client-cert.pem": "client-cert.pem", "ca-cert.pem": "ca-cert.pem", "client-key.pem": "client-key.pem"} {
		b, err := os.ReadFile(filepath.Join(other, from))
		if to == "ca-cert.pem" {
			b, err = os.ReadFile(filepath.Join(pki, from))
		}
		if err = errors.Join(err, os.WriteFile(filepath.Join(onlyCA, to), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		target nbdclient.Target
		change func(*nbdclient.Target)
		err    string
	}{
		{"by name", remote, func(*nbdclient.Target) {}, ""},
		{"unix socket: localhost", local, func(*nbdclient.Target) {}, ""},
		{"address that the certificate lacks", remote, func(t *nbdclient.Target) { t.Address = strings.Replace(t.Address, "localhost", "127.0.0.1", 1) }, "127.0.0.1"},
		{"that, and the name", remote, func(t *nbdclient.Target) {
			t.Address = strings.Replace(t.Address, "localhost", "127.0.0.1", 1)
			t.TLS.Hostname = "localhost"
		}, ""},
		{"another name", local, func(t *nbdclient.Target) { t.TLS.Hostname = "vm-host-2" }, "vm-host-2"},
		{"another CA", remote, func(t *nbdclient.Target) { t.TLS.Certificates = other }, "unknown authority"},
		{"the system's CAs", remote, func(t *nbdclient.Target) { t.TLS.Certificates = "" }, "certificate"},
		{"another CA, not verified", remote, func(t *nbdclient.Target) { t.TLS.Certificates, t.TLS.NoVerify = other, true }, ""},
		{"nothing, not verified", remote, func(t *nbdclient.Target) { t.TLS.Certificates, t.TLS.NoVerify = "", true }, ""},
		{"a client's certificate that nobody asks for", remote, func(t *nbdclient.Target) { t.TLS.Certificates = onlyCA }, ""},
		{"without TLS", remote, func(t *nbdclient.Target) { t.TLS = nbdclient.TLS{} }, "requires TLS"},
	} {
		tc.change(&tc.target)
		c, err := nbdclient.Dial(t.Context(), tc.target)
		if err == nil {
			_ = c.Close()
		}
		if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.err)
		}
	}
}

// TestTLSFiles: what is wrong with a directory is told by its file, before anything connects.
func TestTLSFiles(t *testing.T) {
	pki := tlstest.PKI(t)
	with := func(change func(dir string) error) string {
		dir := t.TempDir()
		err := os.CopyFS(dir, os.DirFS(pki))
		if err = errors.Join(err, change(dir)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, tc := range []struct {
		name, dir string
		noVerify  bool
		err       string
	}{
		{"all", pki, false, ""},
		{"no directory", pki + "/nosuch", false, "nosuch/ca-cert.pem: no such file"},
		{"no CA", with(func(d string) error { return os.Remove(d + "/ca-cert.pem") }), false, "ca-cert.pem: no such file"},
		{"no CA, not verified", with(func(d string) error { return os.Remove(d + "/ca-cert.pem") }), true, ""},
		{"empty CA", with(func(d string) error { return os.WriteFile(d+"/ca-cert.pem", nil, 0o600) }), false, "ca-cert.pem holds no certificate"},
		{"no key", with(func(d string) error { return os.Remove(d + "/client-key.pem") }), false, "client-key.pem: no such file"},
		{"no certificate", with(func(d string) error { return os.Remove(d + "/client-cert.pem") }), false, "client-cert.pem: no such file"},
		{"neither", with(func(d string) error {
			return errors.Join(os.Remove(d+"/client-cert.pem"), os.Remove(d+"/client-key.pem"))
		}), false, ""},
		{"another key", with(func(d string) error { return os.Rename(d+"/server-key.pem", d+"/client-key.pem") }), false, "client-cert.pem: tls: private key does not match"},
	} {
		c, err := nbdclient.Target{Network: "unix", TLS: nbdclient.TLS{On: true, Certificates: tc.dir, NoVerify: tc.noVerify}}.TLSConfig()
		if tc.err == "" && (err != nil || c.InsecureSkipVerify != tc.noVerify || c.MinVersion != tls.VersionTLS12 || !tc.noVerify && c.RootCAs == nil) {
			t.Errorf("%s: %+v %v", tc.name, c, err)
		}
		if tc.err != "" && (!errors.Is(err, nbdclient.ErrCertificates) || !strings.Contains(err.Error(), tc.err)) {
			t.Errorf("%s: %v, want ErrCertificates and %q", tc.name, err, tc.err)
		}
	}
}

// TestTLSRequired: who asks for TLS never goes on without, whatever the server, or who is between, says.
func TestTLSRequired(t *testing.T) {
	greeting := nbdwire.AppendGreeting(nil, nbdwire.FlagFixedNewstyle|nbdwire.FlagNoZeroes)
	reply := func(typ uint32) []byte {
		return nbdwire.AppendOptionReply(bytes.Clone(greeting), nbdwire.OptStartTLS, typ, nil)
	}
	const ack, unsupported = 1, 1<<31 | 1
	for _, tc := range []struct {
		name   string
		script []byte
		is     error
	}{
		{"unknown option", reply(unsupported), nbdclient.ErrTLSRefused},
		{"policy", reply(nbdwire.RepErrPolicy), nbdclient.ErrTLSRefused},
		{"another reply", reply(3), nbdclient.ErrProtocol},
		{"not fixed newstyle", nbdwire.AppendGreeting(nil, 0), nbdclient.ErrProtocol},
		{"replies in the clear behind the ACK", nbdwire.AppendInfoExport(reply(ack), 7, 4096, 3), nbdclient.ErrProtocol},
	} {
		target := scripted(t, tc.script)
		target.TLS = nbdclient.TLS{On: true, NoVerify: true}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if c, err := nbdclient.Dial(ctx, target); !errors.Is(err, tc.is) {
			t.Errorf("%s: %v %v, want %v", tc.name, c, err, tc.is)
		}
		cancel()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan []byte, 1)
	go func() { // turns TLS on, and then speaks as if it had not
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write(greeting)
		_, _ = io.ReadFull(conn, make([]byte, nbdwire.ClientFlagsLen+nbdwire.OptionLen))
		_, _ = conn.Write(reply(ack)[len(greeting):])
		b := make([]byte, 1)
		_, _ = io.ReadFull(conn, b)
		said <- b
		_, _ = conn.Write(nbdwire.AppendInfoExport(nil, 7, 4096, 3))
		_, _ = io.Copy(io.Discard, conn)
	}()
	defer l.Close()
	target := nbdclient.Target{Network: "tcp", Address: l.Addr().String(), TLS: nbdclient.TLS{On: true, NoVerify: true}}
	if c, err := nbdclient.Dial(t.Context(), target); err == nil {
		t.Errorf("a server without TLS behind its ACK: %v", c.Info())
	}
	if b := <-said; b[0] != 22 { // a record of TLS's handshake
		t.Errorf("behind the ACK the client sends %#x, want TLS", b)
	}
}

// TestTLSHandshakeEnds: a server that goes silent in TLS's handshake holds nobody for longer than the context.
func TestTLSHandshakeEnds(t *testing.T) {
	script := nbdwire.AppendGreeting(nil, nbdwire.FlagFixedNewstyle)
	target := scripted(t, nbdwire.AppendOptionReply(script, nbdwire.OptStartTLS, 1, nil))
	target.TLS = nbdclient.TLS{On: true, NoVerify: true}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := nbdclient.Dial(ctx, target); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's end", err)
	}
}

// TestTLSRefusedLate: a client whose certificate is refused is told so, also if it finds the connection closed when it
// goes on.
func TestTLSRefusedLate(t *testing.T) {
	pki := tlstest.PKI(t)
	local, remote := serveTLS(t, pki, []byte("x"), true)
	bare := t.TempDir() // without a certificate of the client's
	ca, err := os.ReadFile(filepath.Join(pki, "ca-cert.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(bare, "ca-cert.pem"), ca, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []nbdclient.Target{local, remote} {
		target.TLS.Certificates = bare
		for range 100 {
			_, err := nbdclient.Dial(context.Background(), target)
			if err == nil || !strings.Contains(err.Error(), "certificate required") {
				t.Fatalf("%s: %v, want what the server has told", target.Network, err)
			}
		}
	}
}

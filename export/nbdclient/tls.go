package nbdclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// The files in a directory of certificates, as QEMU and libnbd name them.
const (
	caFile   = "ca-cert.pem"
	certFile = "client-cert.pem"
	keyFile  = "client-key.pem"
)

var (
	// ErrCertificates is a directory of certificates that can't be used.
	ErrCertificates = errors.New("unusable certificates")
	// ErrTLSRefused is a server that does not turn TLS on for one who requires it.
	ErrTLSRefused = errors.New("the server refuses TLS, which nbds:// requires")
)

// TLS is how a connection is encrypted. The zero value is not at all; otherwise the server is believed only
// if its certificate is good and has the right name.
type TLS struct {
	On           bool   // STARTTLS is required: a server that refuses it is an error
	Certificates string // directory of ca-cert.pem and perhaps client-cert.pem, client-key.pem; "": the system's CAs, and no certificate is shown
	Hostname     string // that the server's certificate must have; "": the host of the address, localhost for a unix socket
	NoVerify     bool   // whoever answers is believed
}

// TLSConfig reads the certificates that t names. nil: t is without TLS. Errors wrap ErrCertificates.
func (t Target) TLSConfig() (*tls.Config, error) {
	if !t.TLS.On {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.serverName(), InsecureSkipVerify: t.TLS.NoVerify}
	if t.TLS.Certificates == "" {
		return c, nil
	}
	if err := t.TLS.load(c); err != nil {
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			err = fmt.Errorf("%s: %w", pe.Path, pe.Err)
		}
		return nil, fmt.Errorf("%w: %w", ErrCertificates, err)
	}
	return c, nil
}

// serverName is the name that the server's certificate must have.
func (t Target) serverName() string {
	if t.TLS.Hostname != "" {
		return t.TLS.Hostname
	}
	if host, _, err := net.SplitHostPort(t.Address); err == nil && t.Network == "tcp" {
		return host
	}
	return "localhost"
}

// load reads a directory. A client's certificate may be missing there with its key, and the CA if it is not needed.
func (l TLS) load(c *tls.Config) error {
	ca, err := os.ReadFile(filepath.Join(l.Certificates, caFile))
	if err != nil && !(l.NoVerify && errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	c.RootCAs = x509.NewCertPool()
	if err == nil && !c.RootCAs.AppendCertsFromPEM(ca) {
		return fmt.Errorf("%s holds no certificate", filepath.Join(l.Certificates, caFile))
	}
	cert, key := filepath.Join(l.Certificates, certFile), filepath.Join(l.Certificates, keyFile)
	if missing(cert) && missing(key) {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("%s: %w", cert, err)
	}
	c.Certificates = []tls.Certificate{pair}
	return nil
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// startTLS turns TLS on. What the server sends behind its answer and before TLS is an error: somebody else
// may have put it there.
func (s *session) startTLS(ctx context.Context, c *tls.Config) error {
	err := s.ask(nbdwire.OptStartTLS, nil, func(typ uint32, _ []byte) error {
		return fmt.Errorf("reply type %d to STARTTLS", typ)
	})
	if refused := (*OptionError)(nil); errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", ErrTLSRefused, err)
	}
	if err != nil {
		return err
	}
	if s.in.Buffered() > 0 {
		return fmt.Errorf("%w: %d bytes between the reply to STARTTLS and TLS", ErrProtocol, s.in.Buffered())
	}
	conn := tls.Client(s.conn, c)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	s.conn = conn
	s.in.Reset(conn)
	return nil
}

// parting gives the reason that the server has told before it closed the connection, where there is one, in place of
// the error of a write on it: under TLS 1.3 a client whose certificate is refused believes to be through by then.
func (s *session) parting(err error) error {
	_, told := s.in.Peek(1)
	if op := (*net.OpError)(nil); errors.As(told, &op) && op.Op == "remote error" {
		return told
	}
	return err
}

package export

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// TLSMode says whether clients may or must turn TLS on.
type TLSMode string

// The modes. The zero value of an Export means the server's.
const (
	TLSOff     TLSMode = "off"
	TLSAllow   TLSMode = "allow"
	TLSRequire TLSMode = "require"
)

// TLS is how a server encrypts. The zero value is off.
type TLS struct {
	Mode   TLSMode     // of exports that name none; "" is off
	Config *tls.Config // from NewTLSConfig; nil when Mode is off
}

// ErrCertificate is a certificate, a key or a CA that can't be used.
var ErrCertificate = errors.New("unusable certificate")

// TLSFileError is a file of the TLS configuration that can't be used.
type TLSFileError struct {
	Path string
	Err  error
}

func (e *TLSFileError) Error() string { return fmt.Sprintf("%s: %v", e.Path, e.Err) }

func (e *TLSFileError) Unwrap() error { return e.Err }

// maxTLSFile bounds a certificate, key or CA file in bytes. A bundle of all public CAs has 250 KiB.
const maxTLSFile = 4 << 20

// NewTLSConfig reads a server's certificate chain and its key, and, unless clientCA is empty, the
// CAs one of which must have signed a client's certificate: then a client without one is refused.
// Errors are of type *TLSFileError.
func NewTLSConfig(certificate, key, clientCA string) (*tls.Config, error) {
	certPEM, err := readPEM(certificate, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	keyPEM, err := readPEM(key, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	block := findPEM(certPEM, "CERTIFICATE")
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return nil, &TLSFileError{certificate, fmt.Errorf("%w: %w", ErrCertificate, err)}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, &TLSFileError{key, fmt.Errorf("%w: the key does not fit %s: %w", ErrCertificate, certificate, err)}
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		// Connections are few and long. Nothing must outlive a reload that takes a CA away.
		SessionTicketsDisabled: true,
		// Replies are long: full records from the first on.
		DynamicRecordSizingDisabled: true,
	}
	if clientCA == "" {
		return c, nil
	}
	caPEM, err := readPEM(clientCA, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if err := addAll(c.ClientCAs, caPEM); err != nil {
		return nil, &TLSFileError{clientCA, err}
	}
	return c, nil
}

// verify checks a certificate that a client has shown before, with the chain behind it, as a handshake does now.
// It returns the names that it proves: none where clients need none.
func (c *TLS) verify(chain []*x509.Certificate, now time.Time) ([]string, error) {
	if c.Config == nil || c.Config.ClientCAs == nil {
		return nil, nil
	}
	if len(chain) == 0 {
		return nil, errors.New("it has shown no certificate, and needs one")
	}
	o := x509.VerifyOptions{Roots: c.Config.ClientCAs, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, i := range chain[1:] {
		o.Intermediates.AddCert(i)
	}
	if _, err := chain[0].Verify(o); err != nil {
		return nil, fmt.Errorf("its certificate: %w", err)
	}
	return certificateNames(chain[0]), nil
}

// readPEM reads a file with a block whose type ends with what.
func readPEM(path, what string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxTLSFile {
		err = fmt.Errorf("%w: %d bytes (at most %d)", ErrCertificate, info.Size(), maxTLSFile)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		err = pe.Err
	}
	if err != nil {
		return nil, &TLSFileError{path, err}
	}
	if findPEM(b, what) == nil {
		return nil, &TLSFileError{path, fmt.Errorf("%w: no PEM block of that kind (want -----BEGIN %s-----)", ErrCertificate, what)}
	}
	return b, nil
}

// findPEM gives the first block whose type ends with what, nil if there is none.
func findPEM(b []byte, what string) *pem.Block {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil || strings.HasSuffix(block.Type, what) {
			return block
		}
	}
}

// addAll adds every certificate of a PEM text, and unlike CertPool.AppendCertsFromPEM passes over none.
func addAll(pool *x509.CertPool, b []byte) error {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrCertificate, err)
		}
		pool.AddCert(c)
	}
}

// tlsPolicy is what a connection may do before it has TLS ("Baseline", "TLS versions" of
// proto.md). It is constant while a connection lives.
type tlsPolicy int

const (
	noTLS        tlsPolicy = iota // STARTTLS is refused, and nothing is hidden behind it
	selectiveTLS                  // some exports may be used without
	forcedTLS                     // nothing but STARTTLS and ABORT is answered without
)

// secureConn is a connection under TLS.
type secureConn struct {
	*tls.Conn
	cork *cork
}

// newSecureConn makes the server's side; Handshake has yet to be called.
func newSecureConn(conn net.Conn, c *tls.Config) *secureConn {
	k := &cork{Conn: conn}
	return &secureConn{Conn: tls.Server(k, c), cork: k}
}

// corkBytes is how much a cork holds back before it writes.
const corkBytes = 64 << 10

// cork lies below TLS, which writes each record of 16 KiB by itself: between hold and release they
// gather and leave together. Writes at other times (alerts, key updates) pass.
type cork struct {
	net.Conn
	mu   sync.Mutex
	held bool   // guarded by mu
	buf  []byte // guarded by mu
}

func (k *cork) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.held {
		return k.Conn.Write(b)
	}
	k.buf = append(k.buf, b...)
	if len(k.buf) < corkBytes {
		return len(b), nil
	}
	if err := k.flush(); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (k *cork) hold() {
	k.mu.Lock()
	k.held = true
	k.mu.Unlock()
}

func (k *cork) release() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = false
	return k.flush()
}

// flush writes what is held back. mu must be held.
func (k *cork) flush() error {
	if len(k.buf) == 0 {
		return nil
	}
	_, err := k.Conn.Write(k.buf)
	k.buf = k.buf[:0]
	return err
}

// Close ends TLS in order, unless a write is under way: then there is no telling how long that
// takes, and who closes does not wait.
func (c *secureConn) Close() error {
	if !c.cork.mu.TryLock() {
		return c.cork.Conn.Close()
	}
	c.cork.mu.Unlock()
	return c.Conn.Close()
}

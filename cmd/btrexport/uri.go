package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/export/nbdclient"
)

// uriForms ends the errors about a URI.
const uriForms = "nbd://host:port/NAME or nbd+unix:///NAME?socket=PATH"

// tlsFlags are what a URI can say of TLS, too.
type tlsFlags struct{ certificates, hostname string }

func (f *tlsFlags) add(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.certificates, "tls-certificates", "", "with nbds://: directory of ca-cert.pem, client-cert.pem and client-key.pem (default: what the URI says, or the system's CAs)")
	p.StringVar(&f.hostname, "tls-hostname", "", "with nbds://: the name that the server's certificate must have (default: what the URI says, or its host; localhost for a unix socket)")
}

// target parses a URI and applies the flags. What is wrong with certificates is told before anything connects.
// forms say what else could have been written.
func (f *tlsFlags) target(uri, forms string) (nbdclient.Target, error) {
	t, err := nbdclient.ParseURI(uri)
	if err != nil {
		return t, usagef("%w (%s)", err, forms)
	}
	if !t.TLS.On && (f.certificates != "" || f.hostname != "") {
		return t, usagef("uri %s: is without TLS (with --tls-certificates or --tls-hostname write nbds:// or nbds+unix://)", uri)
	}
	if f.certificates != "" {
		t.TLS.Certificates = f.certificates
	}
	if f.hostname != "" {
		t.TLS.Hostname = f.hostname
	}
	if _, err := t.TLSConfig(); err != nil {
		return t, fmt.Errorf("uri %s: %w (name a directory with ca-cert.pem, and client-cert.pem and client-key.pem if the server wants them)", uri, err)
	}
	return t, nil
}

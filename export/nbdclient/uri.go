package nbdclient

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"net/url"
	"strconv"
	"strings"
)

const defaultPort = 10809

// Target is a parsed NBD URI: where to connect and which export to ask for.
type Target struct {
	Network string // tcp or unix, as package net names them
	Address string // host:port or the socket's path
	Export  string // empty: the server's default
	TLS     TLS
}

// ParseURI parses nbd://host[:port]/NAME and nbd+unix:///NAME?socket=PATH, and nbds and nbds+unix, which
// require TLS. NAME is percent-encoded and may be left out. The parameters of TLS are those of the URI document
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md) and libnbd's: tls-certificates=DIR,
// tls-hostname=NAME, tls-verify-peer=0 or 1, tls-type=x509. Others whose name begins with tls- are errors, other
// parameters mean nothing.
func ParseURI(s string) (Target, error) {
	t, err := parseURI(s)
	if err != nil {
		return Target{}, fmt.Errorf("uri %s: %w", s, err)
	}
	return t, nil
}

func parseURI(s string) (Target, error) {
	u, err := url.Parse(s)
	if err != nil {
		if e := (*url.Error)(nil); errors.As(err, &e) {
			err = e.Err
		}
		return Target{}, err
	}
	export := strings.TrimPrefix(u.Path, "/")
	scheme, secure := u.Scheme, false
	if rest, ok := strings.CutPrefix(scheme, "nbds"); ok {
		scheme, secure = "nbd"+rest, true
	}
	var t Target
	switch scheme {
	case "nbd":
		t, err = tcpTarget(u, export)
	case "nbd+unix":
		t, err = unixTarget(u, export)
	default:
		err = fmt.Errorf("scheme %q is none of nbd, nbds, nbd+unix, nbds+unix", u.Scheme)
	}
	if err == nil {
		t.TLS, err = parseTLS(u.RawQuery, secure)
	}
	if err != nil {
		return Target{}, err
	}
	return t, nil
}

// parseTLS takes the parameters of TLS. They are errors in a URI without it: who writes them wants it.
func parseTLS(query string, secure bool) (TLS, error) {
	l := TLS{On: secure}
	for key, raw := range parameters(query) {
		if !strings.HasPrefix(key, "tls-") {
			continue
		}
		value, err := url.PathUnescape(raw)
		switch {
		case err != nil:
			return l, err
		case !secure:
			return l, fmt.Errorf("%s in a URI without TLS (write nbds:// or nbds+unix://)", key)
		}
		switch key {
		case "tls-certificates":
			l.Certificates = value
		case "tls-hostname":
			l.Hostname = value
		case "tls-verify-peer":
			verify, err := strconv.ParseBool(value)
			if err != nil {
				return l, fmt.Errorf("tls-verify-peer=%s is neither 0 nor 1", value)
			}
			l.NoVerify = !verify
		case "tls-type":
			if value != "x509" {
				return l, fmt.Errorf("tls-type=%s is not supported (x509 is)", value)
			}
		default:
			return l, fmt.Errorf("%s is not supported (tls-certificates, tls-hostname, tls-verify-peer and tls-type=x509 are)", key)
		}
	}
	return l, nil
}

func tcpTarget(u *url.URL, export string) (Target, error) {
	if u.Hostname() == "" {
		return Target{}, errors.New("no host (nbd://host:port/export)")
	}
	port := u.Port()
	if port == "" {
		port = strconv.Itoa(defaultPort)
	}
	return Target{Network: "tcp", Address: net.JoinHostPort(u.Hostname(), port), Export: export}, nil
}

func unixTarget(u *url.URL, export string) (Target, error) {
	if u.Host != "" {
		return Target{}, fmt.Errorf("host %q in a unix uri (three slashes: nbd+unix:///export?socket=path)", u.Host)
	}
	path, err := queryValue(u.RawQuery, "socket")
	if err != nil {
		return Target{}, err
	}
	if path == "" {
		return Target{}, errors.New("no socket (nbd+unix:///export?socket=path)")
	}
	return Target{Network: "unix", Address: path, Export: export}, nil
}

// queryValue returns the first value of key. A plus sign is itself here, as for other NBD
// clients, not a space as in a web form.
func queryValue(query, key string) (string, error) {
	for k, v := range parameters(query) {
		if k == key {
			return url.PathUnescape(v)
		}
	}
	return "", nil
}

// parameters are the keys and the values, still encoded, of a query.
func parameters(query string) iter.Seq2[string, string] {
	return func(yield func(key, value string) bool) {
		for _, field := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
			if k, v, _ := strings.Cut(field, "="); !yield(k, v) {
				return
			}
		}
	}
}

package nbdclient

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// ErrTLS is what a URI with TLS gets for now.
var ErrTLS = errors.New("TLS not supported yet in this client")

const defaultPort = 10809

// Target is a parsed NBD URI: where to connect and which export to ask for.
type Target struct {
	Network string // tcp or unix, as package net names them
	Address string // host:port or the socket's path
	Export  string // empty: the server's default
}

// ParseURI parses nbd://host[:port]/NAME and nbd+unix:///NAME?socket=PATH. The TLS forms,
// nbds and nbds+unix, are recognised and are ErrTLS. NAME is percent-encoded and may be
// left out.
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
	switch u.Scheme {
	case "nbd":
		return tcpTarget(u, export)
	case "nbd+unix":
		return unixTarget(u, export)
	case "nbds", "nbds+unix":
		return Target{}, ErrTLS
	default:
		return Target{}, fmt.Errorf("scheme %q is none of nbd, nbds, nbd+unix, nbds+unix", u.Scheme)
	}
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
	for _, field := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		if k, v, _ := strings.Cut(field, "="); k == key {
			return url.PathUnescape(v)
		}
	}
	return "", nil
}

package export

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// DefaultPort is NBD's, for TCP addresses that name none.
const DefaultPort = 10809

// maxSocketPath is the longest path of a unix socket: sun_path less its final NUL.
const maxSocketPath = 107

// Address is where a server listens: a unix socket's path or a TCP host and port.
type Address struct {
	network string // unix or tcp
	addr    string // what net.Listen takes
}

var errAddressForm = errors.New("neither unix:///path nor tcp://host:port")

// ParseAddress parses unix:///path/to.sock, tcp://host:port and tcp://host. An IPv6 address
// stands in brackets; an empty host means all interfaces.
func ParseAddress(s string) (Address, error) {
	a, err := parseAddress(s)
	if err != nil {
		return Address{}, fmt.Errorf("listen %s: %w", s, err)
	}
	return a, nil
}

func parseAddress(s string) (Address, error) {
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		switch {
		case path == "":
			return Address{}, errors.New("no path (write unix:///path/to.sock)")
		case strings.IndexByte(path, 0) >= 0:
			return Address{}, errors.New("path holds a NUL")
		case len(path) > maxSocketPath:
			return Address{}, fmt.Errorf("path of %d bytes (a unix socket's path has at most %d)", len(path), maxSocketPath)
		}
		return Address{network: "unix", addr: path}, nil
	}
	hostport, ok := strings.CutPrefix(s, "tcp://")
	if !ok {
		return Address{}, errAddressForm
	}
	host, port, err := splitHostPort(hostport)
	if err != nil {
		return Address{}, err
	}
	return Address{network: "tcp", addr: net.JoinHostPort(host, strconv.Itoa(port))}, nil
}

// splitHostPort is net.SplitHostPort with a default port.
func splitHostPort(s string) (string, int, error) {
	if strings.ContainsAny(s, "/?#") {
		return "", 0, errors.New("something behind the port (write tcp://host:port)")
	}
	bare := strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") || !strings.Contains(s, ":")
	if bare {
		s += ":" + strconv.Itoa(DefaultPort)
	}
	host, portText, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, errors.New("malformed host or port (an IPv6 address stands in brackets: tcp://[::1]:10809)")
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port %q is not a number from 0 to 65535", portText)
	}
	return host, int(port), nil
}

// String returns the address as ParseAddress takes it.
func (a Address) String() string { return a.network + "://" + a.addr }

// AddressOf returns the address that a listener has got, its port if it chose one included.
func AddressOf(l net.Listener) Address {
	return Address{network: l.Addr().Network(), addr: l.Addr().String()}
}

// URI returns the NBD URI under which clients find the export called name at this address:
// nbd://host:port/NAME or nbd+unix:///NAME?socket=PATH, percent-encoded. A server on all
// interfaces is named localhost.
func (a Address) URI(name string) string { return a.uri("nbd", name) }

// SecureURI is URI for who turns TLS on: nbds:// or nbds+unix://.
func (a Address) SecureURI(name string) string { return a.uri("nbds", name) }

func (a Address) uri(scheme, name string) string {
	if a.network == "unix" {
		return scheme + "+unix:///" + escape(name, "") + "?socket=" + escape(a.addr, "/")
	}
	host, port, err := net.SplitHostPort(a.addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return scheme + "://localhost:" + port + "/" + escape(name, "")
	}
	return scheme + "://" + strings.ReplaceAll(a.addr, "%", "%25") + "/" + escape(name, "")
}

// escape percent-encodes all but RFC 3986's unreserved characters and those of keep. net/url
// would leave '+' and '&', which clients read differently in a query.
func escape(s, keep string) string {
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; strings.IndexByte(unreserved, c) >= 0 || strings.IndexByte(keep, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

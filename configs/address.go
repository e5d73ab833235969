package configs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// maxSocketPath is the longest path that a Linux struct sockaddr_un holds beside its final NUL.
const maxSocketPath = 107

// String is the address as a configuration has it, without options: unix:///path or tcp://host:port.
func (l Listen) String() string { return l.Network + "://" + l.Address }

// ParseListen reads unix:///path/to.sock or tcp://host:port; the port may be left out (DefaultPort), the host
// too (every interface), not both. The path is taken literally, without escapes, up to a ? that has a = behind
// it: then come mode=0660, user=NAME, group=NAME, joined by &. Pos stays empty.
func ParseListen(s string) (Listen, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return parseUnix(s, path)
	}
	rest, ok := strings.CutPrefix(s, "tcp://")
	if !ok {
		return Listen{}, fmt.Errorf("%s is no address (write unix:///path/to.sock or tcp://host:port)", quote(s))
	}
	if rest == "" {
		return Listen{}, fmt.Errorf("%s names no host (write tcp://127.0.0.1, or tcp://:%s for every interface)", quote(s), DefaultPort)
	}
	address, err := parseHostPort(rest, DefaultPort)
	if err != nil {
		return Listen{}, fmt.Errorf("%s: %w", quote(s), err)
	}
	return Listen{Network: "tcp", Address: address}, nil
}

// ParseMetricsListen reads host:port, as Prometheus' programs take it, or unix:///path/to.sock with the options
// that ParseListen knows.
func ParseMetricsListen(s string) (Listen, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return parseUnix(s, path)
	}
	if strings.Contains(s, "://") {
		_, rest, _ := strings.Cut(s, "://")
		return Listen{}, fmt.Errorf("%s is no address for metrics (write %s, or unix:///path/to.sock)", quote(s), strings.TrimRight(rest, "/"))
	}
	address, err := parseHostPort(s, "")
	if err != nil {
		return Listen{}, fmt.Errorf("%s: %w", quote(s), err)
	}
	return Listen{Network: "tcp", Address: address}, nil
}

func parseUnix(s, rest string) (Listen, error) {
	path, ok := strings.CutPrefix(rest, "//")
	l := Listen{Network: "unix"}
	if i := strings.LastIndexByte(path, '?'); i >= 0 && strings.Contains(path[i:], "=") {
		if err := l.parseSocketOptions(path[i+1:]); err != nil {
			return Listen{}, fmt.Errorf("%s: %w", quote(s), err)
		}
		path = path[:i]
	}
	switch {
	case !ok || !strings.HasPrefix(path, "/"):
		return Listen{}, fmt.Errorf("%s: the socket's path is not absolute (write unix:///%s)", quote(s), strings.TrimLeft(rest, "/"))
	case strings.HasSuffix(path, "/"):
		return Listen{}, fmt.Errorf("%s is a directory (name the socket: unix://%snbd.sock)", quote(s), path)
	case len(path) > maxSocketPath:
		return Listen{}, fmt.Errorf("%s: the path has %d bytes, a socket's may have %d (use a shorter one)", quote(s), len(path), maxSocketPath)
	}
	l.Address = path
	return l, nil
}

// parseHostPort gives host:port in the spelling of net.Listen. An empty defaultPort demands a port.
func parseHostPort(s, defaultPort string) (string, error) {
	if strings.ContainsAny(s, "/?#@ \t") {
		return "", errors.New("wants a host and a port and nothing else (write host:port)")
	}
	host, port, err := net.SplitHostPort(s)
	if missingPort(err) && defaultPort != "" {
		host, port, err = net.SplitHostPort(s + ":" + defaultPort)
	}
	if err != nil {
		if addr, aerr := netip.ParseAddr(s); aerr == nil && addr.Is6() {
			return "", fmt.Errorf("an IPv6 address stands in brackets (write [%s]:PORT)", s)
		}
		if missingPort(err) {
			return "", fmt.Errorf("the port is missing (write %s:PORT)", s)
		}
		return "", errors.New("is no host and port (write host:port)")
	}
	if err := checkPort(port); err != nil {
		return "", err
	}
	if err := checkHost(host); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, port), nil
}

func missingPort(err error) bool {
	var ae *net.AddrError
	return errors.As(err, &ae) && ae.Err == "missing port in address"
}

func checkPort(s string) error {
	n, err := parseWhole(s)
	if err != nil {
		return fmt.Errorf("port %w", err)
	}
	if n > 65535 {
		return fmt.Errorf("port %d is out of range (write a number from 1 to 65535, or 0 for any free port)", n)
	}
	return nil
}

// checkHost accepts nothing (every interface), an IP address, or what can be a host name.
func checkHost(s string) error {
	if s == "" {
		return nil
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	if strings.Trim(s, "0123456789.") == "" {
		return fmt.Errorf("%s is no IP address (write four numbers from 0 to 255)", quote(s))
	}
	for _, r := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", r) {
			return fmt.Errorf("%s in the host %s is no letter of a host name (write a name or an IP address)", strconv.QuoteRune(r), quote(s))
		}
	}
	if len(s) > 253 {
		return fmt.Errorf("the host has %d bytes, a name may have 253 (write a shorter one)", len(s))
	}
	return nil
}

package configs

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Access is the list of who may use an export. Without a rule it is everybody who can connect.
type Access struct {
	Networks []netip.Prefix // masked, never IPv4 mapped into IPv6
	UIDs     []uint32
	GIDs     []uint32
	Names    []string
}

// parseRule adds one entry of a list: an address, a network, uid:N, gid:N or name:TEXT.
func (a *Access) parseRule(s string) error {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "uid":
		return parseID(s, rest, "id -u USER", &a.UIDs)
	case "gid":
		return parseID(s, rest, "getent group GROUP", &a.GIDs)
	case "name":
		if err := checkName(rest); err != nil {
			return fmt.Errorf("%s: %w", quote(s), err)
		}
		a.Names = append(a.Names, rest)
		return nil
	}
	network, err := parseNetwork(s)
	if err != nil {
		return fmt.Errorf("%s: %w", quote(s), err)
	}
	a.Networks = append(a.Networks, network)
	return nil
}

func parseID(s, digits, tool string, list *[]uint32) error {
	n, err := parseWhole(digits)
	if err != nil || n > 1<<32-2 { // 2^32-1 is "no user" to the kernel
		return fmt.Errorf("%s: wants a number (see %s)", quote(s), tool)
	}
	*list = append(*list, uint32(n))
	return nil
}

// parseNetwork reads an address or a prefix. What was written must be what is meant: no bits behind
// the prefix's length, no zone, which a prefix can't have.
func parseNetwork(s string) (netip.Prefix, error) {
	text, bits, prefixed := strings.Cut(s, "/")
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return netip.Prefix{}, errors.New("is no network, uid, gid or name (write for example 192.0.2.0/24, uid:1000, gid:6 or name:vm-host-1)")
	case addr.Zone() != "":
		return netip.Prefix{}, fmt.Errorf("has a zone (write %s: it counts on every interface)", addr.WithZone(""))
	}
	length := addr.BitLen()
	if prefixed {
		n, err := parseWhole(bits)
		if err != nil || n > uint64(length) {
			return netip.Prefix{}, fmt.Errorf("the prefix's length is out of range (write a number from 0 to %d)", length)
		}
		length = int(n)
	}
	if addr.Is4In6() {
		if length < 96 {
			return netip.Prefix{}, errors.New("holds more than the IPv4 addresses (write the IPv4 network and the IPv6 network)")
		}
		addr, length = addr.Unmap(), length-96
	}
	p := netip.PrefixFrom(addr, length)
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("has bits behind the prefix's length (write %s, or %s for one address)", m, addr)
	}
	return p, nil
}

// parseSocketOptions reads what stands behind the ? of unix:///path?mode=0660&user=root&group=disk.
func (l *Listen) parseSocketOptions(s string) error {
	for option := range strings.SplitSeq(s, "&") {
		key, value, _ := strings.Cut(option, "=")
		switch {
		case value == "":
			return fmt.Errorf("%s has no value (write mode=0660, user=NAME or group=NAME)", quote(option))
		case key == "mode" && l.Mode == 0:
			n, err := strconv.ParseUint(value, 8, 32)
			if err != nil || n == 0 || n > 0o777 {
				return fmt.Errorf("%s is no mode of a socket (write for example mode=0660)", quote(option))
			}
			l.Mode = uint32(n)
		case key == "user" && l.User == "":
			l.User = value
		case key == "group" && l.Group == "":
			l.Group = value
		default:
			return fmt.Errorf("%s is unknown or doubled (known: mode, user, group)", quote(option))
		}
	}
	return nil
}

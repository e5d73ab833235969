package export

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Access says who may use an export: whoever one of the rules fits. The zero value lets everybody
// in who can connect; any rule makes it a list, which nobody passes whom no rule fits.
type Access struct {
	Networks []netip.Prefix // of TCP clients. IPv4 clients of an IPv6 socket count as IPv4; zones don't count
	UIDs     []uint32       // of clients on unix sockets: the user that connected
	GIDs     []uint32       // likewise: that user's group or a supplementary one
	Names    []string       // a verified client certificate's common name or a subject alternative name, byte by byte
}

// open tells that there is no list.
func (a *Access) open() bool {
	return len(a.Networks) == 0 && len(a.UIDs) == 0 && len(a.GIDs) == 0 && len(a.Names) == 0
}

// admits tells whether a rule fits p.
func (a *Access) admits(p *peer) bool {
	if a.open() {
		return true
	}
	if p.addr.IsValid() && slices.ContainsFunc(a.Networks, func(n netip.Prefix) bool { return n.Contains(p.addr) }) {
		return true
	}
	if p.local && (slices.Contains(a.UIDs, p.uid) || slices.ContainsFunc(p.gids, func(g uint32) bool { return slices.Contains(a.GIDs, g) })) {
		return true
	}
	return slices.ContainsFunc(p.names, func(n string) bool { return slices.Contains(a.Names, n) })
}

// peer is what is known of a client for certain.
type peer struct {
	addr  netip.Addr // of TCP: unmapped, without a zone; else invalid
	local bool       // pid, uid and gids are known: a unix socket
	pid   int32
	uid   uint32
	gids  []uint32 // the primary group first
	names []string // of a verified certificate; after STARTTLS only

	chain     []*x509.Certificate // what it has shown under TLS, its own first; may be empty
	checkedBy *tls.Config         // by which chain was verified
}

// network is what counts as one address: all of IPv4's, and of IPv6's the half that a site's hosts share.
// It is the zero Prefix unless addr is valid.
func (p *peer) network() netip.Prefix {
	bits := 32
	if p.addr.Is6() {
		bits = 64
	}
	network, _ := p.addr.Prefix(bits)
	return network
}

// peerOf asks the kernel. The credentials of a unix socket are those at the time of connect.
func peerOf(conn net.Conn) peer {
	var p peer
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		addr, _ := netip.AddrFromSlice(tcp.IP)
		p.addr = addr.Unmap().WithZone("")
		return p
	}
	control(conn, func(fd int) {
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || cred.Pid == 0 && cred.Uid == ^uint32(0) { // not a unix socket: "nobody known"
			return
		}
		p.local, p.pid, p.uid = true, cred.Pid, cred.Uid
		p.gids = append([]uint32{cred.Gid}, peerGroups(fd)...)
	})
	return p
}

// maxGroups is Linux' NGROUPS_MAX.
const maxGroups = 65536

// peerGroups gives the supplementary groups of a unix socket's peer (SO_PEERGROUPS, Linux 4.13).
// Without them a list of groups lets in fewer, not more.
func peerGroups(fd int) []uint32 {
	for n := 32; n <= maxGroups; n *= 2 {
		list := make([]uint32, n)
		size := uint32(4 * n)
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch e {
		case 0:
			return list[:min(int(size/4), n)]
		case unix.ERANGE:
		default:
			return nil
		}
	}
	return nil
}

// secured notes what a handshake of TLS has found out.
func (p *peer) secured(s tls.ConnectionState, by *tls.Config) {
	p.chain, p.checkedBy, p.names = s.PeerCertificates, by, nil
	if len(s.VerifiedChains) > 0 {
		p.names = certificateNames(s.PeerCertificates[0])
	}
}

// certificateNames are the names that a verified certificate proves: the common name and the
// subject alternative names.
func certificateNames(leaf *x509.Certificate) []string {
	names := append([]string{leaf.Subject.CommonName}, leaf.DNSNames...)
	names = append(names, leaf.EmailAddresses...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	return names
}

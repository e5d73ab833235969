package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// ErrTLSSocket is the handing over of a socket whose bytes are encrypted.
var ErrTLSSocket = errors.New("a connection under TLS can't be handed off: its state is in this process")

// Negotiate connects to t, negotiates its export with GO, and returns the connection at the start of
// transmission, for who speaks the rest of the protocol. Nothing but GO, and TLS where t has it, is negotiated,
// so that replies are simple and requests compact. The caller owns the connection. ctx bounds the handshake alone.
func Negotiate(ctx context.Context, t Target) (Info, net.Conn, error) {
	s, err := open(ctx, t)
	if err != nil {
		return Info{}, nil, err
	}
	info := Info{Name: t.Export}
	err = s.choose(&info)
	if err == nil && s.in.Buffered() > 0 {
		err = fmt.Errorf("%w: %d bytes behind the reply to GO", ErrProtocol, s.in.Buffered())
	}
	if err != nil {
		return Info{}, nil, s.abandon(ctx, err)
	}
	if !s.stop() {
		return Info{}, nil, s.abandon(ctx, context.Cause(ctx))
	}
	return info, s.conn, nil
}

// HandOff is Negotiate for one who wants the socket: the kernel. The caller owns the file. Under TLS there is
// none to hand off: ErrTLSSocket.
func HandOff(ctx context.Context, t Target) (Info, *os.File, error) {
	if t.TLS.On {
		return Info{}, nil, ErrTLSSocket
	}
	info, conn, err := Negotiate(ctx, t)
	if err != nil {
		return Info{}, nil, err
	}
	defer conn.Close() // the file is a duplicate
	socket, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return Info{}, nil, errors.New("the connection is no socket")
	}
	f, err := socket.File()
	return info, f, err
}

// URI is the form of t that ParseURI takes, the same for every spelling of one target: port,
// percent-encoding and the order of parameters included.
func (t Target) URI() string {
	scheme := "nbd"
	if t.TLS.On {
		scheme = "nbds"
	}
	name, query := encode(t.Export), t.TLS.parameters()
	if t.Network == "unix" {
		query = append([]string{"socket=" + encodePath(t.Address)}, query...)
		return scheme + "+unix:///" + name + "?" + strings.Join(query, "&")
	}
	uri := scheme + "://" + strings.ReplaceAll(t.Address, "%", "%25") + "/" + name
	if len(query) > 0 {
		uri += "?" + strings.Join(query, "&")
	}
	return uri
}

// parameters are those of a URI.
func (l TLS) parameters() (list []string) {
	if l.Certificates != "" {
		list = append(list, "tls-certificates="+encodePath(l.Certificates))
	}
	if l.Hostname != "" {
		list = append(list, "tls-hostname="+encode(l.Hostname))
	}
	if l.NoVerify {
		list = append(list, "tls-verify-peer=0")
	}
	return list
}

// encode percent-encodes all but RFC 3986's unreserved characters.
func encode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

func encodePath(s string) string { return strings.ReplaceAll(encode(s), "%2F", "/") }

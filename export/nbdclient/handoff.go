package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// HandOff connects to t, negotiates its export with GO, and returns the socket at the start of transmission,
// for who speaks the rest of the protocol: the kernel. Nothing but GO is negotiated, so that replies are
// simple and requests compact. The caller owns the file. ctx bounds the handshake alone.
func HandOff(ctx context.Context, t Target) (Info, *os.File, error) {
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
	defer s.conn.Close() // the file is a duplicate
	socket, ok := s.conn.(interface{ File() (*os.File, error) })
	if !ok {
		return Info{}, nil, errors.New("the connection is no socket")
	}
	f, err := socket.File()
	return info, f, err
}

// URI is the form of t that ParseURI takes, the same for every spelling of one target: port and
// percent-encoding included.
func (t Target) URI() string {
	name := encode(t.Export)
	if t.Network == "unix" {
		return "nbd+unix:///" + name + "?socket=" + strings.ReplaceAll(encode(t.Address), "%2F", "/")
	}
	return "nbd://" + strings.ReplaceAll(t.Address, "%", "%25") + "/" + name
}

// encode percent-encodes all but RFC 3986's unreserved characters.
func encode(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

package export

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	// maxOptionData is the longest data of an option; more closes the connection.
	maxOptionData = 64 << 10
	// maxOptions a handshake may hold, and maxOptionsPerExport more for each export: a client
	// may ask about all of them.
	maxOptions          = 32
	maxOptionsPerExport = 4
	// handshakeBuffer holds what a client sends ahead; a silent one costs no more.
	handshakeBuffer = 4 << 10
)

// offeredFlags are the handshake flags, the server's and what clients may answer.
const offeredFlags = nbdwire.FlagFixedNewstyle | nbdwire.FlagNoZeroes

var (
	// errAborted is the orderly end of a handshake without an export.
	errAborted        = errors.New("client aborted the handshake")
	errTooManyOptions = errors.New("too many options")
	errOptionData     = errors.New("option data is too long")
	errExportName     = errors.New("NBD_OPT_EXPORT_NAME after extended headers")
	errNoExport       = errors.New("no such export")
	errFull           = errors.New("connection limit reached")
	errNeedsTLS       = errors.New("client wants an export without the TLS that it requires")
	errInjection      = errors.New("data behind STARTTLS and before its answer")
)

// blockSizes are what every export advertises: any offset and length is served.
var blockSizes = nbdwire.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: MaxRead}

// negotiation is the handshake of one connection. It looks up exports and never touches
// their files. One goroutine uses it.
type negotiation struct {
	conn   net.Conn // under TLS once secure is set
	in     *bufio.Reader
	terms  *terms
	policy tlsPolicy
	peer   *peer
	server *Server
	client string
	log    *slog.Logger
	admit  func() bool // takes a place among the established connections

	secure   bool // TLS is on
	noZeroes bool
	agreed   agreed
	options  int
	reply    []byte // reused
}

// negotiate runs the handshake up to GO or EXPORT_NAME and returns the export that the
// client chose. Every error closes the connection.
func (n *negotiation) negotiate() (*served, error) {
	if err := n.greet(); err != nil {
		return nil, err
	}
	limit := maxOptions + maxOptionsPerExport*len(n.terms.exports.list)
	for n.options = 0; n.options < limit; n.options++ {
		e, err := n.option()
		if e != nil || err != nil {
			return e, err
		}
	}
	return nil, errTooManyOptions
}

func (n *negotiation) greet() error {
	if _, err := n.conn.Write(nbdwire.AppendGreeting(nil, offeredFlags)); err != nil {
		return err
	}
	var b [nbdwire.ClientFlagsLen]byte
	if _, err := io.ReadFull(n.in, b[:]); err != nil {
		return err
	}
	flags, err := nbdwire.DecodeClientFlags(b[:], offeredFlags)
	if err != nil {
		return err
	}
	n.noZeroes = flags&nbdwire.FlagNoZeroes != 0
	if flags&nbdwire.FlagFixedNewstyle == 0 {
		// Such a client knows no error replies: it can't be told to turn TLS on.
		if n.policy == forcedTLS {
			return errNeedsTLS
		}
		n.policy = noTLS
	}
	return nil
}

// option serves one option. It returns the export once the client has chosen one.
func (n *negotiation) option() (*served, error) {
	var b [nbdwire.OptionLen]byte
	if _, err := io.ReadFull(n.in, b[:]); err != nil {
		return nil, err
	}
	h, err := nbdwire.DecodeOption(b[:])
	if err != nil {
		return nil, err
	}
	if h.Length > maxOptionData {
		return nil, fmt.Errorf("option %d with %d bytes: %w", h.ID, h.Length, errOptionData)
	}
	switch h.ID {
	case nbdwire.OptExportName:
		return n.exportName(h.Length)
	case protocol.NEGOTIATION_ID_OPTION_ABORT:
		return nil, n.abort(h.Length)
	}
	if n.policy == forcedTLS && !n.secure && h.ID != nbdwire.OptStartTLS {
		return nil, n.refuse(h, nbdwire.RepErrTLSReqd, textNeedsTLS)
	}
	if n.server.draining.Load() {
		return nil, n.refuse(h, nbdwire.RepErrShutdown, "server is shutting down")
	}
	switch h.ID {
	case protocol.NEGOTIATION_ID_OPTION_LIST:
		return nil, n.list(h)
	case protocol.NEGOTIATION_ID_OPTION_INFO, protocol.NEGOTIATION_ID_OPTION_GO:
		return n.info(h)
	case nbdwire.OptStartTLS:
		return nil, n.startTLS(h)
	case nbdwire.OptStructuredReply:
		return nil, n.structuredReply(h)
	case nbdwire.OptExtendedHeaders:
		return nil, n.extendedHeaders(h)
	case nbdwire.OptListMetaContext, nbdwire.OptSetMetaContext:
		return nil, n.metaContext(h)
	default:
		return nil, n.refuse(h, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, "option is not supported")
	}
}

// exportName has no way to say no but to close.
func (n *negotiation) exportName(length uint32) (*served, error) {
	if n.agreed.extended {
		return nil, errExportName
	}
	if length > nbdwire.MaxString {
		return nil, fmt.Errorf("export name of %d bytes: %w", length, errNoExport)
	}
	name, err := n.data(length)
	if err != nil {
		return nil, err
	}
	e, v := n.find(string(name))
	switch {
	case n.server.draining.Load():
		return nil, errShuttingDown
	case v == needsTLS:
		return nil, errNeedsTLS
	case v == unknown:
		return nil, fmt.Errorf("%q: %w", nbdwire.Shorten(string(name), maxShownName), errNoExport)
	case !n.admit():
		return nil, errFull
	}
	n.agreed = n.agreed.chosen(string(name))
	return e, n.send(nbdwire.AppendExportName(n.reply[:0], e.size, n.agreed.flags(e), !n.noZeroes))
}

// abort acknowledges, whatever data came with it, and ends. A client that does not wait for
// the answer has done nothing wrong.
func (n *negotiation) abort(length uint32) error {
	if err := n.skip(length); err != nil {
		return err
	}
	_ = n.send(nbdwire.AppendOptionReply(n.reply[:0], protocol.NEGOTIATION_ID_OPTION_ABORT,
		protocol.NEGOTIATION_TYPE_REPLY_ACK, nil))
	return errAborted
}

func (n *negotiation) list(h protocol.NegotiationOptionHeader) error {
	if h.Length != 0 {
		return n.refuse(h, nbdwire.RepErrInvalid, "this option takes no data")
	}
	b := n.reply[:0]
	for _, e := range n.visible() {
		b = nbdwire.AppendListEntry(b, e.Name, e.Description)
	}
	return n.send(nbdwire.AppendOptionReply(b, h.ID, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil))
}

// info serves INFO and GO, which differ in what follows an ACK. What it tells of an export is
// constant, so that a GO after an INFO says the same.
func (n *negotiation) info(h protocol.NegotiationOptionHeader) (*served, error) {
	data, err := n.data(h.Length)
	if err != nil {
		return nil, err
	}
	h.Length = 0 // all of it has been read
	r, err := nbdwire.DecodeInfoRequest(data)
	if err != nil {
		return nil, n.refuse(h, nbdwire.RepErrInvalid, err.Error())
	}
	e, v := n.find(r.Name)
	if v != granted {
		return nil, n.refuseExport(h, r.Name, v)
	}
	agreed := n.agreed.chosen(r.Name)
	chosen := h.ID == protocol.NEGOTIATION_ID_OPTION_GO
	if chosen && !n.admit() {
		return nil, n.refuse(h, nbdwire.RepErrPolicy, "server has reached its connection limit")
	}
	if err := n.send(appendInfo(n.reply[:0], h.ID, e, agreed.flags(e), r)); err != nil || !chosen {
		return nil, err
	}
	n.agreed = agreed
	return e, nil
}

// appendInfo appends what the client asked for, each once, and the ACK. The size is sent
// always: QEMU needs it and does not ask.
func appendInfo(b []byte, option uint32, e *served, flags uint16, r nbdwire.InfoRequest) []byte {
	b = nbdwire.AppendInfoExport(b, option, e.size, flags)
	if r.Wants(protocol.NEGOTIATION_TYPE_INFO_NAME) {
		b = nbdwire.AppendInfoString(b, option, protocol.NEGOTIATION_TYPE_INFO_NAME, e.Name)
	}
	if r.Wants(protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION) && e.Description != "" {
		b = nbdwire.AppendInfoString(b, option, protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION, e.Description)
	}
	if r.Wants(protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE) {
		b = nbdwire.AppendInfoBlockSize(b, option, blockSizes)
	}
	return nbdwire.AppendOptionReply(b, option, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

// verdict is whether a client may use an export.
type verdict int

const (
	granted  verdict = iota
	unknown          // there is none, as far as this client is to know
	needsTLS         // there may be one for who turns TLS on
)

const textNeedsTLS = "the server requires TLS (connect with nbds://, with x509 certificates)"

// find looks up an export for this client. While TLS could show more than is seen without, every
// unknown name needs TLS: what lies behind it can't be probed (proto.md, "SELECTIVETLS mode").
func (n *negotiation) find(name string) (*served, verdict) {
	e, v := n.terms.exports.find(name), unknown
	if e != nil {
		v = n.sees(e)
	}
	if v == unknown && slices.ContainsFunc(n.terms.exports.list, func(o *served) bool { return n.sees(o) == needsTLS }) {
		v = needsTLS
	}
	if v != granted {
		e = nil
	}
	return e, v
}

// sees tells whether this client may use e. A certificate that it has not shown yet may change that.
func (n *negotiation) sees(e *served) verdict {
	admitted := e.Allow.admits(n.peer)
	switch {
	case admitted && (n.secure || !e.secret):
		return granted
	case n.policy == noTLS || n.secure:
		return unknown
	case admitted || len(e.Allow.Names) > 0:
		return needsTLS
	default:
		return unknown
	}
}

// visible are the exports that LIST shows: those that GO accepts.
func (n *negotiation) visible() []*served {
	var list []*served
	for _, e := range n.terms.exports.list {
		if n.sees(e) == granted {
			list = append(list, e)
		}
	}
	return list
}

// refuseExport answers an option about an export that find does not grant.
func (n *negotiation) refuseExport(h protocol.NegotiationOptionHeader, name string, v verdict) error {
	if v == needsTLS {
		return n.refuse(h, nbdwire.RepErrTLSReqd, textNeedsTLS)
	}
	return n.refuse(h, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, unknownText(name, n.visible()))
}

func (n *negotiation) startTLS(h protocol.NegotiationOptionHeader) error {
	switch {
	case h.Length != 0:
		return n.refuse(h, nbdwire.RepErrInvalid, "this option takes no data")
	case n.secure:
		return n.refuse(h, nbdwire.RepErrInvalid, "TLS is on already")
	case n.policy == noTLS:
		return n.refuse(h, nbdwire.RepErrPolicy, "TLS is not configured")
	case n.in.Buffered() > 0:
		// Who sits on the wire may have put it there, to be taken for what TLS protects.
		return errInjection
	}
	err := n.send(nbdwire.AppendOptionReply(n.reply[:0], h.ID, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil))
	if err != nil {
		return err
	}
	return n.upgrade()
}

// upgrade does TLS's own handshake, within the time of ours. Of what was agreed on before it nothing
// may count any more (CVE-2021-3716) but the client's flags.
func (n *negotiation) upgrade() error {
	conn := newSecureConn(n.conn, n.terms.tls.Config)
	if err := conn.HandshakeContext(context.Background()); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	n.conn, n.secure, n.agreed = conn, true, agreed{}
	n.peer.secured(conn.ConnectionState(), n.terms.tls.Config)
	n.in = bufio.NewReaderSize(conn, handshakeBuffer)
	return nil
}

// refuse consumes the option's data and answers with an error and a text for people.
func (n *negotiation) refuse(h protocol.NegotiationOptionHeader, typ uint32, text string) error {
	if err := n.skip(h.Length); err != nil {
		return err
	}
	n.log.Debug("option refused", "option", h.ID, "reply", typ&^nbdwire.RepErrFlag, "text", text)
	text = nbdwire.Shorten(text, nbdwire.MaxString)
	return n.send(nbdwire.AppendOptionReply(n.reply[:0], h.ID, typ, []byte(text)))
}

// data reads an option's data; length is at most maxOptionData.
func (n *negotiation) data(length uint32) ([]byte, error) {
	b := make([]byte, length)
	_, err := io.ReadFull(n.in, b)
	return b, err
}

func (n *negotiation) skip(length uint32) error {
	_, err := n.in.Discard(int(length))
	return err
}

func (n *negotiation) send(b []byte) error {
	n.reply = b[:0]
	_, err := n.conn.Write(b)
	return err
}

// early returns what the client has sent behind its last option.
func (n *negotiation) early() []byte {
	b, _ := n.in.Peek(n.in.Buffered())
	return b
}

// lingerTime bounds how long a connection that the server ends is still read from.
const lingerTime = 500 * time.Millisecond

// closeGently closes a connection whose last bytes the client is to get. Closing a socket
// that holds unread bytes resets it, and the client loses what is still on its way to it: so
// first say that nothing follows, and take what the client sends until it closes too.
func closeGently(conn inbound) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		if conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
			_, _ = io.CopyN(io.Discard, conn, maxDiscard)
		}
	}
	_ = conn.Close()
}

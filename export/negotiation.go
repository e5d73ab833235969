package export

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
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
	errNoExport       = errors.New("no such export")
	errFull           = errors.New("connection limit reached")
)

// blockSizes are what every export advertises: any offset and length is served.
var blockSizes = nbdwire.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: MaxRead}

// negotiation is the handshake of one connection. It looks up exports and never touches
// their files. One goroutine uses it.
type negotiation struct {
	conn   net.Conn
	in     *bufio.Reader
	set    exportSet
	server *Server
	client string
	log    *slog.Logger
	admit  func() bool // takes a place among the established connections

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
	limit := maxOptions + maxOptionsPerExport*len(n.set.list)
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
	n.noZeroes = flags&nbdwire.FlagNoZeroes != 0
	return err
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
	case nbdwire.OptListMetaContext, nbdwire.OptSetMetaContext:
		return nil, n.metaContext(h)
	default:
		return nil, n.refuse(h, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, "option is not supported")
	}
}

// exportName has no way to say no but to close.
func (n *negotiation) exportName(length uint32) (*served, error) {
	if length > nbdwire.MaxString {
		return nil, fmt.Errorf("export name of %d bytes: %w", length, errNoExport)
	}
	name, err := n.data(length)
	if err != nil {
		return nil, err
	}
	e := n.set.find(string(name))
	switch {
	case n.server.draining.Load():
		return nil, errShuttingDown
	case e == nil:
		return nil, fmt.Errorf("%q: %w", nbdwire.Shorten(string(name), maxShownName), errNoExport)
	case !n.admit():
		return nil, errFull
	}
	n.agreed = n.agreed.chosen(string(name))
	return e, n.send(nbdwire.AppendExportName(n.reply[:0], e.size, n.agreed.flags(), !n.noZeroes))
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
	for _, e := range n.set.list {
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
	e := n.set.find(r.Name)
	if e == nil {
		return nil, n.refuse(h, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN, n.set.unknown(r.Name))
	}
	agreed := n.agreed.chosen(r.Name)
	chosen := h.ID == protocol.NEGOTIATION_ID_OPTION_GO
	if chosen && !n.admit() {
		return nil, n.refuse(h, nbdwire.RepErrPolicy, "server has reached its connection limit")
	}
	if err := n.send(appendInfo(n.reply[:0], h.ID, e, agreed.flags(), r)); err != nil || !chosen {
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

func (n *negotiation) startTLS(h protocol.NegotiationOptionHeader) error {
	if h.Length != 0 {
		return n.refuse(h, nbdwire.RepErrInvalid, "this option takes no data")
	}
	return n.refuse(h, nbdwire.RepErrPolicy, "TLS is not configured")
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
func closeGently(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		if conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
			_, _ = io.CopyN(io.Discard, conn, maxDiscard)
		}
	}
	_ = conn.Close()
}

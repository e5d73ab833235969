package export

import (
	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// agreed is what the options of a handshake have agreed on about replies. A successful STARTTLS must
// set it back to its zero value (CVE-2021-3716).
type agreed struct {
	structured bool       // NBD_OPT_STRUCTURED_REPLY
	extended   bool       // NBD_OPT_EXTENDED_HEADERS, which takes precedence
	contexts   contextSet // that NBD_OPT_SET_META_CONTEXT selected
	contextsOf string     // the export's name as it was given there
}

// chosen is what holds for a client that enters transmission by name: contexts that were selected for
// another name are none.
func (a agreed) chosen(name string) agreed {
	if name != a.contextsOf {
		a.contexts = 0
	}
	return a
}

// chunks tells whether replies to reads are made of chunks.
func (a *agreed) chunks() bool { return a.structured || a.extended }

// requestLen is how long the header of a request is, in bytes.
func (a *agreed) requestLen() int {
	if a.extended {
		return nbdwire.ExtendedRequestLen
	}
	return nbdwire.RequestLen
}

// flags are the transmission flags of e when it is chosen like this.
func (a *agreed) flags(e *served) uint16 {
	flags := e.flags
	if a.chunks() {
		flags |= nbdwire.FlagSendDF
	}
	if a.extended && a.contexts != 0 {
		flags |= nbdwire.FlagBlockStatusPayload
	}
	return flags
}

// structuredReply serves NBD_OPT_STRUCTURED_REPLY, which may be asked for again.
func (n *negotiation) structuredReply(h protocol.NegotiationOptionHeader) error {
	if h.Length != 0 {
		return n.refuse(h, nbdwire.RepErrInvalid, "this option takes no data")
	}
	if n.agreed.extended {
		return n.refuse(h, nbdwire.RepErrExtHeaderReqd, "extended headers were agreed on: all replies are structured")
	}
	n.agreed.structured = true
	return n.acknowledge(h)
}

// extendedHeaders serves NBD_OPT_EXTENDED_HEADERS, with structured replies agreed on before or not.
func (n *negotiation) extendedHeaders(h protocol.NegotiationOptionHeader) error {
	if h.Length != 0 {
		return n.refuse(h, nbdwire.RepErrInvalid, "this option takes no data")
	}
	n.agreed.extended = true
	return n.acknowledge(h)
}

func (n *negotiation) acknowledge(h protocol.NegotiationOptionHeader) error {
	return n.send(nbdwire.AppendOptionReply(n.reply[:0], h.ID, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil))
}

package export

import (
	"strings"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// metadata is one metadata context: a name, and a number for each extent. docs/nbd.md tells what the
// numbers mean.
type metadata struct {
	name   string
	status func(e Extent) uint64
}

// contexts are all that are offered. A context's id is its index and 1: unique and never 0.
var contexts = [...]metadata{
	{"base:allocation", allocation},
	{"x-btrexport:compression", func(e Extent) uint64 { return uint64(e.Compression) }},
	{"x-btrexport:verified", func(e Extent) uint64 {
		if e.Unverified {
			return 0
		}
		return 1
	}},
}

// contextSet has bit i set for contexts[i].
type contextSet uint8

func (s contextSet) has(i int) bool { return s&(1<<i) != 0 }

// allocation is the status of base:allocation: what reads as zeroes, and whether it takes space.
func allocation(e Extent) uint64 {
	switch e.Kind {
	case ExtentHole:
		return uint64(nbdwire.StateHole | nbdwire.StateZero)
	case ExtentZero:
		return uint64(nbdwire.StateZero)
	default:
		return 0
	}
}

// maxQueries bounds the queries of one option.
const maxQueries = 128

// metaContext serves LIST_META_CONTEXT and SET_META_CONTEXT. The latter replaces what was selected
// before, also when it fails.
func (n *negotiation) metaContext(h protocol.NegotiationOptionHeader) error {
	set := h.ID == nbdwire.OptSetMetaContext
	if set {
		n.agreed.contexts, n.agreed.contextsOf = 0, ""
	}
	if !n.agreed.chunks() {
		return n.refuse(h, nbdwire.RepErrInvalid, "ask for structured replies or extended headers first")
	}
	data, err := n.data(h.Length)
	if err != nil {
		return err
	}
	h.Length = 0 // all of it has been read
	q, err := nbdwire.DecodeMetaQuery(data)
	if err != nil {
		return n.refuse(h, nbdwire.RepErrInvalid, err.Error())
	}
	if _, v := n.find(q.Name); v != granted {
		return n.refuseExport(h, q.Name, v)
	}
	if len(q.Queries) > maxQueries {
		return n.refuse(h, nbdwire.RepErrTooBig, "too many queries")
	}
	found := match(q.Queries, !set)
	if set {
		n.agreed.contexts, n.agreed.contextsOf = found, q.Name
	}
	return n.send(appendContexts(n.reply[:0], h.ID, found))
}

// match returns the contexts that the queries name. When they are to be listed, no query means all and
// a namespace alone means all of it. What is not known is ignored.
func match(queries []string, list bool) contextSet {
	var found contextSet
	for i, c := range contexts {
		namespace, _, _ := strings.Cut(c.name, ":")
		if list && len(queries) == 0 {
			found |= 1 << i
		}
		for _, q := range queries {
			if q == c.name || list && q == namespace+":" {
				found |= 1 << i
			}
		}
	}
	return found
}

// appendContexts appends one reply for each context and the ACK. LIST has ids of 0.
func appendContexts(b []byte, option uint32, found contextSet) []byte {
	for i, c := range contexts {
		if !found.has(i) {
			continue
		}
		id := uint32(0)
		if option == nbdwire.OptSetMetaContext {
			id = contextID(i)
		}
		b = nbdwire.AppendMetaContext(b, option, id, c.name)
	}
	return nbdwire.AppendOptionReply(b, option, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
}

func contextID(i int) uint32 { return uint32(i) + 1 }

package export

import (
	"encoding/binary"
	"errors"
	"strings"
	"unicode"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	// sectorBytes is what clients like the bounds of chunks to be multiples of.
	sectorBytes = 512
	// maxErrorText bounds the text of one error chunk, maxErrorTexts how many of a reply have one.
	maxErrorText  = 512
	maxErrorTexts = 16
	// What a slot keeps for its next request: chunks, and bytes of texts.
	maxKeptChunks = 64
	maxKeptText   = 4 << 10
	// maxChunkHeader is the longest header with the fixed part of its payload: an extended hole.
	maxChunkHeader = nbdwire.ExtendedChunkLen + 12
)

// errParts is a File that broke its contract: its zeroes and losses do not lie in the read in order.
var errParts = errors.New("internal error: the parts of a read are out of order")

// chunk is one part of a reply: a header, bytes that somebody else owns, zeroes. A simple reply is one.
type chunk struct {
	header [maxChunkHeader]byte
	n      uint8  // bytes of header
	pad    uint32 // zeroes behind body
	body   []byte
}

func (c *chunk) length() int { return int(c.n) + len(c.body) + int(c.pad) }

// seal makes the reply out of how the request ended. A slot that is used again allocates nothing for
// what is usual: some holes, a refusal.
func (q *request) seal() {
	q.chunks = q.chunks[:0]
	switch {
	case !q.owner.agreed.chunks():
		q.addSimple()
	case q.command == protocol.TRANSMISSION_TYPE_REQUEST_READ && (q.err == nil || q.lostParts()):
		q.addParts()
	case q.err != nil:
		q.addFailure()
	case q.owner.agreed.extended:
		q.add(nbdwire.ReplyNone, 0)
	default:
		q.addSimple()
	}
	q.finish()
}

// finish marks the last chunk and counts the bytes.
func (q *request) finish() {
	if q.owner.agreed.chunks() && (q.owner.agreed.extended || !nbdwire.IsSimpleReply(q.chunks[0].header[:])) {
		nbdwire.SetDone(q.chunks[len(q.chunks)-1].header[:])
	}
	q.size = 0
	for i := range q.chunks {
		q.size += q.chunks[i].length()
	}
}

// addSimple adds a simple reply. One with an error has nothing behind it.
func (q *request) addSimple() {
	c := chunk{n: nbdwire.SimpleReplyLen}
	nbdwire.PutSimpleReply((*[nbdwire.SimpleReplyLen]byte)(c.header[:]), errno(q.err), q.cookie)
	if q.err == nil {
		c.body, c.pad = q.read.Payload, q.pad
	}
	q.chunks = append(q.chunks, c)
}

// add adds a chunk with a payload of length bytes, of which the caller fills in all.
func (q *request) add(typ uint16, length int) *chunk {
	q.chunks = append(q.chunks, chunk{})
	c := &q.chunks[len(q.chunks)-1]
	h := nbdwire.Chunk{Type: typ, Cookie: q.cookie, Offset: q.offset, Length: uint64(length)}
	if q.owner.agreed.extended {
		c.n = uint8(len(nbdwire.AppendExtendedChunk(c.header[:0], h)))
	} else {
		c.n = uint8(len(nbdwire.AppendChunk(c.header[:0], h)))
	}
	return c
}

// lostParts tells whether the read failed in parts and is good otherwise.
func (q *request) lostParts() bool {
	return len(q.read.Lost) > 0 && len(q.read.Payload) == int(q.read.Length)
}

// addParts answers a read: data, holes, and an error where a part was lost, in the order of the file.
// Under DF there may be one content chunk only: all of it as data, or an error alone.
func (q *request) addParts() {
	switch {
	case q.flags&nbdwire.CmdFlagDF == 0:
		if !q.addFragments() {
			q.err = errParts
			q.chunks = q.chunks[:0]
			q.addFailure()
		}
	case q.err == nil:
		q.addData(q.offset, q.read.Payload, q.pad)
	default:
		q.addFailure()
	}
}

// addFragments adds the file's part of a read and the padding behind it; false if the File's lists can't
// be right. All chunks are disjoint and cover the range.
func (q *request) addFragments() bool {
	at, end := q.read.Offset, q.read.Offset+uint64(q.read.Length)
	zeroes, lost := q.read.Zeroes, q.read.Lost
	hole, pad, texts := uint64(0), uint64(q.pad), 0 // hole: bytes in front of at that are zero and not told yet
	for at < end {
		next, kind := nextPart(end, zeroes, lost)
		if next.Offset < at || next.Length > end-next.Offset {
			return false
		}
		if next.Offset > at {
			q.addHole(at-hole, hole)
			hole = 0
			fill := uint32(0)
			if kind == partEnd { // what the file's last data lack of a sector is sent with them
				fill = uint32(min(pad, -end%sectorBytes))
				pad -= uint64(fill)
			}
			q.addData(at, q.read.Payload[at-q.read.Offset:next.Offset-q.read.Offset], fill)
			at = next.Offset + uint64(fill)
		}
		switch kind {
		case partZero:
			at += next.Length
			hole += next.Length
			zeroes = zeroes[1:]
		case partLost:
			q.addHole(at-hole, hole)
			hole = 0
			q.addLoss(&lost[0], &texts)
			if lost = skipAdjacent(lost, &at); at > end {
				return false
			}
		}
	}
	q.addHole(at-hole, hole+pad)
	return len(zeroes) == 0 && len(lost) == 0
}

// partKind is what nextPart found.
type partKind int

const (
	partEnd partKind = iota
	partZero
	partLost
)

// nextPart returns the first of zeroes and lost, or the end of the file's part.
func nextPart(end uint64, zeroes []Span, lost []Loss) (Span, partKind) {
	next, kind := Span{Offset: end}, partEnd
	if len(zeroes) > 0 && zeroes[0].Offset < end {
		next, kind = zeroes[0], partZero
	}
	if len(lost) > 0 && lost[0].Offset < next.Offset {
		next, kind = lost[0].Span, partLost
	}
	return next, kind
}

// skipAdjacent drops the first loss, which is at at, and those that follow it without a gap; at becomes
// their end.
func skipAdjacent(lost []Loss, at *uint64) []Loss {
	for len(lost) > 0 && lost[0].Offset == *at {
		*at += lost[0].Length
		lost = lost[1:]
	}
	return lost
}

// addData adds bytes of the export and zeroes behind them.
func (q *request) addData(off uint64, b []byte, pad uint32) {
	c := q.add(nbdwire.ReplyOffsetData, 8+len(b)+int(pad))
	c.n = uint8(len(binary.BigEndian.AppendUint64(c.header[:c.n], off)))
	c.body, c.pad = b, pad
}

// addHole adds n bytes that are zero; nothing when there are none.
func (q *request) addHole(off, n uint64) {
	if n == 0 {
		return
	}
	c := q.add(nbdwire.ReplyOffsetHole, 12)
	b := binary.BigEndian.AppendUint64(c.header[:c.n], off)
	c.n = uint8(len(binary.BigEndian.AppendUint32(b, uint32(n))))
}

// addLoss adds the error of a lost part. Only the first few of a reply say why.
func (q *request) addLoss(l *Loss, texts *int) {
	text := ""
	if *texts++; *texts <= maxErrorTexts && l.Err != nil {
		text = l.Err.Error()
	}
	q.addError(nbdwire.ReplyErrorOffset, nbdwire.ErrorChunk{Errno: nbdwire.EIO, Text: text, Offset: l.Offset})
}

// addFailure answers a request of which nothing was done. What the File could not read has a place.
func (q *request) addFailure() {
	e := nbdwire.ErrorChunk{Errno: errno(q.err), Text: q.err.Error(), Offset: q.offset}
	if e.Errno != nbdwire.EIO {
		q.addError(nbdwire.ReplyError, e)
		return
	}
	if lost := q.read.Lost; len(lost) > 0 && lost[0].Offset-q.offset < q.length {
		e.Offset = lost[0].Offset
	}
	q.addError(nbdwire.ReplyErrorOffset, e)
}

// addError adds an error chunk; its text becomes what the document calls a string, of bounded length.
func (q *request) addError(typ uint16, e nbdwire.ErrorChunk) {
	e.Text = printable(e.Text)
	first := len(q.text)
	q.text = nbdwire.AppendErrorChunk(q.text, typ, e)
	body := q.text[first:] // stays what it is if q.text moves later
	q.add(typ, len(body)).body = body
}

// addStatus adds what one metadata context says.
func (q *request) addStatus(id uint32, list []nbdwire.Descriptor) {
	typ, extended := nbdwire.ReplyBlockStatus, q.owner.agreed.extended
	if extended {
		typ = nbdwire.ReplyBlockStatusExt
	}
	first := len(q.text)
	q.text = nbdwire.AppendBlockStatus(q.text, extended, id, list)
	body := q.text[first:]
	q.add(typ, len(body)).body = body
}

// printable shortens a text for people and takes out what a terminal should not get.
func printable(s string) string {
	if nbdwire.CheckString(s) != nil || strings.ContainsFunc(s, unicode.IsControl) {
		s = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(s, "?"))
	}
	return nbdwire.Shorten(s, maxErrorText)
}

// unseal forgets the reply. What an unusual one took is not kept.
func (q *request) unseal() {
	clear(q.chunks)
	if cap(q.chunks) > maxKeptChunks || q.chunks == nil {
		q.chunks = q.few[:0]
	}
	if cap(q.text) > maxKeptText {
		q.text = nil
	}
	q.chunks, q.text, q.size = q.chunks[:0], q.text[:0], 0
}

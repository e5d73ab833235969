package export

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// request is one slot of a connection: a request from its decoding until its reply has left.
type request struct {
	read Read // Done is the request itself

	owner   *transmission // immutable
	cookie  uint64
	command uint16
	err     error  // why it failed; decided before it is queued
	payload []byte // read.Payload if it is to be sent
	pad     uint32 // zeroes behind the payload
	charge  charge
	arrived time.Time
	batch   uint64      // number of the batch that it belongs to
	started bool        // begun before a drain: Shutdown waits for its reply
	atFile  atomic.Bool // between Submit and ReadDone
	header  [nbdwire.SimpleReplyLen]byte
}

// reset empties the slot for its next use.
func (q *request) reset() {
	q.read = Read{Done: q}
	q.err, q.payload, q.pad = nil, nil, 0
	q.charge, q.started = charge{}, false
}

// length of the reply in bytes.
func (q *request) length() int {
	return len(q.header) + len(q.payload) + int(q.pad)
}

// plan checks a request against proto.md, "Request types": err tells why it is refused, and
// otherwise a read's range is split into the file's part and the padding behind it.
func (q *request) plan(h protocol.TransmissionRequestHeader) {
	q.cookie, q.command = h.Handle, h.Type
	if q.err = q.check(h); q.err != nil || h.Type != protocol.TRANSMISSION_TYPE_REQUEST_READ {
		return
	}
	q.read.Offset, q.read.Length = h.Offset, h.Length
	if inFile := q.owner.export.fileSize - min(h.Offset, q.owner.export.fileSize); inFile < uint64(h.Length) {
		q.read.Length = uint32(inFile)
		q.pad = h.Length - q.read.Length
	}
}

// check is the order of checks: what nobody may do here, then what the command does not
// have, then the range.
func (q *request) check(h protocol.TransmissionRequestHeader) error {
	switch h.Type {
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE, nbdwire.CmdWriteZeroes, nbdwire.CmdTrim:
		return errReadOnly
	case protocol.TRANSMISSION_TYPE_REQUEST_READ:
		return q.checkRead(h)
	case nbdwire.CmdFlush:
		if h.CommandFlags != 0 {
			return errFlags
		}
		if h.Offset != 0 || h.Length != 0 {
			return errFlushRange
		}
		return nil
	default: // CACHE and BLOCK_STATUS too: they are not advertised
		return errCommand
	}
}

func (q *request) checkRead(h protocol.TransmissionRequestHeader) error {
	size := q.owner.export.size
	switch {
	case h.CommandFlags != 0: // FUA and DF are not advertised
		return errFlags
	case h.Length == 0, h.Length > MaxRead:
		return errLength
	case h.Offset > size, uint64(h.Length) > size-h.Offset:
		return errRange
	}
	return nil
}

// ReadDone implements Completer. It runs on a goroutine of the File and never waits for the
// client.
func (q *request) ReadDone(*Read) {
	t := q.owner
	defer t.recoverPanic()
	if !q.atFile.CompareAndSwap(true, false) {
		panic("a read was completed twice")
	}
	q.settle()
	s := t.sender
	s.mu.Lock()
	s.atFile--
	s.push(q)
	next := s.afterDone(q)
	s.mu.Unlock()
	switch next {
	case write:
		s.flush(false)
	case handOff:
		poke(s.wake)
	}
}

// settle decides how a read ended and makes its header.
func (q *request) settle() {
	q.err = q.read.Err
	if q.err == nil && len(q.read.Payload) != int(q.read.Length) {
		q.err = fmt.Errorf("%w: %d bytes of %d", errShortPayload, len(q.read.Payload), q.read.Length)
	}
	if q.err != nil {
		q.owner.export.log.print(slog.LevelError, "read failed",
			slog.String("client", q.owner.client), slog.Uint64("offset", q.read.Offset),
			slog.Uint64("length", uint64(q.read.Length)), slog.Any("err", q.err))
	}
	q.seal()
}

// seal makes the header out of err. A reply with an error has nothing behind it.
func (q *request) seal() {
	q.payload = q.read.Payload
	if q.err != nil {
		q.payload, q.pad = nil, 0
	}
	nbdwire.PutSimpleReply(&q.header, errno(q.err), q.cookie)
}

// count tells the export's Stats of q, whose reply has left if sent is set.
func (q *request) count(sent bool, now time.Time) {
	ok, bytes := sent && q.err == nil, 0
	if ok {
		bytes = q.length() - len(q.header)
	}
	q.owner.export.Stats.RequestDone(commandName(q.command), ok, bytes, now.Sub(q.arrived))
}

// logRefusal is for who debugs a client.
func (q *request) logRefusal(h protocol.TransmissionRequestHeader) {
	log := q.owner.log
	if !log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	log.Debug("request refused", "command", h.Type, "flags", h.CommandFlags,
		"offset", h.Offset, "length", h.Length, "err", q.err)
}

// commandName names a command for ExportStats.
func commandName(command uint16) string {
	switch command {
	case protocol.TRANSMISSION_TYPE_REQUEST_READ:
		return "read"
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
		return "write"
	case protocol.TRANSMISSION_TYPE_REQUEST_DISC:
		return "disc"
	case nbdwire.CmdFlush:
		return "flush"
	case nbdwire.CmdTrim:
		return "trim"
	case nbdwire.CmdCache:
		return "cache"
	case nbdwire.CmdWriteZeroes:
		return "write_zeroes"
	default:
		return "other"
	}
}

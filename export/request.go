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

	owner    *transmission // immutable
	cookie   uint64
	offset   uint64 // as asked for, like length
	length   uint64 // bytes
	command  uint16
	flags    uint16
	contexts contextSet // that a BLOCK_STATUS is to tell of
	err      error      // why it failed; decided before it is queued
	pad      uint32     // zeroes behind what the file has of a read
	charge   charge
	arrived  time.Time
	batch    uint64      // number of the batch that it belongs to
	started  bool        // begun before a drain: Shutdown waits for its reply
	atFile   atomic.Bool // between Submit and ReadDone

	chunks []chunk  // the reply, once it is sealed
	size   int      // of it, in bytes
	few    [2]chunk // where chunks begins
	text   []byte   // of its error chunks; reused
	zeroes []Span   // of a read that was answered from what was read ahead; reused
}

// begun notes that q is out of the reader's hands until ReadDone.
func (q *request) begun() {
	q.started = true
	q.atFile.Store(true)
}

// reset empties the slot for its next use.
func (q *request) reset() {
	q.read = Read{Done: q}
	q.err, q.pad, q.contexts = nil, 0, 0
	q.charge, q.started = charge{}, false
	q.unseal()
}

// plan checks a request with its payload against proto.md, "Request types": err tells why it is refused,
// and otherwise a read's range is split into the file's part and the padding behind it.
func (q *request) plan(h nbdwire.Request, payload []byte) {
	q.cookie, q.command, q.flags, q.offset, q.length = h.Cookie, h.Type, h.Flags, h.Offset, h.Length
	q.contexts = q.owner.agreed.contexts
	if q.err = q.takePayload(payload); q.err != nil {
		return
	}
	if q.err = q.check(); q.err != nil || h.Type != protocol.TRANSMISSION_TYPE_REQUEST_READ {
		return
	}
	inFile := q.owner.export.fileSize - min(h.Offset, q.owner.export.fileSize)
	q.read.Offset, q.read.Length = h.Offset, uint32(min(h.Length, inFile))
	q.pad = uint32(h.Length) - q.read.Length
}

// takePayload accounts for CmdFlagPayloadLen under extended headers: WRITE must have it, BLOCK_STATUS may, and
// has its length and a choice of contexts in the payload then.
func (q *request) takePayload(payload []byte) error {
	if !q.owner.agreed.extended {
		return nil
	}
	has := q.flags&nbdwire.CmdFlagPayloadLen != 0
	q.flags &^= nbdwire.CmdFlagPayloadLen
	switch {
	case q.command == protocol.TRANSMISSION_TYPE_REQUEST_WRITE && !has:
		return errNoPayload
	case !has || q.command == protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
		return nil
	case q.command == nbdwire.CmdBlockStatus:
		return q.filter(payload)
	default:
		return errFlags
	}
}

// check is the order of checks: what nobody may do here, then what the command does not
// have, then the range.
func (q *request) check() error {
	switch q.command {
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE, nbdwire.CmdWriteZeroes, nbdwire.CmdTrim:
		return errReadOnly
	case protocol.TRANSMISSION_TYPE_REQUEST_READ:
		return q.checkRead()
	case nbdwire.CmdFlush:
		if q.flags != 0 {
			return errFlags
		}
		if q.offset != 0 || q.length != 0 {
			return errFlushRange
		}
		return nil
	case nbdwire.CmdBlockStatus:
		return q.checkStatus()
	case nbdwire.CmdCache:
		return q.checkCache()
	default:
		return errCommand
	}
}

func (q *request) checkRead() error {
	allowed := uint16(0)
	if q.owner.agreed.chunks() {
		allowed = nbdwire.CmdFlagDF
	}
	if q.flags&^allowed != 0 { // FUA is not advertised
		return errFlags
	}
	if err := q.checkRange(); err != nil || q.length <= MaxRead {
		return err
	}
	if q.owner.agreed.chunks() {
		return errTooLong
	}
	return errLength
}

// checkRange wants at least one byte, all of it inside of the export.
func (q *request) checkRange() error {
	size := q.owner.export.size
	switch {
	case q.length == 0:
		return errLength
	case q.offset > size, q.length > size-q.offset:
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
	t.ended(q)
}

// settle decides how a read ended and makes its reply.
func (q *request) settle() {
	q.err = q.read.Err
	if q.err == nil && len(q.read.Payload) != int(q.read.Length) {
		q.err = fmt.Errorf("%w: %d bytes of %d", errShortPayload, len(q.read.Payload), q.read.Length)
	}
	if q.err != nil {
		q.logFailure("read failed")
	}
	q.seal()
}

// logFailure tells of what could not be read, which is nobody's fault at the other end.
func (q *request) logFailure(what string) {
	q.owner.export.log.print(slog.LevelError, what, slog.String("client", q.owner.client),
		slog.Uint64("offset", q.offset), slog.Uint64("length", q.length), slog.Any("err", q.err))
}

// count tells the export's Stats of q, whose reply has left if sent is set.
func (q *request) count(sent bool, now time.Time) {
	ok, bytes := sent && q.err == nil, 0
	if ok && q.command == protocol.TRANSMISSION_TYPE_REQUEST_READ {
		bytes = int(q.length)
	}
	q.owner.export.Stats.RequestDone(commandName(q.command), ok, bytes, now.Sub(q.arrived))
}

// logRefusal is for who debugs a client.
func (q *request) logRefusal() {
	log := q.owner.log
	if !log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	log.Debug("request refused", "command", q.command, "flags", q.flags,
		"offset", q.offset, "length", q.length, "err", q.err)
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
	case nbdwire.CmdBlockStatus:
		return "block_status"
	default:
		return "other"
	}
}

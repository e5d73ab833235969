package export

import (
	"errors"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// Why a request is refused before it reaches the File. None allocates: a client may send
// them as fast as it can.
var (
	errReadOnly     = errors.New("export is read-only")
	errFlags        = errors.New("flags that the command does not have here")
	errLength       = errors.New("length is 0 or above the maximum")
	errTooLong      = errors.New("read is longer than the maximum block size")
	errRange        = errors.New("range ends behind the export")
	errCommand      = errors.New("unknown command")
	errFlushRange   = errors.New("flush with an offset or a length")
	errNoContext    = errors.New("no metadata context was selected for this export")
	errNoPayload    = errors.New("write without a payload")
	errFilter       = errors.New("payload is not a length and contexts that were selected, each once")
	errShuttingDown = errors.New("server is shutting down")
)

// errShortPayload is a File that broke its contract: what it lent is not what was asked for.
var errShortPayload = errors.New("internal error: payload is not as long as the read")

// errno is the one place where an error becomes a number on the wire. What is not known here
// comes from a File and is a range that could not be read.
func errno(err error) uint32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errReadOnly):
		return protocol.TRANSMISSION_ERROR_EPERM
	case errors.Is(err, errFlags), errors.Is(err, errLength), errors.Is(err, errRange),
		errors.Is(err, errCommand), errors.Is(err, errFlushRange), errors.Is(err, errNoContext),
		errors.Is(err, errNoPayload), errors.Is(err, errFilter):
		return protocol.TRANSMISSION_ERROR_EINVAL
	case errors.Is(err, errTooLong):
		return nbdwire.EOVERFLOW
	case errors.Is(err, errShuttingDown):
		return nbdwire.ESHUTDOWN
	default:
		return nbdwire.EIO
	}
}

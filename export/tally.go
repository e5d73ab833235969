package export

import (
	"sync/atomic"
	"time"
)

// tally counts one connection's requests for the line at its end, beside the export's own count.
type tally struct {
	next                 ExportStats // may be nil
	reads, errors, bytes atomic.Int64
}

// RequestDone implements ExportStats.
func (c *tally) RequestDone(command string, ok bool, bytes int, took time.Duration) {
	switch {
	case !ok:
		c.errors.Add(1)
	case command == "read":
		c.reads.Add(1)
		c.bytes.Add(int64(bytes))
	}
	if c.next != nil {
		c.next.RequestDone(command, ok, bytes, took)
	}
}

// ReadAhead implements ExportStats.
func (c *tally) ReadAhead(bytes, used int) {
	if c.next != nil {
		c.next.ReadAhead(bytes, used)
	}
}

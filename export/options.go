package export

import (
	"log/slog"
	"time"
)

// Options configure a Server. Exports is needed; the zero value of the rest is useful.
type Options struct {
	Exports []Export
	Limits  Limits
	TLS     TLS
	Log     *slog.Logger // nil discards
	Stats   ServerStats  // nil: none. Update does not change it
}

// Limits bound what clients can make the server hold. Zero means the default.
type Limits struct {
	Connections int           // clients that chose an export; 100. One more is closed at once
	Handshakes  int           // clients that have not yet; 256. One more ends the oldest silent one
	PerAddress  int           // connections of one client address over TCP, of one /64 for IPv6; 0: no limit of its own
	Handshake   time.Duration // time to choose an export, TLS included; 10 s
	Idle        time.Duration // a client that asks nothing for so long is disconnected; 0: never
	Memory      int64         // bytes in flight shared by all connections; 64 MiB, at least MaxRead
	Floor       int64         // bytes in flight that each connection has for itself beside Memory; 512 KiB
	Stall       time.Duration // a client that takes no byte for so long while others wait for its memory is closed; 30 s
}

func (l Limits) withDefaults() Limits {
	defaultTo(&l.Connections, 100)
	defaultTo(&l.Handshakes, 256)
	defaultTo(&l.Handshake, 10*time.Second)
	defaultTo(&l.Memory, 64<<20)
	defaultTo(&l.Floor, 512<<10)
	defaultTo(&l.Stall, 30*time.Second)
	l.Memory = max(l.Memory, MaxRead)
	return l
}

func defaultTo[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// ExportStats counts one export's requests. RequestDone must not wait; it is called when the
// reply has left, from any goroutine. command is read, write, disc, flush, trim, cache,
// write_zeroes, block_status or other; bytes is what a read was answered with, holes included; took runs from the request's arrival.
type ExportStats interface {
	RequestDone(command string, ok bool, bytes int, took time.Duration)
	// ReadAhead: bytes more were read before anybody asked for them, and of all that were, used more are asked for.
	ReadAhead(bytes, used int)
}

// ServerStats counts what belongs to no export and no listener. Its methods may not wait.
type ServerStats interface {
	// HandshakeDone: a client's handshake has ended. result is ok (it chose an export), aborted (it left in good order
	// without one, having asked for a list), lost (it was gone), refused (by a limit), timeout or error (it broke the
	// protocol, failed at TLS, or named an export that it can't have in the one option that knows no answer to that).
	HandshakeDone(result string)
	// Panicked: a connection was ended by a mistake in this program.
	Panicked()
}

// noStats serves where the caller asked for none.
type noStats struct{}

func (noStats) HandshakeDone(string) {}
func (noStats) Panicked()            {}

// ListenerStats counts one listener's connections: those whose client chose an export, and those that a limit
// kept from it. Neither method may wait. delta is +1 or -1; reason is connections, address, handshakes or timeout, by
// the limit: Connections, PerAddress, Handshakes or Handshake.
type ListenerStats interface {
	Connections(delta int)
	Refused(reason string)
}

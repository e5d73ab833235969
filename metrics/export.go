package metrics

import (
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// commands are the values of the label command; a command is its index. What NBD defines beyond them, and
// what it does not define, is "other": a client must not choose the number of series.
var commands = [...]string{"read", "write", "disc", "flush", "trim", "cache", "write_zeroes", "block_status", "other"}

const (
	commandRead  = 0
	commandOther = len(commands) - 1
)

// Export counts the requests for one export.
type Export struct {
	ok, failed [len(commands)]prometheus.Counter
	time       [len(commands)]func() prometheus.Observer // made when it is asked for first: twenty series each
	readBytes  prometheus.Counter
	aheadBytes prometheus.Counter
	aheadUsed  prometheus.Counter
}

// Export makes the series of an export, but for the durations of commands that nobody has used yet. Handles of the
// same name are the same.
func (r *Registry) Export(name string) *Export {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.exports[name]; e != nil {
		return e
	}
	e := &Export{readBytes: r.readBytes.WithLabelValues(name), aheadBytes: r.aheadBytes.WithLabelValues(name), aheadUsed: r.aheadUsed.WithLabelValues(name)}
	for i, command := range commands {
		e.ok[i] = r.requests.WithLabelValues(name, command, "ok")
		e.failed[i] = r.requests.WithLabelValues(name, command, "error")
		e.time[i] = sync.OnceValue(func() prometheus.Observer { return r.durations(e, name, command) })
	}
	read := r.requestTime.WithLabelValues(name, commands[commandRead])
	e.time[commandRead] = func() prometheus.Observer { return read }
	r.exports[name] = e
	return e
}

// durations makes the series of a command that is used for the first time; of an export that was removed, unseen.
func (r *Registry) durations(e *Export, name, command string) prometheus.Observer {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exports[name] != e {
		return requestTime().WithLabelValues(name, command)
	}
	return r.requestTime.WithLabelValues(name, command)
}

// RequestDone counts one answered request: its command in the words of the label (read, write, disc, flush,
// trim, cache, write_zeroes, block_status; every other word counts as other), whether the reply was a
// success, the length of a read, and the time to its complete reply.
func (e *Export) RequestDone(command string, ok bool, bytes int, took time.Duration) {
	i := commandIndex(command)
	if ok {
		e.ok[i].Inc()
	} else {
		e.failed[i].Inc()
	}
	if ok && i == commandRead {
		addCount(e.readBytes, bytes)
	}
	e.time[i]().Observe(took.Seconds())
}

// ReadAhead counts bytes that were read before a client asked for them, and those of them that are asked for.
func (e *Export) ReadAhead(bytes, used int) {
	addCount(e.aheadBytes, bytes)
	addCount(e.aheadUsed, used)
}

func commandIndex(command string) int {
	for i, c := range commands {
		if c == command {
			return i
		}
	}
	return commandOther
}

// refusals are the values of the label reason; what is none of them counts as the first.
var refusals = [...]string{"connections", "address", "handshakes", "timeout"}

// Listener counts the connections of one listening address.
type Listener struct {
	open    prometheus.Gauge
	refused [len(refusals)]prometheus.Counter
}

// Listener makes the series of an address, in the configuration's spelling.
func (r *Registry) Listener(name string) *Listener {
	l := &Listener{open: r.connections.WithLabelValues(name)}
	for i, reason := range refusals {
		l.refused[i] = r.refused.WithLabelValues(name, reason)
	}
	return l
}

// Refused counts a client that a limit kept from an export: connections, address, handshakes or timeout.
func (l *Listener) Refused(reason string) {
	l.refused[max(0, slices.Index(refusals[:], reason))].Inc()
}

// Connections tells that delta connections more (or less, if negative) are open.
func (l *Listener) Connections(delta int) { l.open.Add(float64(delta)) }

package export

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"
)

// Update puts other exports, limits and TLS in the place of the present ones, for handshakes that begin
// from now on. A connection lives on, losing nothing, if its export has the same name, File (by ==) and RoundUp
// and lets its client in as it is connected: under TLS the certificate that the client has shown is verified again,
// against the CAs and the time of now, and the names of a certificate that no CA of now vouches for don't count.
// The others drain, as at Shutdown, and the log says why. Of the limits Memory, Floor and Stall stay what they were,
// and so does Log. An error means that nothing has changed.
func (s *Server) Update(o Options) (*Departure, error) {
	next, err := newTerms(o, s.log)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.terms.Store(next)
	d := &Departure{leaving: make(map[*transmission]*client)}
	for t, c := range s.serving {
		why := next.refuses(c)
		if why == nil {
			c.idle.set(t, next.limits.Idle)
			continue
		}
		t.dismiss(why)
		d.leaving[t] = c
	}
	return d, nil
}

// Why connections leave.
var (
	errOtherExport = errors.New("its export is gone or another one")
	errNoAccess    = errors.New("no rule of the export's access list fits it any more")
	errInTheClear  = errors.New("its export requires TLS")
)

// refuses tells why a connection may not go on under these terms; nil: it may.
func (t *terms) refuses(c *client) error {
	e := t.exports.byName[c.export.Name]
	if e == nil || e != c.export && (!sameFile(e.File, c.export.File) || e.RoundUp != c.export.RoundUp) {
		return errOtherExport
	}
	if e.secret && !c.secure {
		return errInTheClear
	}
	now := c.peer
	if c.secure && now.checkedBy != t.tls.Config {
		var err error
		if now.names, err = t.tls.verify(now.chain, time.Now()); err != nil {
			return err
		}
	}
	if !e.Allow.admits(&now) {
		return errNoAccess
	}
	return nil
}

// dismiss drains a connection that may not go on.
func (t *transmission) dismiss(why error) {
	t.log.Info("client is to leave", "why", why)
	t.drain()
}

// InUse tells whether a client has chosen an export of f, compared as Update does, and has not left yet.
func (s *Server) InUse(f File) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.serving {
		if sameFile(c.export.File, f) {
			return true
		}
	}
	return false
}

// sameFile compares what an interface can't always: a File may be of a type that has no ==.
func sameFile(a, b File) bool {
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}

// Departure is the connections that an Update ends.
type Departure struct {
	leaving map[*transmission]*client // immutable
}

// Len returns their number.
func (d *Departure) Len() int { return len(d.leaving) }

// Wait returns when all have ended: then nobody uses the Files that are served no more. When ctx ends
// first it closes them and returns ctx's cause; reads that a File still holds may complete later.
func (d *Departure) Wait(ctx context.Context) error {
	for _, c := range d.leaving {
		select {
		case <-c.ended:
		case <-ctx.Done():
			return d.force(ctx)
		}
	}
	return nil
}

func (d *Departure) force(ctx context.Context) error {
	n := 0
	for t, c := range d.leaving {
		select {
		case <-c.ended:
		default:
			n++
			t.lose()
			t.sender.fail(errAbandoned)
		}
	}
	bound, cancel := context.WithTimeout(context.Background(), forceTime)
	defer cancel()
	for _, c := range d.leaving {
		select {
		case <-c.ended:
		case <-bound.Done():
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("drain: %d connections closed by force: %w", n, context.Cause(ctx))
}

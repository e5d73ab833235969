package export

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// Alive returns nil once every accept loop has gone round and the locks that every connection needs could be
// had: proof that clients are let in and get their turn. It asks no File and no disk, so one that hangs does not
// matter to it. When ctx ends first, the error names the listener whose loop stands still. A lock that
// is never given back keeps Alive from returning. A listener without SetDeadline is not asked.
func (s *Server) Alive(ctx context.Context) error {
	s.mu.Lock()
	var questions []question
	for _, a := range s.listeners {
		questions = append(questions, a.ask())
	}
	s.mu.Unlock()
	for _, q := range questions {
		select {
		case <-q.answered:
		case <-q.of.ended:
		case <-ctx.Done():
			return fmt.Errorf("accept on %s: stands still: %w", q.of.Addr(), context.Cause(ctx))
		}
	}
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	return nil
}

// acceptor is a listener with somebody in its accept loop, who can be asked whether he goes round.
type acceptor struct {
	net.Listener
	wake  chan struct{} // of capacity 1: cuts a pause of the loop short
	ended chan struct{} // closed with the loop's end

	mu      sync.Mutex
	waiting []chan struct{} // guarded by mu: closed by the loop
}

// question waits for one loop's answer.
type question struct {
	of       *acceptor
	answered chan struct{}
}

func newAcceptor(l net.Listener) *acceptor {
	return &acceptor{Listener: l, wake: make(chan struct{}, 1), ended: make(chan struct{})}
}

// ask makes Accept return: its deadline has passed.
func (a *acceptor) ask() question {
	q := question{of: a, answered: make(chan struct{})}
	l, ok := a.Listener.(interface{ SetDeadline(time.Time) error })
	if !ok {
		close(q.answered)
		return q
	}
	a.mu.Lock()
	a.waiting = append(a.waiting, q.answered)
	_ = l.SetDeadline(time.Unix(1, 0))
	a.mu.Unlock()
	poke(a.wake)
	return q
}

// answer is for the loop, when the deadline has passed: it takes it back first.
func (a *acceptor) answer() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l, ok := a.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		_ = l.SetDeadline(time.Time{})
	}
	for _, answered := range a.waiting {
		close(answered)
	}
	a.waiting = nil
}

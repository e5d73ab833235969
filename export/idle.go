package export

import (
	"sync"
	"time"
)

// idleChecks of a client that asks nothing and is owed nothing, an equal time apart, end its connection.
const idleChecks = 8

// idleWatch ends a connection that is not used. It costs a used one nothing: the watch looks whether
// the client was heard since it last looked.
type idleWatch struct {
	mu    sync.Mutex
	t     *transmission // guarded by mu, as what follows
	limit time.Duration // 0: off
	timer *time.Timer
	seen  uint64
	quiet int // looks in a row that saw nothing new
}

// set begins to watch t with another limit, or ends it with 0.
func (w *idleWatch) set(t *transmission, limit time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
	w.t, w.limit, w.timer, w.seen, w.quiet = t, limit, nil, t.heard.Load(), 0
	if limit > 0 {
		w.timer = time.AfterFunc(w.pause(), w.look)
	}
}

func (w *idleWatch) pause() time.Duration { return max(w.limit/idleChecks, time.Millisecond) }

func (w *idleWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer == nil { // ended meanwhile
		return
	}
	heard := w.t.heard.Load()
	if heard != w.seen || w.t.owes() {
		w.seen, w.quiet = heard, 0
	} else {
		w.quiet++
	}
	if w.quiet >= idleChecks {
		w.t.log.Info("client disconnected: it asked nothing", "idle", w.limit)
		w.t.drain()
		return
	}
	w.timer.Reset(w.pause())
}

// owes tells whether the client waits for something.
func (t *transmission) owes() bool {
	t.sender.mu.Lock()
	defer t.sender.mu.Unlock()
	return t.sender.started > 0 || len(t.sender.queue) > 0 || t.sender.writing
}

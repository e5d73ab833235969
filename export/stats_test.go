package export

import (
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// serverStats counts what a Server tells.
type serverStats struct {
	panics atomic.Int64

	mu      sync.Mutex
	results map[string]int // guarded by mu
}

func (s *serverStats) Panicked() { s.panics.Add(1) }

func (s *serverStats) HandshakeDone(result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.results == nil {
		s.results = make(map[string]int)
	}
	s.results[result]++
}

func (s *serverStats) told() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.results)
}

// TestHandshakeStats ends a handshake in every way that there is.
func TestHandshakeStats(t *testing.T) {
	for want, tc := range map[string]struct {
		limits Limits
		client func(fx *fixture)
	}{
		"ok":      {client: func(fx *fixture) { fx.ready("disk") }},
		"aborted": {client: func(fx *fixture) { c := fx.greeted(); c.option(optAbort, nil); c.get(nbdwire.OptionReplyLen) }},
		"lost":    {client: func(fx *fixture) { _ = fx.greeted().Close() }},
		"timeout": {limits: Limits{Handshake: 20 * time.Millisecond}, client: func(fx *fixture) { fx.dial() }},
		"error": {client: func(fx *fixture) {
			c := fx.greeted()
			c.option(nbdwire.OptExportName, []byte("none"))
			c.wantClosed()
		}},
	} {
		t.Run(want, func(t *testing.T) {
			stats := &serverStats{}
			fx := start(t, Options{Exports: oneExport(&fakeFile{data: pattern()[:4096]}), Limits: tc.limits, Stats: stats})
			tc.client(fx)
			waitFor(t, "the handshake to be counted", func() bool { return len(stats.told()) > 0 })
			if got := stats.told(); !maps.Equal(got, map[string]int{want: 1}) {
				t.Errorf("got %v, want one %s", got, want)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		stats := &serverStats{}
		fx := start(t, Options{Exports: oneExport(&fakeFile{data: pattern()[:4096]}), Limits: Limits{Handshakes: 1}, Stats: stats})
		first := fx.dial()
		first.get(nbdwire.GreetingLen)
		fx.ready("disk")
		waitFor(t, "both handshakes to be counted", func() bool { return maps.Equal(stats.told(), map[string]int{"ok": 1, "refused": 1}) })
	})
}

// TestInFlight holds reads back and counts them while they wait.
func TestInFlight(t *testing.T) {
	data, hold := pattern()[:4096], make(chan struct{})
	fx := start(t, Options{Exports: oneExport(&fakeFile{data: data, async: true, hold: hold})})
	if got := fx.server.InFlight(); len(got) != 0 {
		t.Errorf("without a client: %v", got)
	}
	var clients []*rawConn
	for range 2 {
		c := fx.ready("disk")
		for i := range 5 {
			c.put(readRequest(uint64(i), 0, 512))
		}
		clients = append(clients, c)
	}
	waitFor(t, "ten requests in flight", func() bool { return fx.server.InFlight()["disk"] == 10 })
	close(hold)
	for _, c := range clients {
		for range 5 {
			if _, errno := c.answer(); errno != 0 {
				t.Fatalf("errno %d", errno)
			}
			c.get(512)
		}
	}
	waitFor(t, "none in flight", func() bool { n, there := fx.server.InFlight()["disk"]; return there && n == 0 })
}

package kernelnbd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// listenUnix answers one client after the other with a greeting and fixed bytes, whatever they say.
func listenUnix(t *testing.T, answers [][]byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var all []net.Conn
	go func() {
		defer close(ended)
		for _, a := range answers {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all = append(all, c)
			_, _ = c.Write(append(nbdwire.AppendGreeting(nil, nbdwire.FlagFixedNewstyle|nbdwire.FlagNoZeroes), a...))
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
		for _, c := range all {
			_ = c.Close()
		}
		_ = os.RemoveAll(dir)
	})
	return path
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte(s))
}

// watching attaches device 0 and watches it; ended gives what Run returned.
func watching(t *testing.T, ctx context.Context, s *server) (k *fake, kernel *Kernel, log *lockedBuffer, ended chan error) {
	t.Helper()
	k, kernel = newFake(t)
	w, err := kernel.Subscribe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	o := Options{Connections: 3}
	a, err := kernel.Attach(ctx, 0, s.target, o)
	if err != nil {
		t.Fatal(err)
	}
	log = new(lockedBuffer)
	ended = make(chan error, 1)
	go func() {
		ended <- w.Run(ctx, a, s.target, o, slog.New(slog.NewTextHandler(log, nil)))
	}()
	return k, kernel, log, ended
}

// TestWatch: the server goes and comes back, twice; news of other devices and nonsense change nothing.
func TestWatch(t *testing.T) {
	s := newServer(t)
	k, kernel, log, ended := watching(t, t.Context(), s)
	k.mu.Lock()
	k.tell([]byte("nonsense"))
	k.tell(datagram(fakeFamily, 0, slices.Concat([]byte{4, 1, 0, 0}, attr(1, u32(1)))))
	k.tell(datagram(fakeFamily, 0, []byte{4, 1, 0, 0}))
	k.tell(datagram(fakeFamily, 0, []byte{4}))
	k.mu.Unlock()
	for range 2 {
		before := log.count("can't be reached")
		s.stop()
		k.cut(0)
		waitFor(t, "an attempt that fails", func() bool { return log.count("can't be reached") > before })
		s.start(1000)
		waitFor(t, "three connections live", func() bool { return k.alive(0) == 3 })
		readsBack(t, k.devices[0].sockets[2])
	}
	if _, err := kernel.Detach(t.Context(), 0, false); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("after detach: %v", err)
	}
	if n := k.count(cmdConnect); n != 1 {
		t.Errorf("CONNECT sent %d times", n)
	}
}

// TestWatchOtherSize: a server that comes back with another file is not put behind the device.
func TestWatchOtherSize(t *testing.T) {
	s := newServer(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	k, _, log, ended := watching(t, ctx, s)
	s.stop()
	s.start(2000)
	k.cut(0)
	waitFor(t, "the change is told", func() bool { return log.count("has changed") > 0 })
	if k.alive(0) != 0 {
		t.Errorf("%d connections live", k.alive(0))
	}
	cause := errors.New("enough")
	cancel(cause)
	if err := <-ended; !errors.Is(err, cause) {
		t.Errorf("after the context's end: %v", err)
	}
}

// TestWatchDetachedWhileDown: nobody waits for a server whose device has gone.
func TestWatchDetachedWhileDown(t *testing.T) {
	s := newServer(t)
	k, kernel, log, ended := watching(t, t.Context(), s)
	s.stop()
	k.cut(0)
	waitFor(t, "an attempt that fails", func() bool { return log.count("can't be reached") > 0 })
	if _, err := kernel.Detach(t.Context(), 0, false); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("after detach: %v", err)
	}
}

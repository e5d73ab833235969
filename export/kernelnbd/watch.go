package kernelnbd

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/btrexport/btrexport/export/nbdclient"
)

const (
	// firstRetry and lastRetry bound the pause between attempts to reach the server.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
	// lookTime is how often it is checked that the device is still ours: the kernel does not tell of its end.
	lookTime = time.Second
)

// errDetached is the end of a device, or its going to another backend.
var errDetached = errors.New("detached")

// Watcher replaces the connections of a device that die, from the moment of Subscribe on.
type Watcher struct {
	kernel *Kernel
	conn   *conn
}

// Subscribe listens to the kernel's news of dead connections. Call it before Attach, so that none is missed.
func (k *Kernel) Subscribe(ctx context.Context) (*Watcher, error) {
	c, err := k.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.join(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return &Watcher{kernel: k, conn: c}, nil
}

// Close ends the subscription.
func (w *Watcher) Close() error { return w.conn.close() }

// Run waits for connections of a to die and makes new ones as soon as the server answers again, however
// long that takes. It returns nil when the device is detached or has gone to another backend, else the
// error that ended it, such as ctx's cause. a is what Attach has returned for t and o.
func (w *Watcher) Run(ctx context.Context, a *Attached, t nbdclient.Target, o Options, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dead := make(chan struct{}, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cancel(w.listen(ctx, a.Index, dead))
	}()
	err := w.heal(ctx, a, t, o, log, dead)
	cancel(err)
	<-ended
	if errors.Is(err, errDetached) {
		return nil
	}
	return err
}

// listen puts a token into dead for every connection of the device that dies; one that lies there is enough.
func (w *Watcher) listen(ctx context.Context, index int, dead chan<- struct{}) error {
	for {
		i, err := w.conn.linkDead(ctx)
		if err != nil {
			return err
		}
		if i != index && i >= 0 {
			continue
		}
		select {
		case dead <- struct{}{}:
		default:
		}
	}
}

func (w *Watcher) heal(ctx context.Context, a *Attached, t nbdclient.Target, o Options, log *slog.Logger, dead <-chan struct{}) error {
	look := time.NewTicker(lookTime)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
			if err := w.ours(a); err != nil {
				return err
			}
		case <-dead:
			if err := w.ours(a); err != nil {
				return err
			}
			log.Warn("connection lost", "device", a.Device, "uri", a.Backend)
			if err := w.reconnect(ctx, a, t, o, log, dead); err != nil {
				return err
			}
			log.Info("reconnected", "device", a.Device, "uri", a.Backend)
		}
	}
}

// ours is errDetached when the device has no backend any more, or another one.
func (w *Watcher) ours(a *Attached) error {
	s, err := w.kernel.state(a.Index)
	if err == nil && (s.pid == 0 || s.backend != a.Backend) {
		err = errDetached
	}
	return err
}

// reconnect tries until the server has answered and the kernel has taken the connections. An error that
// repeats itself is logged once.
func (w *Watcher) reconnect(ctx context.Context, a *Attached, t nbdclient.Target, o Options, log *slog.Logger, dead <-chan struct{}) error {
	logged := ""
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		select {
		case <-dead: // died before this attempt, which replaces all that are dead
		default:
		}
		_, err := w.kernel.attach(ctx, a.Index, t, o, false)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err := w.ours(a); err != nil {
			return err
		}
		if err.Error() != logged {
			logged = err.Error()
			log.Warn("server can't be reached, trying on", "device", a.Device, "uri", a.Backend, "err", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

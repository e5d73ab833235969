package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/btrexport/btrexport/configs"
)

// hangup serves one SIGHUP. What is wrong with the new configuration is told in one line, and the old one stays.
func (s *server) hangup(ctx context.Context, env runEnv) {
	if env.file == "" {
		s.log.Warn("SIGHUP: there is no configuration file to load again (serve with -c FILE)")
		return
	}
	s.notifyReloading()
	defer s.notifyReady()
	if err := s.reload(ctx, env.load); err != nil {
		s.reg.Reloaded(false)
		all := each(err)
		args := []any{"err", printable(withRemedy(all[0]))}
		if len(all) > 1 {
			args = append(args, "more", len(all)-1)
		}
		s.log.Error("reload refused, the old configuration stays", args...)
		return
	}
	s.reg.Reloaded(true)
}

// reload puts a new configuration in the place of the old one. Everything is opened and bound before anything
// changes; an error means that nothing has.
func (s *server) reload(ctx context.Context, load func() (*configs.Config, error)) error {
	c, err := load()
	if err != nil {
		return err
	}
	before := s.site
	next, err := s.openNext(ctx, c)
	if err != nil {
		return err
	}
	added, newMetrics, err := s.rebind(ctx, c)
	if err == nil {
		err = s.exchange(ctx, c, next, added, newMetrics)
	}
	if err != nil {
		next.forget(before, s.reg)
		_ = next.close(before)
	}
	return err
}

// openNext opens what c names beside what is open already. Filesystems that were written to are opened anew. If
// that fails, not for this is a configuration refused: they stay as they are.
func (s *server) openNext(ctx context.Context, c *configs.Config) (*site, error) {
	before := s.site
	before.moved = nil // of a reload that was refused
	before.moved = s.findMoved(ctx, c)
	next, err := openSite(ctx, c, s.reg, s.log, before)
	if err == nil || len(before.moved) == 0 {
		return next, err
	}
	before.moved = nil
	next, still := openSite(ctx, c, s.reg, s.log, before)
	if still == nil {
		s.log.Warn("filesystems were written to and can't be opened anew: they stay as they were", "err", printable(withRemedy(each(err)[0])))
	}
	return next, still
}

// moveWait bounds the look at superblocks of disks that may not answer.
const moveWait = 5 * time.Second

// findMoved gives the filesystems of c that were written to since they were opened. Those of which a client has an
// export stay as they are: all connections of an export see one content.
func (s *server) findMoved(ctx context.Context, c *configs.Config) []*siteFS {
	ctx, cancel := context.WithTimeout(ctx, moveWait)
	defer cancel()
	moved := make([]*siteFS, len(c.Filesystems))
	var looks sync.WaitGroup
	for i := range c.Filesystems {
		if f := s.site.filesystem(c.Filesystems[i]); f != nil {
			looks.Go(func() {
				if s.hasMoved(ctx, f) {
					moved[i] = f
				}
			})
		}
	}
	looks.Wait()
	return slices.DeleteFunc(moved, func(f *siteFS) bool { return f == nil })
}

func (s *server) hasMoved(ctx context.Context, f *siteFS) bool {
	generation, moved, err := f.Moved(ctx)
	if err != nil {
		s.log.Warn("whether the filesystem was written to is not known", "fs", f.name, "err", err)
		return false
	}
	if !moved {
		return false
	}
	for _, x := range s.site.exports {
		if x.fs == f && s.nbd.InUse(x.nbd) {
			s.log.Warn("the filesystem was written to, and stays as it was opened while clients use it: reload again when they have left",
				"fs", f.name, "export", x.Name, "generation", f.Info().Generation, "newest", generation)
			return false
		}
	}
	return true
}

// rebind binds the addresses that are new, and looks whether sockets that stay can have the owner that they are to have.
func (s *server) rebind(ctx context.Context, c *configs.Config) ([]*listener, *metricsListener, error) {
	all := c.Listen
	if c.Metrics != nil {
		all = append(slices.Clip(all), *c.Metrics)
	}
	for _, l := range all {
		if err := socketFile(l).Check(); err != nil {
			return nil, nil, place(l.Pos, fmt.Errorf("listen %s: %w", l.String(), err))
		}
	}
	added, err := s.bind(ctx, c.Listen, nil)
	if err != nil {
		return nil, nil, err
	}
	m := s.metrics
	if m == nil || c.Metrics == nil || m.config.String() != c.Metrics.String() {
		m, err = s.bindMetrics(ctx, c.Metrics, nil)
	}
	if err != nil {
		for _, l := range added {
			_ = l.Close()
			s.reg.RemoveListener(l.config.String())
		}
		return nil, nil, err
	}
	return added, m, nil
}

// exchange changes over. What could fail has been done, but for the server's own check of its options.
func (s *server) exchange(ctx context.Context, c *configs.Config, next *site, added []*listener, m *metricsListener) error {
	leaving, err := s.nbd.Update(next.options(c.Limits, s.reg, s.log))
	if err != nil {
		for _, l := range added {
			_ = l.Close()
			s.reg.RemoveListener(l.config.String())
		}
		if m != nil && m != s.metrics {
			_ = m.Shutdown(ctx)
		}
		return err
	}
	before := s.site
	s.site, s.drain = next, c.Limits.Drain
	tuneMemory(c)
	s.changeListeners(c, added)
	s.tellSite(before)
	next.watch(s.reg)
	s.changeMetrics(ctx, m, c.Metrics)
	s.log.Info("reloaded", "file", c.File, "exports", len(next.exports), "filesystems", len(next.filesystems), "leaving", leaving.Len())
	s.retire(ctx, before, leaving.Wait)
	return nil
}

// changeListeners starts those that are new, ends those that are gone, and gives sockets that stay their owner.
func (s *server) changeListeners(c *configs.Config, added []*listener) {
	var kept, gone []*listener
	for _, l := range s.listeners {
		i := slices.IndexFunc(c.Listen, func(n configs.Listen) bool { return n.String() == l.config.String() })
		if i < 0 {
			gone = append(gone, l)
			continue
		}
		s.own(l.config, c.Listen[i])
		l.config = c.Listen[i]
		kept = append(kept, l)
	}
	s.mu.Lock()
	s.listeners = append(kept, added...)
	s.mu.Unlock()
	for _, l := range added {
		s.accept(l)
	}
	for _, l := range gone {
		l.stop()
		_ = l.Close()
		s.reg.RemoveListener(l.config.String())
		s.log.Info("listens no more", "addr", l.config.String())
	}
}

// own gives a socket that stays the permissions and the owner that it is to have now.
func (s *server) own(before, now configs.Listen) {
	f := socketFile(now)
	if now.Network != "unix" || f == socketFile(before) {
		return
	}
	if err := f.Apply(now.Address); err != nil {
		s.log.Error("the socket keeps its permissions", "addr", now.String(), "err", err)
	}
}

// changeMetrics puts m, which serves on c, in the place of the listener of the metrics; it may be the same one.
func (s *server) changeMetrics(ctx context.Context, m *metricsListener, c *configs.Listen) {
	old := s.metrics
	if m == old {
		if m != nil {
			s.own(m.config, *c)
			m.config = *c
		}
		return
	}
	s.metrics = m
	if m != nil {
		s.acceptMetrics(m)
	}
	if old != nil {
		ctx, cancel := context.WithTimeout(ctx, s.drain)
		defer cancel()
		if err := old.Shutdown(ctx); err != nil {
			s.log.Debug("metrics", "err", err)
		}
	}
}

// retire waits for the connections that have to leave, within the drain's time, then closes what they alone
// used. When the server is told to end meanwhile, its own drain waits for them.
func (s *server) retire(ctx context.Context, before *site, wait func(context.Context) error) {
	bounded, cancel := context.WithTimeout(context.Background(), s.drain)
	left := make(chan error, 1)
	go func() {
		defer cancel()
		left <- wait(bounded)
	}()
	select {
	case err := <-left:
		if err != nil {
			s.log.Warn("drain ended by its timeout", "err", err)
		}
	case <-ctx.Done():
		s.retired = append(s.retired, before)
		return
	}
	if err := before.close(s.site); err != nil && !errors.Is(err, context.Canceled) {
		s.log.Warn("devices", "err", err)
	}
	before.forget(s.site, s.reg)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/btrexport/btrexport/configs"
	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/volume"
	"github.com/btrexport/btrexport/metrics"
)

// poolRetain bounds the free buffers that the process keeps for reads, in bytes.
const poolRetain = 64 << 20

// closeWait bounds how long a site's end waits for disks that do not answer.
const closeWait = 3 * time.Second

// site is what a configuration names, opened: filesystems and exports. It has no addresses yet.
type site struct {
	pool        *devio.Pool
	filesystems []*siteFS
	exports     []*siteExport // in the order of the configuration
}

// siteFS is one open filesystem.
type siteFS struct {
	*fsread.FS
	name string // the configuration's, or else the label or uuid
	took time.Duration
}

// siteExport is one export's file.
type siteExport struct {
	configs.Export
	fs     *siteFS
	subvol uint64
	file   *fsread.File
}

// openSite opens all that c names. Every mistake is told, not only the first, each with its place.
func openSite(ctx context.Context, c *configs.Config, reg *metrics.Registry, log *slog.Logger) (*site, error) {
	s := &site{pool: devio.NewPool(poolRetain)}
	var errs []error
	open := make(map[string]*siteFS)
	for i := range c.Filesystems {
		f, err := s.openFS(ctx, &c.Filesystems[i], reg, log)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		open[c.Filesystems[i].Name] = f
		s.filesystems = append(s.filesystems, f)
	}
	for _, e := range c.Exports {
		f := open[e.Filesystem]
		if f == nil {
			continue // its error is told already
		}
		x, err := openExport(ctx, f, e)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.exports = append(s.exports, x)
	}
	if len(errs) > 0 {
		s.close()
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// place puts file and line before an error. A flag's value stands in the error itself.
func place(p configs.Pos, err error) error {
	if p.Flag != "" || p.File == "" {
		return err
	}
	return p.Errorf("%w", err)
}

func (s *site) openFS(ctx context.Context, c *configs.Filesystem, reg *metrics.Registry, log *slog.Logger) (*siteFS, error) {
	start := time.Now()
	devs, err := openConfigured(c, log)
	if err != nil {
		return nil, err
	}
	f := &siteFS{name: c.Name}
	if err := s.openOn(ctx, f, c, devs, reg, log); err != nil {
		closeDevices(devs)
		return nil, place(c.Pos, err)
	}
	f.took = time.Since(start)
	return f, nil
}

// openConfigured opens the devices; each that fails is told with its own line.
func openConfigured(c *configs.Filesystem, log *slog.Logger) ([]volume.Device, error) {
	var set deviceSet
	var errs []error
	for _, d := range c.Devices {
		if err := set.open(d.Path, devio.Options{Workers: c.Workers, Buffered: !c.DirectIO, Log: log}, log); err != nil {
			errs = append(errs, place(d.Pos, err))
		}
	}
	return set.devices(errs)
}

// openOn assembles the filesystem, with its statistics under its name.
func (s *site) openOn(ctx context.Context, f *siteFS, c *configs.Filesystem, devs []volume.Device, reg *metrics.Registry, log *slog.Logger) error {
	allow := "allow_mounted: true"
	if c.Pos.File == "" {
		allow = "--allow-mounted"
	}
	changing, err := mounted(devs, c.AllowMounted, allow, log)
	if err != nil {
		return err
	}
	if f.name == "" {
		set, err := volume.Scan(ctx, s.pool, devs, c.Degraded)
		if err != nil {
			return err
		}
		f.name = labelOrUUID(set.Super.Label, set.Super.FSID.String())
	}
	stats := reg.Filesystem(f.name)
	f.FS, err = fsread.Open(ctx, devs, fsread.Options{
		Degraded: c.Degraded, Changing: changing, IgnoreLog: c.IgnoreLog, SlowRead: c.SlowRead,
		Root: fsread.RootChoice{Generation: c.Generation, Slot: c.BackupRoot}, CacheBytes: c.Cache, Pool: s.pool, Stats: stats,
		Device: func(devid uint64) devio.Stats { return stats.Device(devid) },
		Log:    log.With("fs", f.name),
	})
	if err != nil {
		return err
	}
	for _, d := range f.Info().Devices {
		stats.Device(uint64(d.DevID)) // missing ones too: their counters begin at zero
	}
	return nil
}

// labelOrUUID names a filesystem. A label may hold any bytes; one that a metric's label can't hold, or
// that would be no name to read, does not count.
func labelOrUUID(label, uuid string) string {
	if label == "" || !harmless(label) {
		return uuid
	}
	return label
}

// openExport resolves an export's file.
func openExport(ctx context.Context, f *siteFS, e configs.Export) (*siteExport, error) {
	if e.RoundUp > export.MaxRead {
		return nil, e.Pos.Errorf("export %q: round_up of %d bytes is above %d (write 512 or 4096)", e.Name, e.RoundUp, export.MaxRead)
	}
	sv, err := subvolume(ctx, f.FS, e.Subvol, e.SubvolID)
	if err != nil {
		return nil, place(e.SubvolPos, err)
	}
	n, err := sv.Resolve(ctx, e.Path)
	if err != nil {
		return nil, e.PathPos.Errorf("%w", err)
	}
	file, err := n.File()
	if err != nil {
		return nil, e.PathPos.Errorf("%w", &fsread.PathError{Path: e.Path, Err: err})
	}
	return &siteExport{Export: e, fs: f, subvol: n.Subvolume().ID(), file: file}, nil
}

// odd says that some clients do not see the file's last bytes.
func (x *siteExport) odd() bool { return x.RoundUp == 0 && x.file.Size()%512 != 0 }

// served is the export as the server wants it.
func (x *siteExport) served(reg *metrics.Registry) export.Export {
	return export.Export{Name: x.Name, Description: x.Description, File: export.NewFile(x.file), RoundUp: uint32(x.RoundUp), Stats: reg.Export(x.Name)}
}

// close closes the filesystems. A disk that does not answer keeps its read for ever, and nobody waits
// for that: the error says so.
func (s *site) close() error {
	done := make(chan error, 1)
	go func() {
		var errs []error
		for _, f := range s.filesystems {
			errs = append(errs, f.Close())
		}
		s.pool.Close()
		done <- errors.Join(errs...)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(closeWait):
		return fmt.Errorf("close devices: no answer in %v: %w", closeWait, os.ErrDeadlineExceeded)
	}
}

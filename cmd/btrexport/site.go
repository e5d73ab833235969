package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/btrexport/btrexport/configs"
	"github.com/btrexport/btrexport/devio"
	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/fsread/ondisk"
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
	tls         export.TLS
	moved       []*siteFS // not to be shared with a next site: what is on their devices is newer
}

// siteFS is one open filesystem.
type siteFS struct {
	*fsread.FS
	name   string // the configuration's, or else the label or uuid
	config configs.Filesystem
	errors map[devio.DevID]ondisk.DevErrors // that the kernel noted; of some devices if not all could be read
	took   time.Duration

	engine  devio.Engine // that reads the devices
	refused error        // why it is not io_uring although that was tried
}

// siteExport is one export's file.
type siteExport struct {
	configs.Export
	fs     *siteFS
	subvol uint64
	file   *fsread.File
	nbd    export.File // of file; the same one as long as the export serves the same
}

// openSite opens all that c names. Every mistake is told, not only the first, each with its place. What c has
// in common with before, which may be nil, is shared with it: its close must leave that open.
func openSite(ctx context.Context, c *configs.Config, reg *metrics.Registry, log *slog.Logger, before *site) (*site, error) {
	s, keep := &site{}, before
	if before == nil {
		before = &site{pool: devio.NewPool(poolRetain)}
	}
	s.pool = before.pool
	var errs []error
	var err error
	if s.tls, err = loadTLS(&c.TLS, log); err != nil {
		errs = append(errs, err)
	}
	open := make(map[string]*siteFS)
	for i := range c.Filesystems {
		f := before.filesystem(c.Filesystems[i])
		if f == nil {
			f, err = s.openFS(ctx, &c.Filesystems[i], reg, log)
		}
		if f == nil {
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
		x := before.export(f, e)
		if x == nil {
			x, err = openExport(ctx, f, e)
		}
		if x == nil {
			errs = append(errs, err)
			continue
		}
		s.exports = append(s.exports, x)
	}
	if len(errs) > 0 {
		s.forget(before, reg)
		_ = s.close(keep)
		return nil, errors.Join(errs...)
	}
	return s, nil
}

// filesystem gives the open filesystem of the same configuration, nil if there is none or it is one of moved. One
// whose name is its label has no name to find it by.
func (s *site) filesystem(c configs.Filesystem) *siteFS {
	for _, f := range s.filesystems {
		if c.Name != "" && f.config.SameAs(c) && !slices.Contains(s.moved, f) {
			return f
		}
	}
	return nil
}

// export gives e with the open file that s serves under its name, nil if that is another one.
func (s *site) export(f *siteFS, e configs.Export) *siteExport {
	for _, x := range s.exports {
		if x.Name == e.Name && x.fs == f && x.SameFile(e) {
			return &siteExport{Export: e, fs: f, subvol: x.subvol, file: x.file, nbd: x.nbd}
		}
	}
	return nil
}

// loadTLS reads the certificates. Errors have the place of the file's name.
func loadTLS(c *configs.TLS, log *slog.Logger) (export.TLS, error) {
	t := export.TLS{Mode: export.TLSMode(c.Mode)}
	if t.Mode == export.TLSOff {
		return t, nil
	}
	var err error
	t.Config, err = export.NewTLSConfig(c.Certificate, c.Key, c.ClientCA)
	var file *export.TLSFileError
	if errors.As(err, &file) {
		what, pos := "client_ca", c.ClientCAPos
		switch file.Path {
		case c.Key:
			what, pos = "key", c.KeyPos
		case c.Certificate:
			what, pos = "certificate", c.CertificatePos
		}
		return t, pos.Errorf("tls %s %w", what, err)
	}
	if leaf := t.Config.Certificates[0].Leaf; time.Now().After(leaf.NotAfter) {
		log.Warn("the certificate has expired: clients will refuse it", "path", c.Certificate, "expired", leaf.NotAfter.Format(time.RFC3339))
	}
	return t, nil
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
	set, devs, err := openConfigured(c, log)
	if err != nil {
		return nil, err
	}
	f := &siteFS{name: c.Name, config: *c}
	f.engine, f.refused = set.engine()
	if err := s.openOn(ctx, f, c, devs, reg, log); err != nil {
		closeDevices(devs)
		return nil, place(c.Pos, err)
	}
	f.took = time.Since(start)
	return f, nil
}

// openConfigured opens the devices; each that fails is told with its own line.
func openConfigured(c *configs.Filesystem, log *slog.Logger) (set deviceSet, devs []volume.Device, err error) {
	engine, err := devio.ParseEngine(c.IOEngine)
	if err != nil {
		return nil, nil, place(c.Pos, err)
	}
	var errs []error
	for _, d := range c.Devices {
		if err := set.open(d.Path, devio.Options{Workers: c.Workers, Buffered: !c.DirectIO, Engine: engine, Log: log}, log); err != nil {
			errs = append(errs, place(d.Pos, err))
		}
	}
	devs, err = set.devices(errs)
	return set, devs, err
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
	if f.errors, err = f.DeviceErrors(ctx); err != nil {
		log.Warn("what errors the kernel noted of the devices is not known", "fs", f.name, "err", err)
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
	return &siteExport{Export: e, fs: f, subvol: n.Subvolume().ID(), file: file, nbd: export.NewFile(file)}, nil
}

// odd says that some clients do not see the file's last bytes.
func (x *siteExport) odd() bool { return x.RoundUp == 0 && x.file.Size()%512 != 0 }

// secret tells whether only clients under TLS may use x.
func (s *site) secret(x *siteExport) bool {
	return x.TLS == "require" || x.TLS == "" && s.tls.Mode == export.TLSRequire
}

// options are what the server serves, under these limits.
func (s *site) options(l configs.Limits, reg *metrics.Registry, log *slog.Logger) export.Options {
	o := export.Options{Log: log, Stats: reg, TLS: s.tls, Limits: export.Limits{Connections: l.Connections,
		PerAddress: l.ConnectionsPerAddress, Handshake: l.Handshake, Idle: l.Idle}}
	for _, x := range s.exports {
		o.Exports = append(o.Exports, export.Export{Name: x.Name, Description: x.Description, File: x.nbd, RoundUp: uint32(x.RoundUp),
			Stats: reg.Export(x.Name), TLS: export.TLSMode(x.TLS), Allow: export.Access(x.Allow)})
	}
	return o
}

// close closes the filesystems but those that keep, which may be nil, has too; without keep the buffers
// as well. A disk that does not answer keeps its read for ever, and nobody waits for that: the error says so.
func (s *site) close(keep *site) error {
	done := make(chan error, 1)
	go func() {
		var errs []error
		for _, f := range s.filesystems {
			if keep == nil || !slices.Contains(keep.filesystems, f) {
				errs = append(errs, f.Close())
			}
		}
		if keep == nil {
			s.pool.Close()
		}
		done <- errors.Join(errs...)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(closeWait):
		return fmt.Errorf("close devices: no answer in %v: %w", closeWait, os.ErrDeadlineExceeded)
	}
}

// forget drops the series of what s names and keep does not.
func (s *site) forget(keep *site, reg *metrics.Registry) {
	for _, f := range s.filesystems {
		if !slices.ContainsFunc(keep.filesystems, func(o *siteFS) bool { return o.name == f.name }) {
			reg.RemoveFilesystem(f.name)
		}
	}
	for _, x := range s.exports {
		if !slices.ContainsFunc(keep.exports, func(o *siteExport) bool { return o.Name == x.Name }) {
			reg.RemoveExport(x.Name)
		}
	}
}

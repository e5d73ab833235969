package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/btrexport/btrexport/configs"
	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/fsread"
	"github.com/btrexport/btrexport/metrics"
)

// serveFlags are the flags of serve as they were given.
type serveFlags struct {
	deviceFlags
	config, metrics, run string
	exports, listen      []string
	drain                time.Duration
	drainGiven           bool
}

func (a *app) serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve {-c FILE | -d DEVICE... -e NAME=PATH...} [-l LISTEN]...",
		Short: "Serve files over NBD, read-only",
		Long: "serve opens the filesystems, finds every export's file, and only then listens. It logs one line with msg=serving and the " +
			"address for each address that it accepts on. SIGTERM and SIGINT let reads in flight finish, then exit 0; a second one exits at once.\n\n" +
			"With --run it serves on a private socket while CMD runs (by sh -c, with $uri, $nbd and $unixsocket of the first export), and exits with CMD's status.\n\n" + exitHelp,
		Example: "  btrexport serve -d disk.img -e vm1=/vm1.raw -l unix:///run/vm1.sock\n" +
			"  btrexport serve -d disk.img -e vm1=/vm1.raw --run 'qemu-img info \"$uri\"'",
		Args: arguments(0, 0, "no argument"),
	}
	f.add(cmd)
	f.addSubvol(cmd)
	p := cmd.Flags()
	p.StringVarP(&f.config, "config", "c", "", "configuration file (default: BTREXPORT_CONFIG)")
	p.StringArrayVarP(&f.exports, "export", "e", nil, "NAME=PATH: serve the file PATH as NAME; repeat for more")
	p.StringArrayVarP(&f.listen, "listen", "l", nil, "unix:///path or tcp://host[:port]; repeat for more (default: "+configs.DefaultListen+")")
	p.StringVar(&f.metrics, "metrics", "", "HOST:PORT to serve Prometheus metrics on")
	p.StringVar(&f.run, "run", "", "serve on a private socket while this command runs")
	p.DurationVar(&f.drain, "drain-timeout", configs.DefaultDrain, "how long reads in flight may take after SIGTERM")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f.drainGiven = cmd.Flags().Changed("drain-timeout")
		c, err := f.configuration()
		if err != nil {
			return err
		}
		return a.serve(cmd.Context(), c, f.run)
	}
	return cmd
}

// configuration makes one Config of flags, environment and file. What describes a filesystem stands either
// in the file or in flags; addresses and the drain may be overridden.
func (f *serveFlags) configuration() (*configs.Config, error) {
	describes := len(f.devices) > 0 || len(f.exports) > 0
	if f.config == "" && !describes {
		f.config = os.Getenv("BTREXPORT_CONFIG")
	}
	if f.run != "" && len(f.listen) > 0 {
		return nil, usagef("--run serves on a private socket of its own (leave out -l)")
	}
	if f.drain < 0 {
		return nil, usagef("--drain-timeout %v: is negative (write 0s or more)", f.drain)
	}
	c, err := f.load(describes)
	if err != nil {
		return nil, err
	}
	if f.drainGiven {
		c.Limits.Drain = f.drain
	}
	return c, nil
}

func (f *serveFlags) load(describes bool) (*configs.Config, error) {
	root, err := f.root()
	if err != nil {
		return nil, err
	}
	if f.config == "" {
		devices := f.devices
		if len(devices) == 0 {
			devices = splitDevices(os.Getenv("BTREXPORT_DEVICES"))
		}
		return configs.FromFlags(configs.Flags{Devices: devices, Exports: f.exports, Listen: f.listen, Metrics: f.metrics,
			Subvol: f.subvol, SubvolID: f.subvolID, Degraded: f.degraded, AllowMounted: f.allowMounted, IgnoreLog: f.ignoreLog,
			SlowRead: f.slowRead, Generation: root.Generation, BackupRoot: root.Slot})
	}
	if describes || f.subvol != "" || f.subvolID != 0 || f.degraded || f.allowMounted || f.ignoreLog || f.slowRead != 0 || root != (fsread.RootChoice{}) {
		return nil, usagef("-c %s describes the filesystems and exports itself (leave out -d, -e, --subvol, --subvolid, --degraded, --allow-mounted, --ignore-log, --slow-read, --generation and --backup-root, or leave out -c)", f.config)
	}
	c, err := configs.Load(f.config)
	if err != nil {
		return nil, err
	}
	return c, c.Override(f.listen, f.metrics)
}

// server is a site with its addresses, all of them bound.
type server struct {
	site      *site
	nbd       *export.Server
	log       *slog.Logger
	listeners []listener
	reg       *metrics.Registry
	metrics   *metrics.Server // nil: none
	drain     time.Duration
	failed    chan error // the first listener that broke
}

type listener struct {
	net.Listener
	stats *metrics.Listener
}

// serve serves until ctx ends by a signal, until the end of command, or until a listener breaks.
func (a *app) serve(ctx context.Context, c *configs.Config, command string) error {
	var undo undoing
	defer undo.all()
	defer exitOnSecondSignal(&undo)()
	tuneMemory(c)
	private := ""
	if command != "" {
		dir, err := os.MkdirTemp("", "btrexport-")
		if err != nil {
			return fmt.Errorf("create a directory for the private socket: %w", bare(err))
		}
		undo.add(func() { _ = os.RemoveAll(dir) })
		private = dir + "/nbd.sock"
		c.Listen = []configs.Listen{{Network: "unix", Address: private}}
	}
	s, err := newServer(ctx, c, a.log)
	if err != nil {
		return err
	}
	undo.add(s.closeListeners)
	defer s.outliveHangups()()
	s.start()
	if command != "" {
		err = s.runCommand(ctx, a, &undo, command, private)
	} else {
		select {
		case <-ctx.Done():
		case err = <-s.failed:
		}
	}
	s.stop()
	return err
}

// undoing is what must not stay behind: sockets and a directory.
type undoing struct {
	mu   sync.Mutex
	list []func() // guarded by mu
}

func (u *undoing) add(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.list = append(u.list, f)
}

// all undoes everything, the last first.
func (u *undoing) all() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range slices.Backward(u.list) {
		f()
	}
	u.list = nil
}

// exitOnSecondSignal ends the process at once when a second signal comes: the first one started a drain,
// and who sends another means it. The function that it returns ends the watch.
func exitOnSecondSignal(undo *undoing) (stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for range 2 {
			select {
			case <-signals:
			case <-done:
				return
			}
		}
		undo.all()
		os.Exit(exitFailed)
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// outliveHangups keeps SIGHUP, which is to reload the configuration one day, from ending the server with
// reads in flight. The function that it returns ends that.
func (s *server) outliveHangups() (stop func()) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-hangups:
				s.log.Warn("SIGHUP: reloading the configuration is not supported by this version (restart to change it)")
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(done)
	}
}

// newServer opens everything that c names, then binds every address. Nothing listens if anything is wrong.
func newServer(ctx context.Context, c *configs.Config, log *slog.Logger) (*server, error) {
	reg := metrics.New(metrics.Build{Version: thisBuild().Version, GoVersion: runtime.Version()})
	site, err := openSite(ctx, c, reg, log)
	if err != nil {
		return nil, err
	}
	s := &server{site: site, log: log, reg: reg, drain: c.Limits.Drain, failed: make(chan error, 1)}
	err = s.makeExports(c)
	if err == nil {
		err = s.listen(ctx, c)
	}
	if err != nil {
		s.closeListeners()
		site.close()
		return nil, err
	}
	return s, nil
}

func (s *server) makeExports(c *configs.Config) error {
	var list []export.Export
	for _, x := range s.site.exports {
		list = append(list, x.served(s.reg))
	}
	var err error
	s.nbd, err = export.NewServer(export.Options{Exports: list, Log: s.log,
		Limits: export.Limits{Connections: c.Limits.Connections, Handshake: c.Limits.Handshake}})
	return err
}

// listen binds every address, those of the metrics too.
func (s *server) listen(ctx context.Context, c *configs.Config) error {
	for _, l := range c.Listen {
		a, err := export.ParseAddress(l.String())
		if err != nil {
			return place(l.Pos, err)
		}
		nl, err := export.Listen(ctx, a)
		if err != nil {
			return place(l.Pos, err)
		}
		s.listeners = append(s.listeners, listener{Listener: nl, stats: s.reg.Listener(l.String())})
	}
	if c.Metrics == nil {
		return nil
	}
	address := c.Metrics.Address
	if c.Metrics.Network == "unix" {
		address = c.Metrics.String()
	}
	m, err := metrics.Listen(address, s.reg.Handler(), s.log)
	if err != nil {
		return place(c.Metrics.Pos, err)
	}
	s.metrics = m
	return nil
}

// start accepts on every address and says so.
func (s *server) start() {
	for _, f := range s.site.filesystems {
		i := f.Info()
		s.log.Info("opened", "fs", f.name, "devices", len(i.Devices), "generation", i.Generation, "degraded", i.Degraded(), "in", f.took.Round(time.Millisecond))
	}
	for _, x := range s.site.exports {
		s.log.Info("export", "name", x.Name, "size", x.file.Size(), "uri", export.AddressOf(s.listeners[0]).URI(x.Name))
		if x.odd() {
			s.log.Warn("size is no multiple of 512: the kernel's client does not see the last bytes (set round_up: 512)", "export", x.Name, "size", x.file.Size())
		}
	}
	for _, l := range s.listeners {
		go func() { s.fail(s.nbd.Serve(context.Background(), l.Listener, l.stats)) }()
		s.log.Info("serving", "addr", export.AddressOf(l).String())
	}
	// Before the first answer: all is open and bound by now, so that who is answered at all is told "ready".
	s.reg.SetReady(true, "")
	if s.metrics != nil {
		go func() { s.fail(s.metrics.Serve()) }()
		s.log.Info("serving", "addr", s.metrics.URL())
	}
}

// fail remembers the first listener that broke.
func (s *server) fail(err error) {
	if err == nil || errors.Is(err, export.ErrServerClosed) {
		return
	}
	select {
	case s.failed <- err:
	default:
	}
}

// stop drains: reads in flight may finish, until the drain's timeout.
func (s *server) stop() {
	s.reg.SetReady(false, "draining")
	s.log.Info("draining", "timeout", s.drain)
	ctx, cancel := context.WithTimeout(context.Background(), s.drain)
	defer cancel()
	if err := s.nbd.Shutdown(ctx); err != nil {
		s.log.Warn("drain ended by its timeout", "err", err)
	}
	if s.metrics != nil {
		if err := s.metrics.Shutdown(ctx); err != nil {
			s.log.Debug("metrics", "err", err)
		}
	}
	if err := s.site.close(); err != nil {
		s.log.Warn("devices", "err", err)
	}
	s.log.Info("stopped")
}

// closeListeners closes what is bound; the files of sockets go with it.
func (s *server) closeListeners() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
}

// tuneMemory keeps the garbage of the heap in proportion to what is cached: reads' buffers lie outside of
// it and have bounds of their own. GOMEMLIMIT, where it is set, knows better.
func tuneMemory(c *configs.Config) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	const rest = 64 << 20 // connections, metrics, garbage
	total := int64(rest)
	for _, f := range c.Filesystems {
		total += min(f.Cache+f.Cache/4, math.MaxInt64-total)
	}
	debug.SetMemoryLimit(total)
}

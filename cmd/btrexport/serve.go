package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	stdio                bool
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
			"address for each address that it accepts on. SIGTERM and SIGINT let reads in flight finish, then exit 0; a second one exits at once. " +
			"SIGHUP reads FILE and its certificates again: a bad one changes nothing, a good one ends no connection whose export is unchanged.\n\n" +
			"Sockets that are passed by LISTEN_FDS take the place of -l and of the file's listen; one named metrics serves those. NOTIFY_SOCKET is told " +
			"READY, RELOADING and STOPPING.\n\n" +
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
	p.StringArrayVarP(&f.listen, "listen", "l", nil, "unix:///path[?mode=0660&user=U&group=G] or tcp://host[:port]; repeat for more (default: "+configs.DefaultListen+")")
	p.StringVar(&f.metrics, "metrics", "", "HOST:PORT or unix:///path[?mode=0660&user=U&group=G] to serve Prometheus metrics on")
	p.StringVar(&f.run, "run", "", "serve on a private socket while this command runs")
	p.BoolVar(&f.stdio, "stdio", false, "serve one connection on standard input and output")
	p.DurationVar(&f.drain, "drain-timeout", configs.DefaultDrain, "how long reads in flight may take after SIGTERM")
	completeFlag(cmd, "export", f.exportFlag)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		f.drainGiven = cmd.Flags().Changed("drain-timeout")
		if err := f.check(); err != nil {
			return err
		}
		return a.serve(cmd.Context(), f.configuration, serveMode{command: f.run, stdio: f.stdio})
	}
	return cmd
}

// check refuses flags that exclude each other.
func (f *serveFlags) check() error {
	switch {
	case f.run != "" && len(f.listen) > 0:
		return usagef("--run serves on a private socket of its own (leave out -l)")
	case f.stdio && len(f.listen) > 0:
		return usagef("--stdio serves the one connection on standard input and output (leave out -l)")
	case f.stdio && f.run != "":
		return usagef("--stdio and --run are both given (keep one of the two)")
	case len(f.listen) > 0 && activated():
		return usagef("-l %s: the sockets are passed by LISTEN_FDS (leave out -l, or start without socket activation)", f.listen[0])
	case f.drain < 0:
		return usagef("--drain-timeout %v: is negative (write 0s or more)", f.drain)
	}
	return nil
}

// configuration makes one Config of flags, environment and file. What describes a filesystem stands either
// in the file or in flags; addresses and the drain may be overridden.
func (f *serveFlags) configuration() (*configs.Config, error) {
	describes := len(f.devices) > 0 || len(f.exports) > 0
	if f.config == "" && !describes {
		f.config = os.Getenv("BTREXPORT_CONFIG")
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
	if _, err := f.engine(); err != nil {
		return nil, err
	}
	if f.config == "" {
		devices := f.devices
		if len(devices) == 0 {
			devices = splitDevices(os.Getenv("BTREXPORT_DEVICES"))
		}
		return configs.FromFlags(configs.Flags{Devices: devices, Exports: f.exports, Listen: f.listen, Metrics: f.metrics,
			Subvol: f.subvol, SubvolID: f.subvolID, Degraded: f.degraded, AllowMounted: f.allowMounted, IgnoreLog: f.ignoreLog,
			SlowRead: f.slowRead, IOEngine: f.ioEngine, Generation: root.Generation, BackupRoot: root.Slot})
	}
	if describes || f.subvol != "" || f.subvolID != 0 || f.degraded || f.allowMounted || f.ignoreLog || f.slowRead != 0 || f.ioEngine != "" || root != (fsread.RootChoice{}) {
		return nil, usagef("-c %s describes the filesystems and exports itself (leave out -d, -e, --subvol, --subvolid, --degraded, --allow-mounted, --ignore-log, --slow-read, --io-engine, --generation and --backup-root, or leave out -c)", f.config)
	}
	c, err := configs.Load(f.config)
	if err != nil {
		return nil, err
	}
	return c, c.Override(f.listen, f.metrics)
}

// serveMode is what serve does beside listening.
type serveMode struct {
	command string // to run on a private socket; empty: none
	stdio   bool   // one connection on standard input and output, no address
}

// server is a site with its addresses, all of them bound. One goroutine uses it, but where it says so.
type server struct {
	site    *site
	nbd     *export.Server
	log     *slog.Logger
	reg     *metrics.Registry
	drain   time.Duration
	failed  chan error // the first listener that broke
	metrics *metricsListener
	retired []*site       // whose connections had not ended when the server was told to end
	pulse   chan struct{} // the main loop takes what the watchdog sends
	busy    atomic.Bool   // the main loop is at a reload or the drain; any goroutine may look

	mu        sync.Mutex
	listeners []*listener // guarded by mu: a second signal closes them from its own goroutine
}

type listener struct {
	net.Listener
	config configs.Listen
	stats  *metrics.Listener
	stop   context.CancelFunc // ends Serve; nil before start
}

type metricsListener struct {
	*metrics.Server
	config configs.Listen
}

// serve serves what load loads until ctx ends by a signal, until the end of mode's command or connection, or
// until a listener breaks. SIGHUP loads again.
func (a *app) serve(ctx context.Context, load func() (*configs.Config, error), mode serveMode) error {
	var undo undoing
	defer undo.all()
	defer exitOnSecondSignal(&undo)()
	hangups := make(chan os.Signal, 1) // one that comes while another is served loads once more
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	defer signal.Stop(asked)
	broken := make(chan os.Signal, 1) // else a log that nobody reads any more would end the process
	signal.Notify(broken, syscall.SIGPIPE)
	defer signal.Stop(broken)
	private, err := mode.privateSocket(&undo)
	if err != nil {
		return err
	}
	var conn net.Conn
	if mode.stdio {
		if conn, err = stdioConn(os.Stdin, os.Stdout); err != nil {
			return err
		}
	}
	passed, err := passedSockets(mode)
	if err != nil {
		return err
	}
	undo.add(passed.close)
	loadAll := func() (*configs.Config, error) {
		c, err := load()
		if err != nil {
			return nil, err
		}
		switch {
		case mode.stdio:
			c.Listen = nil
		case private != "":
			c.Listen = []configs.Listen{{Network: "unix", Address: private}}
		default:
			passed.replace(c)
		}
		return c, nil
	}
	c, err := loadAll()
	if err != nil {
		return err
	}
	s, err := newServer(ctx, c, a.log, passed)
	if err != nil {
		return err
	}
	undo.add(s.closeListeners)
	defer s.keepAlive()()
	err = s.run(ctx, a, mode, runEnv{undo: &undo, private: private, conn: conn, hangups: hangups, asked: asked, load: loadAll, file: c.File})
	s.busy.Store(true)
	s.stop()
	return err
}

// privateSocket makes the directory of the socket that a command finds.
func (m serveMode) privateSocket(undo *undoing) (string, error) {
	if m.command == "" {
		return "", nil
	}
	dir, err := os.MkdirTemp("", "btrexport-")
	if err != nil {
		return "", fmt.Errorf("create a directory for the private socket: %w", bare(err))
	}
	undo.add(func() { _ = os.RemoveAll(dir) })
	return dir + "/nbd.sock", nil
}

// runEnv is what run needs of serve.
type runEnv struct {
	undo    *undoing
	private string   // the command's socket
	conn    net.Conn // standard input and output
	hangups <-chan os.Signal
	asked   <-chan os.Signal // for the state
	load    func() (*configs.Config, error)
	file    string // of the configuration; empty: flags made it
}

// run serves until something ends it.
func (s *server) run(ctx context.Context, a *app, mode serveMode, env runEnv) error {
	ended := make(chan error, 1)
	stopped, failed := ctx.Done(), s.failed
	s.start()
	switch {
	case mode.command != "":
		stopped, failed = nil, nil // a signal ends the command, and that the server
		first := s.site.exports[0] // a reload does not change what the command is told
		c := command{text: mode.command, export: first.Name, uri: s.uri(first), socket: env.private}
		go func() { ended <- c.run(ctx, a, env.undo) }()
	case mode.stdio:
		go func() { ended <- s.nbd.ServeConn(env.conn, s.reg.Listener("stdio")) }()
	}
	for {
		select {
		case <-stopped:
			return nil
		case err := <-failed:
			return err
		case err := <-ended:
			return err
		case <-s.pulse:
		case <-env.asked:
			s.tellState()
		case <-env.hangups:
			s.busy.Store(true)
			s.hangup(ctx, env)
			s.busy.Store(false)
		}
	}
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

// newServer opens everything that c names, then binds every address. Nothing listens if anything is wrong.
func newServer(ctx context.Context, c *configs.Config, log *slog.Logger, passed *passed) (*server, error) {
	build := thisBuild()
	reg := metrics.New(metrics.Build{Version: build.Version, GoVersion: build.Go, Revision: build.Revision})
	site, err := openSite(ctx, c, reg, log, nil)
	if err != nil {
		return nil, err
	}
	tuneMemory(c)
	s := &server{site: site, log: log, reg: reg, drain: c.Limits.Drain, failed: make(chan error, 1), pulse: make(chan struct{})}
	s.nbd, err = export.NewServer(site.options(c.Limits, reg, log))
	if err == nil {
		s.listeners, err = s.bind(ctx, c.Listen, passed)
	}
	if err == nil {
		s.metrics, err = s.bindMetrics(ctx, c.Metrics, passed)
	}
	if err != nil {
		s.closeListeners()
		_ = site.close(nil)
		return nil, err
	}
	reg.WatchRequests(s.nbd.InFlight)
	return s, nil
}

// bind makes the listeners that s has not yet. None is left bound on an error.
func (s *server) bind(ctx context.Context, list []configs.Listen, passed *passed) ([]*listener, error) {
	var bound []*listener
	for _, c := range list {
		if s.listener(c) != nil {
			continue
		}
		nl, err := listenOn(ctx, c, passed)
		if err != nil {
			for _, l := range bound {
				_ = l.Close()
			}
			return nil, err
		}
		bound = append(bound, &listener{Listener: nl, config: c, stats: s.reg.Listener(c.String())})
	}
	return bound, nil
}

// listenOn gives the passed socket of an address, or binds one.
func listenOn(ctx context.Context, c configs.Listen, passed *passed) (net.Listener, error) {
	l, err := passed.listener(c)
	if l != nil || err != nil {
		return l, err
	}
	a, err := export.ParseAddress(c.String())
	if err != nil {
		return nil, place(c.Pos, err)
	}
	l, err = export.ListenAs(ctx, a, socketFile(c))
	if errors.Is(err, export.ErrInUse) {
		other := "address"
		if flag, _, _ := strings.Cut(c.Pos.Flag, " "); flag != "" {
			other = flag
		}
		err = fmt.Errorf("%w (stop it, or use another %s)", err, other)
	}
	if err != nil {
		return nil, place(c.Pos, err)
	}
	return l, nil
}

func socketFile(c configs.Listen) export.SocketFile {
	return export.SocketFile{Mode: fs.FileMode(c.Mode), User: c.User, Group: c.Group}
}

// listener gives the one on an address, whatever its options; nil: there is none.
func (s *server) listener(c configs.Listen) *listener {
	for _, l := range s.listeners {
		if l.config.String() == c.String() {
			return l
		}
	}
	return nil
}

// bindMetrics makes the listener of the metrics; nil: none is wanted.
func (s *server) bindMetrics(ctx context.Context, c *configs.Listen, passed *passed) (*metricsListener, error) {
	if c == nil {
		return nil, nil
	}
	nl, err := listenOn(ctx, *c, passed)
	if err != nil {
		return nil, err
	}
	return &metricsListener{metrics.NewServer(nl, s.reg.Handler(), s.log), *c}, nil
}

// start accepts on every address and says so.
func (s *server) start() {
	s.tellSite(nil)
	s.site.watch(s.reg)
	for _, l := range s.listeners {
		s.accept(l)
	}
	// Before the first answer: all is open and bound by now, so that who is answered at all is told "ready".
	s.reg.Reloaded(true)
	s.reg.SetReady(true, "")
	if s.metrics != nil {
		s.acceptMetrics(s.metrics)
	}
	s.notifyReady()
}

// tellSite logs what is open now and was not before.
func (s *server) tellSite(before *site) {
	for _, f := range s.site.filesystems {
		if before == nil || !slices.Contains(before.filesystems, f) {
			i := f.Info()
			s.log.Info("opened", "fs", f.name, "devices", len(i.Devices), "generation", i.Generation, "degraded", i.Degraded(), "io_engine", f.engine.String(), "in", f.took.Round(time.Millisecond))
			if f.refused != nil {
				s.log.Info("io_uring can't be used, devices are read by pread", "fs", f.name, "err", f.refused)
			}
		}
	}
	for _, x := range s.site.exports {
		if before != nil && slices.ContainsFunc(before.exports, func(o *siteExport) bool { return o.SameAs(x.Export) && o.nbd == x.nbd }) {
			continue
		}
		s.log.Info("export", "name", x.Name, "size", x.file.Size(), "uri", s.uri(x))
		if x.odd() {
			s.log.Warn("size is no multiple of 512: the kernel's client does not see the last bytes (set round_up: 512)", "export", x.Name, "size", x.file.Size())
		}
	}
}

// tellState logs one line of what is served and asked for at this moment: a warning, as less is not shown with --run.
func (s *server) tellState() {
	clients, handshakes := s.nbd.Clients()
	requests, degraded := 0, 0
	for _, n := range s.nbd.InFlight() {
		requests += n
	}
	for _, f := range s.site.filesystems {
		if i := f.Info(); i.Degraded() {
			degraded++
		}
	}
	s.log.Warn("state", "filesystems", len(s.site.filesystems), "degraded", degraded, "exports", len(s.site.exports),
		"clients", clients, "handshakes", handshakes, "requests", requests)
}

// uri is where clients find an export: at the first address. On standard input there is none.
func (s *server) uri(x *siteExport) string {
	if len(s.listeners) == 0 {
		return "stdio"
	}
	a := export.AddressOf(s.listeners[0])
	if s.site.secret(x) {
		return a.SecureURI(x.Name)
	}
	return a.URI(x.Name)
}

func (s *server) accept(l *listener) {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	go func() { s.fail(s.nbd.Serve(ctx, l.Listener, l.stats)) }()
	s.log.Info("serving", "addr", export.AddressOf(l).String())
}

func (s *server) acceptMetrics(m *metricsListener) {
	go func() { s.fail(m.Serve()) }()
	s.log.Info("serving", "addr", m.URL())
}

// fail remembers the first listener that broke. Any goroutine may call it.
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
	s.notify("STOPPING=1")
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
	for _, old := range s.retired {
		if err := old.close(s.site); err != nil {
			s.log.Warn("devices", "err", err)
		}
	}
	if err := s.site.close(nil); err != nil {
		s.log.Warn("devices", "err", err)
	}
	s.log.Info("stopped")
}

// closeListeners closes what is bound; the files of sockets go with it. Any goroutine may call it.
func (s *server) closeListeners() {
	s.mu.Lock()
	defer s.mu.Unlock()
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

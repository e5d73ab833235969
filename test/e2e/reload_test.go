//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// writeConfig puts a configuration in its place in one step.
func writeConfig(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".next", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
}

// filesystemYAML is an entry of filesystems.
func filesystemYAML(name string, degraded bool, devices ...string) string {
	return fmt.Sprintf("  - {name: %s, degraded: %v, devices: [%s]}\n", name, degraded, strings.Join(devices, ", "))
}

// exportYAML is an entry of exports.
func exportYAML(fs string, f served) string {
	return fmt.Sprintf("  - {name: %q, filesystem: %s, subvolid: 5, path: %q}\n", f.name, fs, f.path)
}

// reload sends SIGHUP and waits until the configuration was taken, or refused.
func (s *server) reload(ctx context.Context, t *testing.T, taken bool) {
	t.Helper()
	const stamp, last = "btrexport_config_last_reload_success_timestamp_seconds", "btrexport_config_last_reload_successful"
	before := s.scrape(ctx, t)
	s.signal(t, syscall.SIGHUP)
	for {
		now := s.scrape(ctx, t)
		if taken && now[last] == 1 && now[stamp] != before[stamp] || !taken && now[last] == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("reload: taken %v, want %v\n%s", !taken, taken, s.logged())
		case <-time.After(time.Millisecond):
		}
	}
}

func (s *server) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("%v: %v", sig, err)
	}
}

// load is clients that read one export until they are told to stop.
type load struct {
	clients sync.WaitGroup
	stop    chan struct{}
	rounds  atomic.Int64 // of all clients
}

// keepReading starts n clients of ours, and nbdcopy beside them. No read may fail and no byte differ.
func (s *server) keepReading(ctx context.Context, t *testing.T, f served, n int, rng *rand.Rand) *load {
	t.Helper()
	l := &load{stop: make(chan struct{})}
	for range n {
		c, seed := s.dial(ctx, t, f.name), rng.Uint64()
		l.clients.Go(func() {
			l.repeat(func(i uint64) error { return readRandom(c, f.want, seed+i, 4, 4, 256<<10) }, t)
		})
	}
	out := filepath.Join(t.TempDir(), "copy")
	l.clients.Go(func() { l.repeat(func(uint64) error { return copyAside(ctx, t, s, f, out) }, t) })
	return l
}

func (l *load) repeat(do func(round uint64) error, t *testing.T) {
	for i := uint64(0); ; i++ {
		select {
		case <-l.stop:
			return
		default:
		}
		if err := do(i); err != nil {
			t.Errorf("round %d of a client: %v", i, err)
			return
		}
		l.rounds.Add(1)
	}
}

// end stops the clients, all of which must have read.
func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.clients.Wait()
	t.Logf("%d rounds of reads", l.rounds.Load())
	if l.rounds.Load() == 0 {
		t.Error("nobody has read anything")
	}
}

// copied holds an export, as nbdcopy gets it, against the kernel's bytes.
func (s *server) copied(ctx context.Context, t *testing.T, f served) {
	t.Helper()
	if err := copyAside(ctx, t, s, f, filepath.Join(t.TempDir(), "copy")); err != nil {
		t.Error(err)
	}
}

// Everything of a configuration changes on SIGHUP while others read what does not: exports come and go, the
// missing device of a RAID1 is back, what is wrong is refused, and a hundred reloads lose no read.
func TestReload(t *testing.T) {
	need(t, "nbdcopy", "nbdinfo")
	ctx, rng := bounded(t), chance(t)
	o := kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1"}
	steady := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) { tree.Plain("big", 4<<20+777) })
	changing := makeTruth(ctx, t, o, func(tree *kernelfs.Tree) { tree.Plain("one", 3<<20+1); tree.Plain("two", 1<<20+3) })
	stays := served{"stays", "/big", steady.read(t, "big")}
	one, two := served{"one", "/one", changing.read(t, "one")}, served{"two", "/two", changing.read(t, "two")}
	loops := changing.fs.Loops()
	text := func(filesystem string, files ...served) string {
		y := "filesystems:\n" + filesystemYAML("steady", false, steady.fs.Loops()...) + filesystem + "exports:\n" + exportYAML("steady", stays)
		for _, f := range files {
			y += exportYAML("changing", f)
		}
		return y
	}
	half, whole := filesystemYAML("changing", true, loops[0]), filesystemYAML("changing", false, loops...)
	config := filepath.Join(t.TempDir(), "btrexport.yaml")
	writeConfig(t, config, text(half, one))
	s := launch{command: []string{program(t, raceBinary)}}.serve(t, "-c", config)
	l := s.keepReading(ctx, t, stays, 4, rng)

	// The device is back, and an export more is there. Who reads from the half of it has to come again.
	leaves := s.dial(ctx, t, "one")
	s.copied(ctx, t, one)
	writeConfig(t, config, text(whole, one, two))
	s.reload(ctx, t, true)
	if _, err := leaves.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("a connection outlived its filesystem")
	}
	s.copied(ctx, t, one)
	s.copied(ctx, t, two)
	if want := "msg=opened fs=changing devices=2"; !strings.Contains(s.logged(), want) {
		t.Errorf("the log lacks %q:\n%s", want, s.logged())
	}
	if got := s.scrape(ctx, t).sum("btrexport_device_read_bytes_total", `filesystem="changing"`, `devid="2"`); got == 0 {
		t.Error("the device that is back is not read")
	}

	// What is wrong changes nothing, wherever it stands.
	keeps := s.dial(ctx, t, "two")
	for _, bad := range []string{
		text(whole, one, served{"three", "/nowhere", nil}),
		text(filesystemYAML("changing", false, loops[0]), one), // a device is missing
		text(filesystemYAML("changing", true, loops[0], "/dev/null"), one),
		text(whole, one)[:40],
		text(half, one) + "limits: {drain: -1s}\n",
	} {
		writeConfig(t, config, bad)
		s.reload(ctx, t, false)
		if err := readRandom(keeps, two.want, rng.Uint64(), 8, 4, 64<<10); err != nil {
			t.Errorf("after a reload that was refused: %v", err)
		}
		s.copied(ctx, t, one)
		writeConfig(t, config, text(whole, one, two))
		s.reload(ctx, t, true)
	}
	if err := readRandom(keeps, two.want, rng.Uint64(), 8, 4, 64<<10); err != nil {
		t.Errorf("after reloads of the same: %v", err)
	}

	// An export goes, with its series.
	writeConfig(t, config, text(whole, one))
	s.reload(ctx, t, true)
	if o := run(ctx, t, "nbdinfo", "--size", s.uri("two")); o.status == 0 {
		t.Error("an export that was removed is served")
	}
	if got := s.scrape(ctx, t).sum("btrexport_nbd_requests_total", `export="two"`); got != 0 {
		t.Errorf("it still counts: %v", got)
	}

	variants := []string{text(half, one), text(whole, two, one), text(whole, one), text(filesystemYAML("changing", true, loops[1]), two)}
	for i := range 100 {
		writeConfig(t, config, variants[i%len(variants)])
		s.reload(ctx, t, true)
	}
	s.copied(ctx, t, two)
	l.end(t)
	if got := s.scrape(ctx, t).sum("btrexport_nbd_requests_total", `export="stays"`, `result="error"`); got != 0 {
		t.Errorf("requests of the unchanged export that failed: %v", got)
	}
	s.end(t)
}

// Signals of every kind at any rate, CVE-2015-0847: nothing is lost, and SIGTERM among them ends the server.
func TestSignalStorm(t *testing.T) {
	need(t, "nbdcopy")
	ctx, rng := bounded(t), chance(t)
	k := makeTruth(ctx, t, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1"}, func(tree *kernelfs.Tree) { tree.Plain("big", 4<<20+5) })
	f := served{"big", "/big", k.read(t, "big")}
	config := filepath.Join(t.TempDir(), "btrexport.yaml")
	writeConfig(t, config, "filesystems:\n"+filesystemYAML("tank", false, k.fs.Loops()...)+"exports:\n"+exportYAML("tank", f))
	s := launch{command: []string{program(t, raceBinary)}}.serve(t, "-c", config, "--drain-timeout", "5s")
	l := s.keepReading(ctx, t, f, 4, rng)
	storm := []os.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGURG, syscall.SIGCHLD, syscall.SIGALRM}
	for range 3000 * rounds() {
		s.signal(t, storm[rng.IntN(len(storm))])
		if rng.IntN(4) == 0 {
			time.Sleep(time.Duration(rng.IntN(1000)) * time.Microsecond)
		}
	}
	l.end(t)
	s.reload(ctx, t, true)

	var reads atomic.Int64
	enough := make(chan struct{})
	var clients sync.WaitGroup
	for range 8 {
		c, seed := s.dial(ctx, t, f.name), rng.Uint64()
		clients.Go(func() { readToTheEnd(t, c, f, seed, &reads, enough) })
	}
	select {
	case <-enough:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	for i := range 200 {
		if i == 100 {
			s.signal(t, syscall.SIGTERM)
		}
		_ = s.cmd.Process.Signal(storm[rng.IntN(len(storm))]) // it may be gone
	}
	if status := s.wait(); status != 0 {
		t.Errorf("exit status: got %d, want 0\n%s", status, s.logged())
	}
	clients.Wait()
}

// A second SIGTERM ends the server though a client, who takes no replies, keeps the first one's drain from ending.
func TestTerminateTwice(t *testing.T) {
	need(t)
	ctx := bounded(t)
	k := makeTruth(ctx, t, kernelfs.Options{}, func(tree *kernelfs.Tree) { tree.Plain("big", 32<<20) })
	f := served{"big", "/big", k.read(t, "big")}
	s := serve(t, append(append(flags("-d", k.fs.Loops()), exports([]served{f})...), "--drain-timeout", "1h")...)
	c, err := openStream(ctx, s.socket, f)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	for i := range uint64(4) {
		if err := c.ask(i, 0, len(f.want)); err != nil {
			t.Fatal(err)
		}
	}
	s.signal(t, syscall.SIGTERM)
	for !strings.Contains(s.logged(), "msg=draining") {
		time.Sleep(time.Millisecond)
	}
	s.signal(t, syscall.SIGTERM)
	if status := s.wait(); status != 1 {
		t.Errorf("exit status: got %d, want 1\n%s", status, s.logged())
	}
	if _, err := os.Lstat(s.socket); !os.IsNotExist(err) {
		t.Errorf("%s: got %v, want that it is gone", s.socket, err)
	}
}

// A thousand clients that connect and say nothing, CVE-2024-7409: others get in, and the server ends with them there.
func TestSilentClients(t *testing.T) {
	need(t)
	ctx, rng := bounded(t), chance(t)
	k := makeTruth(ctx, t, kernelfs.Options{}, func(tree *kernelfs.Tree) { tree.Plain("big", 1<<20) })
	f := served{"big", "/big", k.read(t, "big")}
	port := strconv.Itoa(freePort(ctx, t))
	s := serve(t, append(append(flags("-d", k.fs.Loops()), exports([]served{f})...), "-l", "tcp://127.0.0.1:"+port)...)
	for i := range 1000 {
		network, address := "unix", s.socket
		if i%2 == 0 {
			network, address = "tcp", "127.0.0.1:"+port
		}
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
	}
	for _, target := range []nbdclient.Target{{Network: "unix", Address: s.socket}, {Network: "tcp", Address: "127.0.0.1:" + port}} {
		target.Export = f.name
		c, err := nbdclient.Dial(ctx, target)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := readRandom(c, f.want, rng.Uint64(), 16, 4, 64<<10); err != nil {
			t.Error(err)
		}
	}
	if status := s.terminate(t); status != 0 {
		t.Errorf("exit status: got %d, want 0\n%s", status, s.logged())
	}
	if strings.Contains(s.logged(), "drain ended by its timeout") {
		t.Errorf("silent clients held the drain up:\n%s", s.logged())
	}
}

// A filesystem is written to while it is served. SIGHUP opens it anew, unless a client has an export of it: then new
// clients see what that one does. Nobody ever gets a byte that is neither the old file's nor the new one's.
func TestReloadAfterWrites(t *testing.T) {
	need(t, "nbdcopy")
	ctx, rng := bounded(t), chance(t)
	k := makeTruth(ctx, t, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1"}, func(tree *kernelfs.Tree) { tree.Plain("disk", 2<<20+9) })
	old := served{"disk", "/disk", k.read(t, "disk")}
	config := filepath.Join(t.TempDir(), "btrexport.yaml")
	writeConfig(t, config, "filesystems:\n"+filesystemYAML("tank", false, k.fs.Loops()...)+"exports:\n"+exportYAML("tank", old))
	s := serve(t, "-c", config)
	c := s.dial(ctx, t, old.name)
	s.copied(ctx, t, old)

	k.unmount(t)
	mnt, err := k.fs.Mount("subvolid=5")
	if err != nil {
		t.Fatal(err)
	}
	tree := kernelfs.NewTree(ctx, mnt, kernelfs.Content{Seed: 2, Noise: true})
	tree.WriteAt("disk", 100<<10, 3<<20)
	if err := tree.Err(); err != nil {
		t.Fatal(err)
	}
	k.mnt = mnt
	now := served{"disk", "/disk", k.read(t, "disk")}
	syncFS(t, mnt)

	// A client is there: it and who comes beside it see the old content.
	s.reload(ctx, t, true)
	if want := `msg="the filesystem was written to, and stays as it was opened while clients use it`; !strings.Contains(s.logged(), want) {
		t.Errorf("the log lacks %s:\n%s", want, s.logged())
	}
	for _, c := range []*nbdclient.Client{c, s.dial(ctx, t, old.name)} {
		if got := c.Info().Size; got != uint64(len(old.want)) {
			t.Errorf("size beside a client: got %d, want %d", got, len(old.want))
		}
		for range 64 {
			off, n := randomRange(rng, len(old.want), 64<<10)
			b := make([]byte, n)
			if _, err := c.ReadAt(b, int64(off)); err != nil {
				continue // overwritten since
			}
			if d := diff(b, old.want[off:off+n]); d != "" {
				t.Errorf("offset %d length %d: %s", off, n, d)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}

	// Nobody is there, but the kernel still writes: that can't be opened, and is no reason to refuse the rest.
	const stays = `msg="filesystems were written to and can't be opened anew: they stay as they were"`
	for !strings.Contains(s.logged(), stays) {
		s.reload(ctx, t, true) // until the server has seen that the clients are gone
	}
	k.unmount(t)
	s.reload(ctx, t, true)
	s.copied(ctx, t, now)
	if got := strings.Count(s.logged(), "msg=opened fs=tank"); got != 2 {
		t.Errorf("the filesystem was opened %d times, want 2:\n%s", got, s.logged())
	}
	s.reload(ctx, t, true)
	if got := strings.Count(s.logged(), "msg=opened fs=tank"); got != 2 {
		t.Errorf("a reload without writes opened it anew:\n%s", s.logged())
	}
	s.end(t)
}

// syncFS has the kernel commit.
func syncFS(t *testing.T, mnt string) {
	t.Helper()
	d, err := os.Open(mnt)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		t.Fatal(err)
	}
}

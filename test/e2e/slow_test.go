//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/btrexport/btrexport/test/e2e/faultfs"
	"github.com/btrexport/btrexport/test/e2e/kernelfs"
)

// slowProfiles are filesystems and how many of their devices may stop answering.
var slowProfiles = []struct {
	data, metadata string
	devices, sick  int
}{
	{"raid1", "raid1", 2, 1}, {"raid1c3", "raid1c3", 3, 2}, {"raid10", "raid10", 4, 1},
	{"raid5", "raid5", 3, 1}, {"raid6", "raid1c3", 4, 1}, {"raid6", "raid6", 4, 2},
}

// slowness is what the sick devices do.
var slowness = []struct {
	name     string
	early    bool // from before the program starts, but for their superblocks
	hangs    bool
	slowRead string // what is set; empty: the default, a second
	set      func(f *faultfs.File, rng *rand.Rand)
}{
	{"hang from the start", true, true, "300ms", func(f *faultfs.File, _ *rand.Rand) { beside(f.HangRange) }},
	{"hang in the middle", false, true, "", func(f *faultfs.File, rng *rand.Rand) { f.After(3+rng.Int64N(6), f.Hang) }},
	{"crawl", false, false, "", func(f *faultfs.File, _ *rand.Rand) { f.Delay(3 * time.Second) }},
}

// As many devices as the profile can do without hang, or crawl: every byte comes from the others, soon
// enough for clients that are patient for a minute; nothing is lost, late answers harm nobody, and
// SIGTERM ends the server while they hang.
func TestSlowDisks(t *testing.T) {
	needFaults(t, "nbdcopy", "gcc") // gcc: for the race detector's binary
	for _, p := range slowProfiles {
		t.Run(fmt.Sprintf("%s-%s-%d-sick-%d", p.data, p.metadata, p.devices, p.sick), func(t *testing.T) {
			ctx, rng := bounded(t), chance(t)
			d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: p.devices, Data: p.data, Metadata: p.metadata})
			for _, c := range slowness {
				t.Run(c.name, func(t *testing.T) {
					ctx, rng := bounded(t), chance(t)
					d.heal()
					var sick []*faultfs.File
					for _, i := range rng.Perm(p.devices)[:p.sick] {
						sick = append(sick, d.disks[i])
						if c.early {
							c.set(d.disks[i], rng)
						}
					}
					s := d.serveSlow(t, rng, d.paths(t, false), c.slowRead)
					for _, f := range sick {
						if !c.early {
							c.set(f, rng)
						}
					}
					d.copyAll(ctx, t, s)
					d.readAll(ctx, t, rng, s)
					if c.hangs {
						wantHeld(t, sick)
					}
					checkSlow(ctx, t, s)
					for _, f := range sick {
						f.Release()
					}
					d.readAll(ctx, t, rng, s)
					checkNoneLost(t, s.scrape(ctx, t))
					if !c.hangs {
						return
					}
					for _, f := range sick {
						f.Hang()
					}
					d.readAll(ctx, t, rng, s)
					if status := s.terminate(t); status != 0 {
						t.Errorf("exit status of SIGTERM while devices hang: got %d, want 0\n%s", status, s.logged())
					}
				})
			}
		})
	}
}

// serveSlow starts a server with the race detector on the devices. The test's end finds no read that
// hangs. slowRead may be empty: the default.
func (d *faulty) serveSlow(t *testing.T, rng *rand.Rand, devices []string, slowRead string) *server {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "filesystems:\n  - name: sick\n    io_engine: %s\n", anyEngine(t, rng))
	if slowRead != "" {
		fmt.Fprintf(&b, "    slow_read: %s\n", slowRead)
	}
	if len(devices) < len(d.disks) {
		b.WriteString("    degraded: true\n")
	}
	b.WriteString("    devices:\n")
	for _, path := range devices {
		fmt.Fprintf(&b, "      - %q\n", path)
	}
	b.WriteString("exports:\n")
	for _, f := range d.files {
		fmt.Fprintf(&b, "  - {name: %q, path: %q}\n", f.name, f.path)
	}
	path := filepath.Join(t.TempDir(), "btrexport.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	s := launch{command: []string{program(t, raceBinary)}}.serve(t, "-c", path, "--drain-timeout", "2s")
	t.Cleanup(d.heal)
	return s
}

// wantHeld wants that the devices have been asked, or the test proves nothing.
func wantHeld(t *testing.T, disks []*faultfs.File) {
	t.Helper()
	for _, f := range disks {
		if f.Held() == 0 {
			t.Errorf("%s: no read hangs: the test proves nothing", f.Path())
		}
	}
}

// checkSlow wants reads that were too slow, and none that was lost.
func checkSlow(ctx context.Context, t *testing.T, s *server) {
	t.Helper()
	m := s.scrape(ctx, t)
	slow := m.sum("btrexport_read_retries_total", `reason="slow"`)
	t.Logf("retries for slow reads %v, repaired %v", slow, m.sum("btrexport_reads_repaired_total"))
	if slow == 0 {
		t.Error("retries for slow reads: got 0, want some")
	}
	if got := m.sum("btrexport_read_retries_total", `reason="io"`); got != 0 {
		t.Errorf("retries for I/O errors: got %v, want 0", got)
	}
	checkNoneLost(t, m)
}

// cp gets past devices that hang, whether they show their superblocks or, with --degraded, not even
// those; without it the second is an error that names the device.
func TestCpFromHangingDisk(t *testing.T) {
	needFaults(t)
	ctx, rng := bounded(t), chance(t)
	d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1"})
	d.files = d.files[:1]
	f := d.disks[rng.IntN(len(d.disks))]
	devices := shuffled(rng, d.paths(t, false))
	beside(f.HangRange)
	d.cpAll(ctx, t, devices, "--slow-read", "200ms")
	f.Hang()
	d.cpAll(ctx, t, devices, "--degraded")
	out := filepath.Join(t.TempDir(), "out")
	o := run(ctx, t, program(t, plainBinary), append([]string{"cp"}, append(devices, d.files[0].path, out)...)...)
	if o.status != 1 || !strings.Contains(o.errOut, f.Path()) || strings.Count(o.errOut, "\n") != 1 {
		t.Errorf("cp from a device that never answers: exit status %d, want 1 and one line with %s\n%s", o.status, f.Path(), o.errOut)
	}
}

// Where no other copy is left, slow is better than lost: all disks crawl, or hang for a while, as when
// they spin up, and every read is answered.
func TestAllDisksSlow(t *testing.T) {
	needFaults(t, "gcc")
	ctx, rng := bounded(t), chance(t)
	for _, p := range []struct {
		profile string
		devices int
	}{{"raid1", 2}, {"raid10", 4}, {"raid5", 3}, {"raid6", 4}} {
		t.Run(fmt.Sprintf("%s-%d", p.profile, p.devices), func(t *testing.T) {
			d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: p.devices, Data: p.profile, Metadata: p.profile})
			s := d.serveSlow(t, rng, d.paths(t, false), "100ms")
			f := d.files[0]
			c := s.dial(ctx, t, f.name)
			for _, disk := range d.disks {
				disk.Delay(time.Second)
			}
			if err := readRandom(c, f.want, rng.Uint64(), 8, 4, 256<<10); err != nil {
				t.Errorf("all crawl: %v", err)
			}
			for _, disk := range d.disks {
				disk.Hang()
				time.AfterFunc(3*time.Second, disk.Release)
			}
			if err := readRandom(c, f.want, rng.Uint64(), 8, 4, 256<<10); err != nil {
				t.Errorf("all hang for a while: %v", err)
			}
			checkNoneLost(t, s.scrape(ctx, t))
		})
	}
}

// SIGTERM while reads wait for disks of which none answers: they are given up with the drain. Block
// devices keep whoever reads them in the kernel, even when killed. There the process does all that it
// can: it exits, and its sockets are gone; its last threads go when the devices answer.
func TestTerminateWhileAllHang(t *testing.T) {
	needFaults(t, "nbdcopy", "gcc")
	ctx, rng := bounded(t), chance(t)
	d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1"})
	for _, block := range []bool{false, true} {
		t.Run(fmt.Sprintf("block devices %v", block), func(t *testing.T) {
			ctx := bounded(t)
			d.heal()
			s := d.serveSlow(t, rng, d.paths(t, block), "100ms")
			f := d.files[0]
			c := s.dial(ctx, t, f.name)
			d.copyAll(ctx, t, s) // the tree is cached: what hangs then are data, by all workers
			for _, disk := range d.disks {
				disk.Hang()
			}
			var reads sync.WaitGroup
			for i := range 64 {
				reads.Go(func() {
					if n, err := c.ReadAt(make([]byte, 4096), int64(i)*300<<10); err == nil {
						t.Errorf("read %d: got %d bytes and no error, but no device has answered", i, n)
					}
				})
			}
			waitHeld(ctx, t, d.disks)
			s.terminateHanging(t, d.heal)
			reads.Wait()
		})
	}
}

// terminateHanging sends SIGTERM, waits until the process has left as far as it can, and heals the
// devices only then. It wants exit status 0 and no socket.
func (s *server) terminateHanging(t *testing.T, heal func()) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.waitLeft(t)
	for _, path := range []string{s.socket, s.metrics} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v, want that it is gone", path, err)
		}
	}
	heal()
	if status := s.wait(); status != 0 {
		t.Errorf("exit status: got %d, want 0\n%s", status, s.logged())
	}
}

// waitHeld waits until a read hangs on every device.
func waitHeld(ctx context.Context, t *testing.T, disks []*faultfs.File) {
	t.Helper()
	for slices.ContainsFunc(disks, func(f *faultfs.File) bool { return f.Held() == 0 }) {
		select {
		case <-ctx.Done():
			t.Fatalf("no read hangs: %v", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// A block device hangs while it is read, then the server is told to stop.
func TestHangingBlockDevice(t *testing.T) {
	needFaults(t, "nbdcopy", "gcc")
	ctx, rng := bounded(t), chance(t)
	d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1"})
	f := d.disks[rng.IntN(len(d.disks))]
	s := d.serveSlow(t, rng, d.paths(t, true), "")
	f.After(3+rng.Int64N(6), f.Hang)
	d.copyAll(ctx, t, s)
	d.readAll(ctx, t, rng, s)
	wantHeld(t, []*faultfs.File{f})
	checkSlow(ctx, t, s)
	s.terminateHanging(t, d.heal)
}

// waitLeft waits until the process has called exit, which the kernel tells its threads by SIGKILL.
func (s *server) waitLeft(t *testing.T) {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "task")
	for end := time.Now().Add(exitTime); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		threads, err := os.ReadDir(dir)
		if err != nil {
			return // it has ended altogether
		}
		for _, thread := range threads {
			if tid, err := strconv.ParseUint(thread.Name(), 10, 32); err == nil && faultfs.Killed(uint32(tid)) {
				return
			}
		}
	}
	t.Errorf("has not left %v after SIGTERM\n%s", exitTime, s.logged())
}

// A service manager's watchdog is answered as long as clients get in, though disks hang that others wait for, and
// through the drain that gives them up.
func TestWatchdogWhileDisksHang(t *testing.T) {
	needFaults(t, "nbdcopy", "gcc", "env")
	ctx, rng := bounded(t), chance(t)
	d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: 2, Data: "raid1", Metadata: "raid1"})
	path := filepath.Join(shortDir(t, ""), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	told := make(chan string, 1<<16)
	go func() {
		for b := make([]byte, 1000); ; {
			n, err := manager.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	hear := func(want string, n int) {
		t.Helper()
		for n > 0 {
			select {
			case got := <-told:
				if strings.Contains(got, want) {
					n--
				}
			case <-ctx.Done():
				t.Fatalf("no %s", want)
			}
		}
	}
	d.heal()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "200000")
	s := d.serveSlow(t, rng, d.paths(t, false), "")
	c := s.dial(ctx, t, d.files[0].name)
	d.copyAll(ctx, t, s)
	for _, disk := range d.disks {
		disk.Hang()
	}
	var reads sync.WaitGroup
	for i := range 64 {
		reads.Go(func() { _, _ = c.ReadAt(make([]byte, 4096), int64(i)*300<<10) })
	}
	waitHeld(ctx, t, d.disks)
	for len(told) > 0 { // before the disks hung
		<-told
	}
	hear("WATCHDOG=1", 10)
	s.dial(ctx, t, d.files[0].name)
	s.signal(t, syscall.SIGTERM)
	hear("STOPPING=1", 1)
	hear("WATCHDOG=1", 3)
	s.waitLeft(t)
	d.heal()
	if status := s.wait(); status != 0 {
		t.Errorf("exit status: got %d, want 0\n%s", status, s.logged())
	}
	reads.Wait()
}

// TestSlowStorm has every disk of an array crawl or hang now and then, for longer than the server waits for another copy, and
// as many as the profile can do without are missing, or fail besides, while clients read: each answer is right, and none is lost.
func TestSlowStorm(t *testing.T) {
	needFaults(t, "gcc")
	ctx, rng := bounded(t), chance(t)
	for _, p := range []struct {
		profile string
		devices int
		missing int
		spare   int // besides
	}{{"raid1", 2, 0, 1}, {"raid1c3", 3, 1, 1}, {"raid10", 4, 0, 1}, {"raid5", 3, 0, 1}, {"raid5", 4, 1, 0}, {"raid6", 5, 0, 2}, {"raid6", 5, 1, 1}, {"raid6", 5, 2, 0}} {
		t.Run(fmt.Sprintf("%s-%d without %d", p.profile, p.devices, p.missing), func(t *testing.T) {
			d := makeFaulty(ctx, t, rng, kernelfs.Options{Devices: p.devices, Data: p.profile, Metadata: p.profile})
			order := rng.Perm(p.devices)[p.missing:]
			var devices []string
			for _, n := range order {
				devices = append(devices, d.disks[n].Path())
			}
			s := d.serveSlow(t, rng, devices, "10ms")
			reading, stop := context.WithCancel(ctx)
			defer stop()
			var clients errgroup.Group
			for _, f := range d.files {
				for range 2 {
					c, seed := s.dial(ctx, t, f.name), rng.Uint64()
					clients.Go(func() error {
						for ; reading.Err() == nil; seed++ {
							if err := readRandom(c, f.want, seed, 8, 4, 128<<10); err != nil {
								return fmt.Errorf("%s: %w", f.name, err)
							}
						}
						return nil
					})
				}
			}
			for range 40 * rounds() {
				for i, n := range order {
					disk := d.disks[n]
					switch rng.IntN(4) {
					case 0:
						disk.Delay(time.Duration(rng.IntN(80)) * time.Millisecond)
					case 1:
						disk.Hang()
					case 2:
						if i < p.spare {
							disk.FailAll([]syscall.Errno{syscall.EIO, syscall.ENODATA}[rng.IntN(2)])
						}
					}
				}
				time.Sleep(time.Duration(20+rng.IntN(100)) * time.Millisecond)
				d.heal()
			}
			stop()
			if err := clients.Wait(); err != nil {
				t.Error(err)
			}
			m := s.scrape(ctx, t)
			t.Logf("retries for slow reads %v, repaired %v", m.sum("btrexport_read_retries_total", `reason="slow"`), m.sum("btrexport_reads_repaired_total"))
			checkNoneLost(t, m)
		})
	}
}

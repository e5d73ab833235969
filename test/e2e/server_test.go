//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/btrexport/btrexport/export/nbdclient"
)

// exitTime bounds how long a server that was told to stop may take: its drain and much more.
const exitTime = 60 * time.Second

// server is a running "btrexport serve".
type server struct {
	cmd     *exec.Cmd
	socket  string // where its clients find it
	metrics string // the socket of its metrics

	exited chan struct{} // closed when the process has ended and its log is complete
	ready  chan struct{} // closed when every address was logged

	mu  sync.Mutex
	log []string // guarded by mu
}

// launch says how a server is started. The zero value runs the plain binary.
type launch struct {
	command []string // what runs the program, its name last; empty: the plain binary
	root    string   // the directory that the program sees as /; empty: /
}

// patient is for tests that count retries: a busy machine would be a reason to ask another copy.
const patient = "--slow-read=-1s"

// anyEngine is the --io-engine of a test: BTREXPORT_IO_ENGINE, else by chance; auto is io_uring where the kernel has it.
func anyEngine(t *testing.T, rng *rand.Rand) string {
	t.Helper()
	e := os.Getenv("BTREXPORT_IO_ENGINE")
	if e == "" {
		e = [...]string{"auto", "pread"}[rng.IntN(2)]
	}
	t.Logf("io_engine: %s", e)
	return e
}

// serve starts a server on unix sockets in a new directory and waits until it accepts. The test's
// end stops it, if nothing did before, and wants exit status 0 of it.
func serve(t *testing.T, args ...string) *server {
	t.Helper()
	return launch{}.serve(t, args...)
}

func (l launch) serve(t *testing.T, args ...string) *server {
	t.Helper()
	if len(l.command) == 0 {
		l.command = []string{program(t, plainBinary)}
	}
	dir := shortDir(t, l.root)
	s := &server{socket: dir + "/nbd.sock", metrics: dir + "/metrics.sock"}
	inside := strings.TrimPrefix(dir, l.root)
	all := slices.Concat(l.command[1:], []string{"serve", "-l", "unix://" + inside + "/nbd.sock", "--metrics", "unix://" + inside + "/metrics.sock"}, args)
	s.cmd = exec.Command(l.command[0], all...)
	s.start(t)
	return s
}

// again starts a server that has ended once more, as it was.
func (s *server) again(t *testing.T) *server {
	t.Helper()
	fresh := &server{cmd: exec.Command(s.cmd.Path, s.cmd.Args[1:]...), socket: s.socket, metrics: s.metrics}
	fresh.start(t)
	return fresh
}

// start runs cmd until it accepts.
func (s *server) start(t *testing.T) {
	t.Helper()
	s.exited, s.ready = make(chan struct{}), make(chan struct{})
	s.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1")
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go s.watch(stderr)
	t.Cleanup(func() { s.end(t) })
	select {
	case <-s.ready:
	case <-s.exited:
		t.Fatalf("%q: %v before it was ready\n%s", s.cmd.Args, s.cmd.ProcessState, s.logged())
	case <-time.After(exitTime):
		t.Fatalf("%q: not ready\n%s", s.cmd.Args, s.logged())
	}
}

// shortDir makes a directory below root for sockets, whose paths may have 107 bytes.
func shortDir(t *testing.T, root string) string {
	t.Helper()
	parent := root + os.TempDir()
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(parent, "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// watch keeps the log; two lines of msg=serving, for NBD and for the metrics, mean ready.
func (s *server) watch(stderr io.Reader) {
	serving := 0
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s.mu.Lock()
		s.log = append(s.log, lines.Text())
		s.mu.Unlock()
		if strings.Contains(lines.Text(), "msg=serving") {
			if serving++; serving == 2 {
				close(s.ready)
			}
		}
	}
	_ = s.cmd.Wait()
	close(s.exited)
}

func (s *server) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.log, "\n")
}

// terminate sends SIGTERM and returns the exit status; -1 when the process did not end in time.
func (s *server) terminate(t *testing.T) int {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	return s.wait()
}

func (s *server) wait() int {
	select {
	case <-s.exited:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(exitTime):
		_ = s.cmd.Process.Kill()
		<-s.exited
		return -1
	}
}

// end stops a server that still runs and looks for what its log must never hold.
func (s *server) end(t *testing.T) {
	t.Helper()
	select {
	case <-s.exited:
	default:
		if status := s.terminate(t); status != 0 {
			t.Errorf("exit status after SIGTERM: got %d, want 0\n%s", status, s.logged())
		}
	}
	for _, never := range []string{"panic", "DATA RACE", "internal error"} {
		if strings.Contains(s.logged(), never) {
			t.Errorf("log holds %q:\n%s", never, s.logged())
		}
	}
}

// uri addresses an export for foreign clients.
func (s *server) uri(name string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", url.PathEscape(name), s.socket)
}

// dial connects our own client; the test's end closes it.
func (s *server) dial(ctx context.Context, t *testing.T, name string) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.Dial(ctx, nbdclient.Target{Network: "unix", Address: s.socket, Export: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// series is one scrape: the value of each line by its name and labels, as they are written.
type series map[string]float64

// scrape reads the metrics.
func (s *server) scrape(ctx context.Context, t *testing.T) series {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.metrics)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://btrexport/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET /metrics: %s", resp.Status)
	}
	all := make(series)
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		key, value, ok := cutLast(lines.Text(), " ")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("metrics line %q: %v", lines.Text(), err)
		}
		all[key] = v
	}
	return all
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// sum adds the series of a metric that have all of the labels, written as name="value".
func (m series) sum(metric string, labels ...string) float64 {
	total := 0.0
next:
	for key, v := range m {
		name, list, _ := strings.Cut(key, "{")
		if name != metric {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(list, l) {
				continue next
			}
		}
		total += v
	}
	return total
}

// checkHealthy fails the test if the process ever took that many bytes of memory, or a request failed.
func (s *server) checkHealthy(ctx context.Context, t *testing.T, bound int64) {
	t.Helper()
	peak := s.peakMemory(t)
	t.Logf("resident set: at most %d MiB", peak>>20)
	if peak >= bound {
		t.Errorf("resident set: got %d MiB, want less than %d", peak>>20, bound>>20)
	}
	if got := s.scrape(ctx, t).sum("btrexport_nbd_requests_total", `result="error"`); got != 0 {
		t.Errorf("requests that failed: got %v, want 0", got)
	}
}

// peakMemory is the largest resident set of the process so far, in bytes.
func (s *server) peakMemory(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no VmHWM in\n%s", status)
	return 0
}

package kernelnbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/export/nbdwire"
	"github.com/btrexport/btrexport/export/tlstest"
)

// newTLSServer is newServer, for clients under TLS with a certificate alone.
func newTLSServer(t *testing.T) *server {
	t.Helper()
	pki := tlstest.PKI(t)
	config, err := export.NewTLSConfig(pki+"/server-cert.pem", pki+"/server-key.pem", pki+"/ca-cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	s := newServerUnder(t, export.TLS{Mode: export.TLSRequire, Config: config})
	s.target.TLS = nbdclient.TLS{On: true, Certificates: pki}
	return s
}

// TestRelays: the kernel gets sockets in the clear, and what is behind them is the export under TLS.
func TestRelays(t *testing.T) {
	s := newTLSServer(t)
	k, kernel := newFake(t)
	relays := new(Relays)
	defer relays.Close()
	o := Options{Connections: 3, Dialer: relays}
	t.Chdir(s.target.TLS.Certificates)
	relative := s.target
	relative.TLS.Certificates = "."
	a, err := kernel.Attach(t.Context(), 0, relative, o)
	if err != nil {
		t.Fatal(err)
	}
	if want := "nbds+unix:///vm1?socket=" + s.path + "&tls-certificates=" + s.target.TLS.Certificates; a.Backend != want || k.devices[0].backend != want || a.Info.Size != 1000 || !a.ReadOnly {
		t.Errorf("attached %+v, want the backend %s", a, want)
	}
	for _, f := range k.devices[0].sockets {
		readsBack(t, f)
	}
	again, err := kernel.Attach(t.Context(), 0, s.target, o)
	if err != nil || !again.Already || k.count(cmdConnect) != 1 {
		t.Errorf("attached again: %+v %v", again, err)
	}
	waitFor(t, "the relays that the kernel did not take end", func() bool { return relays.count() == 3 })
	plain := s.target
	plain.TLS = nbdclient.TLS{}
	if _, err := kernel.Attach(t.Context(), 0, plain, o); !errors.As(err, new(*InUseError)) {
		t.Errorf("the same export without TLS: %v, want in use", err)
	}
	if _, err := kernel.Attach(t.Context(), 1, plain, Options{}); !errors.Is(err, ErrTLS) {
		t.Errorf("without TLS: %v, want ErrTLS", err)
	}
	if _, err := kernel.Attach(t.Context(), 1, s.target, Options{}); !errors.Is(err, nbdclient.ErrTLSSocket) {
		t.Errorf("without relays: %v, want ErrTLSSocket", err)
	}
	if _, err := kernel.Detach(t.Context(), 0, false); err != nil {
		t.Fatal(err)
	}
	relays.Wait()
}

func (r *Relays) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.live)
}

// TestRelaysRefused: no relay is left of what the kernel or the server refuses.
func TestRelaysRefused(t *testing.T) {
	s := newTLSServer(t)
	k, kernel := newFake(t)
	relays := new(Relays)
	k.errno[cmdConnect] = syscall.EPERM
	if _, err := kernel.Attach(t.Context(), 0, s.target, Options{Connections: 4, Dialer: relays}); !errors.Is(err, syscall.EPERM) {
		t.Errorf("got %v, want EPERM", err)
	}
	relays.Wait()
	s.target.Export = "nosuch"
	if _, err := kernel.Attach(t.Context(), 1, s.target, Options{Dialer: relays}); !errors.As(err, new(*ConnectError)) {
		t.Errorf("got %v, want a ConnectError", err)
	}
	relays.Wait()
	s.target.Export = "vm1"
	relays.Close()
	_, files, err := relays.Dial(t.Context(), s.target, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(files)
	if n, err := files[0].Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a socket of closed relays: %d bytes, %v", n, err)
	}
	relays.Wait()
}

// TestWatchTLS: the server goes and comes back, twice, behind relays.
func TestWatchTLS(t *testing.T) {
	s := newTLSServer(t)
	k, kernel := newFake(t)
	w, err := kernel.Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	relays := &Relays{linger: 50 * time.Millisecond}
	defer relays.Close()
	o := Options{Connections: 3, Dialer: relays}
	a, err := kernel.Attach(t.Context(), 0, s.target, o)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- w.Run(t.Context(), a, s.target, o, slog.New(slog.DiscardHandler)) }()
	for range 2 {
		s.stop()
		waitFor(t, "the relays end with the server", func() bool { return relays.count() == 0 })
		for _, f := range k.devices[0].sockets { // which is how the kernel sees that they are dead
			if n, err := f.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("a socket whose server has gone: %d bytes, %v", n, err)
			}
		}
		k.cut(0)
		s.start(1000)
		waitFor(t, "three connections live", func() bool { return k.alive(0) == 3 })
		readsBack(t, k.devices[0].sockets[2])
	}
	if _, err := kernel.Detach(t.Context(), 0, false); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	relays.Wait()
}

// relayed is one relay between a kernel's end and a server's, under TLS.
func relayed(t *testing.T, r *Relays) (kernel net.Conn, server *tls.Conn) {
	t.Helper()
	pki := tlstest.PKI(t)
	config, err := export.NewTLSConfig(pki+"/server-cert.pem", pki+"/server-key.pem", "")
	if err != nil {
		t.Fatal(err)
	}
	client, err := nbdclient.Target{Network: "unix", TLS: nbdclient.TLS{On: true, Certificates: pki}}.TLSConfig()
	if err != nil {
		t.Fatal(err)
	}
	f, near, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	server = tls.Server(far, config)
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	conn := tls.Client(near, client)
	if err := errors.Join(conn.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	f, err = r.start(conn)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err = net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = kernel.Close(), server.Close(); r.Wait() })
	_ = kernel.SetDeadline(time.Now().Add(patience))
	_ = server.SetDeadline(time.Now().Add(patience))
	return kernel, server
}

// TestRelayHalfClose: each side ends its sending first, and every byte that either sent arrives.
func TestRelayHalfClose(t *testing.T) {
	ask, answer := make([]byte, 3<<20+7), make([]byte, 5<<20+3)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(ask)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(answer)
	type half interface {
		net.Conn
		CloseWrite() error
	}
	for _, kernelFirst := range []bool{true, false} {
		r := new(Relays)
		k, server := relayed(t, r)
		first, second := k.(half), half(server)
		if !kernelFirst {
			first, second = second, first
		}
		sent := make(chan error, 1)
		go func() {
			_, err := first.Write(ask)
			sent <- errors.Join(err, first.CloseWrite())
		}()
		got, err := io.ReadAll(second)
		if err = errors.Join(err, <-sent); err != nil || !bytes.Equal(got, ask) {
			t.Fatalf("kernel first %t: %d bytes of %d, %v", kernelFirst, len(got), len(ask), err)
		}
		go func() {
			_, err := second.Write(answer)
			sent <- errors.Join(err, second.CloseWrite())
		}()
		got, err = io.ReadAll(first)
		if err = errors.Join(err, <-sent); err != nil || !bytes.Equal(got, answer) {
			t.Fatalf("kernel first %t: %d bytes of %d back, %v", kernelFirst, len(got), len(answer), err)
		}
		r.Wait()
	}
}

// TestRelayMemory: who takes nothing makes the other side wait, and costs no more than the buffers.
func TestRelayMemory(t *testing.T) {
	r := new(Relays)
	_, server := relayed(t, r)
	_ = server.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	total, b := 0, make([]byte, 16<<10)
	for {
		n, err := server.Write(b)
		total += n
		if err != nil {
			break
		}
	}
	if total > 4<<20 { // the sockets' own buffers are most of it
		t.Errorf("a relay took %d bytes that the kernel does not", total)
	}
}

// TestRelayEnds: neither a server that takes nothing nor one that does not end holds a relay whose kernel has gone.
func TestRelayEnds(t *testing.T) {
	r := &Relays{Stall: 50 * time.Millisecond, linger: 50 * time.Millisecond}
	k, _ := relayed(t, r)
	for b := make([]byte, 64<<10); ; {
		_ = k.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := k.Write(b); err != nil {
			break
		}
	}
	_ = k.Close()
	r.Wait()
	k, _ = relayed(t, r)
	_ = k.Close()
	r.Wait()
}

// background starts this test's own binary as the relay.
func background(t nbdclient.Target, n int) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), relayEnv+"="+strconv.Itoa(n)+" "+t.URI())
	return cmd
}

const relayEnv = "BTREXPORT_TEST_RELAY"

// runRelay is what TestMain does there.
func runRelay(text string) int {
	n, uri, _ := strings.Cut(text, " ")
	connections, _ := strconv.Atoi(n)
	t, err := nbdclient.ParseURI(uri)
	if err == nil {
		err = ServeBackground(context.Background(), t, connections, 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// wantEnd waits for a process of ours to end, with this status.
func wantEnd(t *testing.T, pid, status int) {
	t.Helper()
	var w unix.WaitStatus
	got := 0
	waitFor(t, "the relay's process ends", func() bool {
		var err error
		got, err = unix.Wait4(pid, &w, unix.WNOHANG, nil)
		return got != 0 || err != nil
	})
	if got != pid || w.ExitStatus() != status {
		t.Errorf("process %d: %d %#x, want status %d", pid, got, w, status)
	}
}

// TestBackground: the relays live in a process that has nothing of ours, and ends with the device.
func TestBackground(t *testing.T) {
	s := newTLSServer(t)
	k, kernel := newFake(t)
	b := &Background{Command: background}
	a, err := kernel.Attach(t.Context(), 0, s.target, Options{Connections: 2, Dialer: b})
	if err != nil {
		t.Fatal(err)
	}
	if a.Info.Size != 1000 || !a.ReadOnly || a.Info.Blocks.Maximum != export.MaxRead || len(k.devices[0].sockets) != 2 {
		t.Errorf("attached %+v", a)
	}
	for _, f := range k.devices[0].sockets {
		readsBack(t, f)
	}
	pid := b.PID()
	if sid, err := unix.Getsid(pid); sid != pid || err != nil {
		t.Errorf("session %d of process %d, %v; want one of its own", sid, pid, err)
	}
	for fd := range 3 {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd)); to != "/dev/null" {
			t.Errorf("descriptor %d is %s, %v", fd, to, err)
		}
	}
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); to != "/" {
		t.Errorf("it stands in %s, %v", to, err)
	}
	again := &Background{Command: background}
	if a, err := kernel.Attach(t.Context(), 0, s.target, Options{Connections: 2, Dialer: again}); err != nil || !a.Already {
		t.Errorf("attached again: %+v %v", a, err)
	}
	wantEnd(t, again.PID(), 0) // the kernel needs none of its connections
	readsBack(t, k.devices[0].sockets[1])
	k.mu.Lock()
	_ = k.devices[0].sockets[0].Close()
	k.devices[0].sockets[0] = nil // dies
	k.mu.Unlock()
	readsBack(t, k.devices[0].sockets[1])
	if a, err := kernel.Attach(t.Context(), 0, s.target, Options{Connections: 2, Dialer: again}); err != nil || !a.Already || k.alive(0) != 2 {
		t.Errorf("with a dead connection: %+v %v", a, err)
	}
	readsBack(t, k.devices[0].sockets[0])
	if _, err := kernel.Detach(t.Context(), 0, false); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, pid, 0)
	wantEnd(t, again.PID(), 0)
}

// TestBackgroundServerDies: with its connections the process ends.
func TestBackgroundServerDies(t *testing.T) {
	s := newTLSServer(t)
	_, kernel := newFake(t)
	b := &Background{Command: background}
	if _, err := kernel.Attach(t.Context(), 0, s.target, Options{Dialer: b}); err != nil {
		t.Fatal(err)
	}
	s.stop()
	// The fake kernel does not read, so it does not see the end: the real one closes its socket then.
	if _, err := kernel.Detach(t.Context(), 0, false); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, b.PID(), 0)
}

// TestBackgroundRefused: errors keep their kind and text, and nothing is left behind.
func TestBackgroundRefused(t *testing.T) {
	s := newTLSServer(t)
	k, kernel := newFake(t)
	attach := func(ctx context.Context, change func(*nbdclient.Target), b *Background) error {
		target := s.target
		change(&target)
		_, err := kernel.Attach(ctx, 0, target, Options{Connections: 2, Dialer: b})
		return err
	}
	before := children(t)
	for name, tc := range map[string]struct {
		change func(*nbdclient.Target)
		is     func(error) bool
		text   string
	}{
		"no such export": {func(t *nbdclient.Target) { t.Export = "nosuch" }, func(err error) bool { return errors.As(err, new(*ConnectError)) }, "nosuch"},
		"nobody there":   {func(t *nbdclient.Target) { t.Address += "x" }, func(err error) bool { return errors.As(err, new(*ConnectError)) }, "no such file"},
		"another name":   {func(t *nbdclient.Target) { t.TLS.Hostname = "vm-host-2" }, func(err error) bool { return errors.As(err, new(*ConnectError)) }, "vm-host-2"},
		"no certificates": {func(t *nbdclient.Target) { t.TLS.Certificates = "/nosuch" },
			func(err error) bool { return errors.Is(err, nbdclient.ErrCertificates) }, "/nosuch/ca-cert.pem"},
	} {
		if err := attach(t.Context(), tc.change, &Background{Command: background}); err == nil || !tc.is(err) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %q", name, err, tc.text)
		}
	}
	for name, command := range map[string]string{"a command that ends": "true", "a command that is none": "/nosuch"} {
		b := &Background{Command: func(nbdclient.Target, int) *exec.Cmd { return exec.Command(command) }}
		if err := attach(t.Context(), func(*nbdclient.Target) {}, b); err == nil || b.PID() != 0 {
			t.Errorf("%s: %v, pid %d", name, err, b.PID())
		}
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errLongEnough)
	defer cancel()
	silent := &Background{Command: func(nbdclient.Target, int) *exec.Cmd { return exec.Command("sleep", "1000") }}
	if err := attach(ctx, func(*nbdclient.Target) {}, silent); !errors.Is(err, errLongEnough) {
		t.Errorf("a command that says nothing: %v", err)
	}
	if now := children(t); !slices.Equal(now, before) {
		t.Errorf("processes left: %v, before %v", now, before)
	}
	k.mu.Lock()
	k.errno[cmdConnect] = syscall.EPERM
	k.mu.Unlock()
	b := &Background{Command: background}
	if err := attach(t.Context(), func(*nbdclient.Target) {}, b); !errors.Is(err, syscall.EPERM) {
		t.Errorf("got %v, want EPERM", err)
	}
	wantEnd(t, b.PID(), 0)
}

var errLongEnough = errors.New("long enough")

// children are the processes that this one has started, ended ones that nobody has waited for included.
func children(t *testing.T) (list []string) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Skip(err) // a kernel without CONFIG_PROC_CHILDREN
		}
		list = append(list, strings.Fields(string(b))...)
	}
	slices.Sort(list)
	return list
}

// TestBackgroundKinds: what only a server that breaks its word can cause comes over, too.
func TestBackgroundKinds(t *testing.T) {
	hello := func(flags uint16) []byte {
		b := nbdwire.AppendInfoExport(nil, protocol.NEGOTIATION_ID_OPTION_GO, 4096, flags)
		return nbdwire.AppendOptionReply(b, protocol.NEGOTIATION_ID_OPTION_GO, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
	}
	target := nbdclient.Target{Network: "unix", Address: listenUnix(t, [][]byte{hello(3)})}
	b := &Background{Command: background}
	if _, _, err := b.Dial(t.Context(), target, 2); !errors.Is(err, ErrMultiConn) || err.Error() != ErrMultiConn.Error() {
		t.Errorf("got %v, want ErrMultiConn", err)
	}
}

// TestBackgroundOrphan: a relay whose parent goes before it has reported ends, whether it dials or shakes hands.
func TestBackgroundOrphan(t *testing.T) {
	for range 100 {
		testBackgroundOrphan(t)
	}
}

func testBackgroundOrphan(t *testing.T) {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // accepts nobody: the handshake waits
	ours, theirs, err := controlPair()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(theirs)
	if err = errors.Join(err, theirs.Close()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- serveBackground(context.Background(), c.(*net.UnixConn), nbdclient.Target{Network: "unix", Address: l.Addr().String()}, 1, 0)
	}()
	_ = ours.Close()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "who started the relay has ended") {
		t.Errorf("it has reported to nobody: %v", err)
	}
}

package kernelnbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export"
	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/export/nbdwire"
)

// patience bounds every wait; nothing asserts how much of it was needed.
const patience = 20 * time.Second

type memory []byte

func (m memory) Size() uint64 { return uint64(len(m)) }
func (m memory) Submit(batch []*export.Read) {
	for _, r := range batch {
		r.Payload = m[r.Offset : r.Offset+uint64(r.Length)]
		r.Done.ReadDone(r)
	}
}

func (m memory) Extents(_ context.Context, off, end uint64, _ bool, list []export.Extent) (int, error) {
	list[0] = export.Extent{Length: end - off}
	return 1, nil
}

// server is a real server of "vm1", 1000 bytes, and "vm2", 4096 bytes.
type server struct {
	t      *testing.T
	path   string
	tls    export.TLS
	stop   func()
	target nbdclient.Target
}

func newServer(t *testing.T) *server { return newServerUnder(t, export.TLS{}) }

func newServerUnder(t *testing.T, l export.TLS) *server {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &server{t: t, path: filepath.Join(dir, "s"), tls: l}
	s.target = nbdclient.Target{Network: "unix", Address: s.path, Export: "vm1"}
	s.start(1000)
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) start(size int) {
	nbd, err := export.NewServer(export.Options{TLS: s.tls, Exports: []export.Export{
		{Name: "vm1", File: memory(bytes.Repeat([]byte("0123456789"), size/10))}, {Name: "vm2", File: make(memory, 4096)}}})
	if err != nil {
		s.t.Fatal(err)
	}
	a, err := export.ParseAddress("unix://" + s.path)
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := export.Listen(context.Background(), a)
	if err != nil {
		s.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- nbd.Serve(context.Background(), l, nil) }()
	s.stop = sync.OnceFunc(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // without waiting for clients
		_ = nbd.Shutdown(ctx)
		<-served
	})
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never happened: %s", what)
		}
	}
}

func TestAttach(t *testing.T) {
	s := newServer(t)
	k, kernel := newFake(t)
	k.late = 3 * poll
	ctx := t.Context()
	a, err := kernel.Attach(ctx, 3, s.target, Options{Connections: 2, Timeout: 1500 * time.Millisecond, DeadConn: 7 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	uri := "nbd+unix:///vm1?socket=" + s.path
	if a.Device != k.root+"/dev/nbd3" || a.Index != 3 || a.Info.Size != 1000 || !a.ReadOnly || a.Already || a.Backend != uri {
		t.Errorf("attached %+v", a)
	}
	if b, err := os.ReadFile(k.root + "/sys/block/nbd3/size"); string(b) != "1\n" || err != nil {
		t.Errorf("Attach returned before the kernel showed the size: %q %v", b, err)
	}
	d := k.devices[3]
	if len(d.sockets) != 2 || d.size != 1000 || d.block != 512 || d.timeout != 2 || d.deadConn != 7 || d.backend != uri {
		t.Errorf("the kernel was told %+v", d)
	}
	if want := uint64(nbdwire.FlagReadOnly | protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN | 1); d.flags&want != want || d.flags&^kernelFlags != 0 {
		t.Errorf("flags %#x, want %#x and none but %#x", d.flags, want, kernelFlags)
	}
	for _, f := range d.sockets {
		readsBack(t, f)
	}

	again, err := kernel.Attach(ctx, 3, s.target, Options{})
	if err != nil || !again.Already || again.Device != a.Device || k.count(cmdConnect) != 1 {
		t.Errorf("attached again: %+v %v, CONNECT sent %d times", again, err, k.count(cmdConnect))
	}
	other := s.target
	other.Export = "vm2"
	_, err = kernel.Attach(ctx, 3, other, Options{})
	if used := (*InUseError)(nil); !errors.As(err, &used) || used.PID != fakePID || used.Backend != uri ||
		err.Error() != "in use by pid 4242 for "+uri+" (btrexport detach "+k.root+"/dev/nbd3, or choose another)" {
		t.Errorf("another export on the device: %v", err)
	}
	chosen, err := kernel.Attach(ctx, Any, other, Options{BlockSize: 4096})
	if err != nil || chosen.Index != 0 || chosen.Device != k.root+"/dev/nbd0" || k.devices[0].block != 4096 {
		t.Errorf("the kernel's choice: %+v %v", chosen, err)
	}

	for _, want := range []bool{true, false} {
		if was, err := kernel.Detach(ctx, 3, false); was != want || err != nil {
			t.Errorf("detach: %t %v, want %t", was, err, want)
		}
	}
	if got := k.attachedDevices(); !slices.Equal(got, []int{0}) {
		t.Errorf("attached after detach: %v, want 0 alone", got)
	}
}

// readsBack does what the kernel does with a socket.
func readsBack(t *testing.T, f *os.File) {
	t.Helper()
	if _, err := f.Write(nbdwire.AppendRequest(nil, protocol.TransmissionRequestHeader{Handle: 5, Offset: 10, Length: 10})); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, nbdwire.SimpleReplyLen+10)
	if _, err := io.ReadFull(f, b); err != nil || string(b[nbdwire.SimpleReplyLen:]) != "0123456789" {
		t.Errorf("read: % x %v", b, err)
	}
}

func TestAttachRefused(t *testing.T) {
	s := newServer(t)
	cases := []struct {
		name   string
		kernel func(*fake)
		target func(*nbdclient.Target)
		o      Options
		is     error
		as     any
		text   string
	}{
		{name: "no driver", kernel: func(k *fake) { k.noDriver = true }, is: ErrNoDriver, text: "kernel module nbd is not loaded (sudo modprobe nbd)"},
		{name: "driver in another namespace", kernel: func(k *fake) { k.noDriver = true; k.write("sys/module/nbd/x", "") }, text: "initial network namespace"},
		{name: "not root", kernel: func(k *fake) { k.errno[cmdConnect] = syscall.EPERM }, is: os.ErrPermission, text: "operation not permitted (run as root"},
		{name: "refused", kernel: func(k *fake) { k.errno[cmdConnect] = syscall.EINVAL }, is: syscall.EINVAL, text: "dmesg"},
		{name: "held open", kernel: func(k *fake) { k.errno[cmdConnect] = syscall.EBUSY }, text: "held open by another program"},
		{name: "attached by nbd-client", kernel: func(k *fake) { k.write("sys/block/nbd1/pid", "7\n") }, text: "in use by pid 7 (btrexport detach "},
		{name: "sysfs is nonsense", kernel: func(k *fake) { k.write("sys/block/nbd1/pid", "x\n") }, text: "nbd1/pid"},
		{name: "never usable", kernel: func(k *fake) { k.late = time.Second }, text: "is not usable after"},
		{name: "no such export", target: func(t *nbdclient.Target) { t.Export = "nosuch" }, text: "nosuch"},
		{name: "nobody there, told as such", target: func(t *nbdclient.Target) { t.Address += "x" }, as: new(*ConnectError)},
		{name: "nobody there", target: func(t *nbdclient.Target) { t.Address += "x" }, is: os.ErrNotExist},
		{name: "blocks", o: Options{BlockSize: 1 << 20}, is: ErrBlockSize},
		{name: "small blocks", o: Options{BlockSize: 256}, is: ErrBlockSize},
		{name: "odd blocks", o: Options{BlockSize: 1000}, is: ErrBlockSize},
		{name: "no index in the answer", kernel: func(k *fake) {
			k.answer = func(seq uint32, cmd uint8) []byte {
				if cmd != cmdConnect {
					return nil
				}
				return datagram(unix.NLMSG_ERROR, seq, make([]byte, 4))
			}
		}, is: errWire},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			k, kernel := newFake(t)
			kernel.wait = 5 * poll
			target := s.target
			if tc.kernel != nil {
				tc.kernel(k)
			}
			if tc.target != nil {
				tc.target(&target)
			}
			a, err := kernel.Attach(t.Context(), 1, target, tc.o)
			if err == nil {
				t.Fatalf("attached: %+v", a)
			}
			if tc.is != nil && !errors.Is(err, tc.is) || tc.as != nil && !errors.As(err, tc.as) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %v and %q", err, tc.is, tc.text)
			}
		})
	}
}

// TestAttachBusyForAMoment: udev looks at a device and goes away.
func TestAttachBusyForAMoment(t *testing.T) {
	s := newServer(t)
	k, kernel := newFake(t)
	k.errno[cmdConnect], k.times[cmdConnect] = syscall.EBUSY, 2
	if _, err := kernel.Attach(t.Context(), 1, s.target, Options{}); err != nil || k.count(cmdConnect) != 3 {
		t.Errorf("%v after %d times CONNECT", err, k.count(cmdConnect))
	}
}

// TestServers: what a server says decides whether it can be attached at all.
func TestServers(t *testing.T) {
	reply := func(typ uint32, data []byte) []byte {
		return nbdwire.AppendOptionReply(nil, protocol.NEGOTIATION_ID_OPTION_GO, typ, data)
	}
	export := func(size uint64, flags uint16) []byte {
		return append(nbdwire.AppendInfoExport(nil, protocol.NEGOTIATION_ID_OPTION_GO, size, flags), reply(protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)...)
	}
	cases := []struct {
		name    string
		answers [][]byte // to the first connection, to the second
		is      error
	}{
		{"wants TLS", [][]byte{reply(nbdwire.RepErrTLSReqd, nil)}, ErrTLS},
		{"one connection only", [][]byte{export(4096, 3)}, ErrMultiConn},
		{"changes between connections", [][]byte{export(4096, 3|1<<8), export(8192, 3|1<<8)}, ErrChanged},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			p := listenUnix(t, tc.answers)
			k, kernel := newFake(t)
			_, err := kernel.Attach(t.Context(), 0, nbdclient.Target{Network: "unix", Address: p}, Options{Connections: 2})
			if !errors.Is(err, tc.is) || k.count(cmdConnect) != 0 {
				t.Errorf("got %v after %d times CONNECT, want %v", err, k.count(cmdConnect), tc.is)
			}
		})
	}
}

func TestReplaceChanged(t *testing.T) {
	s := newServer(t)
	k, kernel := newFake(t)
	if _, err := kernel.Attach(t.Context(), 0, s.target, Options{}); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s.start(5000)
	if _, err := kernel.Attach(t.Context(), 0, s.target, Options{}); !errors.Is(err, ErrChanged) || k.count(cmdReconfigure) != 0 {
		t.Errorf("got %v after %d times RECONFIGURE, want ErrChanged", err, k.count(cmdReconfigure))
	}
}

func TestDetachHeld(t *testing.T) {
	s := newServer(t)
	for name, hold := range map[string]func(*fake){
		"/mnt/a": func(k *fake) { k.write("proc/self/mountinfo", "30 1 43:0 / /mnt/a ro - ext4 /dev/nbd0 ro\n") },
		"/mnt/b": func(k *fake) {
			k.write("sys/block/nbd0/nbd0p1/dev", "43:1\n")
			k.write("proc/self/mountinfo", "short\n30 1 43:1 / /mnt/b ro - ext4 /dev/nbd0p1 ro\n")
		},
		"/dev/dm-3": func(k *fake) { k.write("sys/block/nbd0/holders/dm-3", "") },
		"swap":      func(k *fake) { k.write("proc/swaps", "Filename Type\n"+k.root+"/dev/nbd0 partition 1 2 3\n") },
	} {
		t.Run(name, func(t *testing.T) {
			k, kernel := newFake(t)
			if _, err := kernel.Attach(t.Context(), 0, s.target, Options{}); err != nil {
				t.Fatal(err)
			}
			hold(k)
			_, err := kernel.Detach(t.Context(), 0, false)
			if used := (*InUseError)(nil); !errors.As(err, &used) || used.Holder != name || k.count(cmdDisconnect) != 0 {
				t.Errorf("got %v after %d times DISCONNECT, want in use by %s", err, k.count(cmdDisconnect), name)
			}
			if was, err := kernel.Detach(t.Context(), 0, true); !was || err != nil {
				t.Errorf("by force: %t %v", was, err)
			}
		})
	}
}

func TestIndex(t *testing.T) {
	k, kernel := newFake(t)
	k.write("dev/nbd7", "a file")
	for path, want := range map[string]int{
		"nbd": Any, "nbd0": 0, "nbd65535": 65535,
		"nbd65536": -2, "nbd7": -2, "nbd1p2": -2, "nbdx": -2, "nbd-1": -2, "sda": -2, "": -2, "nbd/0": -2, "../dev/x": -2,
	} {
		got, err := kernel.Index(filepath.Join(k.root, "dev") + "/" + path)
		if want == -2 && !errors.Is(err, ErrNotDevice) || want != -2 && (err != nil || got != want) {
			t.Errorf("%s: %d %v, want %d", path, got, err, want)
		}
	}
	for _, path := range []string{"/dev/null", "/", "nbd0", "/nosuch/nbd0"} {
		if got, err := kernel.Index(path); !errors.Is(err, ErrNotDevice) {
			t.Errorf("%s: %d %v, want ErrNotDevice", path, got, err)
		}
	}
}

// TestContextEndsWaiting: a kernel that does not answer holds nobody.
func TestContextEndsWaiting(t *testing.T) {
	s := newServer(t)
	k, kernel := newFake(t)
	k.answer = func(uint32, uint8) []byte { return datagram(unix.NLMSG_NOOP, 0, nil) }
	cause := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, cause)
	defer cancel()
	if _, err := kernel.Attach(ctx, 0, s.target, Options{}); !errors.Is(err, cause) {
		t.Errorf("got %v, want the context's cause", err)
	}
}

func TestIdentifier(t *testing.T) {
	long := identifier(nbdclient.Target{Network: "tcp", Address: "h:1", Export: strings.Repeat("ä", 2000)})
	if !strings.HasPrefix(long, "sha256:") || len(long) != 7+64 {
		t.Errorf("identifier of a long name: %q", long)
	}
}

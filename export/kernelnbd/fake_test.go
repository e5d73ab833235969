package kernelnbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(relayEnv); text != "" { // this binary is a relay that a test has started
		os.Exit(runRelay(text))
	}
	goleak.VerifyTestMain(m)
}

// fakeFamily is the number that the fake kernel gives to the family "nbd".
const fakeFamily = 27

// fakePID is who attaches everything: the kernel knows, messages do not tell.
const fakePID = 4242

// fake is a kernel's NBD driver behind socketpairs, and the files by which it shows what it does. Requests
// are decoded by package syscall and by hand, not by the code under test.
type fake struct {
	t    *testing.T
	root string
	wg   sync.WaitGroup // the goroutines of the sockets

	mu       sync.Mutex
	noDriver bool                               // guarded by mu, as all below
	errno    map[uint8]syscall.Errno            // the answer to a command, instead of doing it
	times    map[uint8]int                      // how often errno is given; not there: always
	late     time.Duration                      // before sysfs shows the size
	answer   func(seq uint32, cmd uint8) []byte // replaces the answer to a command, if not nil
	devices  map[int]*fakeDevice                // by N of /dev/nbdN
	asked    map[uint8]int                      // requests, by command
	members  []int                              // descriptors of ours that joined the group
	peers    map[int]int                        // the kernel's end of each descriptor of ours
}

type fakeDevice struct {
	sockets                               []*os.File // nil: dead
	size, block, timeout, deadConn, flags uint64
	backend                               string
}

func newFake(t *testing.T) (*fake, *Kernel) {
	k := &fake{t: t, root: t.TempDir(), errno: make(map[uint8]syscall.Errno), times: make(map[uint8]int),
		devices: make(map[int]*fakeDevice), asked: make(map[uint8]int), peers: make(map[int]int)}
	for name, text := range map[string]string{
		"dev/none": "", "sys/block/none": "", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
	} {
		k.write(name, text)
	}
	t.Cleanup(func() {
		k.wg.Wait()
		for _, d := range k.devices {
			d.close()
		}
	})
	return k, &Kernel{root: k.root, dial: k.dial}
}

// write replaces a file as a whole: sysfs never shows half of a value.
func (k *fake) write(name, text string) {
	path := filepath.Join(k.root, name)
	half := filepath.Join(k.root, "half")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(half, []byte(text), 0o644), os.Rename(half, path)); err != nil {
		k.t.Error(err)
	}
}

func (k *fake) dial(ctx context.Context) (*conn, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		return nil, err
	}
	k.mu.Lock()
	k.peers[p[0]] = p[1]
	k.mu.Unlock()
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		defer unix.Close(p[1])
		k.serve(p[1])
		k.mu.Lock()
		defer k.mu.Unlock()
		k.members = slices.DeleteFunc(k.members, func(fd int) bool { return fd == p[1] })
	}()
	return newConn(ctx, p[0], func(fd, group int) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if group != 9 {
			k.t.Errorf("joins group %d, want 9", group)
		}
		k.members = append(k.members, k.peers[fd])
		return nil
	})
}

// serve answers until the other end is closed.
func (k *fake) serve(fd int) {
	b := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, b)
		if n <= 0 || err != nil {
			return
		}
		all, err := syscall.ParseNetlinkMessage(b[:n])
		if err != nil {
			k.t.Errorf("request % x: %v", b[:n], err)
			return
		}
		for _, m := range all {
			if _, err := unix.Write(fd, k.handle(m)); err != nil {
				return
			}
		}
	}
}

// handle does one request and returns the datagram that answers it.
func (k *fake) handle(m syscall.NetlinkMessage) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	if m.Header.Flags != unix.NLM_F_REQUEST|unix.NLM_F_ACK || len(m.Data) < 4 {
		k.t.Errorf("request %+v", m)
		return nil
	}
	cmd, attrs := m.Data[0], k.attrs(m.Data[4:])
	if m.Header.Type == fakeFamily {
		k.asked[cmd]++
	}
	if k.answer != nil {
		if b := k.answer(m.Header.Seq, cmd); b != nil {
			return b
		}
	}
	var body []byte
	errno := syscall.Errno(0)
	switch {
	case m.Header.Type == unix.GENL_ID_CTRL:
		if body = k.family(); k.noDriver {
			errno = syscall.ENOENT
		}
	case m.Header.Type != fakeFamily || m.Data[1] != 1:
		errno = syscall.EOPNOTSUPP
	case k.refuses(cmd):
		errno = k.errno[cmd]
	default:
		body, errno = k.do(cmd, attrs)
	}
	var b []byte
	if errno == 0 && body != nil {
		b = datagram(m.Header.Type, m.Header.Seq, body)
	}
	ack := binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))
	return append(b, datagram(unix.NLMSG_ERROR, m.Header.Seq, append(ack, make([]byte, 16)...))...)
}

func (k *fake) refuses(cmd uint8) bool {
	if k.errno[cmd] == 0 {
		return false
	}
	n, limited := k.times[cmd]
	k.times[cmd] = n - 1
	if !limited {
		delete(k.times, cmd)
	}
	return !limited || n > 0
}

func datagram(typ uint16, seq uint32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, body...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func attr(typ uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func u32(n int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }

// attrs takes attributes apart.
func (k *fake) attrs(b []byte) map[uint16][]byte {
	all := make(map[uint16][]byte)
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			k.t.Errorf("attribute length %d of % x", n, b)
			return nil
		}
		all[binary.NativeEndian.Uint16(b[2:])&0x3fff] = b[4:n]
		b = b[min((n+3)&^3, len(b)):]
	}
	return all
}

// family is the controller's answer, with a group of another name and attributes that nobody wants.
func (k *fake) family() []byte {
	other := attr(1, slices.Concat(attr(2, u32(8)), attr(1, []byte("other\x00"))))
	ours := attr(2, slices.Concat(attr(1, []byte("nbd_mc_group\x00")), attr(2, u32(9))))
	return slices.Concat([]byte{1, 2, 0, 0}, attr(2, []byte("nbd\x00")), attr(1, binary.NativeEndian.AppendUint16(nil, fakeFamily)),
		attr(6, make([]byte, 40)), attr(7, slices.Concat(other, ours)))
}

// do does what drivers/block/nbd.c does.
func (k *fake) do(cmd uint8, attrs map[uint16][]byte) ([]byte, syscall.Errno) {
	index := -1
	if b, ok := attrs[1]; ok {
		index = int(binary.NativeEndian.Uint32(b))
	}
	d := k.devices[index]
	switch cmd {
	case 1:
		return k.connect(index, attrs)
	case 2:
		if d != nil {
			d.close()
			delete(k.devices, index)
			k.write(fmt.Sprintf("sys/block/nbd%d/size", index), "0\n")
			for _, name := range []string{"pid", "backend"} {
				_ = os.Remove(filepath.Join(k.root, fmt.Sprintf("sys/block/nbd%d", index), name))
			}
		}
		return nil, 0
	case 3:
		if d == nil || strings.TrimRight(string(attrs[10]), "\x00") != d.backend {
			return nil, syscall.EINVAL
		}
		for _, f := range k.sockets(attrs) {
			i := slices.Index(d.sockets, nil)
			if i < 0 {
				_ = f.Close()
				continue
			}
			d.sockets[i] = f
		}
		return nil, 0
	case 5:
		var items []byte
		for n := range 5 { // others are listed too
			used := byte(0)
			if k.devices[n] != nil {
				used = 1
			}
			items = append(items, attr(1, slices.Concat(attr(1, u32(n)), attr(2, []byte{used})))...)
		}
		return slices.Concat([]byte{5, 1, 0, 0}, attr(9, items)), 0
	}
	return nil, syscall.EOPNOTSUPP
}

func (k *fake) connect(index int, attrs map[uint16][]byte) ([]byte, syscall.Errno) {
	if index < 0 {
		for index = 0; k.devices[index] != nil; {
			index++
		}
	}
	if k.devices[index] != nil {
		return nil, syscall.EBUSY
	}
	number := func(typ uint16) uint64 {
		if len(attrs[typ]) != 8 {
			k.t.Errorf("CONNECT: attribute %d has %d bytes, want 8", typ, len(attrs[typ]))
			return 0
		}
		return binary.NativeEndian.Uint64(attrs[typ])
	}
	d := &fakeDevice{sockets: k.sockets(attrs), size: number(2), block: number(3), timeout: number(4), flags: number(5), deadConn: number(8),
		backend: strings.TrimRight(string(attrs[10]), "\x00")}
	if len(d.sockets) == 0 {
		return nil, syscall.EINVAL
	}
	k.devices[index] = d
	dir := fmt.Sprintf("sys/block/nbd%d/", index)
	k.write(dir+"size", "0\n")
	k.write(dir+"ro", strconv.FormatUint(d.flags>>1&1, 10)+"\n")
	k.write(dir+"backend", d.backend+"\n")
	k.write(dir+"dev", fmt.Sprintf("43:%d\n", 32*index))
	k.write(fmt.Sprintf("dev/nbd%d", index), "")
	k.write(dir+"pid", strconv.Itoa(fakePID)+"\n")
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		time.Sleep(k.late)
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.devices[index] != d {
			return
		}
		k.write(dir+"size", strconv.FormatUint(d.size/512, 10)+"\n")
	}()
	return slices.Concat([]byte{1, 1, 0, 0}, attr(1, u32(index))), 0
}

// sockets duplicates the descriptors that a request names, as the kernel does.
func (k *fake) sockets(attrs map[uint16][]byte) []*os.File {
	var all []*os.File
	for b := attrs[7]; len(b) >= 4; { // its items all have type 1
		n := (int(binary.NativeEndian.Uint16(b)) + 3) &^ 3
		fd, ok := k.attrs(b[4:n])[1]
		if !ok {
			k.t.Error("socket without a descriptor")
			return nil
		}
		dup, err := unix.FcntlInt(uintptr(binary.NativeEndian.Uint32(fd)), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			k.t.Error(err)
			return nil
		}
		all = append(all, os.NewFile(uintptr(dup), "socket"))
		b = b[n:]
	}
	return all
}

func (d *fakeDevice) close() {
	for i, f := range d.sockets {
		if f != nil {
			_ = f.Close()
		}
		d.sockets[i] = nil
	}
}

// cut ends the connections of a device and tells everybody, of each one.
func (k *fake) cut(index int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[index]
	d.close()
	for range d.sockets {
		k.tell(datagram(fakeFamily, 0, slices.Concat([]byte{4, 1, 0, 0}, attr(1, u32(index)))))
	}
}

// tell sends to the members of the group. Precondition: mu is held.
func (k *fake) tell(b []byte) {
	for _, fd := range k.members {
		if _, err := unix.Write(fd, b); err != nil {
			k.t.Error(err)
		}
	}
}

// alive counts the connections of a device that live.
func (k *fake) alive(index int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	if d := k.devices[index]; d != nil {
		for _, f := range d.sockets {
			if f != nil {
				n++
			}
		}
	}
	return n
}

func (k *fake) count(cmd uint8) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked[cmd]
}

func (k *fake) attachedDevices() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.devices))
}

package kernelnbd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/btrexport/btrexport/export/nbdclient"
	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	// MaxConnections bounds Options.Connections.
	MaxConnections = 64
	// handshakeTime bounds the handshakes of all connections; settleTime how long the kernel may take to
	// show what it was told.
	handshakeTime = 10 * time.Second
	settleTime    = 10 * time.Second
	// maxBackend is the longest identifier, in bytes: the kernel shows it in one page.
	maxBackend = 1 << 10
)

var (
	// ErrTLS is a server that wants TLS of a client that has not turned it on.
	ErrTLS = errors.New("the server requires TLS (write nbds:// or nbds+unix://, with x509 certificates)")
	// ErrMultiConn is a server that does not promise one content on all connections.
	ErrMultiConn = errors.New("the server does not offer CAN_MULTI_CONN (use --connections 1)")
	// ErrBlockSize is a server that wants larger requests than a page of the kernel.
	ErrBlockSize = errors.New("the block size is no power of 2 from 512 to the kernel's page size, or less than the server's smallest")
	// ErrChanged is a server that has another export under the same name than the device was attached to.
	ErrChanged = errors.New("the export has changed")
)

// ConnectError is a server that can't be reached, or that refuses the export.
type ConnectError struct{ Err error }

// Error is the cause's.
func (e *ConnectError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *ConnectError) Unwrap() error { return e.Err }

// InUseError is a device that is attached to another backend, or held open.
type InUseError struct {
	Device  string
	PID     int    // of who attached it; may have ended since. 0: it is not attached
	Backend string // may be empty
	Holder  string // what uses it: a mount point, swap or a device; may be empty
}

// Error says who and what to do.
func (e *InUseError) Error() string {
	switch {
	case e.Holder != "":
		return fmt.Sprintf("in use by %s (unmount it first, or --force)", e.Holder)
	case e.PID == 0:
		return "held open by another program (close it, or choose another device)"
	case e.Backend != "":
		return fmt.Sprintf("in use by pid %d for %s (btrexport detach %s, or choose another)", e.PID, e.Backend, e.Device)
	}
	return fmt.Sprintf("in use by pid %d (btrexport detach %s, or choose another)", e.PID, e.Device)
}

// Options says how a device is attached. The zero value is one connection and the kernel's own timeouts:
// then a request to a server that has died can wait for ever.
type Options struct {
	Dialer      Dialer        // makes the connections; nil: the kernel gets the sockets themselves, which can't be under TLS
	Connections int           // 0 means 1
	ReadOnly    bool          // also if the server would take writes
	BlockSize   uint32        // bytes of a sector; 0: 512, or the server's smallest if that is more
	Timeout     time.Duration // of a request; in whole seconds, rounded up
	DeadConn    time.Duration // how long requests wait for a new connection; 0: they fail at once
}

// Attached is a device with an export behind it. Size is the export's, in bytes: the kernel shows whole
// sectors only.
type Attached struct {
	Device      string
	Index       int
	Info        nbdclient.Info
	ReadOnly    bool
	Connections int
	Backend     string
	Already     bool // it was before; dead connections were replaced
}

// Attach puts the export at t on /dev/nbdN and returns when the device can be used. A device that has the
// same export behind it stays as it is, and only its dead connections are replaced.
func (k *Kernel) Attach(ctx context.Context, index int, t nbdclient.Target, o Options) (*Attached, error) {
	return k.attach(ctx, index, t, o, true)
}

// attach is Attach for one who wants a new device, or else for one who wants only to have dead connections
// replaced: a device that is not attached is errDetached then.
func (k *Kernel) attach(ctx context.Context, index int, t nbdclient.Target, o Options, fresh bool) (*Attached, error) {
	o.Connections = max(o.Connections, 1)
	t, err := absolute(t)
	if err != nil {
		return nil, err
	}
	c, err := k.open(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	backend := identifier(t)
	attached, err := k.attached(index, backend)
	if err == nil && !attached && !fresh {
		err = errDetached
	}
	if err != nil {
		return nil, err
	}
	d, err := dialSockets(ctx, t, o)
	if err != nil {
		return nil, err
	}
	defer closeAll(d.files)
	s, err := d.setup(index, backend, o)
	if err != nil {
		return nil, err
	}
	a := &Attached{Device: k.Device(index), Index: index, Info: d.info, ReadOnly: o.ReadOnly || d.info.ReadOnly(),
		Connections: o.Connections, Backend: backend, Already: attached}
	if !attached {
		if index, a.Already, err = k.connect(ctx, c, s); err != nil {
			return nil, err
		}
	}
	if a.Already {
		return a, k.replace(ctx, c, a, s)
	}
	a.Index, a.Device = index, k.Device(index)
	return a, k.usable(ctx, c, a)
}

// attached says whether the device has our backend already. Another one is an InUseError.
func (k *Kernel) attached(index int, backend string) (bool, error) {
	if index == Any {
		return false, nil
	}
	s, err := k.state(index)
	if err != nil || s.pid == 0 {
		return false, err
	}
	if s.backend != backend {
		return false, &InUseError{Device: k.Device(index), PID: s.pid, Backend: s.backend}
	}
	return true, nil
}

// connect hands the sockets to the kernel. A device that is open without being attached, by udev for
// example, is busy for a moment. attached tells that another program has done the same meanwhile.
func (k *Kernel) connect(ctx context.Context, c *conn, s setup) (index int, attached bool, err error) {
	settle, cancel := context.WithTimeoutCause(ctx, k.settle(), &InUseError{Device: k.Device(s.index)})
	defer cancel()
	err = await(settle, func() (done bool, err error) {
		index = Any
		err = c.ask(ctx, s.connect(), func(cmd uint8, attrs []byte) (err error) {
			if cmd == cmdConnect {
				index, err = decodeIndex(attrs)
			}
			return err
		})
		if s.index == Any || !errors.Is(err, unix.EBUSY) {
			return true, explain(err)
		}
		attached, err = k.attached(s.index, s.backend)
		return attached, err
	})
	if err == nil && !attached && index == Any {
		err = fmt.Errorf("%w: CONNECT was not answered with an index", errWire)
	}
	return index, attached, err
}

// usable waits until the kernel shows the device as it should be and it can be opened, which is when its
// partitions are read.
func (k *Kernel) usable(ctx context.Context, c *conn, a *Attached) error {
	ctx, cancel := context.WithTimeoutCause(ctx, k.settle(), fmt.Errorf("attached, and %s is not usable after %v (btrexport detach it; are /sys and /dev the kernel's own here?)", a.Device, k.settle()))
	defer cancel()
	err := await(ctx, func() (bool, error) {
		connected := false
		err := c.ask(ctx, onIndex(cmdStatus, a.Index), func(_ uint8, attrs []byte) (err error) {
			connected, err = decodeStatus(attrs, a.Index)
			return err
		})
		if err != nil || !connected {
			return false, explain(err)
		}
		s, err := k.state(a.Index)
		return s.pid != 0 && s.size == a.Info.Size&^(sectorSize-1) && s.readOnly == a.ReadOnly, err
	})
	if err != nil {
		return err
	}
	return await(ctx, func() (bool, error) {
		f, err := os.Open(a.Device)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return true, f.Close()
	})
}

// replace puts new connections in the place of dead ones.
func (k *Kernel) replace(ctx context.Context, c *conn, a *Attached, s setup) error {
	now, err := k.state(a.Index)
	if err != nil {
		return err
	}
	if want := a.Info.Size &^ (sectorSize - 1); now.size != want || a.ReadOnly && !now.readOnly {
		return fmt.Errorf("%w: %s has %d bytes, read-only %t; the server offers %d bytes, read-only %t (btrexport detach %s, and attach it again)",
			ErrChanged, a.Device, now.size, now.readOnly, want, a.ReadOnly, a.Device)
	}
	return explain(c.ask(ctx, s.reconfigure(), ignore))
}

// Detach ends what is behind the device; was tells whether anything was. A device that is mounted, or used
// by another one, stays, unless force.
func (k *Kernel) Detach(ctx context.Context, index int, force bool) (was bool, err error) {
	c, err := k.open(ctx)
	if err != nil {
		return false, err
	}
	defer c.close()
	s, err := k.state(index)
	if err != nil || s.pid == 0 {
		return false, err
	}
	if !force {
		holder, err := k.holder(index)
		if err != nil {
			return false, err
		}
		if holder != "" {
			return false, &InUseError{Device: k.Device(index), PID: s.pid, Backend: s.backend, Holder: holder}
		}
	}
	if err := c.ask(ctx, onIndex(cmdDisconnect, index), ignore); err != nil {
		return false, explain(err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, k.settle(), errors.New("disconnected, and still held open by another program (close it)"))
	defer cancel()
	return true, await(ctx, func() (bool, error) {
		s, err := k.state(index)
		return s.pid == 0, err
	})
}

func ignore(uint8, []byte) error { return nil }

// explain says what an errno of the driver means.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (run as root: the kernel wants CAP_SYS_ADMIN)", unix.EPERM)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the kernel refuses: %w (the end of dmesg tells why)", err)
	}
	return err
}

// sockets are connections at the start of transmission.
type sockets struct {
	files []*os.File
	info  nbdclient.Info
}

// dialSockets makes the connections to one export.
func dialSockets(ctx context.Context, t nbdclient.Target, o Options) (*sockets, error) {
	if o.Dialer == nil {
		o.Dialer = direct{}
	}
	info, files, err := o.Dialer.Dial(ctx, t, o.Connections)
	if err != nil {
		return nil, err
	}
	return &sockets{files: files, info: info}, nil
}

// dialEach makes n connections to one export, each by one.
func dialEach(ctx context.Context, t nbdclient.Target, n int, one func(context.Context, nbdclient.Target) (nbdclient.Info, *os.File, error)) (nbdclient.Info, []*os.File, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTime, fmt.Errorf("no answer within %v", handshakeTime))
	defer cancel()
	var first nbdclient.Info
	var files []*os.File
	for range n {
		info, f, err := one(ctx, t)
		if err == nil {
			files = append(files, f)
		}
		refused := (*nbdclient.OptionError)(nil)
		switch {
		case errors.As(err, &refused) && refused.Type == nbdwire.RepErrTLSReqd:
			err = ErrTLS
		case err != nil:
			err = &ConnectError{err}
		case n > 1 && !info.MultiConn():
			err = ErrMultiConn
		case len(files) > 1 && (info.Size != first.Size || info.Flags != first.Flags):
			err = fmt.Errorf("%w from one connection to the next: %d bytes, then %d", ErrChanged, first.Size, info.Size)
		}
		if err != nil {
			closeAll(files)
			return nbdclient.Info{}, nil, err
		}
		first = info
	}
	return first, files, nil
}

// kernelFlags are the transmission flags that the kernel knows; READ_ONLY is bit 1 of them.
// HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, ROTATIONAL, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
const kernelFlags = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<8

// setup says to the kernel what o and the server want. The sector is as small as can be, whatever block the
// server prefers: partition tables and filesystems in an image count in sectors of 512.
func (d *sockets) setup(index int, backend string, o Options) (setup, error) {
	s := setup{index: index, size: d.info.Size, blockSize: o.BlockSize, timeout: o.Timeout, deadConn: o.DeadConn,
		flags: d.info.Flags & kernelFlags, backend: backend}
	smallest := max(sectorSize, d.info.Blocks.Minimum)
	if s.blockSize == 0 {
		s.blockSize = smallest
	}
	if s.blockSize < smallest || s.blockSize > uint32(os.Getpagesize()) || s.blockSize&(s.blockSize-1) != 0 {
		return setup{}, fmt.Errorf("%w: %d, the server's smallest is %d", ErrBlockSize, s.blockSize, d.info.Blocks.Minimum)
	}
	if o.ReadOnly {
		s.flags |= nbdwire.FlagReadOnly
	}
	for _, f := range d.files {
		s.sockets = append(s.sockets, int(f.Fd()))
	}
	return s, nil
}

// absolute makes the paths of a target independent of where we stand.
func absolute(t nbdclient.Target) (nbdclient.Target, error) {
	var err, e error
	if t.Network == "unix" {
		t.Address, err = filepath.Abs(t.Address)
	}
	if t.TLS.Certificates != "" {
		t.TLS.Certificates, e = filepath.Abs(t.TLS.Certificates)
	}
	return t, errors.Join(err, e)
}

// identifier is what stands in sysfs for the backend of a device: its URI, or the hash of one that is too long.
func identifier(t nbdclient.Target) string {
	uri := t.URI()
	if len(uri) <= maxBackend {
		return uri
	}
	sum := sha256.Sum256([]byte(uri))
	return "sha256:" + hex.EncodeToString(sum[:])
}

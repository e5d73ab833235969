package nbdclient

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	readBuffer = 64 << 10
	// closeTime bounds how long Close tries to say goodbye.
	closeTime = time.Second
)

// ErrClosed is what reads get after Close.
var ErrClosed = errors.New("nbd client is closed")

// ReadError is a read that the server refused or could not do. The connection lives.
type ReadError struct {
	Offset uint64
	Length uint32
	Errno  uint32 // of the NBD document, which are Linux's numbers
	Lost   uint64 // offset of the first byte that could not be read; Offset where the server does not say
	Text   string // the server's own words; may be empty
}

// Error gives the range and the server's reason.
func (e *ReadError) Error() string {
	s := fmt.Sprintf("read offset %d length %d: server says: %v", e.Offset, e.Length, e.Unwrap())
	if e.Lost != e.Offset {
		s += fmt.Sprintf(" at offset %d", e.Lost)
	}
	if e.Text != "" {
		s += fmt.Sprintf(" (%q)", e.Text)
	}
	return s
}

// Unwrap returns the reason as a syscall.Errno.
func (e *ReadError) Unwrap() error { return syscall.Errno(e.Errno) }

// Client is a connection to one export. All methods may be called concurrently.
type Client struct {
	conn net.Conn      // immutable
	info Info          // immutable
	in   *bufio.Reader // of the receiver goroutine
	done chan struct{} // closed when the receiver has ended

	sendMu sync.Mutex
	out    []byte // guarded by sendMu; reused

	mu      sync.Mutex
	pending map[uint64]*call // guarded by mu; by cookie
	cookie  uint64           // guarded by mu; the last one used
	err     error            // guarded by mu; why no more reads are taken
}

// call is one request in flight.
type call struct {
	p    []byte
	off  uint64
	err  error
	done chan struct{} // of capacity 1
	got  []span        // what chunks brought: by offset, no two touch that came in order
}

// Dial connects to t and negotiates its export with GO. ctx bounds the handshake alone.
func Dial(ctx context.Context, t Target) (*Client, error) {
	s, err := open(ctx, t)
	if err != nil {
		return nil, err
	}
	info, err := s.extend(t.Export)
	if err == nil {
		err = s.choose(&info)
	}
	if err != nil {
		return nil, s.abandon(ctx, err)
	}
	if !s.stop() {
		return nil, s.abandon(ctx, context.Cause(ctx))
	}
	c := &Client{conn: s.conn, info: info, in: s.in, done: make(chan struct{}), pending: make(map[uint64]*call)}
	go c.receive()
	return c, nil
}

// Info returns what the server said of the export.
func (c *Client) Info() Info { return c.info }

// ReadAt implements io.ReaderAt. Concurrent calls are pipelined on the one connection; a read
// longer than the server's maximum is split. It waits until the server answers or Close.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("nbd client: negative offset")
	}
	var eof error
	if rest := c.info.Size - min(uint64(off), c.info.Size); uint64(len(p)) > rest {
		p, eof = p[:rest], io.EOF
	}
	n := 0
	for n < len(p) {
		part := p[n:min(len(p), n+int(c.info.Blocks.Maximum))]
		if err := c.read(part, uint64(off)+uint64(n)); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, eof
}

// read does one request.
func (c *Client) read(p []byte, off uint64) error {
	k := &call{p: p, off: off, done: make(chan struct{}, 1)}
	cookie, err := c.register(k)
	if err != nil {
		return err
	}
	if err := c.send(protocol.TransmissionRequestHeader{
		Type: protocol.TRANSMISSION_TYPE_REQUEST_READ, Handle: cookie, Offset: off, Length: uint32(len(p)),
	}); err != nil {
		c.fail(err)
	}
	<-k.done
	return k.err
}

func (c *Client) register(k *call) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.cookie++
	c.pending[c.cookie] = k
	return c.cookie, nil
}

func (c *Client) send(h protocol.TransmissionRequestHeader) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	c.out = nbdwire.AppendRequest(c.out[:0], h)
	_, err := c.conn.Write(c.out)
	return err
}

// fail ends the connection. The receiver tells the calls in flight.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	_ = c.conn.Close()
}

// receive is the receiver goroutine: it ends with the connection, and with it every call.
func (c *Client) receive() {
	defer close(c.done)
	for {
		if err := c.receiveOne(); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			c.fail(fmt.Errorf("nbd connection to %s: %w", c.conn.RemoteAddr(), err))
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for cookie, k := range c.pending {
		delete(c.pending, cookie)
		k.err = c.err
		k.done <- struct{}{}
	}
}

func (c *Client) receiveOne() error {
	var b [nbdwire.SimpleReplyLen]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return err
	}
	if c.info.Structured && !nbdwire.IsSimpleReply(b[:]) {
		return c.receiveChunk(b[:])
	}
	h, err := nbdwire.DecodeSimpleReply(b[:])
	if err != nil {
		return errors.Join(ErrProtocol, err)
	}
	k := c.find(h.Handle)
	if k == nil {
		return fmt.Errorf("%w: reply to cookie %d, which is not in flight", ErrProtocol, h.Handle)
	}
	switch {
	case h.Error != 0:
		k.err = &ReadError{Offset: k.off, Length: uint32(len(k.p)), Errno: h.Error, Lost: k.off}
	case c.info.Structured:
		return fmt.Errorf("%w: simple reply to a read after structured replies were agreed on", ErrProtocol)
	default:
		if _, err := io.ReadFull(c.in, k.p); err != nil {
			return err
		}
	}
	c.finish(h.Handle, k)
	return nil
}

// find returns the call in flight with this cookie; nil if there is none.
func (c *Client) find(cookie uint64) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[cookie]
}

// finish ends a call.
func (c *Client) finish(cookie uint64, k *call) {
	c.mu.Lock()
	delete(c.pending, cookie)
	c.mu.Unlock()
	k.done <- struct{}{}
}

// Close says goodbye and closes. Reads in flight end with ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	first := c.err == nil
	if first {
		c.err = ErrClosed
	}
	c.mu.Unlock()
	if first {
		_ = c.conn.SetWriteDeadline(time.Now().Add(closeTime))
		_ = c.send(protocol.TransmissionRequestHeader{Type: protocol.TRANSMISSION_TYPE_REQUEST_DISC})
	}
	_ = c.conn.Close()
	<-c.done
	return nil
}

package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	maxDepth = 1 << 10
	// inBuffer is small enough to stay in a core's own cache, so that comparing reads warm bytes.
	inBuffer = 512 << 10
)

// conn is one connection under load. One goroutine uses it.
type conn struct {
	job   Job
	c     net.Conn
	want  []byte   // the whole file
	order []uint32 // blocks, shared by all connections
	next  int      // index into order of the next request; those of other connections lie between
	step  int      // connections
	left  int      // requests not yet sent

	out   []byte // requests not yet written
	slots []slot // one for each request in flight, by the low bits of its cookie
	free  []int
	seq   uint64

	in      []byte // bytes received and not yet taken are in[:have]
	have    int
	payload int    // bytes of a reply's data still to come
	at      uint64 // their offset in the file
	ends    bool   // the payload is the last of its reply
	cur     int    // the slot that it belongs to

	start, now time.Time
	counted    Result
	latency    []time.Duration
	last       time.Time // of the last reply
}

// slot is one request.
type slot struct {
	busy   bool
	cookie uint64
	off    uint64
	got    int // bytes of data that came
	sent   time.Time
}

func newConn(j Job, c net.Conn, want []byte, order []uint32, index int) *conn {
	n := j.Requests
	if n == 0 {
		n = len(order)
	}
	k := &conn{job: j, c: c, want: want, order: order, next: index, step: j.Connections, in: make([]byte, inBuffer)}
	k.left = (n - index + j.Connections - 1) / j.Connections
	k.slots = make([]slot, j.Depth)
	for i := range k.slots {
		k.free = append(k.free, i)
	}
	k.latency = make([]time.Duration, 0, k.left)
	return k
}

// run asks and compares until all is answered.
func (k *conn) run(start time.Time) error {
	k.start, k.now = start, time.Now()
	for {
		if err := k.ask(); err != nil {
			return err
		}
		if len(k.free) == len(k.slots) {
			return nil
		}
		n, err := k.c.Read(k.in[k.have:])
		if err != nil {
			return fmt.Errorf("read from the server, %d requests in flight: %w", len(k.slots)-len(k.free), err)
		}
		k.have, k.now = k.have+n, time.Now()
		if err := k.take(); err != nil {
			return err
		}
	}
}

// ask sends as many requests as fit, by one write.
func (k *conn) ask() error {
	if k.now.Sub(k.start) >= k.job.Limit {
		k.left = 0
	}
	k.out = k.out[:0]
	for k.left > 0 && len(k.free) > 0 {
		i := k.free[len(k.free)-1]
		k.free = k.free[:len(k.free)-1]
		k.seq++
		s := &k.slots[i]
		*s = slot{busy: true, cookie: k.seq*maxDepth + uint64(i), off: uint64(k.order[k.next%len(k.order)]) * uint64(k.job.Block), sent: k.now}
		k.next += k.step
		k.left--
		k.out = nbdwire.AppendRequest(k.out, protocol.TransmissionRequestHeader{
			Type: protocol.TRANSMISSION_TYPE_REQUEST_READ, Handle: s.cookie, Offset: s.off, Length: uint32(k.job.Block),
		})
	}
	if len(k.out) == 0 {
		return nil
	}
	_, err := k.c.Write(k.out)
	return err
}

// take goes through what has been received; the start of a header stays for the next time.
func (k *conn) take() error {
	b := k.in[:k.have]
	for {
		if k.payload > 0 {
			n := min(k.payload, len(b))
			if err := k.compare(b[:n]); err != nil {
				return err
			}
			b = b[n:]
			if k.payload > 0 {
				break
			}
			if err := k.pieceDone(); err != nil {
				return err
			}
			continue
		}
		n, err := k.header(b)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		b = b[n:]
	}
	k.have = copy(k.in, b)
	return nil
}

// compare takes p as the bytes of the file at k.at.
func (k *conn) compare(p []byte) error {
	if want := k.want[k.at : k.at+uint64(len(p))]; !bytes.Equal(p, want) {
		i := 0
		for p[i] == want[i] {
			i++
		}
		return fmt.Errorf("wrong byte at offset %d: got %#x, want %#x", k.at+uint64(i), p[i], want[i])
	}
	k.at += uint64(len(p))
	k.payload -= len(p)
	k.slots[k.cur].got += len(p)
	return nil
}

// header decodes a reply's header and returns its length; 0: it has not wholly come.
func (k *conn) header(b []byte) (int, error) {
	if !k.job.Structured {
		return k.simple(b)
	}
	return k.chunk(b)
}

func (k *conn) simple(b []byte) (int, error) {
	if len(b) < nbdwire.SimpleReplyLen {
		return 0, nil
	}
	h, err := nbdwire.DecodeSimpleReply(b)
	if err != nil {
		return 0, err
	}
	s, err := k.find(h.Handle)
	if err != nil {
		return 0, err
	}
	if h.Error != 0 {
		return 0, fmt.Errorf("offset %d: server says error %d", s.off, h.Error)
	}
	k.at, k.payload, k.ends = s.off, k.job.Block, true
	return nbdwire.SimpleReplyLen, nil
}

func (k *conn) chunk(b []byte) (int, error) {
	const offsetLen, holeLen = 8, 12
	if len(b) < nbdwire.ChunkLen {
		return 0, nil
	}
	h, err := nbdwire.DecodeChunk(b)
	if err != nil {
		return 0, err
	}
	s, err := k.find(h.Cookie)
	if err != nil {
		return 0, err
	}
	k.ends = h.Flags&nbdwire.ReplyFlagDone != 0
	rest := b[nbdwire.ChunkLen:]
	switch {
	case h.Type == nbdwire.ReplyNone && h.Length == 0:
		return nbdwire.ChunkLen, k.pieceDone()
	case h.Type == nbdwire.ReplyOffsetData && h.Length > offsetLen:
		if len(rest) < offsetLen {
			return 0, nil
		}
		k.at, k.payload = binary.BigEndian.Uint64(rest), int(h.Length-offsetLen)
		return nbdwire.ChunkLen + offsetLen, k.inside(s, k.payload)
	case h.Type == nbdwire.ReplyOffsetHole && h.Length == holeLen:
		if len(rest) < holeLen {
			return 0, nil
		}
		return nbdwire.ChunkLen + holeLen, k.hole(s, binary.BigEndian.Uint64(rest), int(binary.BigEndian.Uint32(rest[8:])))
	}
	return 0, fmt.Errorf("offset %d: chunk of type %#x, %d bytes", s.off, h.Type, h.Length)
}

// hole holds n bytes of zeroes against the file.
func (k *conn) hole(s *slot, at uint64, n int) error {
	k.at, k.payload = at, n
	if err := k.inside(s, n); err != nil {
		return err
	}
	for k.payload > 0 {
		if err := k.compare(zeroes[:min(k.payload, len(zeroes))]); err != nil {
			return err
		}
	}
	return k.pieceDone()
}

var zeroes [64 << 10]byte

// inside refuses a chunk beyond what its request asked for.
func (k *conn) inside(s *slot, n int) error {
	if k.at < s.off || k.at+uint64(n) > s.off+uint64(k.job.Block) || s.got+n > k.job.Block {
		return fmt.Errorf("request at %d: chunk at %d of %d bytes lies outside", s.off, k.at, n)
	}
	return nil
}

func (k *conn) find(cookie uint64) (*slot, error) {
	i := int(cookie % maxDepth)
	if i >= len(k.slots) || !k.slots[i].busy || k.slots[i].cookie != cookie {
		return nil, errors.New("reply to a request that is not in flight")
	}
	k.cur = i
	return &k.slots[i], nil
}

// pieceDone ends a simple reply or a chunk, and the request where it was the last.
func (k *conn) pieceDone() error {
	if !k.ends {
		return nil
	}
	s := &k.slots[k.cur]
	if s.got != k.job.Block {
		return fmt.Errorf("offset %d: reply ends after %d bytes", s.off, s.got)
	}
	s.busy = false
	k.free = append(k.free, k.cur)
	k.last = k.now
	k.counted.Compared += int64(k.job.Block)
	if k.now.Sub(k.start) < k.job.Skip {
		return nil
	}
	k.counted.Requests++
	k.counted.Bytes += int64(k.job.Block)
	k.latency = append(k.latency, k.now.Sub(s.sent))
	return nil
}

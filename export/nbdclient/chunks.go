package nbdclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/btrexport/btrexport/export/nbdwire"
)

const (
	// maxErrorPayload bounds an error chunk: a text of the longest length and room for more fields.
	maxErrorPayload = nbdwire.MaxString + 64
	// maxSpans bounds the separate ranges of one reply; those that come in order make one.
	maxSpans = 4096
)

// span is the range [from, to) of a call's buffer.
type span struct{ from, to int }

// cover notes that a chunk brought [from, to); false when another has brought some of it already.
func (k *call) cover(from, to int) bool {
	i, _ := slices.BinarySearchFunc(k.got, from, func(s span, from int) int { return s.to - from })
	// i is the first that ends at or behind from. Chunks come in order from most servers: it is the last then.
	touches := i < len(k.got) && k.got[i].to == from
	next := i
	if touches {
		next++
	}
	if next < len(k.got) && k.got[next].from < to {
		return false
	}
	switch {
	case touches:
		k.got[i].to = to
	case len(k.got) >= maxSpans:
		return false
	default:
		k.got = slices.Insert(k.got, i, span{from, to})
	}
	return true
}

// whole tells whether every byte has come.
func (k *call) whole() bool {
	at := 0
	for _, s := range k.got {
		if s.from != at {
			return false
		}
		at = s.to
	}
	return at == len(k.p)
}

// receiveChunk takes one chunk, of whose header head is the beginning.
func (c *Client) receiveChunk(head []byte) error {
	var b [nbdwire.ChunkLen]byte
	if _, err := io.ReadFull(c.in, b[copy(b[:], head):]); err != nil {
		return err
	}
	h, err := nbdwire.DecodeChunk(b[:])
	if err != nil {
		return errors.Join(ErrProtocol, err)
	}
	k := c.find(h.Cookie)
	if k == nil {
		return fmt.Errorf("%w: chunk for cookie %d, which is not in flight", ErrProtocol, h.Cookie)
	}
	if err := c.takeChunk(k, h); err != nil {
		return err
	}
	if h.Flags&nbdwire.ReplyFlagDone == 0 {
		return nil
	}
	if k.err == nil && !k.whole() {
		return fmt.Errorf("%w: read of %d bytes at %d was answered in part", ErrProtocol, len(k.p), k.off)
	}
	c.finish(h.Cookie, k)
	return nil
}

// takeChunk reads a chunk's payload into the call.
func (c *Client) takeChunk(k *call, h nbdwire.Chunk) error {
	switch {
	case h.Type == nbdwire.ReplyNone && h.Length == 0 && h.Flags&nbdwire.ReplyFlagDone != 0:
		return nil
	case h.Type == nbdwire.ReplyOffsetData && h.Length > 8:
		from, err := c.chunkOffset(k, h.Length-8)
		if err != nil {
			return err
		}
		_, err = io.ReadFull(c.in, k.p[from:from+int(h.Length-8)])
		return err
	case h.Type == nbdwire.ReplyOffsetHole && h.Length == 12:
		return c.takeHole(k)
	case h.Type&nbdwire.ReplyErrorFlag != 0 && h.Length <= maxErrorPayload:
		return c.takeError(k, h)
	}
	return fmt.Errorf("%w: chunk of type %d with %d bytes", ErrProtocol, h.Type, h.Length)
}

// chunkOffset reads the offset of n bytes of content and returns their place in the call's buffer.
func (c *Client) chunkOffset(k *call, n uint64) (int, error) {
	var b [8]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return 0, err
	}
	return k.place(binary.BigEndian.Uint64(b[:]), n)
}

// place notes n bytes of content at off and returns where they go.
func (k *call) place(off, n uint64) (int, error) {
	in, size := off-k.off, uint64(len(k.p))
	if off < k.off || n == 0 || n > size || in > size-n || !k.cover(int(in), int(in+n)) {
		return 0, fmt.Errorf("%w: chunk of %d bytes at %d for a read of %d at %d", ErrProtocol, n, off, len(k.p), k.off)
	}
	return int(in), nil
}

func (c *Client) takeHole(k *call) error {
	var b [12]byte
	if _, err := io.ReadFull(c.in, b[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(b[8:])
	from, err := k.place(binary.BigEndian.Uint64(b[:]), uint64(n))
	if err == nil {
		clear(k.p[from : from+int(n)])
	}
	return err
}

// takeError keeps the first error of a reply.
func (c *Client) takeError(k *call, h nbdwire.Chunk) error {
	b := make([]byte, h.Length)
	if _, err := io.ReadFull(c.in, b); err != nil {
		return err
	}
	e, err := nbdwire.DecodeErrorChunk(h.Type, b)
	if err != nil {
		return errors.Join(ErrProtocol, err)
	}
	if h.Type != nbdwire.ReplyErrorOffset {
		e.Offset = k.off
	}
	if e.Offset < k.off || e.Offset-k.off >= uint64(len(k.p)) {
		return fmt.Errorf("%w: error at %d for a read of %d at %d", ErrProtocol, e.Offset, len(k.p), k.off)
	}
	if k.err == nil {
		k.err = &ReadError{Offset: k.off, Length: uint32(len(k.p)), Errno: e.Errno, Lost: e.Offset, Text: e.Text}
	}
	return nil
}

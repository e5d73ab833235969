//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/protocol"
	"golang.org/x/sync/errgroup"

	"github.com/btrexport/btrexport/export/nbdwire"
)

// randomRange is any range of a file: half of them shorter than a block, some across its end's last
// block, none empty unless the file is.
func randomRange(rng *rand.Rand, size, longest int) (off, n int) {
	if size == 0 {
		return 0, 0
	}
	off = rng.IntN(size)
	if rng.IntN(20) == 0 {
		off = max(0, size-1-rng.IntN(5000))
	}
	n = 1 + rng.IntN(min(longest, 1<<rng.IntN(21)))
	return off, min(n, size-off)
}

// readRandom reads n random unaligned ranges, depth of them in flight, and compares each.
func readRandom(r io.ReaderAt, want []byte, seed uint64, n, depth, longest int) error {
	var g errgroup.Group
	for w := range depth {
		g.Go(func() error {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			buf := make([]byte, longest)
			for range (n + depth - 1) / depth {
				off, n := randomRange(rng, len(want), longest)
				if err := readEqual(r, want, off, buf[:n]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// readEqual fills buf from off on and compares it with that part of want.
func readEqual(r io.ReaderAt, want []byte, off int, buf []byte) error {
	n, err := r.ReadAt(buf, int64(off))
	if err != nil {
		return fmt.Errorf("offset %d length %d: %w", off, len(buf), err)
	}
	if d := diff(buf[:n], want[off:off+len(buf)]); d != "" {
		return fmt.Errorf("offset %d length %d: %s", off, len(buf), d)
	}
	return nil
}

// checkRandomReads does readRandom on a connection of its own.
func (s *server) checkRandomReads(ctx context.Context, t *testing.T, rng *rand.Rand, f served, n int) {
	t.Helper()
	c := s.dial(ctx, t, f.name)
	defer c.Close()
	if got := c.Info(); got.Size != uint64(len(f.want)) || !got.ReadOnly() || !got.MultiConn() {
		t.Errorf("%s: got %+v, want %d bytes, read-only, multi-conn", f.path, got, len(f.want))
	}
	if err := readRandom(c, f.want, rng.Uint64(), n, 32, 1<<20); err != nil {
		t.Errorf("%s: %v", f.path, err)
	}
}

// stream is a client that keeps many long reads in flight and needs no memory for them: it compares
// what comes as it comes.
type stream struct {
	conn net.Conn
	in   *bufio.Reader
	want []byte
	at   map[uint64]protocol.TransmissionRequestHeader // in flight, by cookie
	buf  []byte
}

// openStream connects by EXPORT_NAME, the handshake of old clients.
func openStream(ctx context.Context, socket string, f served) (*stream, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	s := &stream{conn: conn, in: bufio.NewReader(conn), want: f.want, at: make(map[uint64]protocol.TransmissionRequestHeader), buf: make([]byte, 128<<10)}
	if err := s.handshake(f.name); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

func (s *stream) handshake(name string) error {
	var greeting [nbdwire.GreetingLen]byte
	if _, err := io.ReadFull(s.in, greeting[:]); err != nil {
		return err
	}
	flags, err := nbdwire.DecodeGreeting(greeting[:])
	if err != nil {
		return err
	}
	out := nbdwire.AppendClientFlags(nil, uint32(flags))
	out = nbdwire.AppendOption(out, nbdwire.OptExportName, []byte(name))
	if _, err := s.conn.Write(out); err != nil {
		return err
	}
	skip := nbdwire.ExportNameLen
	if flags&nbdwire.FlagNoZeroes == 0 {
		skip += nbdwire.ZeroesLen
	}
	_, err = s.in.Discard(skip)
	return err
}

// run makes n reads of random places of the given length, depth of them in flight.
func (s *stream) run(rng *rand.Rand, n, depth, length int) error {
	for sent, done := 0, 0; done < n; {
		for sent < n && len(s.at) < depth {
			sent++
			if err := s.ask(uint64(sent), rng.IntN(len(s.want)-length+1), length); err != nil {
				return err
			}
		}
		if err := s.answer(); err != nil {
			return err
		}
		done++
	}
	return nil
}

func (s *stream) ask(cookie uint64, off, length int) error {
	h := protocol.TransmissionRequestHeader{Type: protocol.TRANSMISSION_TYPE_REQUEST_READ, Handle: cookie, Offset: uint64(off), Length: uint32(length)}
	s.at[cookie] = h
	_, err := s.conn.Write(nbdwire.AppendRequest(nil, h))
	return err
}

func (s *stream) answer() error {
	var b [nbdwire.SimpleReplyLen]byte
	if _, err := io.ReadFull(s.in, b[:]); err != nil {
		return err
	}
	reply, err := nbdwire.DecodeSimpleReply(b[:])
	if err != nil {
		return err
	}
	h, ok := s.at[reply.Handle]
	if !ok || reply.Error != 0 {
		return fmt.Errorf("reply %+v to request %+v", reply, h)
	}
	delete(s.at, reply.Handle)
	want := s.want[h.Offset : h.Offset+uint64(h.Length)]
	for len(want) > 0 {
		part := s.buf[:min(len(s.buf), len(want))]
		if _, err := io.ReadFull(s.in, part); err != nil {
			return err
		}
		if !bytes.Equal(part, want[:len(part)]) {
			return fmt.Errorf("request %+v: %s", h, diff(part, want[:len(part)]))
		}
		want = want[len(part):]
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/btrexport/btrexport/fsread"
)

// copyChunk is the longest read of a copy in bytes, and copyDepth how many are under way: enough for
// every device of a large array to have work.
const (
	copyChunk = 1 << 20
	copyDepth = 16
)

// sink takes a file's bytes in order; what is skipped between them is zero.
type sink interface {
	write(p []byte, off uint64) error
	// end says how long the file is.
	end(size uint64) error
}

// copied is what a copy did.
type copied struct {
	Bytes uint64 // the file's size
	Data  uint64 // of them read from the devices; the rest are holes
}

// copier moves one file into a sink: extents become reads of up to chunk bytes, depth of them
// under way, written in order.
type copier struct {
	ctx   context.Context
	file  *fsread.File
	to    sink
	chunk uint64     // bytes; copyChunk outside of tests
	depth int        // copyDepth
	queue []*pending // by offset
	free  []*pending // read and written, to be used again
	from  uint64     // start and end of the data that no read was started for yet
	upto  uint64
	data  uint64
	read  func(n uint64) // told of every read that was written
}

// pending is one read, and where its end is told.
type pending struct {
	fsread.Read
	done chan struct{} // has room for one
}

// ReadDone implements fsread.Completer.
func (p *pending) ReadDone(*fsread.Read) { p.done <- struct{}{} }

// copyFile copies a whole file. Every byte that reaches the sink was verified as far as the file has
// checksums; the first that can't be read ends the copy with a *lostError. read is told of bytes as
// they get there.
func copyFile(ctx context.Context, f *fsread.File, to sink, read func(n uint64)) (copied, error) {
	c := &copier{ctx: ctx, file: f, to: to, chunk: copyChunk, depth: copyDepth, read: read}
	return c.run()
}

func (c *copier) run() (copied, error) {
	err := c.file.Extents(c.ctx, 0, c.segment)
	if err == nil {
		err = c.startRange(true)
	}
	for err == nil && len(c.queue) > 0 {
		err = c.finishOldest()
	}
	c.abandon()
	if err == nil {
		err = c.to.end(c.file.Size())
	}
	return copied{Bytes: c.file.Size(), Data: c.data}, err
}

// dataBytes counts what a copy of the file must read: holes and what was never written cost nothing.
func dataBytes(ctx context.Context, f *fsread.File) (n uint64, err error) {
	err = f.Extents(ctx, 0, func(s fsread.Segment) error {
		if s.Kind != fsread.Hole && s.Kind != fsread.Prealloc {
			n += min(s.Off+s.Len, f.Size()) - s.Off
		}
		return nil
	})
	return n, err
}

// segment gathers data; holes and what was never written end a range.
func (c *copier) segment(s fsread.Segment) error {
	end := min(s.Off+s.Len, c.file.Size())
	if s.Kind == fsread.Hole || s.Kind == fsread.Prealloc {
		return c.startRange(true)
	}
	if c.from == c.upto {
		c.from = s.Off
	}
	c.upto = end
	return c.startRange(false)
}

// startRange starts the reads of what was gathered: whole chunks, or, at its end, all of it.
func (c *copier) startRange(all bool) error {
	for c.from < c.upto && (all || c.upto-c.from >= c.chunk) {
		if len(c.queue) == c.depth {
			if err := c.finishOldest(); err != nil {
				return err
			}
		}
		n := min(c.upto-c.from, c.chunk-c.from%c.chunk)
		c.start(c.from, int(n))
		c.from += n
	}
	return nil
}

func (c *copier) start(off uint64, n int) {
	var p *pending
	if last := len(c.free) - 1; last >= 0 {
		p, c.free = c.free[last], c.free[:last]
	} else {
		p = &pending{done: make(chan struct{}, 1)}
		p.Done = p
	}
	p.Off, p.Len = off, n
	c.queue = append(c.queue, p)
	c.file.Submit([]*fsread.Read{&p.Read})
}

// finishOldest waits for the read at the head of the queue and writes it.
func (c *copier) finishOldest() error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	p := c.queue[0]
	select {
	case <-p.done:
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	c.queue = c.queue[1:]
	err := p.Err
	if err == nil {
		c.data += uint64(p.Len)
		err = c.to.write(p.Payload(), p.Off)
		c.read(uint64(p.Len))
	}
	p.Release()
	c.free = append(c.free, p)
	return err
}

// abandon gives back what is still being read, when it is done; the filesystem's Close waits for that.
func (c *copier) abandon() {
	for _, p := range c.queue {
		go func() {
			<-p.done
			p.Release()
		}()
	}
}

// lostError is a file that can't be copied because a part of it is lost.
type lostError struct {
	Path string
	Err  *fsread.LostError
}

// Error names the first part that is lost, up to where good bytes follow, the logical address of its first block,
// and each copy's cause; of a row of RAID5 or RAID6 also those columns (P, Q, D0, D1 ...) that were of no help.
func (e *lostError) Error() string {
	first := e.Err.Ranges[0]
	n := first.Len
	for _, r := range e.Err.Ranges[1:] {
		if r.Off != first.Off+n {
			break
		}
		n += r.Len
	}
	why := fmt.Sprintf("%v", first.Cause.Err)
	if first.Cause.Err == nil {
		causes := make([]string, 0, len(first.Cause.Copies))
		for _, c := range first.Cause.Copies {
			column := ""
			if c.Column != "" {
				column = c.Column + " "
			}
			causes = append(causes, fmt.Sprintf("%sdevid %d (%s) @%d: %v", column, c.Dev, c.Name, c.Physical, c.Err))
		}
		why = "no good copy: " + strings.Join(causes, ", ")
	}
	return fmt.Sprintf("read %s offset %d length %d logical %d: %s (the rest of the file can be read: serve it, and reads of this part alone fail)",
		e.Path, first.Off, n, first.Cause.Logical, why)
}

func (e *lostError) Unwrap() error { return e.Err }

// explainLost puts the path that the user wrote to what was lost.
func explainLost(path string, err error) error {
	var lost *fsread.LostError
	if errors.As(err, &lost) && len(lost.Ranges) > 0 {
		return &lostError{Path: path, Err: lost}
	}
	return fmt.Errorf("read %s: %w", path, err)
}

// streamSink writes to what can't be sought in: holes are written as zeroes.
type streamSink struct {
	w    io.Writer
	at   uint64
	zero []byte
}

func (s *streamSink) write(p []byte, off uint64) error {
	if err := s.fill(off); err != nil {
		return err
	}
	n, err := s.w.Write(p)
	s.at += uint64(n)
	if err != nil {
		return &writeError{err}
	}
	return nil
}

func (s *streamSink) end(size uint64) error { return s.fill(size) }

func (s *streamSink) fill(to uint64) error {
	if s.zero == nil {
		s.zero = make([]byte, 64<<10)
	}
	for s.at < to {
		n, err := s.w.Write(s.zero[:min(to-s.at, uint64(len(s.zero)))])
		s.at += uint64(n)
		if err != nil {
			return &writeError{err}
		}
	}
	return nil
}

// writeError is an error of the destination, not of the file.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// repairs counts the blocks that a second copy had to serve. It implements volume.Stats.
type repairs struct{ repaired, refused atomic.Int64 }

func (r *repairs) ChecksumFailed(uint64, bool) { r.refused.Add(1) }
func (r *repairs) Retried(uint64, string)      {}
func (r *repairs) Repaired(string)             { r.repaired.Add(1) }
func (r *repairs) Lost(int)                    {}
func (r *repairs) Unverified(int)              {}

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/btrexport/btrexport/fsread"
)

// copyChunk is the longest read of a copy in bytes, and copyDepth how many are under way: enough for
// every device of a large array to have work.
const (
	copyChunk = 1 << 20
	copyDepth = 16
	blockSize = 4 << 10 // the least that is read again by itself; no sector is smaller
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
	Data  uint64 // of them read from the devices; the rest are holes, but for what was lost
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
	lost  *losses        // nil: what can't be read ends the copy
	blank []byte         // of the losses' fill, to write
}

// pending is one read, and where its end is told.
type pending struct {
	fsread.Read
	done   chan struct{} // has room for one
	flying bool          // submitted, and its end not taken yet
}

// ReadDone implements fsread.Completer.
func (p *pending) ReadDone(*fsread.Read) { p.done <- struct{}{} }

// copyFile copies a whole file. Every byte that reaches the sink was verified as far as the file has
// checksums; the first that can't be read ends the copy with a *lostError, or is added to lost, if that is not
// nil, and replaced by its fill. read is told of bytes as they get there.
func copyFile(ctx context.Context, f *fsread.File, to sink, lost *losses, read func(n uint64)) (copied, error) {
	c := &copier{ctx: ctx, file: f, to: to, chunk: copyChunk, depth: copyDepth, read: read, lost: lost}
	return c.run()
}

func (c *copier) run() (copied, error) {
	var skip func(*fsread.LayoutError) error
	if c.lost != nil {
		skip = c.skipLayout
	}
	err := eachSegment(c.ctx, c.file, c.segment, skip)
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
// skip is as eachSegment has it.
func dataBytes(ctx context.Context, f *fsread.File, skip func(*fsread.LayoutError) error) (n uint64, err error) {
	err = eachSegment(ctx, f, func(s fsread.Segment) error {
		if s.Kind != fsread.Hole && s.Kind != fsread.Prealloc {
			n += min(s.Off+s.Len, f.Size()) - s.Off
		}
		return nil
	}, skip)
	return n, err
}

// eachSegment calls fn for every part of the file. Where its extents can't be read, skip is called, and unless
// that is nil or fails, fn goes on behind.
func eachSegment(ctx context.Context, f *fsread.File, fn func(fsread.Segment) error, skip func(*fsread.LayoutError) error) error {
	for off := uint64(0); ; {
		err := f.Extents(ctx, off, fn)
		var unknown *fsread.LayoutError
		if skip == nil || !errors.As(err, &unknown) {
			return err
		}
		if err := skip(unknown); err != nil {
			return err
		}
		off = unknown.Off + unknown.Len
	}
}

// skipLayout writes what came before, and the fill for a part of which nobody knows what it is made of.
func (c *copier) skipLayout(e *fsread.LayoutError) error {
	if !skippable(e) {
		return e
	}
	if err := c.startRange(true); err != nil {
		return err
	}
	for len(c.queue) > 0 {
		if err := c.finishOldest(); err != nil {
			return err
		}
	}
	n := min(e.Off+e.Len, c.file.Size()) - e.Off
	c.lost.add(e.Off, n, e.Error())
	return c.writeFill(e.Off, n)
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
	c.queue = append(c.queue, p)
	c.submit(p, off, n)
}

func (c *copier) submit(p *pending, off uint64, n int) {
	p.Off, p.Len, p.flying = off, n, true
	c.file.Submit([]*fsread.Read{&p.Read})
}

// wait takes the end of a read.
func (c *copier) wait(p *pending) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	select {
	case <-p.done:
		p.flying = false
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// finishOldest waits for the read at the head of the queue and writes it.
func (c *copier) finishOldest() error {
	p := c.queue[0]
	if err := c.wait(p); err != nil {
		return err
	}
	err := c.finish(p)
	if p.flying {
		return err // a part of it; abandon waits
	}
	c.queue = c.queue[1:]
	p.Release()
	c.free = append(c.free, p)
	return err
}

// finish writes a read that is done.
func (c *copier) finish(p *pending) error {
	if p.Err != nil {
		return c.without(p)
	}
	c.data += uint64(p.Len)
	return c.write(p)
}

func (c *copier) write(p *pending) error {
	err := c.to.write(p.Payload(), p.Off)
	c.read(uint64(p.Len))
	return err
}

// without goes on without what was lost of a read. One that failed as a whole, as by a tree block that tells
// the checksums of a part, is read again in halves, down to single blocks.
func (c *copier) without(p *pending) error {
	var lost *fsread.LostError
	switch {
	case c.lost == nil || !skippable(p.Err):
		return p.Err
	case errors.As(p.Err, &lost):
		return c.writeAround(p, lost)
	case p.Len <= blockSize:
		c.lost.add(p.Off, uint64(p.Len), p.Err.Error())
		c.read(uint64(p.Len))
		return c.writeFill(p.Off, uint64(p.Len))
	}
	off, n := p.Off, p.Len
	half := (n/2 + blockSize - 1) / blockSize * blockSize
	for _, part := range [2]struct {
		off uint64
		n   int
	}{{off, half}, {off + uint64(half), n - half}} {
		p.Release()
		c.submit(p, part.off, part.n)
		if err := c.wait(p); err != nil {
			return err
		}
		if err := c.finish(p); err != nil {
			return err
		}
	}
	return nil
}

// writeAround writes a read with the fill where it lost ranges.
func (c *copier) writeAround(p *pending, lost *fsread.LostError) error {
	c.data += uint64(p.Len)
	for i := range lost.Ranges {
		r := &lost.Ranges[i]
		c.data -= r.Len
		c.lost.add(r.Off, r.Len, causeOf(r))
		part := p.Payload()[r.Off-p.Off:][:r.Len]
		for j := range part {
			part[j] = c.lost.fill
		}
	}
	return c.write(p)
}

// writeFill writes the fill; zeroes are what is skipped anyhow.
func (c *copier) writeFill(off, n uint64) error {
	if c.lost.fill == 0 {
		return nil
	}
	if c.blank == nil {
		c.blank = bytes.Repeat([]byte{c.lost.fill}, copyChunk)
	}
	for n > 0 {
		part := c.blank[:min(n, copyChunk)]
		if err := c.to.write(part, off); err != nil {
			return err
		}
		off, n = off+uint64(len(part)), n-uint64(len(part))
	}
	return nil
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
	return fmt.Sprintf("read %s offset %d length %d logical %d: %s (the rest of the file can be read: cp --skip-bad writes zeroes for this part)",
		e.Path, first.Off, n, first.Cause.Logical, causeOf(&first))
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

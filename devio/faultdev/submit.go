package faultdev

import (
	"io"
	"slices"
	"time"

	"github.com/btrexport/btrexport/devio"
)

// pending is a read on its way. The device below sees inner, in which pending takes the place of
// the Completer.
type pending struct {
	dev     *Dev
	ticket  ticket
	owner   *devio.Read // what was submitted
	inner   devio.Read
	verdict verdict
}

// Submit judges each read of batch by the rules in force and sends on together those that no rule
// holds back. Reads that fail complete inside Submit.
func (d *Dev) Submit(batch []*devio.Read) {
	if len(batch) == 0 {
		return
	}
	t := d.begin(len(batch))
	now := make([]*pending, 0, len(batch))
	d.mu.Lock()
	for _, r := range batch {
		p := &pending{dev: d, ticket: t, owner: r}
		d.judge(p)
		if !d.hold(p) {
			now = append(now, p)
		}
	}
	d.mu.Unlock()
	d.start(now)
}

// judge counts p's read and collects what the rules say of it. d.mu is held.
func (d *Dev) judge(p *pending) {
	d.reads++
	if d.record {
		d.log = append(d.log, Access{Off: p.owner.Off, Size: p.owner.Size()})
	}
	if d.closed {
		p.verdict.err = devio.ErrClosed
		return
	}
	for _, rule := range d.rules {
		rule.apply(p.owner, &p.verdict)
	}
}

// hold keeps p if it hangs or is late, and reports whether it did. d.mu is held.
func (d *Dev) hold(p *pending) bool {
	switch {
	case d.closed:
		return false
	case p.verdict.hang:
		d.hanging = append(d.hanging, p)
		return true
	case p.verdict.wait > 0:
		d.timers.Add(1)
		d.delayed[p] = time.AfterFunc(p.verdict.wait, func() { d.expire(p) })
		return true
	}
	return false
}

// expire starts a delayed read, unless Close was faster.
func (d *Dev) expire(p *pending) {
	defer d.timers.Done()
	d.mu.Lock()
	_, ours := d.delayed[p]
	delete(d.delayed, p)
	d.mu.Unlock()
	if ours {
		d.start([]*pending{p})
	}
}

// Release lets go of the reads that hang, and removes the rules of Hang. It returns how many hung.
func (d *Dev) Release() int {
	d.mu.Lock()
	held := d.hanging
	d.hanging = nil
	d.rules = slices.DeleteFunc(d.rules, func(r *Rule) bool { return r.hangs })
	d.mu.Unlock()
	d.start(held)
	return len(held)
}

// Hanging is the number of reads that hang.
func (d *Dev) Hanging() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.hanging)
}

// start sends reads to the device below as one batch, and then ends those that fail.
func (d *Dev) start(reads []*pending) {
	batch := make([]*devio.Read, 0, len(reads))
	for _, p := range reads {
		if p.verdict.err == nil {
			p.inner = devio.Read{Off: p.owner.Off, Bufs: p.owner.Bufs, Done: p}
			batch = append(batch, &p.inner)
		}
	}
	d.inner.Submit(batch)
	for _, p := range reads {
		if err := p.verdict.err; err != nil {
			p.fail(err)
		}
	}
}

// fail ends the read with err and without data.
func (p *pending) fail(err error) {
	spoil(p.owner.Bufs, 0)
	p.dev.end(p.ticket, p.owner, 0, err)
}

// ReadDone is told by the device below.
func (p *pending) ReadDone(r *devio.Read) {
	n, err := r.N, r.Err
	if v := p.verdict; v.less && v.keep < uint64(n) {
		n, err = int(v.keep), io.ErrUnexpectedEOF
	}
	corrupt(p.owner.Bufs, p.verdict.bad)
	spoil(p.owner.Bufs, n)
	p.dev.end(p.ticket, p.owner, n, err)
}

// Close ends the reads that hang or are late with devio.ErrClosed and closes the device below.
func (d *Dev) Close() error {
	d.mu.Lock()
	d.closed = true
	cancelled := d.hanging
	d.hanging = nil
	for p, timer := range d.delayed {
		if timer.Stop() {
			d.timers.Done()
		}
		delete(d.delayed, p)
		cancelled = append(cancelled, p)
	}
	d.mu.Unlock()
	for _, p := range cancelled {
		p.fail(devio.ErrClosed)
	}
	err := d.inner.Close()
	d.timers.Wait()
	return err
}

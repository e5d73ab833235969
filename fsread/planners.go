package fsread

import "sync"

// maxPlanners bounds the goroutines that wait for tree blocks on behalf of reads.
const maxPlanners = 16

// planners plan reads whose tree blocks are not cached: goroutines that start on demand, take what is
// queued and end when there is nothing left. The queue is as long as the reads that callers have under way.
type planners struct {
	fs *FS // immutable
	wg sync.WaitGroup

	mu          sync.Mutex
	first, last *Read // guarded by mu, as all below
	running     int
	closed      bool
}

// add queues a read that could not be planned without waiting.
func (p *planners) add(r *Read) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		r.fail(ErrClosed)
		return
	}
	r.next = nil
	if p.last == nil {
		p.first = r
	} else {
		p.last.next = r
	}
	p.last = r
	if p.running < maxPlanners {
		p.running++
		p.wg.Add(1)
		go p.run()
	}
	p.mu.Unlock()
}

func (p *planners) take() *Read {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.first
	if r == nil {
		p.running--
		return nil
	}
	if p.first = r.next; p.first == nil {
		p.last = nil
	}
	return r
}

func (p *planners) run() {
	defer p.wg.Done()
	var s submission
	for r := p.take(); r != nil; r = p.take() {
		if err := r.plan(p.fs.life, false); err != nil {
			r.fail(err)
			continue
		}
		s.add(r)
		s.submit(p.fs.vol)
	}
}

// close refuses further reads and waits for those that are being planned. The FS's life has ended by
// then, so none of them waits for a tree block.
func (p *planners) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
}

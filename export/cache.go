package export

const (
	// aheadBytes is how much of a CACHE is read at a time: a compressed extent's most.
	aheadBytes = 128 << 10
	// maxAhead bounds what one CACHE reads, in bytes, and maxAheadQueue how many wait their turn. The rest
	// is not read: the command is a hint.
	maxAhead      = MaxRead
	maxAheadQueue = 16
)

// checkCache wants a range inside of the export and no flag.
func (q *request) checkCache() error {
	if q.flags != 0 {
		return errFlags
	}
	return q.checkRange()
}

// prefetch queues the range of a CACHE, which is answered at once. It is read, checked and dropped, so
// that the File's own caches know it: tree blocks, inflated extents.
func (t *transmission) prefetch(q *request) {
	size := t.export.fileSize
	if q.offset < size {
		t.ahead.add(Span{Offset: q.offset, Length: min(q.length, size-q.offset, maxAhead)})
	}
}

// readAhead reads a range, a part at a time, as long as the server's memory has room for it and
// somebody may still want it.
func (t *transmission) readAhead(s Span) {
	for s.Length > 0 && t.life.Err() == nil && !t.leaving.Load() {
		n := min(s.Length, aheadBytes)
		c, ok := t.share.try(int64(n))
		if !ok {
			return
		}
		a := &aheadRead{share: t.share, charge: c, done: make(chan bool, 1)}
		a.read = Read{Offset: s.Offset, Length: uint32(n), Done: a}
		t.export.File.Submit([]*Read{&a.read})
		select {
		case good := <-a.done:
			if !good {
				return
			}
		case <-t.lost:
			return
		}
		s.Offset, s.Length = s.Offset+n, s.Length-n
	}
}

// aheadRead is one read whose bytes nobody takes.
type aheadRead struct {
	read   Read
	share  *share
	charge charge
	done   chan bool // of capacity 1: whether it succeeded
}

// ReadDone implements Completer.
func (a *aheadRead) ReadDone(*Read) {
	good := a.read.Err == nil
	if a.read.Lender != nil {
		a.read.Lender.Release(&a.read)
	}
	a.share.give(a.charge)
	a.done <- good
}
